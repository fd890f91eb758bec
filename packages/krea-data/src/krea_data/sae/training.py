"""Train a sparse autoencoder on embeddings: Adam, latents that died revived by an auxiliary loss (arXiv 2406.04093).

A latent that has not been used for `dead_after` vectors is dead. The strongest of the dead try to rebuild what the
living left over (appendix A.2 there), so that they turn to what is missing. Every step depends on the seed and its own
number alone, and a run that was stopped goes on from its last checkpoint to the same result.
"""

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from krea_data.sae.model import SparseAutoencoder

try:
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file
    from torch import Tensor
except ImportError as error:
    raise ImportError("sparse autoencoders need torch: pip install 'krea-data[torch]'") from error

__all__ = ["Config", "Fitted", "train"]

_KEPT = 0.99  # of the running threshold, each step
_WARM = 0.05  # of the steps, over which the learning rate rises; over the last fifth it falls
_EVERY = 500  # steps between two checkpoints


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """`prefixes` are Matryoshka's: numbers of latents that rebuild by themselves, besides all of them."""

    latents: int = 4096
    k: int = 16
    steps: int = 5000
    batch: int = 1024
    learning_rate: float = 4e-4
    prefixes: tuple[int, ...] = ()
    dead_after: int = 100_000  # vectors
    auxiliary: float = 1 / 32  # weight of the dead latents' loss
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or not 0 < self.k <= self.latents:
            raise ValueError(
                f"{self.steps} steps of {self.batch} with {self.k} of {self.latents} latents: use at least 1"
            )
        if list(self.prefixes) != sorted(set(self.prefixes)) or not all(0 < p < self.latents for p in self.prefixes):
            raise ValueError(f"prefixes {self.prefixes} must rise and stay below the {self.latents} latents")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """A trained autoencoder, and how good it is on all vectors: explained variance and dead latents, 0 to 1 each."""

    model: SparseAutoencoder
    explained: float
    dead: float
    active: float  # latents that a vector uses, on average


