"""The folder of one run: who works in it, which stages are finished, and what they found out."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from krea_data.krablet.embedded.folder import Hold

__all__ = ["Run", "open_run"]


class Run:
    """A folder whose finished stages are facts in `facts/<stage>.json`; a stage is finished when its file is there."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.settings = dict(settings)

    def path(self, *parts: str) -> Path:
        """A place inside the run; its parent exists afterwards."""
        path = self.folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def place(self, name: str) -> Path:
        """A folder inside the run; it exists afterwards."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def facts(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage found out, or None."""
        try:
            return json.loads((self.folder / "facts" / f"{stage}.json").read_text("utf-8"))
        except FileNotFoundError:
            return None

    def stage(self, name: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Do a stage unless it is finished; its seconds are added up over attempts that were stopped.

        What was killed without notice is not counted."""
        known = self.facts(name)
        if known is not None:
            return known
        clock = self.path("facts", f".{name}.seconds")
        before = float(clock.read_text()) if clock.exists() else 0.0
        start = time.monotonic()
        try:
            found = dict(work())
        finally:
            write(clock, str(before + time.monotonic() - start))
        found |= {"seconds": round(before + time.monotonic() - start, 2), "peak_bytes": peak_bytes()}
        write(self.path("facts", f"{name}.json"), json.dumps(found, indent=1, ensure_ascii=False))
        return found


@contextmanager
def open_run(folder: Path, settings: Mapping[str, Any]) -> Iterator[Run]:
    """A new or an interrupted run. ValueError if the folder is in use, or holds a run with other settings."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        hold = Hold(folder / ".lock", wait=False)
    except BlockingIOError as error:
        raise ValueError(f"{folder} is in use by another run; wait for it, or choose another --out") from error
    except OSError as error:
        raise ValueError(f"cannot write to {folder} ({error.strerror}); choose another --out") from error
    with hold:
        state = folder / "run.json"
        if state.exists():
            old = json.loads(state.read_text("utf-8"))
            odd = [key for key in settings if old.get(key) != json.loads(json.dumps(settings[key]))]
            if odd:
                raise ValueError(
                    f"{folder} holds a run with another {odd[0]} ({short(old.get(odd[0]))}, now "
                    f"{short(settings[odd[0]])}); choose another --out or remove it"
                )
        else:
            write(state, json.dumps(settings, indent=1))
        yield Run(folder, settings)


def peak_bytes() -> int:
    """The most memory that this process has held so far, and that of its largest child; 0 where nobody counts it."""
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def short(value: Any) -> str:
    """The start of a value, for a message."""
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."


def write(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, "utf-8")
    os.replace(part, path)
