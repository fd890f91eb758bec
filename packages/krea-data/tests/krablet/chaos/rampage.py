"""Killing at random: whom, and when."""

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from .crew import Crew, is_ready, kill_backend, kill_postmaster


class Rampage:
    """Kills one victim after another; the seed decides whom and when.

    Victims are names of the crew, "postmaster" and "backend" (of any of the shards). A server that was killed twice
    before it was ready is spared until it is: its keeper gives up on one that dies at once again and again.
    """

    def __init__(self, crew: Crew, root: Path, shards: int, victims: Sequence[str], seed: int) -> None:
        self.crew, self.root, self.shards, self.victims = crew, root, shards, victims
        self.draw = random.Random(seed)
        self.kills: Counter[str] = Counter()
        self._early: Counter[int] = Counter()
        self._turns: list[str] = []

    def one(self) -> None:
        """Kill somebody."""
        while not self._kill(self._next()):
            continue

    def cycles(self, count: int, watch: Callable[[], object], pauses_s: tuple[float, float] = (0.2, 1.5)) -> None:
        """Kill so many times at random moments; `watch` is called before each."""
        for _ in range(count):
            time.sleep(self.draw.uniform(*pauses_s))
            watch()
            self.one()

    def _next(self) -> str:
        """The next victim of the shuffled list, which is shuffled again once all had their turn."""
        if not self._turns:
            self._turns = self.draw.sample(self.victims, len(self.victims))
        return self._turns.pop()

    def _kill(self, victim: str) -> bool:
        if victim in ("postmaster", "backend"):
            shard, choice = self.draw.randrange(self.shards), self.draw.random()
            ready = is_ready(self.root, shard)
            if victim == "backend":
                if not ready or not kill_backend(self.root, shard, choice):
                    return False
            else:
                self._early[shard] = 0 if ready else self._early[shard] + 1
                if self._early[shard] > 2:
                    return False
                kill_postmaster(self.root, shard)
        elif not self.crew.kill(victim):
            return False
        self.kills[victim] += 1
        return True
