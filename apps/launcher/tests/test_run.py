"""A run remembers what is finished, and refuses to be two runs."""

from pathlib import Path

import pytest
from krea_launcher.run import open_run


def test_a_finished_stage_is_not_done_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def work() -> dict[str, int]:
        calls.append(1)
        return {"answer": 42}

    for _ in range(2):
        with open_run(tmp_path / "r", {"seed": 0}) as run:
            assert run.stage("think", work)["answer"] == 42
    assert calls == [1]


def test_a_stage_that_fails_is_done_again_and_its_time_is_kept(tmp_path: Path) -> None:
    with open_run(tmp_path, {}) as run:
        with pytest.raises(RuntimeError):
            run.stage("x", lambda: (_ for _ in ()).throw(RuntimeError("no")))
        assert run.facts("x") is None
        assert run.path("facts", ".x.seconds").exists()
        assert run.stage("x", dict)["seconds"] >= 0


def test_two_at_once_and_other_settings_are_refused(tmp_path: Path) -> None:
    with open_run(tmp_path / "a b", {"seed": 0}):
        with pytest.raises(ValueError, match="in use by another run"), open_run(tmp_path / "a b", {"seed": 0}):
            pass
    with pytest.raises(ValueError, match=r"another seed \(0, now 1\)"), open_run(tmp_path / "a b", {"seed": 1}):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to .*another --out"), open_run(tmp_path / "file" / "r", {}):
        pass
