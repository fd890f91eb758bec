"""The command line of krea-curate: flags in, tables and sentences out. What they do is in `compose`."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from krea_data.demo import DEFAULT_SETS, SETS
from krea_data.demo import corpus as demo_corpus
from krea_data.demo import rows as corpus_rows
from krea_data.krablet import Krablet
from krea_data.krablet.binaries import programs
from krea_data.shards import Settings
from rich.console import Console
from rich.live import Live

from krea_curator import compose, tables
from krea_curator.compose import ORDER, Home
from krea_curator.curation import curate
from krea_curator.terminal import bars, note, plain_errors, progress

__all__ = ["app"]

EXAMPLES = """
Examples

krea-curate fetch-demo

krea-curate ingest CORPUS && krea-curate run --until-idle && krea-curate funnel

krea-curate export shards

krea-curate status --dsn "host=db1 dbname=krablet" --dsn "host=db2 dbname=krablet"
"""

app = typer.Typer(
    help="Curate pictures: take them in, run tasks on every row, see what was kept and why, export shards.",
    epilog=EXAMPLES,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
krablet = typer.Typer(help="The embedded PostgreSQL of a home.", no_args_is_help=True)
app.add_typer(krablet, name="krablet")

HomeFlag = Annotated[Path, typer.Option("--home", help="Folder of this curation: pictures, database, recipe.json.")]
Dsns = Annotated[
    list[str] | None,
    typer.Option(
        "--dsn", help="A shard of a PostgreSQL cluster, in order; may be repeated. Without it, an embedded one."
    ),
]
HOME = Path("runs/curation")


@app.command("fetch-demo")
def fetch_demo(
    sets: Annotated[list[str] | None, typer.Option("--set", help=f"One of {', '.join(SETS)}; may be repeated.")] = None,
    side_px: Annotated[int, typer.Option(help="Pixels along each side of the drawings.")] = 64,
    cache: Annotated[Path | None, typer.Option(help="Where downloads lie; KREA_CACHE unless given.")] = None,
) -> None:
    """Fetch and draw the demo corpus: real pictures with labels. Goes on where it was interrupted."""
    with plain_errors():
        with progress() as shown:
            bar = shown.add_task("fetch", total=None)

            def on_progress(stage: str, done: float, total: float) -> None:
                shown.update(bar, description=stage, completed=done, total=total)

            corpus = demo_corpus(cache, tuple(sets or DEFAULT_SETS), side_px=side_px, on_progress=on_progress)
        Console().print(tables.licences(corpus_rows(corpus)))
        print(corpus)
        note(f'next: krea-curate ingest "{corpus}"')


@app.command()
def ingest(
    corpus: Annotated[Path, typer.Argument(help="A folder with rows.jsonl and blobs/, such as fetch-demo prints.")],
    home: HomeFlag = HOME,
    dsn: Dsns = None,
) -> None:
    """Take the rows and pictures of a corpus in. Doing it twice is harmless."""
    with plain_errors(), _table(home, dsn) as (table, where):
        with progress() as shown:
            bar = shown.add_task("ingest", total=None)
            new = compose.ingest(
                table, where.blobs, corpus, lambda done, total: shown.update(bar, completed=done, total=total)
            )
        print(f"{new} new rows")


@app.command()
def run(
    task: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(ORDER)}; may be repeated.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = os.cpu_count() or 1,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="End when nothing is left to do.")] = False,
    home: HomeFlag = HOME,
    dsn: Dsns = None,
    leash: Annotated[bool, typer.Option("--leash", hidden=True)] = False,
) -> None:
    """Run tasks on all rows with several worker processes. Ctrl-C ends after the batches in hand, twice at once."""
    names = task or []
    with plain_errors():
        if leash:
            compose.work(Home(folder=home), dsn or [], names, until_idle=until_idle, stop=_end_of_input())
            return
        with _table(home, dsn) as (table, where), _sigterm_as_ctrl_c(), progress() as shown:
            whole = curate(
                table,
                where,
                names=names,
                workers=workers,
                until_idle=until_idle,
                on_standing=bars(shown),
                on_drain=lambda: note("finishing the batches in hand; Ctrl-C again stops at once"),
            )
        if not whole:
            note("stopped; the same command goes on from here")
            raise typer.Exit(130)
        print("nothing left to do")


@app.command()
def status(
    home: HomeFlag = HOME,
    dsn: Dsns = None,
    live: Annotated[bool, typer.Option("--live", help="Refresh until Ctrl-C.")] = False,
) -> None:
    """Show each task's answered and waiting rows, its speed over two seconds, and what it gave up on."""
    with plain_errors(), _table(home, dsn) as (table, _):
        before, then = table.stats(), time.monotonic()
        with Live(console=Console(), auto_refresh=False) if live else nullcontext() as screen:
            while True:
                time.sleep(2)
                stats, now = table.stats(), time.monotonic()
                rates = {
                    name: (one.done - before[name].done) / (now - then) for name, one in stats.items() if name in before
                }
                shown = tables.status(stats, ORDER, rates)
                if screen is None:
                    Console().print(shown)
                    break
                screen.update(shown, refresh=True)
                before, then = stats, now
        dead = {name: found for name, one in stats.items() if one.dead and (found := table.dead(name))}
        Console().print(tables.failures(dead))


