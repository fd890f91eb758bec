"""The training loop of every stage: batches and an objective in, a trained model out, and no step lost on the way.

Order of one step: batch, learning rate, loss, backward, clip, update, average. Between two log steps nothing waits for
the device. A run that was killed and started again equals one that was not.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

import torch
from torch import Tensor, nn

from krea_train import checkpoint
from krea_train.average import Average
from krea_train.interfaces import Batch, Batches, Log, Objective
from krea_train.parallel import agree, clip_grad_norm, rank, world
from krea_train.state import Optimizer, State
from krea_train.watch import Window, memory

__all__ = ["Settings", "fit"]

logger = logging.getLogger(__name__)

PATIENCE = 50  # steps in a row with a gradient that is not finite before the run gives up


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How long, how fast, how safe. `schedule` maps a step, counted from 0, to a factor of every learning rate.

    `folder` holds the checkpoints, one every `save_every_s` seconds and one at the end; without it nothing is saved.
    """

    steps: int
    schedule: Callable[[int], float] = lambda _: 1.0
    clip: float | None = 1.0
    autocast: torch.dtype | None = None
    log_every: int = 10
    folder: Path | None = None
    save_every_s: float = 60.0
    keep: int = 2

    def __post_init__(self) -> None:
        if self.steps < 1 or self.log_every < 1 or self.keep < 2:
            raise ValueError(
                f"steps {self.steps}, log_every {self.log_every}, keep {self.keep}: "
                "at least 1, 1 and 2 are needed (the newest checkpoint may turn out damaged)"
            )


def fit(
    model: nn.Module,
    batches: Batches,
    objective: Objective,
    optimizer: Optimizer,
    settings: Settings,
    *,
    average: Average | None = None,
    log: Log | None = None,
    stop: Callable[[int], bool] | None = None,
) -> State:
    """Train until `settings.steps`, resuming from the newest good checkpoint in `settings.folder`.

    SIGTERM, Ctrl-C and a true `stop(step)` save and return early; `state.ended` then says which. An update whose
    gradient is not finite is skipped. Raises FloatingPointError when that goes on for 50 steps.
    """
    state = State(model=model, optimizer=optimizer, batches=batches, average=average)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    device = trained[0].device.type
    with Signals() as signals, scheduled(optimizer, settings.schedule) as set_rates, Keeper(settings, state) as keeper:
        stream, window, guard = iter(batches), Window(), Guard(optimizer)
        while state.step < settings.steps and state.ended is None:
            batch = take(stream, state.step)
            set_rates(state.step)
            with torch.autocast(device, settings.autocast, enabled=settings.autocast is not None):
                loss, metrics = objective(model, batch, state.step)
            loss.backward()
            norm = clip_grad_norm(trained, settings.clip)
            skipped = guard.step(norm)
            optimizer.zero_grad()
            state.step, state.images = state.step + 1, state.images + len(batch.ids) * world()
            if average is not None:
                average.update(state.step)
            window.add(metrics | {"grad_norm": norm, "skipped": skipped}, len(batch.ids) * world())
            if state.step % settings.log_every == 0 or state.step == settings.steps:
                report(log, state.step, window.read() | {"lr": optimizer.param_groups[0]["lr"]})
                guard.check(state.step)
            keeper.keep(signals.received or ("stop" if stop is not None and stop(state.step) else None))
    state.ended = state.ended or signals.received  # it may have come during the last save
    return state


@contextmanager
def scheduled(optimizer: Optimizer, schedule: Callable[[int], float]) -> Iterator[Callable[[int], None]]:
    """Gives a function that sets every learning rate for a step, and afterwards the rates that were there before.

    They are read before a checkpoint is, so that they come from the code.
    """
    rates = [group["lr"] for group in optimizer.param_groups]

    def set_rates(factor: float) -> None:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor

    try:
        yield lambda step: set_rates(schedule(step))
    finally:
        set_rates(1.0)


def take(stream: Iterator[Batch], step: int) -> Batch:
    """The next batch, or a sentence about why there is none."""
    try:
        return next(stream)
    except StopIteration as error:
        raise ValueError(f"the batches ended after {step} steps; give an endless stream, or fewer steps") from error


def report(log: Log | None, step: int, metrics: Mapping[str, float]) -> None:
    """Hand the numbers to the log, on one rank."""
    if log is not None and rank() == 0:
        log(step, {**metrics, **memory()})


class Guard:
    """Skips updates whose gradient is not finite; the decision stays on the device where the optimizer allows it."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.obeys = bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        self.row = torch.zeros(())

    def step(self, norm: Tensor) -> Tensor:
        """Update the weights unless `norm` is not finite; returns 1 when skipped, else 0."""
        bad = (~norm.isfinite()).float()
        self.row = (self.row.to(bad.device) + bad) * bad
        if self.obeys:
            self.optimizer.found_inf = bad  # type: ignore[attr-defined]
            self.optimizer.step()
            self.optimizer.found_inf = None  # type: ignore[attr-defined]
        elif not bad.item():  # torch's plain loops cannot skip by a tensor: this waits for the device
            self.optimizer.step()
        return bad

    def check(self, step: int) -> None:
        """Raise FloatingPointError when the last 50 updates or more were skipped; waits for the device."""
        if self.row.item() >= PATIENCE:
            raise FloatingPointError(
                f"the gradients of the last {int(self.row.item())} steps, up to {step}, were not finite; "
                "lower the learning rate or look at the batches; the weights are those before the first of them"
            )


class Keeper:
    """Resumes on entry, saves when it is due, and saves on exit unless an exception is under way."""

    def __init__(self, settings: Settings, state: State) -> None:
        self.settings, self.state = settings, state
        self.stack = ExitStack()
        self.saved = -1
        self.last = time.monotonic()

    def __enter__(self) -> "Keeper":
        folder = self.settings.folder
        if folder is None:
            return self
        with ExitStack() as stack:
            if rank() == 0:
                stack.enter_context(checkpoint.claim(folder))
            agree(0)  # the others wait until leftovers are cleared
            path = checkpoint.newest(folder)
            if path is not None:
                self.state.load_state_dict(checkpoint.load(path, hashes=False))
                self.saved = self.state.step
                logger.info("resumed from %s", path)
            self.stack = stack.pop_all()
        self.last = time.monotonic()
        return self

    def keep(self, reason: str | None) -> None:
        """After a step: end the run for a reason, or save when the interval has passed. All ranks decide alike."""
        if world() > 1 and self.state.step % self.settings.log_every:
            return
        due = self.settings.folder is not None and time.monotonic() - self.last >= self.settings.save_every_s
        action = agree(2 if reason else int(due))
        if action == 2:
            self.state.ended = reason or "ended by another rank"
        elif action == 1:
            self.save()

    def save(self) -> None:
        """Write the checkpoint of this step, then remove old ones."""
        folder, step = self.settings.folder, self.state.step
        if folder is None or step == self.saved:
            return
        checkpoint.save(folder, step, self.state.state_dict())
        if rank() == 0:
            checkpoint.prune(folder, self.settings.keep)
        self.saved, self.last = step, time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        with self.stack:
            if kind is None:
                self.save()


class Signals:
    """Turns SIGTERM and the first Ctrl-C into a note; the second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.received: str | None = None
        self.before: dict[int, object] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
