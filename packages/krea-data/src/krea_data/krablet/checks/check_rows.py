"""Do the rows of one shard keep their rules: in the right slot, none without its row, queues exact."""

from collections.abc import Callable, Iterator, Sequence

from psycopg import Connection, sql

from krea_data.krablet.arrays import Texts
from krea_data.krablet.checks.findings import Finding, Repair
from krea_data.krablet.dag import Dag, load
from krea_data.krablet.errors import SchemaError
from krea_data.krablet.moves.clone import moving_tables
from krea_data.krablet.names import queue
from krea_data.krablet.queues.settle import not_due, settle_bands, settle_queue, unqueued
from krea_data.krablet.router import SlotMap
from krea_data.krablet.slots import HERE

__all__ = ["broken", "known", "misplaced", "strays"]

_PAGE_ROWS = 10_000
_SOME = 1000  # stray ids that are looked up where they should be
_CHANGES = 20
_ORPHANS = """
select count(*), min(i.id) from {table} i
where {here} and not exists (select from images m where m.slot = i.slot and m.id = i.id)"""
_STRAYS = """
select slot, count(*) from {table}
where slot not in (select slot from slot_map where shard = (select number from shard)) and {here}
group by slot order by slot"""


def broken(connection: Connection, number: int) -> Iterator[Finding]:
    """Everything but what needs all ids."""
    for _ in range(_CHANGES):
        dag = load(connection)
        found = [
            *_tables(connection, number, dag),
            *_orphans(connection, number, dag),
            *_queues(connection, number, dag),
        ]
        if load(connection).version == dag.version:  # else the tasks have changed in the middle
            yield from found
            return
    raise SchemaError(f"the tasks of shard {number} change all the time; check again when they have settled")


def misplaced(
    connection: Connection, number: int, slots: SlotMap, on_slots: Callable[[int, int], None]
) -> Iterator[Finding]:
    """Rows in a slot that is not their id's. Only tables of rows and records are read; the others must have a row."""
    tables = [
        shape.name for shape in moving_tables(connection) if shape.name == "images" or shape.name[:7] == "record_"
    ]
    mine = slots.held(number)
    for place, slot in enumerate(mine):
        for table in tables:
            wrong = [row_id for row_id in _ids(connection, table, slot) if slots.slot(row_id) != slot]
            if wrong:
                text = (
                    f"{table} holds {len(wrong)} rows in slot {slot} that belong elsewhere, such as {wrong[0][:80]!r}"
                )
                yield Finding(level="broken", rule="place", shard=number, text=text, rows=len(wrong))
        on_slots(place + 1, len(mine))


def strays(connection: Connection) -> Iterator[tuple[str, int, int, list[str]]]:
    """Rows in slots that this shard does not have: table, slot, how many, and the first ids where rows have some."""
    for shape in moving_tables(connection):
        table = sql.Identifier(shape.name)
        for slot, rows in connection.execute(sql.SQL(_STRAYS).format(table=table, here=sql.SQL(HERE))).fetchall():
            ids: list[str] = []
            if shape.by_id:
                first = sql.SQL("select distinct id from {} where slot = %s order by id limit %s").format(table)
                ids = [row_id for (row_id,) in connection.execute(first, (slot, _SOME)).fetchall()]
            yield shape.name, slot, rows, ids


def known(connection: Connection, table: str, slot: int, ids: Sequence[str]) -> int:
    """How many of these ids a shard has."""
    if connection.execute("select to_regclass(%s)", (table,)).fetchone() == (None,):
        return 0
    statement = sql.SQL("select count(distinct id) from {} where slot = %s and id = any(%s)").format(
        sql.Identifier(table)
    )
    (rows,) = connection.execute(statement, (slot, Texts(list(ids)))).fetchone() or (0,)
    return rows


def _ids(connection: Connection, table: str, slot: int) -> Iterator[str]:
    page = sql.SQL("select id from {} where slot = %s and id > %s order by id limit %s").format(sql.Identifier(table))
    after = ""
    while found := connection.execute(page, (slot, after, _PAGE_ROWS)).fetchall():
        yield from (row_id for (row_id,) in found)
        after = found[-1][0]


def _tables(connection: Connection, number: int, dag: Dag) -> Iterator[Finding]:
    have = {shape.name for shape in moving_tables(connection)}
    need = {f"result_{task}" for task in dag.after} | {f"queue_{task}" for task in dag.queued}
    for name in sorted(need - have):
        yield Finding(level="broken", rule="tasks", shard=number, text=f"the table {name} is missing")
    for name in sorted(have - need):
        if name.startswith(("result_", "queue_")):
            yield Finding(level="warning", rule="tasks", shard=number, text=f"no task has the table {name}")


