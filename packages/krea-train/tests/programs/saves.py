"""Kill a writer of checkpoints again and again: FOLDER KILLS; exits 0 if a verified checkpoint was always there."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from krea_train import checkpoint

torch.set_num_threads(1)  # threads do not survive a fork


def write(folder: Path, pipe: int) -> None:
    """Save, prune, and report what is committed, for ever; every third step is saved twice."""
    path = checkpoint.newest(folder)
    step = checkpoint.load(path)["progress"]["step"] if path else 0
    with checkpoint.claim(folder):
        while True:
            step += 1
            tree = {"model": {"w": torch.full((64, 1024), float(step))}, "progress": {"step": step}}
            for _ in range(1 + (step % 3 == 0)):
                checkpoint.save(folder, step, tree)
            os.write(pipe, step.to_bytes(8, "little"))
            checkpoint.prune(folder)


def main(folder: Path, kills: int) -> None:
    chance = random.Random(0)
    committed = 0
    for _ in range(kills):
        read, pipe = os.pipe()
        child = os.fork()
        if child == 0:
            write(folder, pipe)
        os.close(pipe)
        committed = max(committed, int.from_bytes(os.read(read, 8), "little"))
        time.sleep(chance.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(read, "rb") as rest:
            for step in iter(lambda: rest.read(8), b""):
                committed = max(committed, int.from_bytes(step, "little"))
        path = checkpoint.newest(folder)
        if path is None:
            sys.exit(f"no checkpoint verifies after {committed} were committed")
        tree = checkpoint.load(path)
        found = tree["progress"]["step"]
        if found < committed or tree["model"]["w"].unique().tolist() != [found]:
            sys.exit(f"step {found} was found, {committed} was committed")
    with checkpoint.claim(folder):
        left = [p.name for p in folder.iterdir() if "partial" in p.name]
    if left or len(checkpoint.steps(folder)) < 2:
        sys.exit(f"leftovers {left}, checkpoints {checkpoint.steps(folder)}")
    sys.stdout.write(f"{committed} checkpoints, {kills} kills\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
