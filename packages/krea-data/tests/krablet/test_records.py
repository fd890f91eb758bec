import datetime
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krea_data.krablet import SchemaError
from krea_data.krablet.funnels.flush import store
from krea_data.krablet.funnels.pieces import Piece, Rows
from krea_data.krablet.records.rules import DELETE, Column, Record, Write, joined
from krea_data.krablet.records.tables import declare_record, load_records
from krea_data.krablet.shards import Shards

RECORD = Record(
    "every",
    (
        Column("n", "int", "add"),
        Column("first", "text", "once"),
        Column("last", "text", "set"),
        Column("top", "int", "max"),
        Column("low", "text", "min"),
        Column("info", "json", "merge"),
        Column("tags", "texts", "union"),
        Column("whole", "json", "set"),
        Column("any", "bool", "max"),
        Column("all", "bool", "min"),
        Column("half", "float", "add"),
        Column("at", "time", "max"),
    ),
)
TEXTS = st.text(st.sampled_from('ab"\\{},é\U0001f600 '), max_size=3)
TIMES = st.datetimes(datetime.datetime(2000, 1, 1), datetime.datetime(2030, 1, 1), timezones=st.just(datetime.UTC))
VALUES = {
    "n": st.integers(-9, 9),
    "first": TEXTS,
    "last": TEXTS,
    "top": st.integers(-(2**63), 2**63 - 1),
    "low": TEXTS,
    "info": st.dictionaries(TEXTS, st.integers(0, 3) | st.none() | TEXTS, max_size=2),
    "tags": st.lists(TEXTS, max_size=3),
    "whole": st.recursive(st.integers() | TEXTS | st.booleans(), st.lists, max_leaves=4),
    "any": st.booleans(),
    "all": st.booleans(),
    "half": st.integers(-100, 100).map(lambda n: n / 2),
    "at": TIMES,
}
CHANGES = st.none() | st.fixed_dictionaries({}, optional=VALUES)


def applied(row: dict[str, Any] | None, values: dict[str, Any] | None) -> dict[str, Any] | None:
    """The rules in words: what one write makes of a row."""
    if values is None:
        return None
    row = dict(row or {})
    for name, new in values.items():
        old = row.get(name)
        if new is None:
            continue
        if name == "tags":
            row[name] = sorted({*(old or []), *new})
        elif old is None or name in ("last", "whole"):
            row[name] = new
        elif name in ("n", "half"):
            row[name] = old + new
        elif name in ("top", "any", "at"):
            row[name] = max(old, new)
        elif name in ("low", "all"):
            row[name] = min(old, new)
        elif name == "info":
            row[name] = old | new
    return row


def as_row(write: Write) -> dict[str, Any] | None:
    """The row that a write makes of nothing."""
    if write[0] == DELETE:
        return None
    return {c.name: v for c, v in zip(RECORD.columns, write[1:], strict=True) if v is not None}


