"""Which rows a table has already: asked by id where the table can tell, else from one scan."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from krea_data.interfaces import Table
from krea_data.rows import Row

__all__ = ["Asked", "asker", "open_again"]

Asked = Callable[[Sequence[str]], dict[str, bool]]
"""Of these ids those that are there, and whether what they lack may still come."""

_SELECT = (
    "select id, blob = '' and coalesce((meta ->> 'problem_passes')::bool, false) from images where id = any(%s::text[])"
)


def open_again(row: Row) -> bool:
    """Whether the row has no bytes for a reason that may pass."""
    return not row.blob and row.meta.get("problem_passes") is True


def asker(table: Table, prefixes: Sequence[str]) -> Asked:
    """A function that tells which of the ids it is given are in the table; all of them start with one of `prefixes`."""
    if hasattr(table, "routed"):
        return lambda ids: _selected(table, ids)
    found = {row.id: open_again(row) for row in table.scan() if row.id.startswith(tuple(prefixes))}

    def ask(ids: Sequence[str]) -> dict[str, bool]:
        return {one: found[one] for one in ids if one in found}

    return ask


def _selected(krablet: Any, ids: Iterable[str]) -> dict[str, bool]:
    from krea_data.krablet.slots import check_current  # only where there is a krablet

    def select(connection: Any, dag: Any, part: list[str]) -> list[tuple[str, bool]]:
        found = connection.execute(_SELECT, [part]).fetchall()
        check_current(connection, dag)
        return [(str(row[0]), bool(row[1])) for row in found]

    return dict(pair for part in krablet.routed(list(ids), str, select) for pair in part)
