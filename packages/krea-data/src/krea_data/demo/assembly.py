"""The demo corpus from packages to rows: fetch, join, draw, and write blobs with `rows.jsonl` beside them."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from krea_data.blobs import FolderBlobs
from krea_data.demo import clipart
from krea_data.demo.cache import default_cache, locked, staged, sweep
from krea_data.demo.emoji import Drawing, concepts, drawings
from krea_data.demo.errors import FetchError, explain
from krea_data.demo.npm import install
from krea_data.demo.packages import DEFAULT_SETS, LABELS, LOCALES, SETS
from krea_data.demo.render import renderer
from krea_data.rows import Row

__all__ = ["Progress", "blobs", "build", "corpus", "fetch", "rows"]


_DRAWN = 1  # raise when drawing or joining changes, so that old corpora in caches are not taken for new ones


Progress = Callable[[str, float, float], None]  # what is being done, how much of it is done, of how much


def _silent(stage: str, done: float, total: float) -> None:
    pass


def _known(sets: Sequence[str]) -> None:
    for name in sets:
        if name not in SETS:
            raise ValueError(f"{name!r} is not a set of the demo corpus; choose from {', '.join(SETS)}")


def fetch(
    cache: Path | None = None, sets: Sequence[str] = DEFAULT_SETS, on_progress: Progress = _silent
) -> dict[str, Path]:
    """Download what is not there whole, and return the folder of each set and of "labels".

    The cache is `cache`, else KREA_CACHE, else the platform's folder. The optional set "clipart" is left out of the
    answer, with a notice through `on_progress`, where its Debian package cannot be had. FetchError says what to do.
    """
    _known(sets)
    cache = default_cache() if cache is None else Path(cache)
    packages = {"labels": LABELS} | {name: p for name in sets if (p := SETS[name].package) is not None}
    total = sum(package.megabytes for package in packages.values())
    folders: dict[str, Path] = {}
    with locked(cache, lambda: on_progress("waiting for another process that fetches", 0, total)):
        sweep(cache / "packages")
        done = 0.0
        for name, package in packages.items():
            on_progress(f"fetch {package.spec} (MB)", done, total)
            folders[name] = install(package, cache)
            done += package.megabytes
        on_progress("fetch (MB)", total, total)
        if "clipart" in sets:
            found = clipart.install(cache, lambda notice: on_progress(notice, 0, 1))
            folders |= {"clipart": found} if found else {}
    return folders


def _drawings(folders: Mapping[str, Path], locales: Sequence[str]) -> list[Drawing]:
    wanted = concepts(folders["labels"], locales)
    found: list[Drawing] = []
    for name, folder in folders.items():
        if name == "clipart":
            found += clipart.drawings(folder)
        elif name != "labels":
            found += drawings(SETS[name], folder, wanted)
    return found


def _draw(part: Sequence[Drawing], blobs: Path, side_px: int, on_answer: Callable[[dict[str, Any]], None]) -> None:
    """Draw one share in a process of its own: the renderer holds the interpreter's lock."""
    with tempfile.TemporaryDirectory(prefix=".jobs-", dir=blobs.parent) as folder:
        jobs, said = Path(folder) / "jobs.jsonl", Path(folder) / "stderr"
        with jobs.open("w", encoding="utf-8") as file:
            for one in part:
                path = str(one.path) if one.path else None
                job = {"id": one.id, "svg": one.svg, "path": path, "extent": one.extent}
                file.write(json.dumps(job) + "\n")
        command = [sys.executable, "-m", "krea_data.demo.job", str(jobs), str(blobs), str(side_px)]
        errors = said.open("wb")
        with errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as child:
            assert child.stdout is not None
            try:
                for line in child.stdout:
                    on_answer(json.loads(line))
            except BaseException:
                child.kill()
                raise
        if child.returncode:
            last = said.read_text("utf-8", errors="replace").strip().splitlines()[-1:] or ["no message"]
            raise FetchError(f"drawing the corpus failed: {last[0]}; free disk and memory, and run this again")


