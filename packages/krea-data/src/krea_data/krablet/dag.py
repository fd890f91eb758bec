"""Which tasks a shard knows, in what order they work, and the two tables that each of them has.

`result_<task>` holds answers; `queue_<task>` holds the rows that are due, and only those, so it stays small. A row of
the queue is free when its `run_at` has come and its `held_until` is over, so that a lease that ran out needs nobody to
notice it. Whoever stores an answer also queues the row for the tasks that waited for it. To know
these tasks for certain, every such statement says which version of the DAG it was written for and does nothing if the
shard has another one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import LiteralString

from psycopg import Connection, sql

from krea_data.checks import check_name, dag_order
from krea_data.columns import task_columns, task_indexed
from krea_data.interfaces import Task
from krea_data.krablet.names import queue, result
from krea_data.krablet.typed import lacking, set_columns

__all__ = ["Dag", "StaleDag", "declare", "declare_tasks", "kept", "load", "queue", "result"]

_RESULT = """
create table if not exists {result} (
  slot int not null, id text collate "C" not null, value jsonb not null, dropped text,
  done_at timestamptz not null default now(), primary key (slot, id)
) with (fillfactor = 80)"""
_QUEUE = """
create table if not exists {queue} (
  slot int not null, id text collate "C" not null, n bigint generated always as identity,
  run_at timestamptz not null default now(), attempts int not null default 0, crashes smallint not null default 0,
  priority smallint not null default 0, held_until timestamptz not null default '-infinity',
  token bigint, worker text, error text, primary key (slot, id)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_limit = 2000)"""
# Rows with a priority have an index of their own, which is empty where nobody uses priorities and then costs nothing.
_QUEUE_INDEXES: dict[str, LiteralString] = {
    "by_time": "create index if not exists {index} on {queue} (run_at, n) where priority = 0",
    "by_band": "create index if not exists {index} on {queue} (priority, run_at, n) where priority <> 0",
}
_REFILL = """
insert into {queue} (slot, id)
select i.slot, i.id from images i
where not exists (select from {result} r where r.slot = i.slot and r.id = i.id)
  and not exists (select from dead d where d.task = {task} and d.slot = i.slot and d.id = i.id) {kept}
order by i.id on conflict do nothing"""
_LOAD = "select dag, coalesce((select jsonb_agg(to_jsonb(task) order by number) from task), '[]') from shard"
_PRUNE = "delete from {queue} i where not (true {kept})"


class StaleDag(Exception):  # noqa: N818 - never seen outside of the krablet
    """The shard has tasks that the caller did not know of; load the DAG and do it again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dag:
    """The tasks of a shard: `after` for all that have results, `queued` for those that are also queues.

    `paused` tasks give no claims; `bands` are the priorities other than 0 that rows of a queue have, highest first;
    `columns` are the types of typed columns by name, `indexed` those of them with an index; `statements` is for whoever
    writes SQL for this very DAG.
    """

    version: int
    after: Mapping[str, tuple[str, ...]]
    queued: frozenset[str]
    paused: frozenset[str] = frozenset()
    bands: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    indexed: Mapping[str, frozenset[str]] = field(default_factory=dict)
    statements: dict[tuple[object, ...], str] = field(default_factory=dict, compare=False, repr=False)

    def next(self, task: str) -> list[str]:
        """The queued tasks that wait for this one."""
        return [name for name, after in self.after.items() if task in after and name in self.queued]

    def first(self) -> list[str]:
        """The queued tasks that wait for no other."""
        return [name for name, after in self.after.items() if not after and name in self.queued]

    def lacks(self, tasks: Sequence[Task]) -> bool:
        """Whether one of these tasks is new or has changed, and has to be declared."""
        return any(
            task.name not in self.queued
            or self.after[task.name] != tuple(task.after)
            or bool(lacking(self.columns.get(task.name, {}), task_columns(task)))
            or not self.indexed.get(task.name, frozenset()).issuperset(task_indexed(task))
            for task in tasks
        )

    def meets(self, task: str) -> bool:
        """Whether an answer of this task may be the last of several that a row needs to go on."""
        return any(len(self.after[name]) > 1 for name in self.next(task))