@given(st.lists(CHANGES, min_size=1, max_size=8), st.randoms())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_joining_in_any_grouping_is_applying_one_by_one(changes: list[dict[str, Any] | None], draw: Any) -> None:
    wanted: dict[str, Any] | None = None
    for values in changes:
        wanted = applied(wanted, values)
    writes = [RECORD.write("a", values) for values in changes]
    while len(writes) > 1:
        place = draw.randrange(len(writes) - 1)
        writes[place : place + 2] = [joined(RECORD.joins, writes[place], writes[place + 1])]
    assert as_row(writes[0]) == wanted


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 1.5),
        ("n", True),
        ("n", 2**63),
        ("last", "a\0b"),
        ("last", "\ud800"),
        ("last", b"x"),
        ("info", ["no object"]),
        ("info", {"a": "\0"}),
        ("whole", {"a": float("nan")}),
        ("whole", {1, 2}),
        ("tags", "abc"),
        ("tags", ["\0"]),
        ("any", 1),
        ("half", float("inf")),
        ("half", "1"),
        ("at", datetime.datetime(2026, 1, 1)),
        ("nope", 1),
    ],
)
def test_what_cannot_be_stored_is_refused_at_the_door(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        RECORD.write("a", {name: value})


@pytest.mark.parametrize("row_id", ["", "a\0b", "x" * 1025, 7, "\ud800"])
def test_bad_ids_are_named(row_id: Any) -> None:
    with pytest.raises(ValueError, match=r"is no id|surrogates"):
        RECORD.write(row_id, {})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Column("n", "number"), "no type"),
        (lambda: Column("n", "text", "add"), "does not suit"),
        (lambda: Column("slot", "int"), "of its own"),
        (lambda: Column("N", "int"), "N"),
        (lambda: Record("r", ()), "1 to 100"),
        (lambda: Record("r", (Column("a", "int"), Column("a", "int"))), "different"),
    ],
)
def test_bad_declarations_are_named(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def as_rows(slots: list[int], ids: list[str], writes: list[Write]) -> Rows:
    ops, *columns = zip(*writes, strict=True)
    return Rows(slots, ids, ops if any(ops) else None, columns)


def rows_of(connection: psycopg.Connection) -> dict[str, dict[str, Any] | None]:
    names = [column.name for column in RECORD.columns]
    listed = ", ".join(f'"{name}"' for name in names)
    found = connection.execute(f"select id, state, {listed} from record_every".encode()).fetchall()
    return {
        row_id: None if state == 1 else {n: v for n, v in zip(names, values, strict=True) if v is not None}
        for row_id, state, *values in found
    }


@pytest.mark.postgres
def test_the_database_follows_the_same_rules(new_dsns: Callable[[int], list[str]]) -> None:
    """Random writes in random batches, several writes to a row in one batch too, equal one by one."""
    dsns = new_dsns(1)
    shards = Shards(dsns, bits=None, patience_s=20.0)
    shards.attempt(0, lambda c: declare_record(c, RECORD))

    @given(st.lists(st.lists(st.tuples(st.sampled_from("abc"), CHANGES), min_size=1, max_size=5), max_size=5))
    @settings(max_examples=40, deadline=None, derandomize=True)
    def check(batches: list[list[tuple[str, dict[str, Any] | None]]]) -> None:
        wanted: dict[str, dict[str, Any] | None] = {}
        with psycopg.connect(dsns[0], autocommit=True) as connection:
            connection.execute("truncate record_every, producer_mark")
            for batch in batches:
                pieces = [piece(n, row_id, RECORD.write(row_id, values)) for n, (row_id, values) in enumerate(batch)]
                shards.guarded(0, lambda c, d, p=pieces: store(c, d, RECORD, p))
                for row_id, values in batch:
                    wanted[row_id] = applied(wanted.get(row_id), values)
            assert rows_of(connection) == wanted

    def piece(_: int, row_id: str, write: Write) -> Piece:
        return Piece(uuid4(), 0, 0, as_rows([shards.view.slots.slot(row_id)], [row_id], [write]))

    check()
    shards.close()


@pytest.mark.postgres
def test_columns_can_be_added_and_not_changed(new_dsns: Callable[[int], list[str]]) -> None:
    shards = Shards(new_dsns(1), bits=None, patience_s=20.0)
    one, two = Column("a", "int", "add"), Column("b", "text")
    for columns in [(one,), (one, two), (one, two)]:
        shards.attempt(0, lambda c, columns=columns: declare_record(c, Record("r", columns)))
    assert shards.attempt(0, load_records) == {"r": Record("r", (one, two))}
    for columns in [(one,), (two, one), (Column("a", "int", "max"), two)]:
        with pytest.raises(SchemaError, match="columns can only be added"):
            shards.attempt(0, lambda c, columns=columns: declare_record(c, Record("r", columns)))
    piece = Piece(uuid4(), 0, 0, Rows([1], ["x"], None, [[1], ["y"]]))
    shards.guarded(0, lambda c, d: store(c, d, Record("r", (one, two)), [piece]))
    assert shards.attempt(0, lambda c: c.execute("select a, b, ver from record_r").fetchall()) == [(1, "y", 1)]
    shards.close()
