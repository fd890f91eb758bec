"""One training stage of the demo: the weights of the stage before in, trained and averaged weights out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from krea_data.loader import Batches
from krea_model.initial import initialise
from krea_model.mmdit import MMDiT
from krea_model.smallae import SmallAutoencoder
from krea_model.textcache import TextCache
from krea_train.average import Average, constant
from krea_train.objectives.flow import FlowMatching
from krea_train.optim import AdamW, Muon, Optimizer, warmup_stable_decay
from safetensors.torch import load_file

from krea_launcher.encode import Latents
from krea_launcher.learn import OnStep, learn, settings, stage_seed
from krea_launcher.presets import Preset, Stage

__all__ = ["Inputs", "load_model", "train"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What every stage is given: pictures, latents by side, text, and where runs are kept."""

    folder: Path
    shards: Path
    keep: Callable[[Mapping[str, Any]], bool]
    latents: Callable[[int], Latents]
    text: TextCache
    autoencoder: SmallAutoencoder


def load_model(preset: Preset, path: Path | None, seed: int) -> MMDiT:
    """A model with the weights of a file, or fresh ones."""
    model = MMDiT(preset.config)
    if path is None:
        return initialise(model, seed)
    model.load_state_dict(load_file(path))
    return model


def train(
    inputs: Inputs, preset: Preset, stage: Stage, before: Stage | None, seed: int, on_step: OnStep
) -> dict[str, Any]:
    """Run or resume a stage; leaves `weights.safetensors` and `average.safetensors` in its folder."""
    here, seed_here, steps = inputs.folder / stage.name, stage_seed(seed, stage.name), stage.steps
    model = load_model(preset, inputs.folder / before.name / "weights.safetensors" if before else None, seed)
    objective = FlowMatching(
        latents=inputs.latents(stage.side_px),
        text=inputs.text,
        seed=seed_here,
        patch=preset.config.patch,
        caption_mix=dict(stage.caption_mix),
        drop=stage.drop,
        block=64,
    )
    schedule = partial(warmup_stable_decay, steps=steps, warmup=stage.warmup, decay=stage.decay, floor=0.02)
    return learn(
        here,
        model,
        Batches(inputs.shards, preset.batch, seed=seed_here, keep=inputs.keep, side_px=stage.side_px),
        objective,
        Optimizer(model, AdamW(lr=stage.lr), Muon(lr=stage.lr_muon)),
        settings(here, steps, schedule),
        Average(model, constant(0.99)),
        on_step,
    )
