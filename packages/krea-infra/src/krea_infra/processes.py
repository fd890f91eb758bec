"""A Provider that needs no cloud: each pod is a session of processes on this machine (Linux) with a folder of its own.

The folder is named after the pod and made before the process starts, so a second `create` of the same pod finds it.
It holds `output`, `process` (its id and start time, since ids are used again) and, at the end, `status`.
"""

import contextlib
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from krea_infra.interfaces import Instance, MissingError, Phase, Pod

__all__ = ["Processes"]


class Processes:
    """Runs pods as processes below `root`, which must be on a disk that survives this process."""

    def __init__(self, root: Path, *, grace_s: float = 5.0) -> None:
        self.root = Path(root)
        self.grace_s = grace_s
        self.root.mkdir(parents=True, exist_ok=True)
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def create(self, pod: Pod) -> str:
        """Start the pod's command; a pod that was started before is not started again."""
        name = hashlib.sha256(pod.uid.encode()).hexdigest()[:16]
        folder = self.root / name
        try:
            folder.mkdir()
        except FileExistsError:
            return name
        (folder / "pod").write_text(pod.uid)
        wanted = shlex.join(pod.command)
        # The shell writes its own id first: if this process dies right after the start, the folder still tells.
        script = (
            f'echo "$$ $(cut -d" " -f22 /proc/$$/stat)" > process.new; mv process.new process\n'
            f"{wanted} > output 2>&1 < /dev/null\n"
            "echo $? > status.new; mv status.new status"
        )
        self._children[name] = subprocess.Popen(
            ["/bin/sh", "-c", script], cwd=folder, start_new_session=True, stdin=subprocess.DEVNULL
        )
        while not (folder / "process").exists() and self._children[name].poll() is None:
            time.sleep(0.005)
        return name

    def delete(self, instance: str) -> None:
        """End the pod's whole session, politely and then not, and remove the folder."""
        folder = self.root / instance
        for signum in (signal.SIGTERM, signal.SIGKILL):
            for number in _members(folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signum)
            self._wait(folder, self.grace_s if signum == signal.SIGTERM else 30.0)
        if child := self._children.pop(instance, None):
            child.wait()
        shutil.rmtree(folder, ignore_errors=True)

    def exec(self, instance: str, command: Sequence[str]) -> str:
        """Run a command in the instance's folder and return what it printed."""
        folder = self.root / instance
        if not folder.is_dir():
            raise MissingError(f"instance {instance} is gone")
        done = subprocess.run(list(command), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        return done.stdout.decode(errors="replace")

    def recover(self) -> list[Instance]:
        """Every instance that has a folder, whoever started it."""
        for child in self._children.values():
            child.poll()
        found = []
        for folder in sorted(self.root.iterdir()):
            if (folder / "pod").exists():
                found.append(Instance(id=folder.name, pod_uid=(folder / "pod").read_text(), phase=_phase(folder)))
        return found

    def _wait(self, folder: Path, timeout_s: float) -> None:
        """Until the session is empty, or the time is over."""
        give_up = time.monotonic() + timeout_s
        while _members(folder) and time.monotonic() < give_up:
            time.sleep(0.01)


def _phase(folder: Path) -> Phase:
    if (leader := _leader(folder)) and _stat(leader[0])[:1] not in ([], ["Z"]):
        return "running"
    status = folder / "status"
    return "succeeded" if status.exists() and status.read_text().strip() == "0" else "failed"


def _leader(folder: Path) -> tuple[str, str] | None:
    """Id and start time of the pod's first process, unless the id belongs to another process by now."""
    try:
        number, started = (folder / "process").read_text().split()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    fields = _stat(number)
    return None if fields and fields[19] != started else (number, started)


def _members(folder: Path) -> list[int]:
    """Living processes of the pod's session; its number stays taken while one of them lives."""
    leader = _leader(folder)
    if leader is None:
        return []
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(entry.name)
        if fields and fields[3] == leader[0] and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def _stat(number: str) -> list[str]:
    """The fields of /proc/N/stat from the third on: state, parent, group, session, ...; empty if there is none."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
