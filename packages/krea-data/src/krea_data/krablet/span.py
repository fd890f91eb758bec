"""The ranges of ids that a map works through on one shard, and the cursor that says how far it is.

TABLESAMPLE does not cut a table into parts (some rows are in none, some in several), but a sample of keys gives good
places to cut at, and half-open ranges of keys are exact whatever is added meanwhile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg import Connection

from krea_data.krablet.answers import Answer, store_rows
from krea_data.krablet.dag import Dag

__all__ = ["Page", "Span", "advance", "give_back", "left", "lend", "plan"]

_WHOLE_ROWS = 100_000  # up to here every key is looked at, above a sample of one in a hundred blocks
_ADVANCE = """
update span set cursor = coalesce(%(cursor)s, cursor), done = %(cursor)s::text is null,
  lease_until = now() + make_interval(secs => %(lease_s)s)
where map = %(map)s and number = %(number)s and token = %(token)s"""
_FAILED = """
insert into dead (task, slot, id, attempts, error) values (%s, %s, %s, 1, %s)
on conflict (task, slot, id) do update set attempts = dead.attempts + 1, error = excluded.error, died_at = now()"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A leased range: cursor < id, and id <= upper if there is an upper."""

    number: int
    cursor: str
    upper: str | None
    token: int


def plan(connection: Connection, name: str, parts: int) -> None:
    """Cut the shard's rows into about so many equal ranges, unless a map of this name is under way."""
    with connection.transaction():
        connection.execute(
            "select pg_advisory_xact_lock(hashtextextended('map ' || %s || current_schema(), 0))", (name,)
        )
        if left(connection, name):
            return
        connection.execute("delete from span where map = %s", (name,))
        (rows,) = connection.execute(
            "select count(*) from (select from images limit %s) as found", (_WHOLE_ROWS + 1,)
        ).fetchone() or (0,)
        percent = 100 if rows <= _WHOLE_ROWS else 1
        fractions = [part / parts for part in range(1, parts)]
        (cuts,) = connection.execute(
            "select percentile_disc(%s::float8[]) within group (order by id) from images tablesample system (%s)",
            (fractions, percent),
        ).fetchone() or (None,)
        uppers = sorted(set(cuts or []) - {None})
        for number, (cursor, upper) in enumerate(zip(["", *uppers], [*uppers, None], strict=True)):
            connection.execute(
                "insert into span (map, number, cursor, upper) values (%s, %s, %s, %s)", (name, number, cursor, upper)
            )


def left(connection: Connection, name: str) -> int:
    """How many ranges of the map are not done."""
    (count,) = connection.execute("select count(*) from span where map = %s and not done", (name,)).fetchone() or (0,)
    return count


def lend(connection: Connection, name: str, worker: str, lease_s: float) -> Span | None:
    """A range that nobody works on, or None."""
    row = connection.execute(
        """
        update span set token = nextval('token'), worker = %(worker)s,
          lease_until = now() + make_interval(secs => %(lease_s)s)
        where (map, number) = (select map, number from span
          where map = %(map)s and not done and lease_until <= now() order by number limit 1 for update skip locked)
        returning number, cursor, upper, token""",
        {"map": name, "worker": worker, "lease_s": lease_s},
    ).fetchone()
    return None if row is None else Span(number=row[0], cursor=row[1], upper=row[2], token=row[3])


def give_back(connection: Connection, name: str, worker: str) -> None:
    """End the leases of a worker that is no more."""
    connection.execute(
        "update span set lease_until = '-infinity', token = nextval('token')"
        " where map = %s and worker = %s and not done",
        (name, worker),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """What came of a page of a range: results, errors by (slot, id), and the last id, or None at the end."""

    cursor: str | None
    into: str
    answers: Sequence[Answer]
    failures: Mapping[tuple[int, str], str]


def advance(connection: Connection, dag: Dag, name: str, span: Span, page: Page, lease_s: float) -> bool:
    """Store a page and move the cursor behind it, or do nothing and return False if the range was lost."""
    given = {"cursor": page.cursor, "map": name, "number": span.number, "token": span.token, "lease_s": lease_s}
    with connection.transaction():
        held = connection.execute(_ADVANCE, given).rowcount
        if held and page.answers:
            store_rows(connection, dag, page.into, page.answers)
        for (slot, row_id), error in page.failures.items() if held else ():
            connection.execute(_FAILED, (page.into, slot, row_id, error.replace("\0", "?")))
    return bool(held)
