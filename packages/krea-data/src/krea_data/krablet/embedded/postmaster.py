"""One PostgreSQL server: make its data folder, start it, tell whether it runs, stop it."""

import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from krea_data.krablet.embedded.binaries import Account, environment, server_version
from krea_data.krablet.errors import ServerError

__all__ = ["Postmaster"]

# What a laptop's server needs to differ from the defaults. Durability is not among it.
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "checkpoint_timeout": "15min",
    "autovacuum_naptime": "10s",
    "idle_in_transaction_session_timeout": "60s",
    "random_page_cost": "1.1",
    "jit": "off",
}
_STOP_S = 60
_QUICK_DEATHS = 3  # this often in a row a server may die at once before we give up, or begin to pause
_QUICK_S = 10
_PAUSES_S = 0.5, 30.0  # between two starts, first and longest
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
_ASKED_TO_END = "shutdown request"
_FULL = "No space left on device"
_ROOM_BYTES = 1 << 16  # with less, not even the log can say so
# After the death of a postmaster its other processes may need a moment to notice; then the data folder is free.
_LEFT_OVER = ("pre-existing shared memory block", "already exists")
_LEFT_OVER_S = 60
_READY = "ready to accept connections"
_NOBODY = 999_999_999  # above every process number


@dataclass(kw_only=True, slots=True)
class Postmaster:
    """A server of one data folder, which may run already, started by somebody else."""

    data: Path
    log: Path
    place: Path  # of the programs
    user: Account
    sockets: Path
    port: int
    trouble: str = field(init=False, default="")  # why it is down for longer, in one sentence
    _child: subprocess.Popen[Any] | None = field(init=False, default=None)
    _handle: int | None = field(init=False, default=None)
    _started: float = field(init=False, default=float("-inf"))
    _first_try: float = field(init=False, default=float("-inf"))
    _due: float | None = field(init=False, default=None)  # when to start it again
    _deaths: int = field(init=False, default=0)  # since it was last ready
    _failures: int = field(init=False, default=0)  # those of them that were its own
    _last: int = field(init=False, default=0)  # the process number of the last that was started
    _code: int = field(init=False, default=0)  # with which that ended
    _ready: bool = field(init=False, default=False)  # whether that answered
    _answered: bool = field(init=False, default=False)  # whether any did
    _said_from: int = field(init=False, default=0)

    def ensure(self) -> None:
        """Have it running, or on its way, or due to be started after a pause; `ServerError` once that is hopeless."""
        if self.running():
            self._note_ready()
            if (self.sockets / f".s.PGSQL.{self.port}").exists() or not self._has_listened():
                return
            self.stop()  # somebody cleaned up the sockets: nobody can connect any more
        if self._due is None:
            self._due = time.monotonic() + self._pause_after_death()
        if time.monotonic() < self._due:
            return
        self._due = None
        self._create()
        self._start()

    def running(self) -> bool:
        """Whether its first process is alive, be it a child of ours or not."""
        if self._child is not None:
            if self._child.poll() is None:
                return True
            self._code, self._child = self._child.returncode, None
        return self._is_mine(self._pid())

    def stop(self) -> None:
        """Stop it: quickly but in order, or after a while the hard way; the data are safe in both cases."""
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            deadline = time.monotonic() + _STOP_S
            pid = self._child.pid if self._child is not None else self._pid()
            if not self.running():
                break
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            while self.running() and time.monotonic() < deadline:
                time.sleep(0.02)

    def _has_listened(self) -> bool:
        """Whether it ever had its socket: then its lock file names the socket's folder."""
        try:
            return bool((self.data / "postmaster.pid").read_text("utf-8").splitlines()[4])
        except (OSError, IndexError):
            return False

    def _pid(self) -> int:
        return _pid_in(self.data / "postmaster.pid")

    def _note_ready(self) -> None:
        """Notice that it answers, or answered before it died: its lock file says so, wherever it writes its log."""
        if self._ready:
            return
        try:
            lines = (self.data / "postmaster.pid").read_text("utf-8").splitlines()
        except OSError:
            return
        if len(lines) > 7 and lines[7].strip() == "ready" and str(self._last) in ("0", lines[0]):
            self._get_well()

    def _get_well(self) -> None:
        self._ready = self._answered = True
        self._deaths = self._failures = 0
        self.trouble = ""

    def _pause_after_death(self) -> float:
        """For how long to wait before the next start.

        `ServerError` after some starts in a row that failed before it answered. A start that somebody else ended is
        none of them, nor one that a full disk ended where it has answered before.
        """
        said = self._said() if self._started > float("-inf") else ""
        if self._last:
            self._note_ready()
        if _READY in said:
            self._get_well()
        full = self._answered and (_FULL in said or _is_full(self.log.parent))
        if self._ready or (time.monotonic() - self._started > _QUICK_S and not full):
            self._deaths, self._failures, self._first_try = 0, 0, time.monotonic()
            return 0.0
        if any(phrase in said for phrase in _LEFT_OVER) and time.monotonic() - self._first_try < _LEFT_OVER_S:
            return 0.0
        killed = -self._code in _FROM_OUTSIDE or _ASKED_TO_END in said
        self._deaths += 1
        self._failures += not (killed or full)
        reason = f"somebody ends it (its log is {self.log})" if killed else _reason(said, self.log)
        if self._failures >= _QUICK_DEATHS:
            raise ServerError(f"the server of {self.data} does not start: {reason}")
        if self._deaths < _QUICK_DEATHS:
            return 0.0
        self.trouble = f"the server of {self.data} does not start, and is tried again while it is used: {reason}"
        first_s, longest_s = _PAUSES_S
        return min(first_s * 2 ** min(self._deaths - _QUICK_DEATHS, 10), longest_s)

    def _create(self) -> None:
        """Initialise the data folder whole or not at all."""
        if self.data.exists():
            held = (self.data / "PG_VERSION").read_text("utf-8").strip()
            version = server_version(self.place, self.user)
            if held != str(version):
                raise ServerError(
                    f"{self.data} holds data of PostgreSQL {held}, the programs in {self.place} are {version};"
                    f" set KRABLET_PG_BIN to the bin folder of a PostgreSQL {held} to go on; to upgrade, run pg_upgrade"
                    f" with both, or dump with {held} and restore into another folder"
                )
            return
        if self._started > float("-inf"):
            raise ServerError(f"{self.data} was deleted while its server ran; start again for an empty one")
        fresh = self.data.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if not self.user.own:
            os.chown(fresh, self.user.uid, self.user.gid)
        command = [self.place / "initdb", "-D", self._seen_as(fresh), "-U", "postgres", "-A", "trust"]
        self._said_from = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            done = subprocess.run([*command, "-E", "UTF8", "--locale=C"], check=False, **self._popen(log))
        if done.returncode:
            raise ServerError(f"cannot make a database in {self.data}: {_reason(self._said(), self.log)}")
        fresh.rename(self.data)

    def _start(self) -> None:
        """Start the server without waiting for it; recovery may take minutes."""
        self._unblock()
        command = [self.place / "postgres", "-D", self._seen_as(self.data), "-k", self.sockets, "-p", str(self.port)]
        settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        if self.log.exists() and self.log.stat().st_size > 1 << 24:
            self.log.replace(self.log.with_suffix(".log.1"))
        self._said_from = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._child = subprocess.Popen([*command, *settings], **self._popen(log))
        self._started = time.monotonic()
        self._last, self._code, self._ready = self._child.pid, 0, False

    def _seen_as(self, folder: Path) -> str:
        """The folder's path for the account. Where it may not go (below /root, say) it is handed an open folder."""
        if self.user.own or _may_enter(folder, self.user):
            return str(folder)
        if not Path("/proc/self/fd").is_dir():
            raise ServerError(
                f"user {self.user.name}, who runs the server, may not enter {folder}; name a folder below /var/lib"
            )
        if self._handle is None:
            self._handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        return f"/proc/self/fd/{self._handle}"

    def _popen(self, log: IO[bytes]) -> dict[str, Any]:
        """Arguments for a program of PostgreSQL; a file for its output, since it would keep a pipe open for ever."""
        handles = () if self._handle is None else (self._handle,)
        streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        return {**streams, "cwd": "/", "env": environment(), "pass_fds": handles, **self.user.popen()}

    def _said(self) -> str:
        """What the program wrote since it was started."""
        with self.log.open("rb") as log:
            log.seek(self._said_from)
            return log.read(1 << 20).decode(errors="replace")

    def _is_mine(self, pid: int) -> bool:
        """Whether a live process of this number is this server, and not another that got the number since."""
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return not Path("/proc/self").exists() and _exists(pid)
        return str(self.sockets) in command and str(self.port) in command  # a process that nobody waited for has none

    def _unblock(self) -> None:
        """Let the server start although the process number of its last life is taken.

        PostgreSQL takes any process of that number for itself, also a dead one that nobody has waited for. Only the
        number is replaced: by the rest of the file it finds out whether processes of its last life use the data.
        """
        for lock in (self.data / "postmaster.pid", self.sockets / f".s.PGSQL.{self.port}.lock"):
            pid = _pid_in(lock)
            if pid != _NOBODY and _exists(pid) and not self._is_mine(pid):
                _, _, rest = lock.read_text("utf-8").partition("\n")
                lock.write_text(f"{_NOBODY}\n{rest}", "utf-8")


def _pid_in(lock: Path) -> int:
    try:
        return int(lock.read_text("utf-8").partition("\n")[0])
    except (OSError, ValueError):
        return _NOBODY


def _may_enter(folder: Path, user: Account) -> bool:
    done = subprocess.run(["test", "-x", str(folder)], cwd="/", check=False, **user.popen())
    return done.returncode == 0


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_full(place: Path) -> bool:
    return shutil.disk_usage(place).free < _ROOM_BYTES


def _reason(said: str, log: Path) -> str:
    """The sentence in a log that says why; a disk may be so full that there is none."""
    lines = re.findall(r"(?:FATAL|PANIC|initdb: error|postgres: error|postgres): +(.+)", said) or said.splitlines()
    reason = lines[-1].strip() if lines else "it said nothing"
    full = next((line for line in lines if _FULL in line), None)
    if full is None and _is_full(log.parent):
        full = f"there is no room in {log.parent}"
    return f"the disk is full; make room there ({full})" if full else f"{reason} (its log is {log})"
