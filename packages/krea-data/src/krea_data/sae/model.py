"""A sparse autoencoder whose sparsity is shared out over a batch: BatchTopK (arXiv 2412.06410).

In training a batch of b vectors keeps its b * k strongest activations, so that a plain picture may use few features and
a rich one many. To encode one picture at a time needs a threshold that does not look at its neighbours: the running
mean of the weakest activation that was kept (the same paper, section 3). Prefixes of the latents may have to rebuild
the vectors by themselves (Matryoshka, arXiv 2503.17547), which keeps broad features from being split up.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from krea_data.sae.sparse import Sparse

try:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file
    from torch import Tensor, nn
except ImportError as error:
    raise ImportError("sparse autoencoders need torch: pip install 'krea-data[torch]'") from error

__all__ = ["SparseAutoencoder", "encode_all", "load", "save"]

_ROWS = 4096  # encoded at a time


class SparseAutoencoder(nn.Module):
    """Vectors of `features` numbers as few of `latents` directions of length 1, about `k` of them each.

    Inputs are scaled as in training: `centre` is taken off, and the rest divided by `scale`.
    """

    centre: Tensor
    scale: Tensor
    threshold: Tensor

    def __init__(self, features: int, latents: int, k: int) -> None:
        super().__init__()
        if not 0 < k <= latents:
            raise ValueError(f"k {k} is not between 1 and the {latents} latents; 16 of 4096 are usual")
        self.features, self.latents, self.k = features, latents, k
        self.encoder = nn.Parameter(torch.empty(latents, features))
        self.bias = nn.Parameter(torch.zeros(latents))
        self.decoder = nn.Parameter(torch.empty(latents, features))
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("threshold", torch.zeros(()))

    @torch.no_grad()
    def start(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Fit centre and scale to vectors `n features`, and begin with random directions, decoder equal to encoder."""
        self.centre.copy_(vectors.mean(dim=0))
        self.scale.copy_((vectors - self.centre).pow(2).mean().sqrt().clamp_min(1e-12))
        directions = torch.randn(self.latents, self.features, generator=generator)
        self.decoder.copy_(directions / directions.norm(dim=1, keepdim=True))
        self.encoder.copy_(self.decoder)

    def scaled(self, vectors: Tensor) -> Tensor:
        """Vectors `n features` as the autoencoder sees them."""
        return (vectors - self.centre) / self.scale

    def answers(self, scaled: Tensor) -> Tensor:
        """How strongly every latent answers, `n latents`, also below 0."""
        return torch.nn.functional.linear(scaled, self.encoder, self.bias)

    def strongest(self, answers: Tensor) -> Tensor:
        """The activations of a batch `n latents`: its n * k strongest answers, as far as they are above 0."""
        count = min(self.k * len(answers), answers.numel())
        least = answers.flatten().topk(count, sorted=False).values.min()
        return torch.where(answers >= least.clamp_min(torch.finfo(answers.dtype).tiny), answers, 0.0)

    def forward(self, vectors: Tensor) -> Tensor:
        """Activations `n latents` of vectors `n features`, each by itself: those above the threshold."""
        answers = self.answers(self.scaled(vectors))
        return torch.where(answers > self.threshold, answers, 0.0)

    def rebuilt(self, activations: Tensor) -> Tensor:
        """Vectors `n features`, in the scale of the inputs, of activations `n latents`."""
        return activations @ self.decoder * self.scale + self.centre


@torch.no_grad()
def encode_all(model: SparseAutoencoder, vectors: np.ndarray) -> Sparse:
    """The activations of all rows of `n features`, without ever holding `n latents` of them."""
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start in range(0, len(vectors), _ROWS):
        found = model(torch.from_numpy(np.ascontiguousarray(vectors[start : start + _ROWS], dtype=np.float32)))
        rows, latents = found.nonzero(as_tuple=True)
        parts.append((rows.numpy() + start, latents.numpy(), found[rows, latents].numpy()))
    return Sparse.of(parts, len(vectors), model.latents)


def save(model: SparseAutoencoder, path: Path, notes: dict[str, str] | None = None) -> None:
    """Write the model as one safetensors file; `notes` go into its header."""
    header = {"k": str(model.k), **(notes or {})}
    part = path.with_name(f".{path.name}.part")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, part, header)
    part.replace(path)


def load(path: Path) -> SparseAutoencoder:
    """A model as it was saved; ValueError if the file holds something else."""
    with safe_open(path, "pt") as file:
        names: Sequence[str] = list(file.keys())
        header = file.metadata() or {}
        wanted = {"encoder", "bias", "decoder", "centre", "scale", "threshold"}
        if set(names) != wanted or "k" not in header:
            raise ValueError(
                f"{path} holds {sorted(names)} and no sparse autoencoder; one is written by sae.model.save"
            )
        tensors = {name: file.get_tensor(name) for name in names}
    latents, features = tensors["decoder"].shape
    model = SparseAutoencoder(features, latents, int(header["k"]))
    model.load_state_dict(tensors)
    return model.eval()
