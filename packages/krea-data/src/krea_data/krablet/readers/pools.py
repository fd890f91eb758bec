"""A few read-only connections to one shard for any number of readers: what stands in place of a pooler.

No session belongs to a client, so nothing that a client does stays behind in one. Who finds all connections taken
waits in a line that is bounded in length and time, then gets `Busy`. A shard that refuses connections is left alone
for a moment, and everybody who asks meanwhile is told at once.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from krea_data.krablet.arrays import register_arrays
from krea_data.krablet.connection import make_conninfo, passing
from krea_data.krablet.errors import KrabletError, ShardDown
from krea_data.krablet.rpc.errors import Busy, RpcError

__all__ = ["Pool", "PoolState", "Session", "TooLarge", "TooSlow", "shard_name"]

T = TypeVar("T")
_REST_S = 0.5  # a shard that refused a connection is asked again after this
_CONNECT_S = 5
_SETTINGS = """
select set_config('default_transaction_read_only', 'on', false), set_config('statement_timeout', %s, false),
  set_config('idle_in_transaction_session_timeout', '10s', false), set_config('application_name', %s, false)"""
_NAME = "krablet reader"


class TooSlow(RpcError):  # noqa: N818 - reads as what happened
    """A read ran into the time limit of its verb; ask for less."""


class TooLarge(KrabletError, ValueError):  # noqa: N818 - reads as what happened
    """An answer is above the byte limit of its verb; ask for fewer rows or columns, or scan."""


class Session:
    """A connection in use, with the time limit that it has now."""

    __slots__ = ("_timeout_s", "connection")

    def __init__(self, connection: AsyncConnection, timeout_s: float) -> None:
        self.connection = connection
        self._timeout_s = timeout_s

    async def rows(self, statement: bytes, values: Mapping[str, Any], *, prepare: bool = False) -> list[tuple]:
        """All rows that the statement gives."""
        cursor = await self.connection.execute(statement, values, prepare=prepare)
        return await cursor.fetchall()

    async def limit(self, timeout_s: float) -> None:
        """Let statements take so long from now on."""
        if timeout_s != self._timeout_s:
            milliseconds = str(max(1, round(timeout_s * 1000)))
            await self.connection.execute("select set_config('statement_timeout', %s, false)", (milliseconds,))
            self._timeout_s = timeout_s


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolState:
    """How a pool stands: connections that are open and in use, readers in line, and why the shard is down if it is."""

    open: int
    busy: int
    waiting: int
    error: str | None


class Pool:
    """Up to `size` connections to one shard. Belongs to one event loop.

    `line` readers may wait, each `wait_s` at most. Scans and counts, the long ones, leave one connection to the others.
    """

    def __init__(
        self, number: int, dsn: str, *, size: int = 4, line: int = 512, wait_s: float = 5.0, timeout_s: float = 5.0
    ) -> None:
        self.number = number
        self.name = shard_name(number, dsn)
        self.timeout_s = timeout_s
        self._dsn = make_conninfo(dsn, connect_timeout=_CONNECT_S)
        self._size, self._line, self._wait_s = size, line, wait_s
        self._places = asyncio.Semaphore(size)
        self._long = asyncio.Semaphore(max(1, size - 1))
        self._idle: list[Session] = []
        self._open = self._busy = self._waiting = 0
        self._down_until = 0.0
        self._error: str | None = None

    @property
    def state(self) -> PoolState:
        """How the pool stands."""
        return PoolState(open=self._open, busy=self._busy, waiting=self._waiting, error=self._error)

    async def run(
        self, work: Callable[[Session], Awaitable[T]], *, timeout_s: float | None = None, long: bool = False
    ) -> T:
        """Do `work`, which only reads, on a connection; once more on a new one if the first turned out to be dead.

        `Busy` when the line is full or the wait too long, `ShardDown`, and `TooSlow` after `timeout_s` a statement.
        """
        async with self._admitted(self._long if long else None), self._admitted(self._places):
            self._busy += 1
            try:
                return await self._tried(work, self.timeout_s if timeout_s is None else timeout_s)
            finally:
                self._busy -= 1

    async def close(self) -> None:
        """Close the connections that nobody uses."""
        idle, self._idle = self._idle, []
        for session in idle:
            await self._drop(session)

    async def _tried(self, work: Callable[[Session], Awaitable[T]], timeout_s: float) -> T:
        for last in (False, True):
            session = self._idle.pop() if self._idle and not last else await self._connected()
            try:
                await session.limit(timeout_s)
                return await work(session)
            except psycopg.errors.QueryCanceled as error:
                raise TooSlow(f"{self.name} did not answer within {timeout_s:g} s; ask for less at a time") from error
            except psycopg.Error as error:
                if not passing(error):
                    raise
                if last:
                    raise ShardDown(f"{self.name} does not answer: {_first_line(error)}") from error
                await self.close()  # they all broke, most likely
            finally:
                await self._put_back(session)
        raise AssertionError

    async def _connected(self) -> Session:
        if time.monotonic() < self._down_until:
            raise ShardDown(f"{self.name} does not answer: {self._error}")
        try:
            connection = await AsyncConnection.connect(self._dsn, autocommit=True)
        except psycopg.OperationalError as error:
            self._error, self._down_until = _first_line(error), time.monotonic() + _REST_S
            raise ShardDown(f"{self.name} does not answer: {self._error}") from error
        self._open, self._error = self._open + 1, None
        session = Session(connection, self.timeout_s)
        try:
            register_arrays(cast(Connection, connection))  # only its adapters are used, which both kinds have
            await connection.execute(_SETTINGS, (str(round(self.timeout_s * 1000)), _NAME))
        except BaseException as error:
            await self._drop(session)
            if isinstance(error, psycopg.Error) and passing(error):  # the server died just now
                raise ShardDown(f"{self.name} does not answer: {_first_line(error)}") from error
            raise
        return session

    async def _put_back(self, session: Session) -> None:
        if session.connection.info.transaction_status == TransactionStatus.IDLE:
            self._idle.append(session)
        else:
            await self._drop(session)

    async def _drop(self, session: Session) -> None:
        self._open -= 1
        await session.connection.close()

    @asynccontextmanager
    async def _admitted(self, places: asyncio.Semaphore | None) -> AsyncIterator[None]:
        """One of the places, after a bounded wait."""
        if places is None:
            yield
            return
        if places.locked():
            if self._waiting >= self._line:
                raise Busy(f"{self.name} has {self._waiting} readers in line", retry_after_s=min(1.0, self._wait_s))
            self._waiting += 1
            try:
                await asyncio.wait_for(places.acquire(), self._wait_s)
            except TimeoutError as error:
                raise Busy(f"{self.name} was busy for {self._wait_s:g} s", retry_after_s=self._wait_s) from error
            finally:
                self._waiting -= 1
        else:
            await places.acquire()
        try:
            yield
        finally:
            places.release()


def shard_name(number: int, dsn: str) -> str:
    """The shard in words, without its password; ValueError for a DSN that cannot be read."""
    try:
        known = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as error:
        raise ValueError(f"the DSN of shard {number} cannot be read: {_first_line(error)}") from error
    where = " ".join(f"{key}={known[key]}" for key in ("host", "port", "dbname") if known.get(key))
    return f"shard {number} ({where})"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
