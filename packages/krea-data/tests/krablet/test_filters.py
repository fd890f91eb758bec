"""Filters: what is refused, and that PostgreSQL takes the rows that a plain evaluation takes."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from krea_data.krablet import Krablet
from krea_data.krablet.readers.filter_sql import compiled
from krea_data.krablet.readers.filters import parse_field, parse_filter
from krea_data.rows import Result, Row
from krea_data.testing import FakeTask
from psycopg import sql

pytestmark = pytest.mark.postgres

_MISSING = object()
_OPS: dict[str, Callable[[Any, Any], bool]] = {
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


def number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def same(found: Any, wanted: Any) -> bool:
    """Equal as JSON: numbers by their digits, nothing equal to a value of another kind."""
    if number(found) and number(wanted):
        return Decimal(repr(found)) == Decimal(repr(wanted))
    return type(found) is type(wanted) and found == wanted


def place(row: Row, name: str) -> Any:
    """What is there, by the rules and without any of the code under test."""
    head, _, rest = name.partition(".")
    if name in ("id", "blob"):
        return getattr(row, name)
    if head == "meta":
        return row.meta.get(rest, _MISSING)
    result = row.results.get(head)
    if result is None:
        return _MISSING
    if rest == "kept":
        return result.drop is None
    if rest == "dropped":
        return _MISSING if result.drop is None else result.drop
    return result.value.get(rest.removeprefix("value."), _MISSING)


def holds(row: Row, wanted: Mapping[str, Any]) -> bool:
    if "and" in wanted:
        return all(holds(row, part) for part in wanted["and"])
    if "or" in wanted:
        return any(holds(row, part) for part in wanted["or"])
    if "not" in wanted:
        return not holds(row, wanted["not"])
    found, op, value = place(row, wanted["field"]), wanted["op"], wanted.get("value", True)
    if op == "exists":
        return (found is not _MISSING) == value
    if found is _MISSING:
        return False
    if op in ("eq", "ne"):
        return same(found, value) == (op == "eq")
    if op == "in":
        return any(same(found, one) for one in value)
    if op == "prefix":
        return isinstance(found, str) and found.startswith(value)
    if number(found) and number(value):
        return _OPS[op](Decimal(repr(found)), Decimal(repr(value)))
    return isinstance(found, str) and isinstance(value, str) and _OPS[op](found, value)


TEXTS = ["", "a", "ab", "B", "\u00e9", "\U0001f34e", "%", "_", "'; drop table images; --", "null", "1", "true"]
NUMBERS = [0, 1, -1, 2, 1.5, -0.0, 1.0, 1e-7, 2**53 + 1, 1e23, 10**23]
SCALARS = [*TEXTS, *NUMBERS, True, False, None]
CELLS = [*SCALARS, [], {}, [1], {"a": 1}]
KEYS = ["x", "y.z"]  # few, so that tests meet values
TASKS = ["first", "late", "never"]


def cells(draw: st.DrawFn) -> dict[str, Any]:
    return draw(st.dictionaries(st.sampled_from(KEYS), st.sampled_from(CELLS), min_size=1))


@st.composite
def some_rows(draw: st.DrawFn) -> list[Row]:
    found = []
    for n, name in enumerate(draw(st.lists(st.sampled_from(["a", "ab", "b", "\u00e9", "\U0001f34e"]), unique=True))):
        results = {
            task: Result(value=cells(draw), drop=draw(st.sampled_from([None, "dark", "twin"])))
            for task in draw(st.sets(st.sampled_from(TASKS[:2])))
        }
        found.append(Row(id=name, blob=str(n), meta=cells(draw), results=results))
    return found


JSON_FIELDS = st.one_of(
    st.sampled_from(KEYS).map("meta.{}".format),
    st.tuples(st.sampled_from(TASKS), st.sampled_from(KEYS)).map(lambda pair: f"{pair[0]}.value.{pair[1]}"),
)
TEXT_FIELDS = st.one_of(st.sampled_from(["id", "blob"]), st.sampled_from(TASKS).map("{}.dropped".format))
KEPT_FIELDS = st.sampled_from(TASKS).map("{}.kept".format)
WORDS = st.sampled_from([*TEXTS, "dark", "b", "0"])


def comparing(field: st.SearchStrategy[str], op: str, value: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({"field": field, "op": st.just(op), "value": value})


ANY_FIELDS = st.one_of(JSON_FIELDS, TEXT_FIELDS, KEPT_FIELDS)
TESTS = st.one_of(
    *(comparing(JSON_FIELDS, op, st.sampled_from(SCALARS)) for op in ("eq", "ne")),
    *(comparing(JSON_FIELDS, op, st.sampled_from([*TEXTS, *NUMBERS])) for op in _OPS),
    *(comparing(TEXT_FIELDS, op, WORDS) for op in ("eq", "ne", "prefix", *_OPS)),
    *(comparing(KEPT_FIELDS, op, st.booleans()) for op in ("eq", "ne")),
    comparing(JSON_FIELDS, "prefix", WORDS),
    comparing(JSON_FIELDS, "in", st.lists(st.sampled_from(SCALARS), max_size=3)),
    comparing(TEXT_FIELDS, "in", st.lists(WORDS, max_size=3)),
    comparing(ANY_FIELDS, "exists", st.booleans()),
)
FILTERS = st.recursive(
    TESTS,
    lambda part: st.one_of(
        st.fixed_dictionaries({"not": part}),
        st.fixed_dictionaries({"and": st.lists(part, max_size=3)}),
        st.fixed_dictionaries({"or": st.lists(part, max_size=3)}),
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def one_shard(new_dsns: Callable[[int], list[str]]) -> str:
    """A shard with two tasks; what a test writes into it is rolled back."""
    (dsn,) = new_dsns(1)
    with Krablet([dsn]) as krablet:
        krablet.register([FakeTask(name=task) for task in TASKS[:2]])
    return dsn


def fill(connection: psycopg.Connection, rows: list[Row]) -> None:
    for row in rows:
        connection.execute(
            "insert into images (slot, id, blob, meta) values (0, %s, %s, %s)", (row.id, row.blob, json.dumps(row.meta))
        )
        for task, result in row.results.items():
            connection.execute(
                sql.SQL("insert into {} (slot, id, value, dropped) values (0, %s, %s, %s)").format(
                    sql.Identifier(f"result_{task}")
                ),
                (row.id, json.dumps(result.value), result.drop),
            )


@pytest.fixture(scope="module")
def connection(one_shard: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(one_shard) as connection:
        yield connection
        connection.rollback()


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(rows=some_rows(), wanted=FILTERS)
def test_postgresql_takes_what_the_rules_take(
    connection: psycopg.Connection, rows: list[Row], wanted: dict[str, Any]
) -> None:
    connection.rollback()
    fill(connection, rows)
    values: dict[str, Any] = {}
    condition = compiled(parse_filter(wanted), TASKS[:2], values)
    statement = sql.SQL("select id from images i where {} order by id").format(condition)
    found = [row_id for (row_id,) in connection.execute(statement, values)]
    assert found == sorted(row.id for row in rows if holds(row, wanted))


def test_times_are_compared_as_times(connection: psycopg.Connection) -> None:
    connection.rollback()
    fill(connection, [Row(id="a", blob="0", results={"first": Result()})])

    def count(field: str, op: str, value: str) -> int:
        values: dict[str, Any] = {}
        condition = compiled(parse_filter({"field": field, "op": op, "value": value}), TASKS[:2], values)
        statement = sql.SQL("select count(*) from images i where {}").format(condition)
        return (connection.execute(statement, values).fetchone() or (0,))[0]

    for field in ("added_at", "first.done_at"):
        assert (count(field, "gt", "2020-01-01T00:00:00Z"), count(field, "lt", "2020-01-01T00:00:00+02:00")) == (1, 0)
    assert count("late.done_at", "ge", "2020-01-01T00:00:00Z") == 0


INJECTIONS = [
    "'; drop table images; --",
    '"); drop table images; --',
    "x' or '1'='1",
    "%s",
    "%(after)s",
    "{}",
    "\\'; --",
]


@pytest.mark.parametrize("text", INJECTIONS)
def test_sql_in_keys_and_values_is_only_text(connection: psycopg.Connection, text: str) -> None:
    connection.rollback()
    fill(
        connection,
        [
            Row(id=text, blob="0", meta={text: text}, results={"first": Result(value={text: text})}),
            Row(id="b", blob=""),
        ],
    )
    for field in ("id", f"meta.{text}", f"first.value.{text}"):
        for op, value in (("eq", text), ("in", [text]), ("prefix", text), ("ge", text)):
            values: dict[str, Any] = {}
            wanted = {"and": [{"field": field, "op": op, "value": value}, {"field": "blob", "op": "eq", "value": "0"}]}
            condition = compiled(parse_filter(wanted), TASKS[:2], values)
            plain = re.sub(r"%\(f\d\)s", "", condition.as_string())
            assert not any(letter in plain.replace("'string'", "").replace("'{}'", "") for letter in "%;\\'")
            statement = sql.SQL("select id from images i where {}").format(condition)
            assert connection.execute(statement, values).fetchall() == [(text,)]


@pytest.mark.parametrize("name", [*INJECTIONS, "Images", "a" * 41, "first; select", "pg_sleep(1)", "", " id", "ID"])
def test_names_that_are_no_fields_are_refused(name: str) -> None:
    for field in (name, f"{name}.kept", f"{name}.dropped", f"{name}.done_at", f"{name}.value.x", "meta", "meta."):
        with pytest.raises(ValueError, match=r"filter\.field"):
            parse_filter({"field": field, "op": "exists"})


WRONG: list[tuple[Any, str]] = [
    ([], "filter is"),
    ("id = 1", "filter is"),
    ({}, "filter has the keys"),
    ({"sql": "true"}, "filter has the keys"),
    ({"and": [], "or": []}, "filter has the keys"),
    ({"and": {}}, r"filter\.and is"),
    ({"and": [{"or": [1]}]}, r"filter\.and\[0\]\.or\[0\] is 1"),
    ({"not": None}, r"filter\.not is None"),
    ({"field": "id", "op": "like", "value": "a"}, r"filter\.op 'like'"),
    ({"field": "id", "op": ["eq"], "value": "a"}, r"filter\.op"),
    ({"field": "id", "op": "eq"}, r"filter\.value is missing"),
    ({"field": "id", "op": "eq", "value": 1}, r"filter\.value 1"),
    ({"field": "id", "op": "eq", "value": "a\0"}, "NUL"),
    ({"field": "id", "op": "eq", "value": "\ud800"}, "surrogate"),
    ({"field": "id", "op": "eq", "value": "a" * 5000}, "over 4096 letters"),
    ({"field": "id", "op": "in", "value": "abc"}, r"filter\.value is 'abc', not a list"),
    ({"field": "id", "op": "in", "value": ["a", 2]}, r"filter\.value\[1\] 2"),
    ({"field": "id", "op": "in", "value": ["a"] * 1001}, "1001 choices"),
    ({"field": "id", "op": "exists", "value": 1}, r"filter\.value 1"),
    ({"field": "meta.x", "op": "eq", "value": [1]}, r"filter\.value \[1\]"),
    ({"field": "meta.x", "op": "lt", "value": True}, r"filter\.value True"),
    ({"field": "meta.x", "op": "lt", "value": None}, r"filter\.value None"),
    ({"field": "meta.x", "op": "eq", "value": float("nan")}, "finite number"),
    ({"field": "meta.x", "op": "eq", "value": 10**400}, "finite number"),
    ({"field": "ocr.kept", "op": "lt", "value": True}, r"filter\.op 'lt'"),
    ({"field": "ocr.kept", "op": "eq", "value": 1}, "true or false"),
    ({"field": "added_at", "op": "gt", "value": "yesterday"}, "no time with a zone"),
    ({"field": "added_at", "op": "gt", "value": "2026-01-01T00:00:00"}, "no time with a zone"),
    ({"field": "added_at", "op": "prefix", "value": "2026"}, r"filter\.op 'prefix'"),
    ({"and": [{"field": "id", "op": "exists"}] * 201}, "201 tests"),
]


@pytest.mark.parametrize(("raw", "said"), WRONG)
def test_what_is_wrong_is_named(raw: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_filter(raw)


def test_depth_has_an_end() -> None:
    raw: Any = {"field": "id", "op": "exists"}
    for _ in range(100_000):
        raw = {"not": raw}
    with pytest.raises(ValueError, match="levels deep"):
        parse_filter(raw)


def test_a_field_is_read_to_the_last_dot_of_its_key() -> None:
    assert parse_field("meta.a.b").key == "a.b"
    assert (parse_field("ocr.value.a.b").task, parse_field("ocr.value.a.b").key) == ("ocr", "a.b")
