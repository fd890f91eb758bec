"""Train a tiny model on coloured squares: FOLDER STEPS; prints every step. Killed by tests and started again."""

import functools
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from krea_model.configs import tiny
from krea_model.mmdit import MMDiT
from krea_train import AdamW, Average, FlowMatching, Muon, Optimizer, Settings, fit, warmup_stable_decay
from krea_train.average import constant
from krea_train.testing import Squares, WordStates, pixels


def show(step: int, metrics: Mapping[str, float]) -> None:
    sys.stdout.write(f"{step}\n")
    sys.stdout.flush()


def main(folder: Path, steps: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = MMDiT(replace(tiny(), channels=3))
    optimizer = Optimizer(model, AdamW(lr=3e-3), Muon(lr=3e-3))
    settings = Settings(
        steps=steps,
        schedule=functools.partial(warmup_stable_decay, steps=12, warmup=2, decay=4),
        autocast=torch.bfloat16,
        log_every=1,
        folder=folder,
        save_every_s=0.0,
    )
    objective = FlowMatching(latents=pixels, text=WordStates(), seed=1)
    batches = Squares(count=4, side_px=8)
    state = fit(model, batches, objective, optimizer, settings, average=Average(model, constant(0.9)), log=show)
    sys.stdout.write(f"ended {state.ended} at {state.step}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
