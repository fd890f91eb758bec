"""Small classifiers on frozen embeddings: labels, a calibrated head, limits with "unsure" between them, evidence.

    head = train(vectors, targets, embedder="open_nsfw/0.1.0", name="synthetic")
    save(head, Path("synthetic.safetensors"))

`head` is saved with safetensors: install krea-data[classify].
"""

__all__: list[str] = []
