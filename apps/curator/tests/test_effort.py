"""The flags of a run: what they mean, that workers get the same, and what is refused."""

from collections.abc import Callable

import pytest
from krea_curator import cli, compose
from krea_curator.cli import app
from krea_curator.effort import Effort
from typer.testing import CliRunner

OWN = {"isolated": True, "memory_bytes": 4096 << 20, "timeout_s": 60.0}


def test_untrusted_pictures_are_met_in_a_process_of_their_own() -> None:
    assert Effort().limits == {"decode": OWN}
    assert (Effort().rows, Effort().lease_s) == (100, 30.0)
    assert Effort(isolate=("none",)).limits == {}


def test_rows_at_once_are_for_all_tasks_or_for_one() -> None:
    effort = Effort(batch=("200", "caption=16", "decode=50"))
    assert effort.rows == 200
    assert effort.limits == {"caption": {"batch": 16}, "decode": {"batch": 50, **OWN}}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Effort(batch=("many",)), "--batch many is no number of rows; use one such as 200, or caption=16"),
        (lambda: Effort(batch=("caption=0",)), "--batch caption=0"),
        (lambda: Effort(batch=("taste=3",)), "no task 'taste'; there are licence, decode"),
        (lambda: Effort(isolate=("taste",)), "no task 'taste'"),
        (lambda: Effort(lease_s=0), "a lease of 0 s"),
        (lambda: Effort(memory_mib=0), "0 MiB for an isolated task; use 16 or more"),
        (lambda: Effort(timeout_s=-1), "timeout_s is -1; use seconds"),
    ],
)
def test_what_cannot_be_is_named(make: Callable[[], Effort], says: str) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        make()
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "effort",
    [
        Effort(),
        Effort(batch=("7", "hash=9"), lease_s=2.5, isolate=("decode", "flat"), memory_mib=64, timeout_s=0.25),
        Effort(isolate=()),
    ],
)
def test_a_worker_hears_what_its_pool_was_told(effort: Effort, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Effort] = []
    monkeypatch.setattr(compose, "work", lambda home, dsns, names, effort, **_: heard.append(effort))
    monkeypatch.setattr(cli, "_end_of_input", lambda: None)
    words = ["run", "--leash", *effort.words]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert [(one.rows, one.limits, one.lease_s) for one in heard] == [(effort.rows, effort.limits, effort.lease_s)]