def _orphans(connection: Connection, number: int, dag: Dag) -> Iterator[Finding]:
    """Results, queued rows and dead rows without their row; those of results may be all that is left, so they stay."""
    for shape in moving_tables(connection):
        name = shape.name
        if not (name == "dead" or name.startswith(("result_", "queue_"))):
            continue
        table = sql.Identifier(name)
        (rows, first) = connection.execute(sql.SQL(_ORPHANS).format(table=table, here=sql.SQL(HERE))).fetchone() or (
            0,
            "",
        )
        if rows and not (name.startswith("queue_") and name.removeprefix("queue_") in dag.queued):  # `_queues` says so
            text = f"{name} holds {rows} rows of ids that are not there, such as {first[:80]!r}"
            yield Finding(level="broken", rule="rows", shard=number, text=text, rows=rows)


def _queues(connection: Connection, number: int, dag: Dag) -> Iterator[Finding]:
    have = {shape.name for shape in moving_tables(connection)}
    for task in sorted(dag.queued):
        if not {f"queue_{task}", *(f"result_{name}" for name in (task, *dag.after[task]))} <= have:
            continue
        after, put_right = dag.after[task], _settling(task)
        for what, condition in (
            ("lacks {rows} rows that are due", unqueued(task, after)),
            ("holds {rows} rows that are not due", not_due(task, after)),
        ):
            count = sql.SQL("select count(*), min(i.id) ") + condition
            (rows, first) = connection.execute(count).fetchone() or (0, "")
            if rows:
                text = f"the queue of {task} {what.format(rows=rows)}, such as {first[:80]!r}"
                yield Finding(level="broken", rule="queues", shard=number, text=text, rows=rows, repair=put_right)
        yield from _dead(connection, number, task)
        yield from _bands(connection, number, dag, task)
    yield from _tokens(connection, number, [task for task in sorted(dag.queued) if f"queue_{task}" in have])


def _dead(connection: Connection, number: int, task: str) -> Iterator[Finding]:
    condition = sql.SQL(
        "from dead d where d.task = {task} and exists (select from {result} r where r.slot = d.slot and r.id = d.id)"
    ).format(task=sql.Literal(task), result=sql.Identifier(f"result_{task}"))
    (rows,) = connection.execute(sql.SQL("select count(*) ") + condition).fetchone() or (0,)
    if rows:
        text = f"{task} gave up on {rows} rows that it has answered"
        yield Finding(
            level="broken",
            rule="queues",
            shard=number,
            text=text,
            rows=rows,
            repair=lambda c: c.execute(sql.SQL("delete ") + condition),
        )


def _bands(connection: Connection, number: int, dag: Dag, task: str) -> Iterator[Finding]:
    listed = list(dag.bands.get(task, ()))
    statement = sql.SQL("select count(*) from {} where priority <> 0 and not priority = any(%s::smallint[])")
    (rows,) = connection.execute(statement.format(queue(task)), (listed,)).fetchone() or (0,)
    if rows:
        text = f"{rows} rows of the queue of {task} have a priority that no claim looks for"
        yield Finding(level="broken", rule="queues", shard=number, text=text, rows=rows, repair=_settling(task))


def _tokens(connection: Connection, number: int, tasks: Sequence[str]) -> Iterator[Finding]:
    if not tasks:
        return
    highest = sql.SQL(" union all ").join(sql.SQL("select max(token) from {}").format(queue(task)) for task in tasks)
    (given,) = connection.execute(sql.SQL("select max(max) from ({}) as found").format(highest)).fetchone() or (None,)
    (last,) = connection.execute("select last_value from token").fetchone() or (0,)
    if given is not None and given > last:
        yield Finding(
            level="broken",
            rule="queues",
            shard=number,
            text=f"token {given} is in use and the next one would be {last + 1}: leases could be taken for others",
            repair=lambda c: c.execute(
                "select setval('token', greatest(last_value, %s)) from token", (given + 1_000_000,)
            ),
        )


def _settling(task: str) -> Repair:
    """Bring the queue in line while all writers are kept out."""

    def settle(connection: Connection) -> None:
        with connection.transaction():
            connection.execute("set local lock_timeout = '10s'")
            connection.execute("select from shard for update")
            names = sql.SQL(", ").join(sql.Identifier(shape.name) for shape in moving_tables(connection))
            connection.execute(sql.SQL("lock table {} in share row exclusive mode").format(names))
            settle_queue(connection, task, load(connection).after[task])
            settle_bands(connection, task)
            connection.execute("update shard set dag = dag + 1")

    return settle
