import time
from collections.abc import Callable

import pytest
from krea_data.krablet import Krablet
from krea_data.rows import Claim, Result
from krea_data.testing import FakeTask, rows

pytestmark = pytest.mark.postgres
New = Callable[[int], list[str]]


def swap(krablet: Krablet, task: FakeTask, claims: list[Claim], limit: int = 20) -> tuple[int, list[Claim]]:
    """Answer all, and ask for more."""
    return krablet.exchange(task, {claim: Result(value={"id": claim.id}) for claim in claims}, "w", limit, 60.0)


def test_exchanges_answer_every_row_once(krablet: Krablet) -> None:
    krablet.add(rows(300))
    first, late = FakeTask(name="first"), FakeTask(name="late", after=("first",))
    krablet.register([first, late])
    done: list[str] = []
    claims = krablet.claim(first, "w", 20, 60.0)
    while claims:
        stored, following = swap(krablet, first, claims)
        assert stored == len(claims)
        assert not {claim.id for claim in claims} & {claim.id for claim in following}
        done += [claim.id for claim in claims]
        claims = following
    assert sorted(done) == [row.id for row in rows(300)]
    assert (krablet.pending("first"), krablet.pending("late")) == (0, 300)
    assert all(row.results["first"].value == {"id": row.id} for row in krablet.scan())


def test_claims_of_an_exchange_are_claims(new_dsns: New) -> None:
    dsns = new_dsns(1)
    with Krablet(dsns) as krablet, Krablet(dsns) as other:
        krablet.add(rows(40))
        task = FakeTask()
        old = krablet.claim(task, "w", 20, 0.05)
        time.sleep(0.1)
        new: list[Claim] = []
        while claims := other.claim(task, "v", 100, 60.0):  # few at a time, since their worker may have died of them
            new += claims
        stored, claims = swap(krablet, task, old)
        assert (stored, claims) == (0, [])  # the lease was lost, and all rows are held by somebody else
        assert other.complete("fake", dict.fromkeys(new, Result())) == len(new) == 40


def test_an_exchange_heeds_pauses_and_priorities(new_dsns: New) -> None:
    ids = [row.id for row in rows(60)]
    with Krablet(new_dsns(1)) as krablet:
        krablet.add(rows(60))
        task = FakeTask()
        claims = krablet.claim(task, "w", 10, 60.0)
        krablet.prioritise("fake", ids[50:], 1)
        stored, claims = swap(krablet, task, claims, 10)
        assert (stored, {claim.id for claim in claims}) == (10, set(ids[50:]))
        krablet.pause("fake")
        assert swap(krablet, task, claims, 10) == (10, [])
        krablet.resume("fake")
        assert len(swap(krablet, task, [], 100)[1]) == 40
        with pytest.raises(ValueError, match="limit 0"):
            swap(krablet, task, [], 0)


def test_the_last_of_several_answers_queues_the_row(new_dsns: New) -> None:
    with Krablet(new_dsns(1)) as krablet:
        krablet.add(rows(10))
        a, b, both = FakeTask(name="a"), FakeTask(name="b"), FakeTask(name="both", after=("a", "b"))
        krablet.register([a, b, both])
        for task in (a, b):
            swap(krablet, task, krablet.claim(task, "w", 5, 60.0), 5)
        assert krablet.pending("both") == 5


def test_a_row_that_was_queued_by_hand_is_answered_anew(new_dsns: New) -> None:
    with Krablet(new_dsns(1)) as krablet:
        krablet.add(rows(2))
        task = FakeTask()
        krablet.complete("fake", dict.fromkeys(krablet.claim(task, "w", 5, 60.0), Result(value={"old": 1})))
        krablet.guarded(0, lambda c, _: c.execute("insert into queue_fake (slot, id) select slot, id from images"))
        first, second = krablet.claim(task, "w", 5, 60.0)
        assert krablet.complete("fake", {first: Result(value={"new": 1})}) == 1
        assert swap(krablet, task, [second])[0] == 1
        assert [sorted(row.results["fake"].value) for row in krablet.scan()] in ([["new"], ["id"]], [["id"], ["new"]])
