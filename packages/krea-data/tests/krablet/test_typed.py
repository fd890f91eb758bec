from collections.abc import Callable

import psycopg
import pytest
from krea_data.contract_queue import TypedFake
from krea_data.krablet import Krablet
from krea_data.rows import Result
from krea_data.testing import FakeTask, rows

pytestmark = pytest.mark.postgres
New = Callable[[int], list[str]]


def described(dsn: str) -> dict[str, str]:
    """The typed columns as the server's own catalogue has them."""
    with psycopg.connect(dsn) as connection:
        return dict(
            connection.execute(
                "select column_name::text, data_type::text from information_schema.columns"
                " where table_schema = current_schema() and table_name = 'result_fake' and is_generated = 'ALWAYS'"
            ).fetchall()
        )


def test_fields_become_columns_of_their_types(new_dsns: New) -> None:
    (dsn,) = new_dsns(1)
    task = TypedFake(columns={"score": float, "words": int, "language": str, "sharp": bool}, indexed=("score",))
    values = [{"score": 1e-320, "words": 1 << 62, "language": "de", "sharp": False}, {"score": 3}, {"words": None}]
    with Krablet([dsn]) as krablet, psycopg.connect(dsn, autocommit=True) as reader:
        krablet.add(rows(3))
        krablet.register([task])
        krablet.put("fake", {row.id: Result(value=value) for row, value in zip(rows(3), values, strict=True)})
        found = reader.execute("select v_score, v_words, v_language, v_sharp from result_fake order by id").fetchall()
        assert found == [(1e-320, 1 << 62, "de", False), (3.0, None, None, None), (None, None, None, None)]
        reader.execute("set enable_seqscan = off")
        plan = reader.execute("explain select from result_fake where v_score > 2 and dropped is null").fetchall()
        assert "result_fake_by_score" in str(plan)
    assert described(dsn) == {
        "v_score": "double precision",
        "v_words": "bigint",
        "v_language": "text",
        "v_sharp": "boolean",
    }


def test_columns_come_later_and_change(new_dsns: New) -> None:
    """Old values of other types read as null, and nothing that was stored is lost."""
    (dsn,) = new_dsns(1)
    old = [{"score": "high"}, {"score": 2.5}, {"score": 10**400}, {"score": [1]}, {"score": 7}]
    with Krablet([dsn]) as krablet, psycopg.connect(dsn, autocommit=True) as reader:
        krablet.add(rows(5))
        krablet.put("fake", {row.id: Result(value=value) for row, value in zip(rows(5), old, strict=True)})

        def column() -> list[object]:
            return [cell for (cell,) in reader.execute("select v_score from result_fake order by id").fetchall()]

        for kind, wanted in (
            (float, [None, 2.5, None, None, 7.0]),
            (int, [None, None, None, None, 7]),
            (str, ["high", None, None, None, None]),
            (bool, [None] * 5),
        ):
            task = TypedFake(columns={"score": kind})
            krablet.register([task])
            krablet.register([task])
            assert column() == wanted
        krablet.register([FakeTask()])  # an older worker, which knows of no columns
        assert described(dsn) == {"v_score": "boolean"}
        assert [row.results["fake"].value for row in krablet.scan()] == old
    with Krablet([dsn]) as krablet, pytest.raises(ValueError, match="has score = "):
        krablet.put("fake", {"synthetic/00000": Result(value={"score": 1})})


def test_long_names_of_indexes_do_not_collide(new_dsns: New) -> None:
    names = ["a" * 39 + letter for letter in "bc"]
    task = TypedFake(name="t" * 40, columns=dict.fromkeys(names, int), indexed=tuple(names))
    (dsn,) = new_dsns(1)
    with Krablet([dsn]) as krablet, psycopg.connect(dsn) as reader:
        krablet.register([task])
        krablet.register([task])
        found = reader.execute(
            "select count(*) from pg_indexes where schemaname = current_schema() and tablename = %s",
            (f"result_{task.name}",),
        ).fetchone()
    assert found == (3,)
