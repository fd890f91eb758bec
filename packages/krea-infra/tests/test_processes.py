import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from krea_infra.interfaces import Instance, MissingError, Pod
from krea_infra.processes import Processes
from krea_infra.virtual import step

SLEEP = Pod(uid="default/sleeper", command=("sleep", "60"))

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


def wait_for(provider: Processes, phase: str) -> list[Instance]:
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        found = provider.recover()
        if found and all(instance.phase == phase for instance in found):
            return found
        time.sleep(0.01)
    raise AssertionError(f"not {phase}: {provider.recover()}")


@pytest.mark.parametrize(("code", "phase"), [(0, "succeeded"), (3, "failed")])
def test_a_command_ends_with_its_status_and_output(tmp_path: Path, code: int, phase: str) -> None:
    provider = Processes(tmp_path / "a folder")
    name = provider.create(Pod(uid="u", command=("sh", "-c", f"echo 'two  words'; exit {code}")))
    assert wait_for(provider, phase) == [Instance(id=name, pod_uid="u", phase=phase)]  # type: ignore[arg-type]
    assert provider.exec(name, ["cat", "output"]) == "two  words\n"
    provider.delete(name)
    provider.delete(name)
    assert provider.recover() == []
    with pytest.raises(MissingError):
        provider.exec(name, ["ls"])


def test_a_pod_is_started_once_and_ended_with_all_its_children(tmp_path: Path) -> None:
    pod = Pod(uid="u", command=("sh", "-c", "trap '' TERM; sleep 61 & echo $! > child; wait; sleep 62"))
    provider = Processes(tmp_path, grace_s=0.2)
    name = provider.create(pod)
    assert provider.create(pod) == name
    child = tmp_path / name / "child"
    while not child.exists() or not child.read_text():
        time.sleep(0.01)
    number = child.read_text().strip()
    provider.delete(name)
    stat = Path(f"/proc/{number}/stat")
    assert not stat.exists() or ") Z " in stat.read_text()
    assert provider.recover() == []


def test_a_new_process_adopts_what_runs(tmp_path: Path) -> None:
    code = f"""
import os, pathlib
from krea_infra.interfaces import Pod
from krea_infra.processes import Processes
Processes(pathlib.Path({str(tmp_path)!r})).create(Pod(uid="default/sleeper", command=("sleep", "60")))
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    provider = Processes(tmp_path)
    assert step([SLEEP], provider) == {SLEEP.uid: "running"}
    assert step([replace(SLEEP, phase="running")], provider) == {}
    assert step([replace(SLEEP, phase="running", deleting=True)], provider) == {}
    assert provider.recover() == []


def test_a_reused_process_id_is_not_taken_for_the_pod(tmp_path: Path) -> None:
    provider = Processes(tmp_path)
    name = provider.create(SLEEP)
    number, started = (tmp_path / name / "process").read_text().split()
    (tmp_path / name / "process").write_text(f"{number} {int(started) + 1}")
    assert [instance.phase for instance in provider.recover()] == ["failed"]
    (tmp_path / name / "process").write_text(f"{number} {started}")
    provider.delete(name)