def kept(tasks: Sequence[str], row: str) -> sql.Composed:
    """SQL that continues a condition: and all these tasks have kept the row of this alias."""
    one = sql.SQL(
        " and exists (select from {result} p where p.slot = {row}.slot and p.id = {row}.id and p.dropped is null)"
    )
    return sql.Composed([one.format(result=result(task), row=sql.Identifier(row)) for task in tasks])


def load(connection: Connection) -> Dag:
    """The DAG as the shard has it now."""
    row = connection.execute(_LOAD).fetchone()
    version, tasks = row if row is not None else (-1, [])
    return Dag(
        version=version,
        after={task["name"]: tuple(task["after"]) for task in tasks},
        queued=frozenset(task["name"] for task in tasks if task["queued"]),
        paused=frozenset(task["name"] for task in tasks if task["paused"]),
        bands={task["name"]: tuple(sorted(task["bands"], reverse=True)) for task in tasks if task["bands"]},
        columns={task["name"]: task["columns"] for task in tasks if task["columns"]},
        indexed={task["name"]: frozenset(task["indexed"]) for task in tasks if task["indexed"]},
    )


def declare(connection: Connection, tasks: Mapping[str, tuple[str, ...]], results: Sequence[str] = ()) -> Dag:
    """Make tasks (`after` by name, with queues) and `results` (without) known; rows that are due enter the queues.

    Writers of the tables that decide what is due are kept out meanwhile, so no row falls between old and new DAG.
    """
    names = set(map(check_name, [*results, *tasks, *(name for after in tasks.values() for name in after)]))
    with connection.transaction():
        connection.execute("select from shard for update")
        dag = load(connection)
        dag_order({**dag.after, **tasks})
        changed = [name for name, after in tasks.items() if name not in dag.queued or dag.after[name] != after]
        unknown = sorted(names - dag.after.keys())
        for name in unknown:
            connection.execute(sql.SQL(_RESULT).format(result=result(name)))
            connection.execute("insert into task (name) values (%s)", (name,))
        deciding = [sql.Identifier("images"), *map(result, sorted({name for task in changed for name in tasks[task]}))]
        if changed:
            connection.execute(
                sql.SQL("lock table {} in share row exclusive mode").format(sql.SQL(", ").join(deciding))
            )
        for name in changed:
            _requeue(connection, name, tasks[name])
        if changed or unknown:
            connection.execute("update shard set dag = dag + 1")
        return load(connection)


def declare_tasks(connection: Connection, tasks: Sequence[Task]) -> Dag:
    """`declare` with the tasks' typed columns and indexes."""
    typed = [(task, task_columns(task), task_indexed(task)) for task in tasks]
    with connection.transaction():
        dag = declare(connection, {task.name: tuple(task.after) for task in tasks})
        for task, columns, indexed in typed:
            set_columns(connection, task.name, columns, indexed)
        if dag.lacks(tasks):
            connection.execute("update shard set dag = dag + 1")
        return load(connection)


def _requeue(connection: Connection, task: str, after: tuple[str, ...]) -> None:
    """Give a task its queue, and bring the queue in line with a new `after`."""
    names = {"queue": queue(task), "result": result(task), "task": sql.Literal(task), "kept": kept(after, "i")}
    connection.execute(sql.SQL(_QUEUE).format(**names))
    for index, statement in _QUEUE_INDEXES.items():
        connection.execute(sql.SQL(statement).format(index=sql.Identifier(f"queue_{task}_{index}"), **names))
    connection.execute(sql.SQL(_PRUNE).format(**names))
    connection.execute(sql.SQL(_REFILL).format(**names))
    connection.execute("update task set after = %s, queued = true where name = %s", (list(after), task))
