"""Tags from a sparse autoencoder on image embeddings: train it, name its features, filter by them, look at them.

    fitted = train(embeddings, Config(latents=4096, k=16))
    features = name_features(encode_all(fitted.model, embeddings), labels)

`model` and `training` need torch: install krea-data[torch].
"""

__all__: list[str] = []
