from collections.abc import Callable

import pytest
from krea_data.dedup import Index, Limits, explain, forget, repair
from krea_data.dedup.explain import Step
from krea_data.krablet import Krablet
from krea_data.rows import Row
from krea_data.tasks import Dedup

pytestmark = pytest.mark.postgres
STAGE = {"dedup": Limits()}
RULE = Limits().rule


def test_a_row_is_followed_to_the_one_that_stays(krablet: Krablet, row: Callable, bare: Callable) -> None:
    rows = [row("a/1", 0b1, 0b1, mean="828080"), row("a/2", 0b1, 0b1, blob="bytes of a/1", mean="828080")]
    rows += [row("b/1", 0b111, size=(99, 99)), row("c/1", (1 << 60) - 1 << 70)]
    krablet.add(bare(rows))
    index = Index(krablet, STAGE)
    index.take(rows)
    repair(index, "dedup")
    found = explain(index, "dedup", "a/2")
    same = Step(id="a/2", kept="a/1", reason="duplicate", phash=0, colour=0, mean=0, rule="equal bytes")
    near = Step(id="a/1", kept="b/1", reason="near duplicate", phash=2, colour=1, mean=2, rule=RULE)
    assert found.chain == (same, near)
    assert found.stored == Dedup().compare(rows)["a/2"]
    assert (found.same, found.cluster, found.due) == (("a/1",), ("a/1", "a/2", "b/1"), False)
    assert [(one.ids, one.phash) for one in found.near] == [(("b/1",), 2)]
    assert str(found).splitlines() == [
        "a/2 goes as a duplicate of a/1: equal bytes",
        f"a/1 goes as a near duplicate of b/1: 2 bits of shape, 1 of colour, 2 of mean colour ({RULE})",
        "equal bytes: a/1",
        f"copy: b/1: 2 bits of shape, 1 of colour, 2 of mean colour ({RULE})",
        "3 rows hang together: a/1, a/2, b/1",
    ]
    assert str(explain(index, "dedup", "c/1")) == "c/1 stays in dedup"
    assert explain(index, "dedup", "b/1").chain == ()


def test_the_chain_ends_where_the_stored_results_end(krablet: Krablet, many: Callable, bare: Callable) -> None:
    rows = many(21, 80)
    krablet.add(bare(rows))
    index = Index(krablet, STAGE)
    index.take(rows)
    repair(index, "dedup")
    expected = Dedup().compare(rows)
    lost = [row_id for row_id, result in expected.items() if result.drop]
    assert lost
    for row_id, result in expected.items():
        chain = explain(index, "dedup", row_id).chain
        assert [(one.kept, one.reason) for one in chain[:1]] == [
            (result.value["kept"], result.drop) for _ in range(1) if result.drop
        ]
        assert not chain or expected[chain[-1].kept].drop is None


def test_what_has_changed_since_is_said(krablet: Krablet, row: Callable, bare: Callable) -> None:
    rows = [row("a/1", 1), row("a/2", 3)]
    krablet.add(bare(rows))
    index = Index(krablet, STAGE)
    index.take(rows)
    found = explain(index, "dedup", "a/2")
    assert (found.due, found.stored) == (True, None)
    assert "since the last repair" in str(found)
    forget(index, rows[:1])
    assert "copy: no row any more" in str(explain(index, "dedup", "a/2"))


def test_rows_that_are_not_there_are_named(krablet: Krablet) -> None:
    index = Index(krablet, STAGE)
    with pytest.raises(LookupError, match="no row 'a/1'"):
        explain(index, "dedup", "a/1")
    krablet.add([Row(id="a/1", blob="x")])
    with pytest.raises(LookupError, match="has not looked at it"):
        explain(index, "dedup", "a/1")
