"""Run a function over the rows of a krablet, every row once, from a script or a notebook.

    handle = pluck.Table("images", krablet=krablet, key="noto/").map(fn, into="score", workers=4)
    for row_id, result in handle.results(): ...

The rows are cut into ranges of ids; a page's results and the place behind it are stored in one transaction, so a map
that was stopped in any way goes on where it was, and a page that was worked on twice counts once. Rows that come in
behind the cursor are left for the next map, which passes over rows that have a result. Functions go to the workers
signed; see `krea_data.krablet.pluck.functions`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from krea_data.krablet.pluck.calls import Call
from krea_data.krablet.pluck.functions import RefusedError
from krea_data.krablet.pluck.hand import BrokenError
from krea_data.krablet.pluck.handle import Failure, Handle
from krea_data.krablet.pluck.maps import Progress
from krea_data.krablet.pluck.table import Table, map_here
from krea_data.krablet.pluck.walk import Mapped
from krea_data.krablet.table import Krablet

__all__ = ["BrokenError", "Failure", "Handle", "Mapped", "Progress", "RefusedError", "Table", "map"]


def map(
    fn: Call,
    table: Krablet,
    *,
    into: str,
    kept_by: Sequence[str] = (),
    batch: int = 256,
    processes: int = 1,
    lease_s: float = 300.0,
    on_progress: Callable[[Mapped], None] | None = None,
    key_file: Path | None = None,
) -> Mapped:
    """Call `fn` on pages of up to `batch` rows, store its results as those of the task `into`, and wait for the end.

    One process means this one: `fn` needs no pickling, nothing keeps it from taking this process down, and a page must
    take less than `lease_s`. With more it goes to workers as in `Table.map`, and `on_progress` is told at the end.
    """
    if batch < 1 or processes < 1:
        raise ValueError(f"batch {batch} and processes {processes} must be at least 1")
    rows = Table("images", krablet=table, kept_by=kept_by, key_file=key_file)
    if processes == 1:
        return map_here(fn, table, question=rows.question(into), batch=batch, lease_s=lease_s, report=on_progress)
    with rows.map(fn, into=into, batch=batch, workers=processes, show=False) as handle:
        done = handle.wait()
    if on_progress is not None:
        on_progress(done)
    return done