def train(
    vectors: np.ndarray,
    config: Config,
    *,
    checkpoint: Path | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Fitted:
    """Fit an autoencoder to vectors `n features`. With `checkpoint`, a file, a stopped run goes on where it was.

    ValueError for vectors that are not a finite array of two axes, or a checkpoint of another run.
    """
    if vectors.ndim != 2 or not len(vectors) or not np.isfinite(vectors[:: max(1, len(vectors) // 1000)]).all():
        raise ValueError(f"vectors of shape {vectors.shape} are no finite `n features`; give one row for each picture")
    model = SparseAutoencoder(vectors.shape[1], config.latents, config.k)
    sample = _rows(vectors, np.random.default_rng([config.seed, 0]).permutation(len(vectors))[:20_000])
    model.start(sample, torch.Generator().manual_seed(config.seed))
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.999))
    idle = torch.zeros(config.latents)  # vectors since each latent was used
    first = _resume(checkpoint, config, model, optimizer, idle) if checkpoint is not None else 0
    for step in range(first, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _rise_and_fall(step, config.steps)
        loss = _step(model, optimizer, _batch(vectors, config, step), config, idle)
        on_step(step + 1, loss)
        if checkpoint is not None and (step + 1) % _EVERY == 0:
            _keep(checkpoint, config, model, optimizer, idle, step + 1)
    return _judged(model.eval(), vectors)


def _batch(vectors: np.ndarray, config: Config, step: int) -> Tensor:
    """The vectors of one step: a stretch of the endless sequence of shuffled epochs."""
    start, places = step * config.batch, []
    while len(places) < config.batch:
        epoch, place = divmod(start + len(places), len(vectors))
        order = _order(config.seed, epoch, len(vectors))
        places += order[place : place + config.batch - len(places)].tolist()
    return _rows(vectors, np.asarray(places))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, 1, epoch]).permutation(size)


def _rows(vectors: np.ndarray, places: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(vectors[np.sort(places)], dtype=np.float32))


def _step(
    model: SparseAutoencoder, optimizer: torch.optim.Optimizer, batch: Tensor, config: Config, idle: Tensor
) -> float:
    scaled = model.scaled(batch)
    answers = model.answers(scaled)
    kept = model.strongest(answers)
    loss, left = _losses(model, scaled, kept, config.prefixes)
    dead = idle > config.dead_after
    if dead.any():
        loss = loss + config.auxiliary * _revived(model, answers, left, dead)
    optimizer.zero_grad()
    loss.backward()
    with torch.no_grad():
        used = (kept > 0).any(dim=0)
        idle += len(batch)
        idle[used] = 0
        least = torch.where(kept > 0, kept, torch.inf).min()
        if least.isfinite():
            model.threshold.copy_(least if not model.threshold else _KEPT * model.threshold + (1 - _KEPT) * least)
        directions, slope = model.decoder, model.decoder.grad
        assert slope is not None
        slope -= (slope * directions).sum(dim=1, keepdim=True) * directions  # along the sphere
    optimizer.step()
    with torch.no_grad():
        model.decoder.div_(model.decoder.norm(dim=1, keepdim=True).clamp_min(1e-12))
    return loss.item()


def _losses(model: SparseAutoencoder, scaled: Tensor, kept: Tensor, prefixes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The mean squared error over all prefixes, and what all latents together left over."""
    edges, rebuilt, errors = [0, *prefixes, model.latents], torch.zeros_like(scaled), []
    for low, high in itertools.pairwise(edges):
        rebuilt = rebuilt + kept[:, low:high] @ model.decoder[low:high]
        errors.append((scaled - rebuilt).pow(2).mean())
    return torch.stack(errors).mean(), (scaled - rebuilt).detach()


def _revived(model: SparseAutoencoder, answers: Tensor, left: Tensor, dead: Tensor) -> Tensor:
    """How badly the strongest of the dead latents rebuild what is left, relative to it.

    Their answers count below 0 too: a latent that every vector is behind would have no slope to turn by.
    """
    places = dead.nonzero().squeeze(1)
    of_dead = answers[:, places]
    values, which = of_dead.topk(min(len(places), max(1, model.features // 2)), dim=1)
    guess = torch.zeros_like(of_dead).scatter(1, which, values) @ model.decoder[places]
    return (left - guess).pow(2).mean() / left.pow(2).mean().clamp_min(1e-12)


def _rise_and_fall(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / max(1.0, _WARM * steps), max(0.0, (steps - step) / max(1.0, 0.2 * steps)))


@torch.no_grad()
def _judged(model: SparseAutoencoder, vectors: np.ndarray) -> Fitted:
    missed = total = active = 0.0
    used = torch.zeros(model.latents, dtype=torch.bool)
    for start in range(0, len(vectors), 4096):
        batch = torch.from_numpy(np.asarray(vectors[start : start + 4096], dtype=np.float32))
        found = model(batch)
        missed += (batch - model.rebuilt(found)).double().pow(2).sum().item()
        total += (batch - model.centre).double().pow(2).sum().item()
        active += (found > 0).sum().item()
        used |= (found > 0).any(dim=0)
    dead = 1.0 - used.double().mean().item()
    return Fitted(model=model, explained=1.0 - missed / max(total, 1e-12), dead=dead, active=active / len(vectors))


def _keep(
    path: Path, config: Config, model: SparseAutoencoder, optimizer: torch.optim.Adam, idle: Tensor, step: int
) -> None:
    """Write all that the next step depends on, whole or not at all."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()} | {"idle": idle}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": value for name, value in state.items()}
    part = path.with_name(f".{path.name}.part")
    save_file(tensors, part, {"config": repr(sorted(asdict(config).items())), "next": str(step)})
    part.replace(path)


def _resume(path: Path, config: Config, model: SparseAutoencoder, optimizer: torch.optim.Adam, idle: Tensor) -> int:
    """Bring back what was kept, and return the next step; 0 if there is nothing."""
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        header = file.metadata() or {}
    if header.get("config") != repr(sorted(asdict(config).items())):
        raise ValueError(f"{path} is the checkpoint of another run ({header.get('config')}); remove it or name another")
    tensors = load_file(path)
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    idle.copy_(tensors["idle"])
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, number, key = name.split(".")
            states.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    return int(header["next"])
