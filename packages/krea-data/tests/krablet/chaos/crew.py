"""Processes that are killed at any moment and started again at once, and the servers that their keeper brings back."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from krea_data.krablet.embedded.folder import FIRST_PORT, Folder

_PROGRAMS = Path(__file__).with_name("victims.py")
_WAIT_S = 60.0
_YOUNG_S = 15.0  # it may not listen to SIGTERM yet


@dataclass(kw_only=True, slots=True)
class Member:
    """One process in its present life."""

    command: list[str]
    log: Path
    process: "subprocess.Popen[bytes]"
    ends: bool = False  # by itself, when its work is done
    born: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class Crew:
    """The processes by name."""

    folder: Path
    members: dict[str, Member] = field(default_factory=dict)
    revived: int = 0

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members.values():
            member.process.kill()
            member.process.wait()

    def start(self, name: str, what: str, /, *, ends: bool = False, **arguments: Any) -> None:
        """Start something of victims.py, without waiting until it is ready."""
        command = [sys.executable, str(_PROGRAMS), what, json.dumps(arguments)]
        log = self.folder / f"{name}.log"
        self.members[name] = Member(command=command, log=log, process=_run(command, log), ends=ends)

    def kill(self, name: str) -> bool:
        """End a life and begin the next; False for one whose work is done."""
        member = self.members[name]
        if member.ends and member.process.poll() == 0:
            return False
        member.process.kill()
        member.process.wait()
        member.process = _run(member.command, member.log)
        member.born = time.monotonic()
        return True

    def finish(self, *names: str) -> None:
        """Ask these to end in order, and wait for it; all of them without names."""
        self.look_after()
        leaving = {name: self.members.pop(name) for name in names or list(self.members)}
        for member in leaving.values():
            if member.process.poll() is None:
                member.process.terminate()
        for name, member in leaving.items():
            young = time.monotonic() < member.born + _YOUNG_S
            try:
                ended = member.process.wait(_WAIT_S)
            finally:
                member.process.kill()
            assert ended in ((0, -signal.SIGTERM) if young else (0,)), f"{name} ended with {ended}: {_last(member.log)}"

    def look_after(self) -> None:
        """Start those again who came when no server answered, as whatever supervises processes does.

        AssertionError for one that ended by itself for any other reason.
        """
        for name, member in self.members.items():
            if member.process.poll() is None or (member.ends and member.process.returncode == 0):
                continue
            said = self.last_words(name)
            assert "ShardDown: " in said.strip().rpartition("\n")[2], said
            self.revived += 1
            self.kill(name)

    def ended(self, name: str) -> bool:
        """Whether a member has done its work."""
        return self.members[name].process.poll() == 0

    def last_words(self, name: str) -> str:
        """The end of a member's log."""
        return f"{name}: {_last(self.members[name].log)}"


def postmaster(root: Path, shard: int) -> int:
    """The process number of a shard's server that lives, or 0."""
    folder = Folder(root)
    try:
        pid = int((folder.shard(shard) / "postmaster.pid").read_text().partition("\n")[0])
    except (OSError, ValueError):
        return 0
    return pid if _is_server(pid, folder, shard) else 0


def kill_postmaster(root: Path, shard: int) -> int:
    """Kill a shard's server, once there is one, and return which process that was."""
    pid = wait_for(lambda: postmaster(root, shard), f"shard {shard} has no server")
    _kill(pid)
    return pid


def kill_backend(root: Path, shard: int, choice: float) -> bool:
    """Kill one of the processes that a shard's server started; `choice` from 0 to 1 says which."""
    parent = postmaster(root, shard)
    children = sorted(_children(parent)) if parent else []
    if not children:
        return False
    _kill(children[int(choice * len(children))])
    return True


def is_ready(root: Path, shard: int) -> bool:
    """Whether a shard's server lives and has finished its recovery."""
    if not postmaster(root, shard):
        return False
    lines = (Folder(root).shard(shard) / "postmaster.pid").read_text().splitlines()
    return len(lines) > 7 and lines[7].strip() == "ready"


def wait_for(condition: Any, what: str, timeout_s: float = 120.0) -> Any:
    """What the condition gives once that is true."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} for {timeout_s:g} s"
        time.sleep(0.02)
    return found


def _last(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]


def _run(command: list[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as file:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)


def _kill(pid: int) -> None:
    assert pid > 1
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _is_server(pid: int, folder: Folder, shard: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        return folder.sockets.read_text().strip() in words and str(FIRST_PORT + shard) in words
    except OSError:
        return False


def _children(parent: int) -> Iterator[int]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(after_name[1]) == parent:
            yield int(stat.parent.name)
