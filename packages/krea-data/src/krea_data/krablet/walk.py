"""All rows of all shards in order of id, each once, also while slots move.

The shards' pages are of different moments. If a slot moves between two of them, its rows could be missed on its new
shard, whose pages are further on, or come from both. So a walk that hears of another map drops what it has read ahead,
and goes on behind the last row that it gave out; every row up to there was given out, and no other will be.
"""

from collections.abc import Callable, Iterator, Sequence

from psycopg import Connection

from krea_data.krablet import scan
from krea_data.krablet.dag import Dag
from krea_data.krablet.router import SlotMap, merged
from krea_data.krablet.shards import Shards, StaleMap
from krea_data.krablet.slots import check_current
from krea_data.rows import Row

__all__ = ["walk"]


def walk(shards: Shards, kept_by: Sequence[str], limit: int | None) -> Iterator[Row]:
    """Up to `limit` rows that these tasks kept; a shard that is down raises `ShardDown` when its turn comes."""
    after, left = "", limit
    while left is None or left > 0:
        slots = shards.view.slots
        size = scan.PAGE_ROWS if left is None else min(left, scan.PAGE_ROWS)
        streams = [_stream(shards, number, slots, kept_by, after, size) for number in shards.numbers]
        try:
            for row in merged(streams, left):
                after = row.id
                left = None if left is None else left - 1
                yield row
        except StaleMap:
            continue
        return


def _stream(
    shards: Shards, number: int, slots: SlotMap, kept_by: Sequence[str], start: str, size: int
) -> Iterator[Row]:
    """One shard's rows behind an id, while that is the map; rows of slots that are on their way do not count."""

    def page(after: str) -> Callable[[Connection, Dag], list[Row]]:
        def read(connection: Connection, dag: Dag) -> list[Row]:
            rows = scan.page(connection, dag, after=after, limit=size, kept_by=kept_by)
            if not rows:
                check_current(connection, dag)
            return rows

        return read

    def fetch(after: str) -> list[Row]:
        return shards.guarded(number, page(after or start), slots=slots)

    return (row for row in scan.pages(fetch, size) if slots.shard(row.id) == number)
