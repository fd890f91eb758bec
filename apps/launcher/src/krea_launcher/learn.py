"""What every training stage has in common: fit or resume in its folder, and leave weights, averages and a few facts."""

from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from krea_infra.telemetry import json_lines, read_json_lines
from krea_model.weights import write_tensors
from krea_train.average import Average
from krea_train.interfaces import Batches, Objective
from krea_train.loop import Settings, fit
from krea_train.optim import Optimizer
from torch import nn

from krea_launcher.encode import autocast_dtype

__all__ = ["OnStep", "learn", "settings", "stage_seed"]

OnStep = Callable[[int, int, Mapping[str, float]], None]
"""Told the step, of how many, and the metrics."""

FACTS = ("loss", "accuracy", "winner_delta", "loser_delta", "step_s", "images_per_s", "memory_bytes")


def stage_seed(seed: int, name: str) -> int:
    """A seed of its own for each stage of a run."""
    return int.from_bytes(blake2b(f"{seed} {name}".encode(), digest_size=4).digest(), "little")


def settings(folder: Path, steps: int, schedule: Callable[[int], float]) -> Settings:
    """How a stage is trained in its folder."""
    return Settings(
        steps=steps, schedule=schedule, autocast=autocast_dtype(), folder=folder / "checkpoints", save_every_s=30
    )


def learn(
    folder: Path,
    model: nn.Module,
    batches: Batches,
    objective: Objective,
    optimizer: Optimizer,
    how: Settings,
    average: Average,
    on_step: OnStep,
) -> dict[str, Any]:
    """Run or resume a stage; leaves `weights.safetensors`, `average.safetensors` and `metrics.jsonl` in its folder."""
    lines = json_lines(folder / "metrics.jsonl")

    def log(step: int, metrics: Mapping[str, float]) -> None:
        lines(step, metrics)
        on_step(step, how.steps, metrics)

    state = fit(model, batches, objective, optimizer, how, average=average, log=log)
    if state.ended:
        raise KeyboardInterrupt
    write_tensors(folder / "weights.safetensors", model.state_dict(), {})
    write_tensors(folder / "average.safetensors", average.state_dict(), {})
    last = read_json_lines(folder / "metrics.jsonl")[-1]
    parameters = sum(p.numel() for p in model.parameters())
    facts = {name: last[name] for name in FACTS if name in last}
    return {"steps": how.steps, "images": state.images, "parameters": parameters, **facts}
