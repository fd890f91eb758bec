"""`krea-curate krablet`: run, look after and back up the databases of a curation, embedded or by DSN."""

import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from krea_data.krablet import Krablet, up
from krea_data.krablet.checks.check import check, repair
from krea_data.krablet.dumps.backup import dump
from krea_data.krablet.dumps.folder import read_manifest
from krea_data.krablet.dumps.restore import restore
from krea_data.krablet.embedded.binaries import programs
from krea_data.krablet.moves import move
from krea_data.krablet.queues import controls
from krea_data.krablet.queues.metrics import Metrics
from rich.console import Console

from krea_curator import compose, krablet_tables
from krea_curator.compose import Home
from krea_curator.interrupt import sigterm_as_ctrl_c
from krea_curator.options import HOME, Dsns, HomeFlag
from krea_curator.serve_cli import krablet_serve, token_app, watch
from krea_curator.terminal import note, plain_errors, progress

__all__ = ["app"]

EXAMPLES = """
Examples

krea-curate krablet up --http 127.0.0.1:7611

krea-curate krablet check --repair --dsn @dsns.txt

krea-curate krablet dump monday && krea-curate krablet restore monday --home another --shards 4

krea-curate krablet add-shard "host=db3 dbname=krablet" --dsn @dsns.txt

krea-curate krablet token add ann --scope read --scope write --tokens tokens.json

krea-curate krablet serve --listen 0.0.0.0:7610 --http 0.0.0.0:7611 --tokens tokens.json --dsn @dsns.txt
"""

PausedTask = Annotated[str, typer.Argument(help="The task.")]
PausedShards = Annotated[list[int] | None, typer.Option(help="Only on this database; may be repeated.")]

app = typer.Typer(
    help="The databases of a curation: PostgreSQL shards, embedded in its home or given by DSN.",
    epilog=EXAMPLES,
    no_args_is_help=True,
)
app.command("serve")(krablet_serve)
app.add_typer(token_app, name="token")


@app.command("up")
def krablet_up(
    home: HomeFlag = HOME,
    shards: Annotated[int | None, typer.Option(help="Databases of a new krablet; 2 unless given.")] = None,
    http: Annotated[str | None, typer.Option(help="host:port for /health, /ready and /metrics.")] = None,
) -> None:
    """Run the embedded databases until Ctrl-C, and print their DSNs."""
    with plain_errors(), compose.dsns(Home(folder=home), shards=shards) as addresses:
        typer.echo("\n".join(addresses))
        if http is not None:
            watch(addresses, http)
            return
        note("up; Ctrl-C ends")
        with sigterm_as_ctrl_c():
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                note("stopping, unless somebody else uses them")


@app.command("status")
def krablet_status(home: HomeFlag = HOME, dsn: Dsns = None) -> None:
    """Say which databases answer, what each holds, and how the queues stand."""
    with plain_errors():
        if not dsn:
            running = compose.running(Home(folder=home))
            typer.echo("running" if running else "not running; asking them means starting them for a moment")
        with _krablet(home, dsn) as krablet:
            Console().print(krablet_tables.shards(krablet))
            Console().print(krablet_tables.queues(Metrics(krablet).values()))


