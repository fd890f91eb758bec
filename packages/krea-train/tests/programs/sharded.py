"""One of two gloo processes: RANK WORLD RENDEZVOUS FOLDER STEPS. Trains sharded, checkpoints, writes its loss curve."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from krea_model.configs import tiny
from krea_model.mmdit import MMDiT
from krea_train import AdamW, Average, FlowMatching, Optimizer, Settings, State, fit, parallel
from krea_train.average import constant
from krea_train.testing import Recorder, Squares, WordStates, pixels


def train(folder: Path, steps: int, *, sharded: bool) -> tuple[State, Recorder]:
    """The same run on one process or, as part of a group, on several."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rank, world = parallel.rank(), parallel.world()
    model = MMDiT(replace(tiny(), channels=3))
    if sharded:
        parallel.shard(model, parallel.mesh())
    log = Recorder()
    state = fit(
        model,
        Squares(count=4, side_px=8, rank=rank, ranks=world),
        FlowMatching(latents=pixels, text=WordStates(), seed=1, rank=rank, ranks=world),
        Optimizer(model, AdamW(lr=1e-3)),
        Settings(steps=steps, clip=0.1, log_every=1, folder=folder, save_every_s=1e9),
        average=Average(model, constant(0.9)),
        log=log,
    )
    return state, log


def main(rank: int, world: int, rendezvous: str, folder: Path, steps: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    state, log = train(folder, steps, sharded=True)
    if rank == 0:
        (folder / "curve.json").write_text(json.dumps([log.curve("loss"), log.curve("grad_norm"), state.step]))
    dist.destroy_process_group()
    os._exit(0)  # a thread of gloo's sometimes aborts an interpreter that shuts down after this


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
