from collections.abc import Sequence

import numpy as np
import pytest
from krea_data.classify.head import Head
from krea_data.classify.limits import Limits
from krea_data.columns import check_columns, task_columns, task_indexed
from krea_data.memory import MemoryTable
from krea_data.rows import Result, Row
from krea_data.tasks.classify import Classify
from krea_data.vectors import packed
from krea_data.worker import run

HEAD = Head(name="artifact", embedder="e/1", weights=np.array([1, 0], np.float32), bias=0.0, limits=Limits(0.3, 0.7))


def rows(numbers: Sequence[float], model: str = "e/1") -> list[Row]:
    return [
        Row(
            id=f"r{place}",
            blob="0",
            results={"embed": Result(value={"model": model, "vector": packed(np.array([number, 9.0]))})},
        )
        for place, number in enumerate(numbers)
    ]


def test_it_scores_and_answers_and_drops_nothing() -> None:
    results = Classify(head=HEAD)(rows([-3, 0, 3]))
    assert [result.value["answer"] for result in results] == ["no", "unsure", "yes"]
    assert results[2].value["score"] == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-3)
    assert {result.value["version"] for result in results} == {HEAD.version}
    assert [result.drop for result in results] == [None] * 3


def test_only_a_yes_above_the_limit_of_the_recipe_is_dropped() -> None:
    several = rows([-3, 0, 1, 3])
    assert [result.drop for result in Classify(head=HEAD, drop_from=0.9)(several)] == [None, None, None, "artifact"]
    assert [result.drop for result in Classify(head=HEAD, drop_from=0.1)(several)] == [None, None, *["artifact"] * 2]
    assert Classify(head=HEAD, drop_from=0.9, reason="torn")(several)[3].drop == "torn"


def test_rows_without_a_vector_are_unsure() -> None:
    task = Classify(head=HEAD, drop_from=0.0)
    first, second, third = task([Row(id="x", blob="0"), rows([3])[0], Row(id="y", blob="0")])
    assert first.value == third.value == {"answer": "unsure", "version": HEAD.version}
    assert (first.drop, second.drop) == (None, "artifact")
    assert task([Row(id="x", blob="0")])[0].value["answer"] == "unsure"


def test_vectors_of_another_embedder_are_refused() -> None:
    with pytest.raises(ValueError, match=r"come from e/2, the head artifact wants e/1"):
        Classify(head=HEAD)(rows([1], "e/2"))
    with pytest.raises(ValueError, match="drop_from 2 is no score"):
        Classify(head=HEAD, drop_from=2)


def test_several_heads_run_on_one_table() -> None:
    """Each under a name of its own, with columns that hold what they promise."""
    safety = Classify(head=HEAD.with_limits(Limits(0.1, 0.2)), name="safety", drop_from=0.99)
    tasks = [Classify(head=HEAD), safety]
    table = MemoryTable([Row(id=row.id, blob=row.blob) for row in rows([-3, 5])])
    table.put("embed", {row.id: row.results["embed"] for row in rows([-3, 5])})
    run(table, tasks, worker="w")
    found = list(table.scan())
    assert [row.results["classify"].value["answer"] for row in found] == ["no", "yes"]
    assert [row.results["safety"].drop for row in found] == [None, "artifact"]
    assert task_indexed(safety) == ("score",)
    for row in found:
        check_columns(row.results["safety"].value, task_columns(safety), "safety")
