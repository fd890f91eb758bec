import math
from collections.abc import Callable

import psycopg
import pytest
from krea_data.krablet import Krablet
from krea_data.krablet.queues.metrics import Metrics, exposition
from krea_data.rows import Result
from krea_data.testing import FakeTask, rows
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.postgres


def total(text: str, name: str, task: str = "first") -> float:
    """What Prometheus would add up over the shards."""
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and s.labels.get("task", task) == task)


def test_prometheus_reads_how_the_queues_stand(krablet: Krablet) -> None:
    krablet.add(rows(40))
    first, late = FakeTask(name="first"), FakeTask(name="late", after=("first",))
    krablet.register([first, late])
    metrics = Metrics(krablet)
    metrics.text()
    claims = krablet.claim(first, "w", 20, 1000.0)
    krablet.complete("first", dict.fromkeys(claims[:8], Result()))
    krablet.max_attempts = 1
    for claim in claims[8:11]:
        krablet.fail("first", claim, "no")
    krablet.pause("late")
    for number in range(2):  # statistics are sent once a second
        krablet.guarded(number, lambda c, _: c.execute("select pg_stat_force_next_flush()"))
    text = metrics.text()
    assert total(text, "krablet_shard_up") == 2
    assert (total(text, "krablet_backlog_rows"), total(text, "krablet_due_rows")) == (29, 20)
    assert (total(text, "krablet_leased_rows"), total(text, "krablet_dead_rows")) == (9, 3)
    assert (total(text, "krablet_paused"), total(text, "krablet_paused", "late")) == (0, 2)
    assert (total(text, "krablet_backlog_rows", "late"), total(text, "krablet_due_rows", "late")) == (8, 8)
    assert total(text, "krablet_results_total") == 8
    assert total(text, "krablet_results_per_second") > 0
    assert 0 < total(text, "krablet_oldest_due_seconds") < 600
    assert metrics.backlog("first") == 29
    krablet.prioritise("first", [row.id for row in rows(40)], 3)
    assert total(metrics.text(), "krablet_oldest_due_seconds") > 0


def test_a_large_backlog_is_estimated(new_dsns: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    with Krablet(new_dsns(1)) as krablet:
        krablet.register([FakeTask()])
        krablet.add(rows(600))
        krablet.guarded(0, lambda c, _: c.execute("select pg_stat_force_next_flush()"))
        assert krablet.backlog("fake") == 600
        monkeypatch.setattr("krea_data.krablet.queues.counts.DUE_ROWS", 100)
        assert krablet.backlog("fake") == 600  # by statistics
        krablet.complete("fake", dict.fromkeys(krablet.claim(FakeTask(), "w", 550, 60.0), Result()))
        assert krablet.backlog("fake") == 50


def test_a_shard_that_is_down_says_only_that(new_dsns: Callable[[int], list[str]]) -> None:
    dsns = new_dsns(2)
    with Krablet(dsns) as krablet:
        krablet.register([FakeTask()])
        with psycopg.connect(dsns[1], autocommit=True) as connection:
            connection.execute("alter table task rename to lost")
        text = Metrics(krablet).text()
    assert total(text, "krablet_shard_up") == 1
    assert 'krablet_backlog_rows{task="fake",shard="0"} 0\n' in text
    assert 'task="fake",shard="1"' not in text


def test_labels_are_escaped() -> None:
    odd = 'a\\b"c\nd'
    text = exposition({"krablet_due_rows": {(("task", odd),): math.pi}})
    (family,) = text_string_to_metric_families(text)
    assert (family.samples[0].labels["task"], family.samples[0].value) == (odd, math.pi)
