"""Preference optimisation in small: the model's own pictures, their order by the joint space, and STPO on the pairs."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from krea_model.mmdit import MMDiT
from krea_model.smallae import SmallAutoencoder
from krea_model.textcache import TextCache
from krea_model.weights import write_tensors
from krea_rl.pairs import Member, Pair, PairBatches, PairSet, best_and_worst
from krea_rl.preference import PreferenceObjective, stpo
from krea_train.average import Average, constant
from krea_train.interfaces import Batch
from krea_train.optim import AdamW, Optimizer, warmup_stable_decay
from safetensors.torch import load_file
from torch import Tensor

from krea_launcher.learn import OnStep, learn, settings, stage_seed
from krea_launcher.presets import Pairwise, Preset

__all__ = ["Inputs", "pairs", "train"]

SEEDS = 5000  # the first of the noise seeds, apart from those of sheets and ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What the stage is given. draw: (prompt, seed) pairs -> pictures `b 3 H W` uint8; real: the corpus's own picture
    of each prompt, likewise; score: pictures and their concepts -> `b`.
    """

    folder: Path
    draw: Callable[[Sequence[tuple[str, int]]], Tensor]
    real: Callable[[Sequence[str]], Tensor]
    score: Callable[[Tensor, Sequence[str]], Tensor]
    text: TextCache
    autoencoder: SmallAutoencoder


def pairs(inputs: Inputs, preset: Preset, prompts: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Draw a group of pictures for each (prompt, concept): the best of it wins over its worst, and the corpus's own
    picture over each of them. Leaves `pictures.safetensors` and `pairs.jsonl`.

    Without the corpus's pictures the model learns from its own alone and gets blurred (docs/decisions, 17).
    """
    group, origin = preset.preference.group, preset.stages[-1].name
    names = [prompt for prompt, _ in prompts]
    drawn = inputs.draw([(prompt, SEEDS + i * group + j) for i, prompt in enumerate(names) for j in range(group)])
    scores = inputs.score(drawn, [concept for _, concept in prompts for _ in range(group)]).unflatten(0, (-1, group))
    keys = [[str(i * group + j) for j in range(group)] for i in range(len(prompts))]
    found = best_and_worst(names, scores, keys, origin=origin, margin=1e-3)
    for i, prompt in enumerate(names):
        winner = Member(image=str(len(drawn) + i), origin="corpus", on_policy=False)
        losers = [Member(image=key, origin=origin, on_policy=True) for key in keys[i]]
        found += [Pair(prompt=prompt, winner=winner, loser=loser, reason="real") for loser in losers]
    write_tensors(inputs.folder / "pictures.safetensors", {"pictures": torch.cat([drawn, inputs.real(names)])}, {})
    PairSet(tuple(found)).save(inputs.folder / "pairs.jsonl")
    return {"pictures": len(drawn), "pairs": len(found)}


def train(inputs: Inputs, stage: Pairwise, model: MMDiT, patch: int, seed: int, on_step: OnStep) -> dict[str, Any]:
    """Run or resume the stage; leaves `weights.safetensors` and `average.safetensors` in its folder."""
    pictures = load_file(inputs.folder / "pictures.safetensors")["pictures"]
    chosen = PairSet.load(inputs.folder / "pairs.jsonl")

    def latents(batch: Batch, _: int) -> Tensor:
        with torch.no_grad():
            return inputs.autoencoder.encode(batch.images.float() / 127.5 - 1)

    objective = PreferenceObjective(
        weights=replace(stpo(stage.beta), anchor=stage.anchor),
        reference=deepcopy(model).requires_grad_(False).eval(),
        latents=latents,
        text=inputs.text,
        seed=stage_seed(seed, stage.name),
        patch=patch,
    )
    schedule = partial(warmup_stable_decay, steps=stage.steps, warmup=stage.steps // 10, decay=stage.steps // 2)
    return learn(
        inputs.folder,
        model,
        PairBatches(chosen, lambda key: pictures[int(key)], min(stage.batch, len(chosen.pairs)), seed),
        objective,
        Optimizer(model, AdamW(lr=stage.lr)),
        settings(inputs.folder, stage.steps, schedule),
        Average(model, constant(0.9)),
        on_step,
    )
