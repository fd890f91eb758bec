"""How much there is: what is due, what is pending, what every task has answered, on one shard."""

from collections import Counter
from dataclasses import dataclass, field

from psycopg import Connection, sql

from krea_data.krablet.dag import Dag, kept
from krea_data.krablet.names import queue, result
from krea_data.krablet.slots import HERE
from krea_data.rows import Dead, Stats

__all__ = ["DUE_ROWS", "Tally", "backlog_rows", "dead_rows", "due_rows", "pending_rows", "revive_rows", "tally"]

DUE_ROWS = 10_000  # where `due_rows` stops counting


@dataclass(kw_only=True, slots=True)
class Tally:
    """The counts of one task, to be summed over shards; `reasons` holds None for kept rows."""

    reasons: Counter[str | None] = field(default_factory=Counter)
    queued: int = 0
    leased: int = 0
    dead: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            reasons=self.reasons + other.reasons,
            queued=self.queued + other.queued,
            leased=self.leased + other.leased,
            dead=self.dead + other.dead,
        )

    def stats(self) -> Stats:
        """The sums in words."""
        return Stats(
            done=self.reasons.total(),
            kept=self.reasons[None],
            dropped={reason: rows for reason, rows in self.reasons.items() if reason is not None},
            queued=self.queued,
            leased=self.leased,
            dead=self.dead,
        )


def due_rows(connection: Connection, task: str) -> int:
    """Rows that could be claimed now; more than `DUE_ROWS` are not counted, since counting costs."""
    free = f"select from {{}} where run_at <= now() and held_until <= now() and {HERE} limit {{}}"
    statement = f"select count(*) from ({free}) as found"
    return _count(connection, sql.SQL(statement).format(queue(task), sql.Literal(DUE_ROWS)))


def backlog_rows(connection: Connection, task: str) -> int:
    """All rows of the task's queue: counted up to `DUE_ROWS`, from the server's statistics beyond.

    The statistics are about a second old, and forgotten by a crash until the next vacuum.
    """
    statement = f"select count(*) from (select from {{}} where {HERE} limit {{}}) as found"
    counted = _count(connection, sql.SQL(statement).format(queue(task), sql.Literal(DUE_ROWS)))
    if counted < DUE_ROWS:
        return counted
    statement = "select n_live_tup from pg_stat_user_tables where relid = {}::regclass"
    return max(counted, _count(connection, sql.SQL(statement).format(sql.Literal(f"queue_{task}"))))


def pending_rows(connection: Connection, task: str) -> int:
    """All rows of the task's queue."""
    return _count(connection, sql.SQL("select count(*) from {}").format(queue(task)))


def tally(connection: Connection, dag: Dag, task: str) -> Tally:
    """This shard's counts of a task; reads all its results."""
    answers = sql.SQL("select dropped, count(*) from {} group by dropped").format(result(task))
    found = Tally(reasons=Counter(dict(connection.execute(answers).fetchall())))
    found.dead = _count(connection, sql.SQL("select count(*) from dead where task = {}").format(sql.Literal(task)))
    if task in dag.queued:
        held = sql.SQL("select count(*) from {} where token is not null and held_until > now()").format(queue(task))
        found.leased = _count(connection, held)
        found.queued = max(0, pending_rows(connection, task) - found.leased)
    return found


def dead_rows(connection: Connection, task: str) -> list[Dead]:
    """The rows that this task gave up on."""
    rows = connection.execute("select id, error, attempts from dead where task = %s order by id", (task,)).fetchall()
    return [Dead(id=row_id, error=error, attempts=attempts) for row_id, error, attempts in rows]


def revive_rows(connection: Connection, dag: Dag, task: str) -> int:
    """Queue the task's dead rows again and return how many there were."""
    if task not in dag.queued:
        return 0
    statement = """
    with back as (delete from dead where task = {task} returning slot, id), again as (
      insert into {queue} (slot, id) select slot, id from back b
      where not exists (select from {result} r where r.slot = b.slot and r.id = b.id) {kept}
      order by slot, id on conflict do nothing
    ) select count(*) from back"""
    names = {"task": sql.Literal(task), "queue": queue(task), "result": result(task)}
    return _count(connection, sql.SQL(statement).format(kept=kept(dag.after[task], "b"), **names))


def _count(connection: Connection, statement: sql.Composed) -> int:
    (count,) = connection.execute(statement).fetchone() or (0,)
    return count
