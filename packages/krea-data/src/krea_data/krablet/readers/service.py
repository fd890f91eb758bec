"""The verbs of a reader: what may be asked of a krablet by those who have no DSN.

read     get, get_many, scan, count, tasks, records, get_records, scan_records, stats, status, settings
work     register, claim, complete, fail, release, extend, pending, due, dead, revive, backlog, put, add
admin    set, pause, resume, prioritise

Rows travel as `plain` says, scans as `arrow` says. There is no verb for SQL. Reads go through the pools of `Reads`;
the work verbs through a `Krablet` on a few threads, which bounds its connections too.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, TypeVar

from krea_data.krablet.queues.waiting import Turns
from krea_data.krablet.readers.arrow import Writer
from krea_data.krablet.readers.given import few, held, loaded, result_of, task_of
from krea_data.krablet.readers.plain import plain_cells, plain_claim
from krea_data.krablet.readers.reads import Reads
from krea_data.krablet.records.reads import RecordReads
from krea_data.krablet.rpc.tokens import Caller
from krea_data.krablet.table import Krablet
from krea_data.rows import Claim, Row

__all__ = ["ReaderService"]

T = TypeVar("T")
_WAIT_S = 60.0  # the longest that a claim may wait for rows


class ReaderService:
    """The verbs over these reads and this krablet, both of which stay the caller's to close."""

    def __init__(self, reads: Reads, krablet: Krablet, *, threads: int = 4) -> None:
        self.reads, self.krablet = reads, krablet
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="reader")
        self._turns = Turns()
        self._records = RecordReads(reads.fleet, timeout_s=reads.limits.many_s, keys=reads.limits.keys)
        verbs = {
            "read": (
                self.get,
                self.get_many,
                self.scan,
                self.count,
                self.tasks,
                self.stats,
                self.status,
                self.settings,
            ),
            "work": (
                *(self.register, self.claim, self.complete, self.fail, self.release, self.extend, self.pending),
                *(self.due, self.dead, self.revive, self.backlog, self.put, self.add),
            ),
            "admin": (self.set, self.pause, self.resume, self.prioritise),
        }
        self._verbs = {verb.__name__: verb for part in verbs.values() for verb in part}
        self._signatures = {name: inspect.signature(verb) for name, verb in self._verbs.items()}
        self.scopes: Mapping[str, str] = {verb.__name__: scope for scope, part in verbs.items() for verb in part}

    def close(self) -> None:
        """End the threads, after what they are doing."""
        self._threads.shutdown()

    async def call(self, verb: str, args: dict[str, Any], caller: Caller) -> Any:
        """Do what the verb says; ValueError for arguments that it does not take."""
        return await self._verbs[verb](**self.checked(verb, args))

    def checked(self, verb: str, args: dict[str, Any]) -> dict[str, Any]:
        """The arguments, or ValueError for some that the verb does not take or misses."""
        try:
            self._signatures[verb].bind(**args)
        except TypeError as error:
            takes = ", ".join(self._signatures[verb].parameters) or "nothing"
            raise ValueError(f"{verb}: {error}; it takes {takes}") from None
        return args

    # Reads

    async def get(self, id: str) -> list[Any] | None:
        """The row of this id, or None."""
        return await self.reads.get(id)

    async def get_many(self, ids: list[str], columns: list[str] | None = None, partial: bool = False) -> dict[str, Any]:
        """`rows` that are there in order of id, and `missing` shards; with `columns`, these and lists of cells."""
        found = await self.reads.get_many(ids, columns, partial=partial)
        if columns is None:
            tasks = [column.name.removesuffix(".value") for column in found.columns[3::3]]
            return {"rows": [plain_cells(tasks, cells) for cells in found.rows], "missing": found.missing}
        names = [column.name for column in found.columns]
        return {"columns": names, "rows": found.rows, "missing": found.missing}

    async def scan(
        self,
        where: Any = None,
        kept_by: Sequence[str] = (),
        columns: list[str] | None = None,
        after: str = "",
        limit: int | None = None,
        partial: bool = False,
    ) -> AsyncIterator[bytes]:
        """Rows in order of id after an id, as the pieces of an Arrow stream."""
        scan = await self.reads.scan(
            where=where, kept_by=kept_by, columns=columns, after=after, limit=limit, partial=partial
        )

        async def pieces() -> AsyncIterator[bytes]:
            writer = Writer(scan.columns)
            async for page in scan.pages():
                yield writer.page(page)
            yield writer.end(scan.rows, scan.missing)

        return pieces()

    async def count(
        self, where: Any = None, kept_by: Sequence[str] = (), cap: int = 10_000, partial: bool = False
    ) -> dict[str, Any]:
        """How many `rows` there are, at most `cap`, and whether that is `exact`; `missing` shards."""
        return await self.reads.count(where=where, kept_by=kept_by, cap=cap, partial=partial)

    async def tasks(self) -> list[str]:
        """All tasks that have results."""
        return list((await self.reads.fleet.tasks())[0])

    async def records(self) -> dict[str, list[list[str]]]:
        """The columns [name, type, rule] of every record by name."""
        return await self._records.names()

    async def get_records(self, record: str, ids: list[str]) -> list[str]:
        """The records of these ids that are there, each a JSON text."""
        return await self._records.get(record, ids)

    async def scan_records(self, record: str, after: list[Any] | None = None, limit: int = 1000) -> dict[str, Any]:
        """A page of records, `rows`, and the place `next` to go on from."""
        return await self._records.page(record, after, limit)

    async def stats(self) -> dict[str, dict[str, Any]]:
        """Where every task stands; reads all results."""
        return {task: asdict(stats) for task, stats in (await self._do(self.krablet.stats)).items()}

    async def status(self) -> dict[str, Any]:
        """Whether every shard answers, and how busy its connections are."""
        return {"shards": await self.reads.fleet.status(), "scans": self.reads.scanning}

    async def settings(self) -> dict[str, Any]:
        """How often rows are tried, and how long after a failure."""
        return {"max_attempts": self.krablet.max_attempts, "retry_s": self.krablet.retry_s}

    # Work

    async def register(self, tasks: list[dict[str, Any]]) -> None:
        """Make tasks known: {name, after, columns (types by name), indexed, reads}."""
        await self._do(self.krablet.register, [task_of(task) for task in tasks])

    async def claim(
        self, task: dict[str, Any], worker: str, limit: int, lease_s: float, wait_s: float = 0.0
    ) -> list[list[Any]]:
        """Lease rows to a worker; where none is due, wait up to `wait_s` for one."""
        named = task_of(task)

        async def try_once() -> list[Claim]:
            return await self._do(self.krablet.claim, named, str(worker), limit, lease_s)

        claims = await self._turns.first(named.name, try_once, min(float(wait_s), _WAIT_S))
        return [plain_claim(claim) for claim in claims]

    async def complete(self, task: str, results: list[list[Any]]) -> int:
        """Store results [id, token, value, reason for dropping] whose claims are held, and say how many were."""
        given = {held(row_id, token): result_of(value, drop) for row_id, token, value, drop in few(results, "results")}
        stored = await self._do(self.krablet.complete, task, given)
        self._turns.wake()
        return stored

    async def fail(self, task: str, id: str, token: int, error: str) -> None:
        """Send a row that is held to the end of the queue."""
        await self._do(self.krablet.fail, task, held(id, token), str(error))

    async def release(self, worker: str, crashed: bool = False) -> int:
        """End every lease of this worker, and say how many there were."""
        released = await self._do(lambda: self.krablet.release(worker, crashed=crashed))
        self._turns.wake()
        return released

    async def extend(self, task: str, claims: list[list[Any]], lease_s: float) -> int:
        """Let claims [id, token] that are held last so long from now, and say how many are held."""
        mine = [held(row_id, token) for row_id, token in few(claims, "claims")]
        return await self._do(self.krablet.extend, task, mine, lease_s)

    async def pending(self, task: str) -> int:
        """Rows that this task has yet to answer."""
        return await self._do(self.krablet.pending, task)

    async def due(self, task: str) -> int:
        """About how many rows could be claimed now."""
        return await self._do(self.krablet.due, task)

    async def backlog(self, task: str) -> int:
        """About `pending`, for autoscaling."""
        return await self._do(self.krablet.backlog, task)

    async def dead(self, task: str) -> list[list[Any]]:
        """The rows that this task gave up on: [id, error, attempts]."""
        return [[dead.id, dead.error, dead.attempts] for dead in await self._do(self.krablet.dead, task)]

    async def revive(self, task: str) -> int:
        """Give the task's dead rows all their attempts again."""
        revived = await self._do(self.krablet.revive, task)
        self._turns.wake()
        return revived

    async def put(self, task: str, results: list[list[Any]]) -> None:
        """Store results [id, value, reason for dropping] without claims."""
        given = {str(row_id): result_of(value, drop) for row_id, value, drop in few(results, "results")}
        try:
            await self._do(self.krablet.put, task, given)
        finally:
            self._turns.wake()

    async def add(self, rows: list[list[Any]]) -> int:
        """Take in rows [id, blob, meta], and say how many were new."""
        given = [Row(id=row_id, blob=blob, meta=loaded(meta)) for row_id, blob, meta in few(rows, "rows")]
        new = await self._do(self.krablet.add, given)
        self._turns.wake()
        return new

    # Administration

    async def set(self, max_attempts: int | None, retry_s: float) -> None:
        """Change how often rows are tried from now on by this server, and how long after a failure."""
        if (max_attempts is not None and max_attempts < 1) or not retry_s >= 0:
            raise ValueError(f"max_attempts {max_attempts} and retry_s {retry_s} are not at least 1 and 0")
        self.krablet.max_attempts, self.krablet.retry_s = max_attempts, retry_s

    async def pause(self, task: str) -> None:
        """Give no more claims of this task until `resume`."""
        await self._do(self.krablet.pause, task)

    async def resume(self, task: str) -> None:
        """Undo `pause`."""
        await self._do(self.krablet.resume, task)
        self._turns.wake()

    async def prioritise(self, task: str, ids: list[str], priority: int) -> int:
        """Let these queued rows be claimed before all of a lower priority."""
        return await self._do(self.krablet.prioritise, task, list(few(ids, "ids")), priority)

    def _do(self, work: Callable[..., T], *args: Any) -> Awaitable[T]:
        """Do this on one of the threads."""
        return asyncio.get_running_loop().run_in_executor(self._threads, work, *args)
