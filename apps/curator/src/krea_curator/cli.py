"""The command line of krea-curate: flags in, tables and sentences out. What they do is in `compose`."""

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer
from krea_data import sources
from krea_data.demo import DEFAULT_SETS, SETS
from krea_data.demo import corpus as demo_corpus
from krea_data.demo import rows as corpus_rows
from krea_data.krablet import Krablet
from krea_data.limits.stages import stages
from krea_data.shards import Settings
from rich.console import Console
from rich.live import Live

from krea_curator import compose, krablet_cli, looks, tables
from krea_curator.compose import ORDER, Home
from krea_curator.curation import curate
from krea_curator.effort import ISOLATED, LEASE_S, MEMORY_MIB, NONE, TIMEOUT_S, Effort
from krea_curator.interrupt import sigterm_as_ctrl_c
from krea_curator.options import HOME, Dsns, HomeFlag
from krea_curator.sourcing import source_at
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
app.add_typer(krablet_cli.app, name="krablet")


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
    places: Annotated[
        list[Path],
        typer.Argument(
            help="A corpus such as fetch-demo prints, a folder of pictures, WebDataset tars, Parquet lists of URLs,"
            " or a saved Hugging Face dataset."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="What the ids of the rows begin with; from the place.")] = None,
    licence: Annotated[str | None, typer.Option(help="Of pictures that state none, such as CC0-1.0.")] = None,
    author: Annotated[str | None, typer.Option(help="Of pictures that state none.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Files or downloads at a time.")] = 8,
    home: HomeFlag = HOME,
    dsn: Dsns = None,
) -> None:
    """Take rows and pictures in. Doing it again takes in what is missing, and nothing twice."""
    with plain_errors():
        source = source_at(places, name, licence, author)
        with _table(home, dsn) as (table, where), progress() as shown:
            bar = shown.add_task("ingest", total=None)

            def on_rows(done: int, total: int | None) -> None:
                shown.update(bar, completed=done, total=total)

            if source is None:
                new, without = compose.ingest(table, where.blobs, places[0], on_rows), 0
            else:
                found = sources.ingest(table, where.blobs, source, on_rows, workers=workers)
                new, without = found.new, found.without
        print(f"{new} new rows" + (f", {without} of them without a picture" if without else ""))


@app.command()
def run(
    task: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(ORDER)}; may be repeated.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = os.cpu_count() or 1,
    until_idle: Annotated[bool, typer.Option("--until-idle", help="End when nothing is left to do.")] = False,
    batch: Annotated[
        list[str] | None,
        typer.Option(help="Rows at once, 100 unless given; for one task as caption=16. May be repeated."),
    ] = None,
    lease: Annotated[
        float, typer.Option(help="Seconds after which the rows of a worker that died go to others.")
    ] = LEASE_S,
    isolate: Annotated[
        list[str] | None,
        typer.Option(help=f"Run this task where a picture may kill it; {', '.join(ISOLATED)} unless given, or {NONE}."),
    ] = None,
    memory: Annotated[int, typer.Option(help="MiB that an isolated task may take.")] = MEMORY_MIB,
    timeout: Annotated[float, typer.Option(help="Seconds for a picture in an isolated task.")] = TIMEOUT_S,
    home: HomeFlag = HOME,
    dsn: Dsns = None,
    leash: Annotated[bool, typer.Option("--leash", hidden=True)] = False,
) -> None:
    """Run tasks on all rows with several worker processes. Ctrl-C ends after the batches in hand, twice at once."""
    names = task or []
    with plain_errors():
        isolated = ISOLATED if isolate is None else tuple(isolate)
        effort = Effort(batch=tuple(batch or ()), lease_s=lease, isolate=isolated, memory_mib=memory, timeout_s=timeout)
        if leash:
            compose.work(Home(folder=home), dsn or [], names, effort, until_idle=until_idle, stop=_end_of_input())
            return
        with _table(home, dsn) as (table, where), sigterm_as_ctrl_c(), progress() as shown:
            whole = curate(
                table,
                where,
                names=names,
                workers=workers,
                effort=effort,
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
    stage: Annotated[str | None, typer.Option(help="Only rows within the limits of this stage of the recipe.")] = None,
    home: HomeFlag = HOME,
    dsn: Dsns = None,
) -> None:
    """Write what every task has kept as shuffled tar shards with an index and an attribution file."""
    with plain_errors(), _table(home, dsn) as (table, where):
        with progress() as shown:
            bar = shown.add_task("export", total=None)
            settings = Settings(seed=seed, per_shard=per_shard)
            pictures = compose.export(
                table,
                where.blobs,
                out,
                settings,
                lambda done, total: shown.update(bar, completed=done, total=total),
                stage=None if stage is None else where.recipe.stage(stage),
            )
        print(f"{pictures} pictures in {out}")


@app.command()
def review(
    port: Annotated[int, typer.Option(help="Port on this machine; any that is free unless given.")] = 0,
    home: HomeFlag = HOME,
    dsn: Dsns = None,
) -> None:
    """Serve a page on which to look at rows and decide: what was dropped and why, what stands next to a limit."""
    from krea_curator.review.server import Review, serve  # these bring a web server, which other commands do not need

    with plain_errors(), _table(home, dsn) as (table, where):
        page = Review(table, where.blobs, stages(where.recipe.stages), ORDER[-1])
        serve(page, port=port, ready=lambda address: typer.echo(f"{address}\nCtrl-C ends"))


@app.command()
def limits(
    out: Annotated[Path, typer.Argument(help="The page to write, such as limits.html.")],
    field: Annotated[
        list[str] | None, typer.Option(help="A number such as flat.entropy; all that were measured unless given.")
    ] = None,
    home: HomeFlag = HOME,
    dsn: Dsns = None,
) -> None:
    """Write a page on which to choose limits: histograms of numbers, and the pictures next to the recipe's limits."""
    with plain_errors(), _table(home, dsn) as (table, where):
        fields = looks.limits_page(table, where.blobs, where.recipe, out, field or ())
        print(f"{len(fields)} number{'s' * (len(fields) != 1)} in {out}")


@contextmanager
def _table(home: Path, dsn: Sequence[str] | None) -> Iterator[tuple[Krablet, Home]]:
    where = Home(folder=home)
    with compose.open_table(where, dsn or ()) as table:
        yield table, where


def _end_of_input() -> threading.Event:
    """Set when standard input ends: the pool has let go, or is gone. In that case nobody would end a worker that hangs,
    so it ends itself after a while.
    """
    ended, pool = threading.Event(), os.getppid()

    def read() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        ended.set()
        if os.getppid() != pool:
            time.sleep(compose.GRACE_S)
            os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    return ended
