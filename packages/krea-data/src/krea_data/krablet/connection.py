"""Connections to one shard, kept for reuse, and the patience to wait while it restarts."""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
    from psycopg.pq import TransactionStatus
except ImportError as error:
    raise ImportError("the krablet needs psycopg; install krea-data[postgres]") from error

from krea_data.krablet.arrays import register_arrays
from krea_data.krablet.errors import ShardDown

__all__ = ["Shard", "hopeless", "make_conninfo", "passing", "patiently", "refusal"]

T = TypeVar("T")

# Deadlock, serialisation, lost connection, shut-down, starting up, out of disk or connections: worth another try.
_PASSING = ("40001", "40P01", "08", "57P01", "57P02", "57P03", "53")

# A refused connection has no such number, only the server's words (which are English where we started it).
_NO_ENTRY = ("password authentication failed", "no password supplied", "no pg_hba.conf entry", '" does not exist')
_FULL = ("No space left on device", "could not extend file")
_CROWDED = ("too many clients", "remaining connection slots", "too many connections")

_SOON_S, _SLOW_S = 2, 10  # to connect, for those with little patience and for all others

# A forked child must not say goodbye on sockets that its parent uses, so it keeps these for ever.
_PARENTS: list[psycopg.Connection] = []


def passing(error: psycopg.Error) -> bool:
    """Whether the same statement may well succeed a little later."""
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError)
    return error.sqlstate.startswith(_PASSING)


def hopeless(error: psycopg.Error) -> bool:
    """Whether a server answered that it will not let us in: a wrong password, no such database, no such user."""
    return error.sqlstate is None and any(phrase in str(error) for phrase in _NO_ENTRY)


def refusal(dsn: str) -> str | None:
    """Why a server cannot be connected to just now, or None if it can."""
    try:
        psycopg.connect(dsn, connect_timeout=5).close()
    except psycopg.OperationalError as error:
        return _first_line(error)
    return None


def patiently(make: Callable[[], T], patience_s: float) -> T:
    """What `make` returns, tried again while it raises `ShardDown`: for processes that may start before their shards.

    Opening a krablet does not wait, so that who names a wrong server hears of it at once.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return make()
        except ShardDown:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


class Shard:
    """One PostgreSQL database. Safe among threads; a forked child opens connections of its own."""

    def __init__(self, number: int, dsn: str, patience_s: float) -> None:
        try:
            conninfo_to_dict(dsn)
        except psycopg.ProgrammingError as error:
            raise ValueError(f"the DSN of shard {number} cannot be read: {_first_line(error)}") from error
        self.number = number
        self.dsn = dsn
        self.patience_s = patience_s
        self._lock = threading.Lock()
        self._idle: list[psycopg.Connection] = []
        self._pid = os.getpid()
        self._met = False  # whether it has ever let us in

    @property
    def name(self) -> str:
        """The shard in words, without its password."""
        known = conninfo_to_dict(self.dsn)
        where = " ".join(f"{key}={known[key]}" for key in ("host", "port", "dbname") if known.get(key))
        return f"shard {self.number} ({where})"

    def attempt(self, work: Callable[[psycopg.Connection], T], *, patience_s: float | None = None) -> T:
        """Do `work` on a connection; after a passing failure do it again, and raise `ShardDown` when patience ends.

        `work` may have been done although it failed (a commit whose answer was lost), so it must bear repetition.
        """
        patience_s = self.patience_s if patience_s is None else patience_s
        deadline = time.monotonic() + patience_s
        pause_s = 0.01
        while True:
            try:
                with self.connection(_SLOW_S if patience_s >= _SLOW_S else _SOON_S) as connection:
                    return work(connection)
            except psycopg.Error as error:
                if not passing(error):
                    raise
                if hopeless(error):
                    raise ValueError(
                        f"the DSN of {self.name} does not work: {_first_line(error)}; correct it"
                    ) from error
                if time.monotonic() > deadline:
                    raise ShardDown(_sentence(self.name, error)) from error
            time.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(2 * pause_s, 0.5)

    @contextmanager
    def connection(self, timeout_s: int = _SLOW_S) -> Iterator[psycopg.Connection]:
        """A connection in autocommit mode, kept for the next caller unless it broke."""
        connection = self._take(timeout_s)
        try:
            yield connection
        finally:
            if connection.info.transaction_status == TransactionStatus.IDLE:
                with self._lock:
                    self._idle.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self, timeout_s: int) -> psycopg.Connection:
        with self._lock:
            if self._pid != os.getpid():
                _PARENTS.extend(self._idle)
                self._idle, self._pid = [], os.getpid()
            if self._idle:
                return self._idle.pop()
        connection = psycopg.connect(self.dsn, autocommit=True, connect_timeout=timeout_s)
        self._met = True
        register_arrays(connection)
        return connection


def _sentence(name: str, error: psycopg.Error) -> str:
    """What keeps a shard from working, and a way out where there is one."""
    said = _first_line(error)
    if error.sqlstate == "53100" or any(phrase in said for phrase in _FULL):
        return f"{name} has a full disk: {said}; make room there"
    if error.sqlstate == "53300" or any(phrase in said for phrase in _CROWDED):
        return f"{name} has no connection left: {said}; end some of its clients, or raise its max_connections"
    return f"{name} does not answer: {said}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
