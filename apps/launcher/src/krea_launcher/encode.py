"""What is computed once before training: the autoencoder, the latents of all pictures, the states of all captions."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from krea_data.demo import withheld_concept, withheld_pair
from krea_data.loader import Batches, ImageBatch
from krea_data.shards import index
from krea_model.minilm import MiniLM, Reduction, fit_reduction
from krea_model.smallae import SmallAutoencoder
from krea_model.textcache import TextCache, fingerprint
from krea_model.weights import write_tensors
from krea_train.loop import Settings, fit
from krea_train.objectives.reconstruct import Reconstruction
from krea_train.optim import AdamW, Optimizer, warmup_stable_decay
from safetensors.torch import load_file
from torch import Tensor

from krea_launcher.presets import Preset

__all__ = ["Latents", "autoencoder", "encode_images", "encode_text", "load_autoencoder", "load_text", "trained_on"]

OnStep = Callable[[int, int, Mapping[str, float]], None]


def trained_on(concepts: Sequence[str]) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a record of an export is trained on: a chosen concept, not withheld, in a style that is not withheld."""
    chosen = {concept for concept in concepts if not withheld_concept(concept)}

    def keep(record: Mapping[str, Any]) -> bool:
        meta = record["meta"]
        return meta["concept"] in chosen and not withheld_pair(meta["concept"], meta["style"])

    return keep


def autocast_dtype() -> torch.dtype | None:
    """bf16 where the machine multiplies it faster than fp32, else None."""
    if torch.cuda.is_available():
        return torch.bfloat16
    cpu: Any = torch.cpu
    fast = cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else None


def autoencoder(shards: Path, folder: Path, preset: Preset, seed: int, on_step: OnStep) -> dict[str, Any]:
    """Train the small autoencoder on every kept picture; returns its PSNR on pictures that it did not see."""
    steps = preset.autoencoder_steps
    torch.manual_seed(seed)
    model = SmallAutoencoder(preset.autoencoder)
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    records = index(shards)
    test = {record["id"] for record in records[:: max(8, len(records) // 64)]}
    batches = Batches(shards, min(32, len(records) - len(test)), seed=seed, keep=lambda one: one["id"] not in test)
    settings = Settings(
        steps=steps,
        schedule=lambda step: warmup_stable_decay(step, steps=steps, warmup=min(20, steps // 4), decay=steps // 2),
        autocast=autocast_dtype(),
        folder=folder / "checkpoints",
        save_every_s=20,
    )
    state = fit(
        model,
        batches,
        Reconstruction(seed=seed),
        Optimizer(model, AdamW(lr=3e-3, weight_decay=1e-3)),
        settings,
        log=lambda step, metrics: on_step(step, steps, metrics),
    )
    if state.ended:
        raise KeyboardInterrupt
    model.eval()
    images = Batches(shards, len(test), keep=lambda one: one["id"] in test).at(0).images.float() / 127.5 - 1
    error = (model.decode(model.encode(images)) - images).square().mean((1, 2, 3)) / 4
    write_tensors(folder / "model.safetensors", model.state_dict(), {"sizes": json.dumps(model.describe())})
    psnr = float((-10 * error.log10()).mean())
    return {"psnr_db": round(psnr, 2), "steps": steps, "pictures": len(batches), "held_out": len(test)}


def load_autoencoder(folder: Path, preset: Preset) -> SmallAutoencoder:
    """The trained autoencoder of a run."""
    model = SmallAutoencoder(preset.autoencoder)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


@dataclass(frozen=True, slots=True)
class Latents:
    """Latents of all training pictures of one resolution, by id; what `FlowMatching.latents` wants."""

    values: Tensor
    rows: Mapping[str, int]

    def __call__(self, batch: Any, step: int) -> Tensor:
        """`b c h w` of the batch's ids."""
        return self.values[[self.rows[one] for one in batch.ids]]


def encode_images(shards: Path, model: SmallAutoencoder, side_px: int, keep: Callable[..., bool]) -> Latents:
    """Encode every training picture at one side, normalised to unit variance over the corpus."""
    records = [record for record in index(shards) if keep(record)]
    batch: ImageBatch = Batches(shards, len(records), keep=keep, seed=0).at(0)
    images = batch.images.float() / 127.5 - 1
    if side_px != images.shape[-1]:
        images = F.interpolate(images, size=(side_px, side_px), mode="area")
    values = torch.cat([model.encode(part) for part in images.split(64)])
    return Latents(values, {one: row for row, one in enumerate(batch.ids)})


def encode_text(
    captions: Iterable[str], fit_on: Sequence[str], path: Path, width: int, on_progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Fit the reduction on the captions that are trained on, encode all, keep both on disk."""
    raw = TextCache.build("MiniLM", MiniLM(), captions, on_progress)
    known = raw(sorted(set(fit_on)))
    reduction = fit_reduction(known.states, width)
    cache = TextCache(_name(reduction), reduction(raw.states), raw.lengths, list(raw.where))
    tensors = {"mean": reduction.mean, "basis": reduction.basis, "scale": reduction.scale}
    write_tensors(path / "reduction.safetensors", tensors, {})
    cache.save(path / "states.safetensors")
    kept = (reduction(known.states) * reduction.scale[:, None]).square().sum((0, 2))
    share = kept / (known.states - reduction.mean).square().sum((0, 2))
    return {
        "captions": len(cache.where),
        "tokens_per_caption": round(len(cache.states) / len(cache.where), 1),
        "variance_kept": [round(float(one), 3) for one in share],
    }


def load_text(path: Path) -> tuple[TextCache, Reduction]:
    """The encoded captions of a run, and the reduction that new prompts go through."""
    tensors = load_file(path / "reduction.safetensors")
    reduction = Reduction(tensors["mean"], tensors["basis"], tensors["scale"])
    return TextCache.load(path / "states.safetensors", _name(reduction)), reduction


def _name(reduction: Reduction) -> str:
    return f"MiniLM {fingerprint(reduction.mean, reduction.basis, reduction.scale)}"
