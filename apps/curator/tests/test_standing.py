"""What is expected: rows in the queues, and what the tasks before have yet to hand on."""

import pytest
from krea_curator.standing import standing
from krea_data.rows import Stats
from krea_data.testing import FakeTask

LINE = [FakeTask(name="a"), FakeTask(name="b", after=("a",)), FakeTask(name="c", after=("b",))]


def test_what_is_kept_so_far_predicts_what_will_come() -> None:
    stats = {"a": Stats(done=40, kept=30, queued=50, leased=8, dead=2), "b": Stats(done=10, kept=5, queued=20)}
    a, b, c = standing(stats, LINE)
    assert (a.done, a.backlog, a.dead, a.expected) == (40, 58, 2, 100)
    assert b.expected == 30 + round(58 * 0.75)
    assert c.expected == round((b.expected - 10) * 0.5)


def test_when_all_is_done_all_was_expected() -> None:
    stats = {"a": Stats(done=40, kept=30), "b": Stats(done=29, kept=29, dead=1), "c": Stats(done=29, kept=0)}
    assert [one.expected for one in standing(stats, LINE)] == [40, 30, 29]


def test_before_anything_is_done_everything_is_expected_to_be_kept() -> None:
    assert [one.expected for one in standing({"a": Stats(queued=7)}, LINE)] == [7, 7, 7]


def test_a_task_gets_what_all_before_it_keep() -> None:
    tasks = [FakeTask(name="d", after=("a", "b")), FakeTask(name="a"), FakeTask(name="b")]
    stats = {"a": Stats(queued=10), "b": Stats(done=5, kept=1, queued=5)}
    assert [one.expected for one in standing(stats, tasks)] == [1, 10, 10]


def test_tasks_of_another_run_do_not_count() -> None:
    (only,) = standing({"b": Stats(queued=3)}, LINE[1:2])
    assert only.expected == 3


def test_a_circle_is_refused() -> None:
    with pytest.raises(ValueError, match="wait for each other"):
        standing({}, [FakeTask(name="a", after=("b",)), FakeTask(name="b", after=("a",))])