def _draw_all(found: Sequence[Drawing], blobs: Path, side_px: int, on_progress: Progress) -> dict[str, dict[str, Any]]:
    workers = max(1, min(os.cpu_count() or 1, 8, len(found)))
    answers: dict[str, dict[str, Any]] = {}
    guard = threading.Lock()

    def answer(one: dict[str, Any]) -> None:
        with guard:
            answers[one["id"]] = one
            if len(answers) % 50 == 0 or len(answers) == len(found):
                on_progress("draw (pictures)", len(answers), len(found))

    with ThreadPoolExecutor(workers) as pool:
        parts = [pool.submit(_draw, found[start::workers], blobs, side_px, answer) for start in range(workers)]
        for part in parts:
            part.result()
    return answers


def build(
    folders: Mapping[str, Path],
    out: Path,
    *,
    side_px: int = 64,
    locales: Sequence[str] = (),
    on_progress: Progress = _silent,
) -> Path:
    """Draw every picture of the fetched sets and write `out` (which is replaced): blobs/, rows.jsonl, failed.jsonl.

    `locales` are those whose labels go into the rows besides English. ValueError for a side below 8 or over 1024.
    """
    if not 8 <= side_px <= 1024:
        raise ValueError(f"side_px {side_px} is out of range; choose 8 to 1024, such as 64")
    if unknown := sorted(set(locales) - set(LOCALES)):
        raise ValueError(f"no labels in {', '.join(unknown)}; choose from {', '.join(LOCALES)}")
    renderer()
    found = _drawings(folders, locales)
    with staged(Path(out)) as new:
        answers = _draw_all(found, new / "blobs", side_px, on_progress)
        with (new / "rows.jsonl").open("w", encoding="utf-8") as good, (new / "failed.jsonl").open("w") as bad:
            for one in sorted(found, key=lambda one: one.id):
                answer = answers[one.id]
                if "blob" in answer:
                    line = {"id": one.id, "blob": answer["blob"], "meta": one.meta}
                    good.write(json.dumps(line, ensure_ascii=False) + "\n")
                else:
                    bad.write(json.dumps(answer) + "\n")
    return Path(out)


def _key(folders: Mapping[str, Path], side_px: int, locales: Sequence[str]) -> str:
    """A folder name that differs where the pictures or their rows would."""
    sources = sorted((name, folder.name) for name, folder in folders.items())
    mark = hashlib.sha256(json.dumps([_DRAWN, sources, sorted(locales)]).encode()).hexdigest()[:8]
    return f"corpus-{side_px}px-{mark}"


def corpus(
    cache: Path | None = None,
    sets: Sequence[str] = DEFAULT_SETS,
    *,
    side_px: int = 64,
    locales: Sequence[str] = (),
    on_progress: Progress = _silent,
) -> Path:
    """Fetch and draw what is not there yet, and return the folder of the corpus inside the cache."""
    cache = default_cache() if cache is None else Path(cache)
    folders = fetch(cache, sets, on_progress)
    out = cache / _key(folders, side_px, locales)
    with locked(cache, lambda: on_progress("waiting for another process that draws", 0, 1)):
        sweep(cache)
        if not (out / "rows.jsonl").is_file():
            build(folders, out, side_px=side_px, locales=locales, on_progress=on_progress)
    return out


def rows(folder: Path) -> list[Row]:
    """The rows of a drawn corpus, in order of id; their blobs are `blobs(folder)`."""
    try:
        text = (Path(folder) / "rows.jsonl").read_text("utf-8")
    except OSError as error:
        raise explain(error, f"reading the corpus {folder}") from error
    return [Row(**json.loads(line)) for line in text.splitlines()]


def blobs(folder: Path) -> FolderBlobs:
    """The pictures of a drawn corpus."""
    return FolderBlobs(Path(folder) / "blobs")
