"""Everything a quickstart needs, put together in one place."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from krea_launcher.presets import Preset
from krea_launcher.progress import Progress
from krea_launcher.quickstart import Quickstart
from krea_launcher.run import Run

__all__ = ["build", "expected"]


def expected(preset: Preset) -> dict[str, float]:
    """Seconds of each stage, by the preset's size; only their ratios matter, a run corrects them by its own pace."""
    work = {stage.name: stage.steps * (stage.side_px / 32) ** 2 for stage in preset.stages}
    whole = sum(work.values())
    training = 60 * preset.minutes * 0.62
    rest = {"fetch": 45.0, "curate": 20 + preset.rows / 60, "autoencoder": preset.autoencoder_steps * 0.05}
    rest |= {"encode": preset.concepts * 0.03} | {name: training * share / whole for name, share in work.items()}
    tuning = preset.preference
    rest |= {"space": preset.concepts * 0.1, "pairs": tuning.prompts * tuning.group * 0.08}
    return rest | {tuning.name: 3 + tuning.steps * 0.4, "judge": 5 + preset.evals * 0.2}


@contextmanager
def build(run: Run, preset: Preset, seed: int, console: Console, cache: Path | None) -> Iterator[Quickstart]:
    """A quickstart in a run's folder, with its bars shown while this is open."""
    finished = {name: facts["seconds"] for name in expected(preset) if (facts := run.facts(name)) is not None}
    with Progress(console, expected(preset), finished) as progress:
        yield Quickstart(run, preset, seed, progress, cache)
