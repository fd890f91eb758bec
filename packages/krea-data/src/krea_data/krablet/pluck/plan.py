"""Where a shard's rows are cut into ranges, and where an idle worker cuts the largest one again.

TABLESAMPLE does not cut a table into parts (some rows are in none, some in several), but a sample of keys gives good
places to cut at, and half-open ranges of keys are exact whatever is added meanwhile.
"""

from collections.abc import Sequence
from typing import LiteralString

from psycopg import Connection, sql

from krea_data.krablet.dag import Dag
from krea_data.krablet.pluck.question import Job, Question
from krea_data.krablet.pluck.spans import Span

__all__ = ["cuts", "largest", "plan", "sample", "steal"]

_SAMPLE_ROWS = 20_000  # up to here every key is looked at; cuts of 16 from so many are uneven by a few percent
_SAMPLE_BLOCKS = 4000  # where rows lie in order of id, a block counts for little more than one of its rows
_PROBE_BLOCKS = 200
_LEAST_STOLEN = 8  # a batch divided by this: less is not worth the statements
_SAMPLE: LiteralString = """
select i.id from images i tablesample system (%(percent)s) where random() < %(share)s and {} order by i.id"""
_REST: LiteralString = """
select count(*), percentile_disc(0.5) within group (order by id) from (
  select i.id from images i {sampled} where i.id > %(after)s {upper} and random() < %(share)s and {wanted}
  order by i.id limit %(limit)s
) as rest"""
_LARGEST = """
select number, greatest(cursor, ahead), upper, token, greatest(expected - rows - failed, 0) from span
where map = %s and not done and lease_until > now() order by 5 desc, number limit 3"""
_STEAL = """
with cut as (
  update span set upper = %(mid)s, expected = rows + failed + %(kept)s
  where map = %(map)s and number = %(number)s and token = %(token)s and not done
    and greatest(cursor, ahead) < %(mid)s and upper is not distinct from %(upper)s
  returning planned_at
)
insert into span (map, number, lower, cursor, upper, expected, token, worker, lease_until, planned_at)
select %(map)s, nextval('token'), %(mid)s, %(mid)s, %(upper)s, %(taken)s, nextval('token'), %(worker)s,
  now() + make_interval(secs => %(lease_s)s), planned_at from cut
returning number, cursor, upper, token"""


def plan(connection: Connection, dag: Dag, job: Job, parts: int) -> None:
    """Give the map about so many equal ranges, or fewer where there are few rows."""
    ids, share = sample(connection, dag, job.question)
    rows = round(len(ids) / share)
    uppers = cuts(ids, max(1, min(parts, rows // job.limits.batch)))
    ranges = list(zip(["", *uppers], [*uppers, None], strict=True))
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into span (map, number, lower, cursor, upper, expected)"
            " values (%s, nextval('token'), %s, %s, %s, %s)",
            [
                (job.name, lower, lower, upper, rows // len(ranges) + (number < rows % len(ranges)))
                for number, (lower, upper) in enumerate(ranges)
            ],
        )


def sample(connection: Connection, dag: Dag, question: Question) -> tuple[list[str], float]:
    """Ids of wanted rows in order, and their share of all that are wanted."""
    percent, share = _rates(connection)
    wanted, values = question.condition(dag)
    values |= {"percent": percent, "share": share}
    found = connection.execute(sql.SQL(_SAMPLE).format(wanted), values).fetchall()
    return [row_id for (row_id,) in found], percent / 100 * share


def cuts(ids: Sequence[str], parts: int) -> list[str]:
    """The last ids of all parts but the last, where sorted `ids` are cut into so many equal parts."""
    ends = (ids[len(ids) * part // parts - 1] for part in range(1, parts) if len(ids) * part // parts)
    return sorted(set(ends))


def largest(connection: Connection, job: Job) -> int:
    """About how many rows are left in the largest range that somebody works on."""
    row = connection.execute(_LARGEST, (job.name,)).fetchone()
    return row[4] if row else 0


def steal(connection: Connection, dag: Dag, job: Job, worker: str) -> Span | None:
    """Take the upper half of the largest range from the worker that has it, or None where little is left.

    The page that the worker is on and the one it reads next stay with it.
    """
    for number, after, upper, token, _ in connection.execute(_LARGEST, (job.name,)).fetchall():
        rows, mid = _rest(connection, dag, job.question, after, upper)
        if mid is None or rows < max(2, job.limits.batch // _LEAST_STOLEN):
            continue
        given = {"map": job.name, "number": number, "token": token, "upper": upper, "mid": mid, "worker": worker}
        given |= {"kept": (rows + 1) // 2, "taken": rows // 2, "lease_s": job.limits.lease_s}
        row = connection.execute(_STEAL, given).fetchone()
        if row is not None:
            return Span(number=row[0], cursor=row[1], upper=row[2], token=row[3])
    return None


def _rest(
    connection: Connection, dag: Dag, question: Question, after: str, upper: str | None
) -> tuple[int, str | None]:
    """About how many wanted rows are in after < id <= upper, and the middle one."""
    wanted, values = question.condition(dag)
    values |= {"after": after, "upper": upper, "limit": _SAMPLE_ROWS + 1, "percent": 100.0, "share": 1.0}
    bound = sql.SQL("" if upper is None else "and i.id <= %(upper)s")

    def ask(sampled: LiteralString) -> tuple[int, str | None]:
        query = sql.SQL(_REST).format(sampled=sql.SQL(sampled), upper=bound, wanted=wanted)
        return connection.execute(query, values).fetchone() or (0, None)

    rows, mid = ask("")
    if rows <= _SAMPLE_ROWS:
        return rows, mid
    values["percent"], values["share"] = _rates(connection)
    values["limit"] = None
    found, middle = ask("tablesample system (%(percent)s)")
    # A sample may have missed the range: its first rows have a middle too.
    return (round(found / (values["percent"] / 100 * values["share"])), middle) if found > 1 else (rows, mid)


def _rates(connection: Connection) -> tuple[float, float]:
    """The percentage of the table's blocks to look at, and the share of their rows to take."""
    (rows,) = connection.execute(
        "select count(*) from (select from images limit %s) as found", (_SAMPLE_ROWS + 1,)
    ).fetchone() or (0,)
    if rows <= _SAMPLE_ROWS:
        return 100.0, 1.0
    (blocks,) = connection.execute(
        "select greatest(1, pg_relation_size('images') / current_setting('block_size')::int)"
    ).fetchone() or (1,)
    probe = min(100.0, 100.0 * _PROBE_BLOCKS / blocks)
    (seen,) = connection.execute("select count(*) from images tablesample system (%s)", (probe,)).fetchone() or (0,)
    percent = min(100.0, 100.0 * _SAMPLE_BLOCKS / blocks)
    return percent, min(1.0, _SAMPLE_ROWS / max(1.0, seen * percent / probe))