@app.command("psql", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def krablet_psql(
    context: typer.Context,
    home: HomeFlag = HOME,
    dsn: Dsns = None,
    shard: Annotated[int, typer.Option(help="Which of the databases, from 0.")] = 0,
) -> None:
    """Open psql on one of the databases; what follows the flags is handed to it."""
    with plain_errors(), compose.dsns(Home(folder=home), dsn or ()) as addresses:
        if not 0 <= shard < len(addresses):
            raise ValueError(f"no shard {shard}; there are 0 to {len(addresses) - 1}")
        code = subprocess.run([programs() / "psql", addresses[shard], *context.args], check=False).returncode
    raise typer.Exit(code)


@app.command("add-shard")
def krablet_add_shard(
    new: Annotated[str | None, typer.Argument(help="DSN of an empty database; without it, one more embedded.")] = None,
    home: HomeFlag = HOME,
    dsn: Dsns = None,
) -> None:
    """Add a database and move its share of the rows there, while everybody goes on working."""
    with plain_errors():
        if new is None and dsn:
            raise ValueError("name the DSN of the new database: krea-curate krablet add-shard DSN --dsn ...")
        if new is None:
            compose.running(Home(folder=home))
            with up(Home(folder=home).krablet) as cluster:
                cluster.grow(len(cluster.dsns) + 1)
                _rebalance(cluster.dsns)
            return
        with _krablet(home, dsn) as krablet:
            typer.echo(f"shard {move.add_shard(krablet, new)} is {krablet_tables.shown(new)}")
            _moving(krablet, None, None)


@app.command("move")
def krablet_move(
    slots: Annotated[list[int] | None, typer.Argument(help="Slots to move; none for an even share each.")] = None,
    to: Annotated[int | None, typer.Option(help="The shard that these slots go to.")] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Leave slots that are on their way where they are.")] = False,
    home: HomeFlag = HOME,
    dsn: Dsns = None,
) -> None:
    """Move slots between databases while everybody goes on working. A move that was cut off is finished first."""
    with plain_errors(), _krablet(home, dsn) as krablet:
        if cancel:
            typer.echo(f"{move.cancel(krablet)} slots stay where they are")
            return
        if (to is None) != (not slots):
            raise ValueError("give slots and --to, such as: move 3 4 --to 1; or neither, for an even share each")
        _moving(krablet, slots, to)


@app.command("check")
def krablet_check(
    quick: Annotated[bool, typer.Option("--quick", help="Do not read all ids.")] = False,
    fix: Annotated[bool, typer.Option("--repair", help="Make right what can be made right without loss.")] = False,
    home: HomeFlag = HOME,
    dsn: Dsns = None,
) -> None:
    """Look all databases over: rows in their places, queues exact, shards of one mind. Exit code 1 if it is broken."""
    with plain_errors(), compose.dsns(Home(folder=home), dsn or ()) as addresses:
        found = _checked(addresses, quick)
        if fix and (done := repair(addresses, found)):
            Console().print(krablet_tables.findings(done, "repaired"))
            found = _checked(addresses, quick)
        Console().print(krablet_tables.findings(found, "found"))
        broken = any(one.level == "broken" for one in found)
    raise typer.Exit(1 if broken else 0)


@app.command("dump")
def krablet_dump(
    folder: Annotated[Path, typer.Argument(help="The folder to write; it appears when it is whole.")],
    home: HomeFlag = HOME,
    dsn: Dsns = None,
) -> None:
    """Write all rows, results, queues and records into a folder. The same command goes on where it was cut off."""
    with plain_errors(), _krablet(home, dsn) as krablet, progress() as shown:
        bar = shown.add_task("slots", total=None)
        manifest = dump(krablet, folder, on_slots=lambda done, total: shown.update(bar, completed=done, total=total))
        typer.echo(f"{manifest.rows} rows of {manifest.shards} shards in {folder}")


@app.command("restore")
def krablet_restore(
    folder: Annotated[Path, typer.Argument(help="What dump wrote.")],
    shards: Annotated[int | None, typer.Option(help="Databases of a new embedded krablet.")] = None,
    home: HomeFlag = HOME,
    dsn: Dsns = None,
) -> None:
    """Write a dump into empty databases, as many as you like. The same command goes on where it was cut off."""
    with plain_errors():
        bits = read_manifest(folder).bits
        with (
            compose.dsns(Home(folder=home), dsn or (), shards=shards) as addresses,
            Krablet(addresses, bits=bits) as krablet,
            progress() as shown,
        ):
            bars = {name: shown.add_task(name, total=None) for name in ("read", "written")}
            manifest = restore(
                folder,
                krablet,
                on_step=lambda what, done, total: shown.update(bars[what], completed=done, total=total),
            )
            typer.echo(f"{manifest.rows} rows on {len(krablet.shards.numbers)} shards, the same as in {folder}")


@app.command("pause")
def krablet_pause(task: PausedTask, shard: PausedShards = None, home: HomeFlag = HOME, dsn: Dsns = None) -> None:
    """Let workers get no more rows of a task; rows keep arriving in its queue."""
    _set_pause(controls.pause, task, shard, home, dsn)


@app.command("resume")
def krablet_resume(task: PausedTask, shard: PausedShards = None, home: HomeFlag = HOME, dsn: Dsns = None) -> None:
    """Undo pause."""
    _set_pause(controls.resume, task, shard, home, dsn)


@app.command("metrics")
def krablet_metrics(
    http: Annotated[str | None, typer.Option(help="host:port to serve them at, with /health and /ready.")] = None,
    home: HomeFlag = HOME,
    dsn: Dsns = None,
) -> None:
    """Print how every queue stands as Prometheus reads it, or serve that until Ctrl-C."""
    with plain_errors(), compose.dsns(Home(folder=home), dsn or ()) as addresses:
        if http is not None:
            watch(addresses, http)
            return
        with Krablet(addresses, patience_s=5.0) as krablet:
            typer.echo(Metrics(krablet).text(), nl=False)


def _set_pause(
    change: Callable[[Krablet, str, Sequence[int] | None], None],
    task: str,
    shard: Sequence[int] | None,
    home: Path,
    dsn: Sequence[str] | None,
) -> None:
    with plain_errors(), _krablet(home, dsn) as krablet:
        change(krablet, task, shard)
        places = ", ".join(map(str, controls.paused(krablet, task)))
        typer.echo(f"{task} is paused on shards {places}" if places else f"{task} is paused nowhere")


@contextmanager
def _krablet(home: Path, dsn: Sequence[str] | None) -> Iterator[Krablet]:
    """The table alone: an operator's command changes no tasks."""
    with compose.dsns(Home(folder=home), dsn or ()) as addresses, Krablet(addresses, patience_s=10.0) as krablet:
        yield krablet


def _checked(addresses: Sequence[str], quick: bool) -> list[krablet_tables.Finding]:
    with progress() as shown:
        bars: dict[str, int] = {}

        def on_step(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = shown.add_task(what, total=total)
            shown.update(bars[what], completed=done, total=total)  # pyright: ignore[reportArgumentType]

        return check(addresses, quick=quick, on_step=on_step)


def _rebalance(addresses: Sequence[str]) -> None:
    with Krablet(addresses, patience_s=10.0) as krablet:
        typer.echo(f"shard {len(addresses) - 1} is {krablet_tables.shown(addresses[-1])}")
        _moving(krablet, None, None)


def _moving(krablet: Krablet, slots: Sequence[int] | None, to: int | None) -> None:
    """Move these slots, or as many as make the shares even, and say how many rows went."""
    total = len(slots) if slots else len(move.plan(krablet.router, krablet.shards.numbers))
    rows: dict[int, int] = {}
    with progress() as shown:
        bar = shown.add_task("slots", total=total)

        def on_progress(moved: move.Moved) -> None:
            rows[moved.slot] = max(rows.get(moved.slot, 0), moved.rows)
            if moved.step == "purged":
                shown.advance(bar)

        if slots and to is not None:
            number = move.move(krablet, slots, to, on_progress=on_progress)
        else:
            number = move.rebalance(krablet, on_progress=on_progress)
    typer.echo(f"{number} slots moved, {sum(rows.values())} rows")
