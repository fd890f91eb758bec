"""Everything a curation needs, put together in one place: the tasks in their order, the table, blobs, telemetry."""

import hashlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from krea_data import demo, summary, worker
from krea_data import shards as tars
from krea_data.blobs import FolderBlobs
from krea_data.interfaces import Blobs, Table, Task
from krea_data.krablet import Krablet, up
from krea_data.krablet.connection import patiently
from krea_data.krablet.embedded.folder import Folder, Hold
from krea_data.limits.stages import Stage
from krea_data.memory import MemoryTable
from krea_data.rows import Result, Row
from krea_data.tasks import Caption, Complexity, Decode, Dedup, Flat, Hash, Licence
from krea_infra.telemetry import json_lines

from krea_curator import recipe as recipes
from krea_curator.effort import ORDER, Effort
from krea_curator.recipe import Recipe
from krea_curator.standing import Standing

__all__ = [
    "GRACE_S",
    "ORDER",
    "Home",
    "chosen",
    "dedup",
    "dsns",
    "dsns_file",
    "export",
    "funnel",
    "ingest",
    "open_table",
    "per_row",
    "running",
    "tasks",
    "telemetry",
    "work",
    "worker_command",
]

SHARDS = 2  # of a new embedded krablet
PATIENCE_S = 60.0  # for shards that do not answer when a worker starts, say in the middle of a restart
GRACE_S = 300.0  # for the batch in hand of a worker whose pool is gone
OnRows = Callable[[int, int], None]
"""Called with what is done so far and how much there is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Home:
    """The folder of one curation: pictures, database, recipe, and what its workers say."""

    folder: Path

    @property
    def blobs(self) -> FolderBlobs:
        """The pictures by their hash."""
        return FolderBlobs(self.folder / "blobs")

    @property
    def krablet(self) -> Path:
        """The folder of the embedded database."""
        return self.folder / "krablet"

    @property
    def recipe(self) -> Recipe:
        """The limits in force."""
        return recipes.read(self.folder / "recipe.json")

    @property
    def workers(self) -> Path:
        """Where workers leave their locks and logs."""
        return self.folder / "workers"


def tasks(blobs: Blobs, recipe: Recipe) -> tuple[Task, ...]:
    """The tasks in their order: each row goes from one to the next for as long as it is kept.

    Captions come last, so that they are written for what is to be exported alone.
    """
    return (
        Licence(allowed=recipe.licences),
        Decode(blobs=blobs, least_px=recipe.least_px, aspect_limit=recipe.aspect_limit, after=("licence",)),
        Flat(blobs=blobs, after=("decode",)),
        Complexity(blobs=blobs, limit=recipe.complexity_limit, after=("flat",)),
        Hash(blobs=blobs, after=("complexity",)),
        _dedup(recipe),
        Caption(blobs=blobs, after=("dedup",)),
    )


def chosen(names: Sequence[str], blobs: Blobs, recipe: Recipe) -> tuple[Task, ...]:
    """The tasks of these names (all if there are none); raises ValueError for an unknown name."""
    unknown = [name for name in names if name not in ORDER]
    if unknown:
        raise ValueError(f"no task {unknown[0]!r}; there are {', '.join(ORDER)}")
    return tuple(task for task in tasks(blobs, recipe) if not names or task.name in names)


def _dedup(recipe: Recipe) -> Dedup:
    return Dedup(phash_limit=recipe.phash_limit, colour_limit=recipe.colour_limit, after=("hash",))


def per_row(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """Those of the tasks that workers run; `dedup` has to see all rows at once."""
    return tuple(task for task in tasks if task.name != "dedup")


@contextmanager
def dsns(home: Home, given: Sequence[str] = (), shards: int | None = None) -> Iterator[tuple[str, ...]]:
    """The DSNs of the shards: those given, else those of the embedded krablet, which runs as long as this is open."""
    if given:
        yield tuple(given)
        return
    new = not (home.krablet / "cluster.json").exists()
    with up(home.krablet, SHARDS if new and shards is None else shards) as cluster:
        yield cluster.dsns


@contextmanager
def open_table(home: Home, given: Sequence[str] = ()) -> Iterator[Krablet]:
    """The table of a curation, with all its tasks made known."""
    with dsns(home, given) as addresses, Krablet(addresses) as table:
        table.register(per_row(tasks(home.blobs, home.recipe)))
        yield table


def running(home: Home) -> bool:
    """Whether somebody has the embedded krablet of this home up. Raises ValueError if there is none."""
    if not (home.krablet / "cluster.json").exists():
        raise ValueError(f"no krablet in {home.folder}; krea-curate krablet up makes one")
    return Folder(home.krablet).kept()


def ingest(
    table: Krablet | MemoryTable, blobs: FolderBlobs, corpus: Path, on_rows: OnRows = lambda done, total: None
) -> int:
    """Take in a corpus (rows.jsonl and blobs/) and return how many rows were new; pictures are copied first.

    Doing it again takes in what is missing. Raises ValueError for a folder that is no corpus.
    """
    if not (corpus / "rows.jsonl").is_file():
        raise ValueError(f"{corpus} holds no rows.jsonl; give the folder of a corpus, such as fetch-demo prints")
    try:
        rows = demo.rows(corpus)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{corpus / 'rows.jsonl'} is damaged ({error}); make the corpus again") from error
    source = demo.blobs(corpus)
    for done, row in enumerate(rows):
        if row.blob not in blobs and row.blob in source and blobs.put(source.get(row.blob)) != row.blob:
            raise ValueError(f"the picture of {row.id} is not what its hash says; make the corpus {corpus} again")
        if row.blob not in blobs:
            raise ValueError(f"the picture of {row.id} is missing from {corpus}; make the corpus again")
        on_rows(done + 1, len(rows))
    return table.add(rows)


def dedup(table: Table, recipe: Recipe) -> dict[str, Result]:
    """Compare all rows that the tasks before have kept, store the answers, and return those that drop a row."""
    before = ORDER[: ORDER.index("dedup")]
    task = _dedup(recipe)
    results = task.compare(table.scan(kept_by=before))
    table.put(task.name, results)
    return {row_id: result for row_id, result in results.items() if result.drop is not None}


def funnel(table: Table, *, examples: int = 3) -> tuple[summary.Step, ...]:
    """What each task saw, kept and dropped, with ids as examples of every reason."""
    return summary.funnel(table.scan(), ORDER, examples=examples)


def export(
    table: Table,
    blobs: Blobs,
    out: Path,
    settings: tars.Settings,
    on_shards: OnRows = lambda done, total: None,
    *,
    stage: Stage | None = None,
) -> int:
    """Write the rows that every task has kept, and a stage if one is given, as shards; returns how many.

    Raises ValueError if there are none.
    """
    rows: list[Row] = list(table.scan(kept_by=ORDER))
    if not rows:
        raise ValueError("no row has been kept by every task yet; see krea-curate funnel")
    rows = [row for row in rows if row.dropped is None]  # a person may have dropped some that all tasks kept
    if stage is not None:
        left = [row for row in rows if stage.refusal(row) is None]
        if not left:
            raise ValueError(f"the stage {stage.name} leaves out all {len(rows)} rows: {stage.refusal(rows[0])}")
        rows = left
    tars.export(rows, blobs, out, settings, on_progress=on_shards)
    return len(rows)


def telemetry(home: Home) -> Callable[[Sequence[Standing]], None]:
    """Lines of JSON in the home, one per look at the queues; the step is the time in whole seconds."""
    sink = json_lines(home.folder / "progress.jsonl")

    def note(standings: Sequence[Standing]) -> None:
        metrics: dict[str, float] = {}
        for one in standings:
            metrics |= {f"{one.task}_done": one.done, f"{one.task}_backlog": one.backlog, f"{one.task}_dead": one.dead}
        sink(int(time.time()), metrics)

    return note


def dsns_file(home: Home, given: Sequence[str]) -> str:
    """What `--dsn` takes in place of these DSNs: a file that nobody else may read, as they may hold passwords."""
    home.workers.mkdir(parents=True, exist_ok=True)
    path = home.workers / "dsns"
    path.touch(0o600)
    path.chmod(0o600)
    path.write_text("".join(f"{dsn}\n" for dsn in given), "utf-8")
    return f"@{path}"


def worker_command(
    home: Path,
    given: Sequence[str] = (),
    *,
    names: Sequence[str] = (),
    workers: int | None = None,
    until_idle: bool = True,
    leash: bool = False,
    more: Sequence[str] = (),
) -> list[str]:
    """The command of a pool of workers, or with `leash` of a single one that ends with its standard input.

    `more` are flags for it, such as those of an `Effort`.
    """
    command = [sys.executable, "-m", "krea_curator", "run", "--home", str(home)]
    for flag, values in (("--dsn", given), ("--task", names)):
        command += [word for value in values for word in (flag, value)]
    command += ["--workers", str(workers)] if workers is not None else []
    return command + ["--until-idle"] * until_idle + ["--leash"] * leash + list(more)


def work(
    home: Home, given: Sequence[str], names: Sequence[str], effort: Effort, *, until_idle: bool, stop: threading.Event
) -> None:
    """Be one worker until nothing is left, or until `stop`."""
    with patiently(lambda: Krablet(given), PATIENCE_S) as table, _name(home, table) as name:
        worker.run(
            table,
            per_row(chosen(names, home.blobs, home.recipe)),
            worker=name,
            batch=effort.rows,
            lease_s=effort.lease_s,
            limits=effort.limits,
            until_idle=until_idle,
            stop=stop,
        )


@contextmanager
def _name(home: Home, table: Krablet) -> Iterator[str]:
    """A name that no other living worker has; rows that dead workers of this home still hold are freed.

    Names are numbers with a lock each, which the system opens when its process is gone, however it went.
    """
    home.workers.mkdir(parents=True, exist_ok=True)
    mark = hashlib.sha256(os.fsencode(home.folder.absolute())).hexdigest()[:8]
    with ExitStack() as mine:
        others = mine.enter_context(ExitStack())
        name = None
        for number in count():
            path = home.workers / f"{number}.lock"
            if name is not None and not path.exists():
                break
            with suppress(BlockingIOError):
                (others if name else mine).enter_context(Hold(path, wait=False))
                free = f"{socket.gethostname()}-{mark}-{number}"
                table.release(free, crashed=True)
                name = name or free
        others.close()
        assert name is not None
        yield name