@app.command()
def funnel(home: HomeFlag = HOME, dsn: Dsns = None) -> None:
    """Show what every task kept and dropped, and why, with examples."""
    with plain_errors(), _table(home, dsn) as (table, _):
        Console().print(tables.funnel(compose.funnel(table)))


@app.command()
def dedup(home: HomeFlag = HOME, dsn: Dsns = None) -> None:
    """Compare all rows that the tasks before have kept, and show which are copies of which."""
    with plain_errors(), _table(home, dsn) as (table, where):
        Console().print(tables.copies(compose.dedup(table, where.recipe)))


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="The folder to write; it appears when it is whole.")],
    seed: Annotated[int, typer.Option(help="Seed of the order of the pictures.")] = 0,
    per_shard: Annotated[int, typer.Option(help="At most so many pictures in one tar.")] = 1000,
    home: HomeFlag = HOME,
    dsn: Dsns = None,
) -> None:
    """Write what every task has kept as shuffled tar shards with an index and an attribution file."""
    with plain_errors(), _table(home, dsn) as (table, where):
        with progress() as shown:
            bar = shown.add_task("export", total=None)
            settings = Settings(seed=seed, per_shard=per_shard)
            pictures = compose.export(
                table, where.blobs, out, settings, lambda done, total: shown.update(bar, completed=done, total=total)
            )
        print(f"{pictures} pictures in {out}")


@krablet.command("up")
def krablet_up(
    home: HomeFlag = HOME,
    shards: Annotated[int | None, typer.Option(help="Databases of a new krablet; 2 unless given.")] = None,
) -> None:
    """Run the embedded databases until Ctrl-C, and print their DSNs."""
    with plain_errors(), _sigterm_as_ctrl_c(), compose.dsns(Home(folder=home), shards=shards) as addresses:
        print("\n".join(addresses), flush=True)
        note("up; Ctrl-C ends")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            note("stopping, unless somebody else uses them")


@krablet.command("status")
def krablet_status(home: HomeFlag = HOME) -> None:
    """Say whether the embedded databases run, and how many rows and bytes each holds."""
    with plain_errors():
        running = compose.running(Home(folder=home))
        print("running" if running else "not running; asking them means starting them for a moment")
        with _table(home, None) as (table, _):
            for line in compose.sizes(table):
                print(line)


@krablet.command("psql", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def krablet_psql(
    context: typer.Context,
    home: HomeFlag = HOME,
    shard: Annotated[int, typer.Option(help="Which of the databases, from 0.")] = 0,
) -> None:
    """Open psql on one of the embedded databases; what follows the flags is handed to it."""
    with plain_errors(), compose.dsns(Home(folder=home)) as addresses:
        if not 0 <= shard < len(addresses):
            raise ValueError(f"no shard {shard}; there are 0 to {len(addresses) - 1}")
        code = subprocess.run([programs() / "psql", addresses[shard], *context.args], check=False).returncode
    raise typer.Exit(code)


@contextmanager
def _table(home: Path, dsn: Sequence[str] | None) -> Iterator[tuple[Krablet, Home]]:
    where = Home(folder=home)
    with compose.open_table(where, dsn or ()) as table:
        yield table, where


def _end_of_input() -> threading.Event:
    """Set when standard input ends: the pool has let go, or is gone. In that case nobody would end a worker that hangs,
    so it ends itself when its leases have run out anyway.
    """
    ended, pool = threading.Event(), os.getppid()

    def read() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        ended.set()
        if os.getppid() != pool:
            time.sleep(compose.LEASE_S)
            os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    return ended


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
