"""The table of a krablet through a reader: no DSN, no psycopg, one address and one token.

`RemoteTable` does what `Krablet` does for workers, so `krea_data.worker.run` works on it. A lost connection, a busy
server or a shard that restarts is waited for; all verbs may be done twice, since claims are fenced by their tokens.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from krea_data.checks import check_limit, check_name, check_row, result_text
from krea_data.columns import task_columns, task_indexed
from krea_data.interfaces import Task
from krea_data.krablet.errors import ShardDown
from krea_data.krablet.readers.arrow import batches, rows_of
from krea_data.krablet.readers.plain import claim_of, row_of
from krea_data.krablet.rpc import Remote
from krea_data.krablet.rpc.errors import Broken, Busy
from krea_data.rows import Claim, Dead, Result, Row, Stats

__all__ = ["RemoteTable"]

_CHUNK_ROWS, _CHUNK_LETTERS = 1000, 8 << 20
_PAUSE_S = 0.05, 1.0  # between two tries, first and longest


class RemoteTable:
    """A krablet behind a reader. Safe among threads; a forked child connects anew.

    `address` is "host:port" or "unix:/path"; `options` are those of `rpc.Client`. What fails for a passing reason is
    tried for `patience_s`. Claims wait `wait_s` at the server for a row that is due.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        patience_s: float = 60.0,
        wait_s: float = 0.0,
        **options: Any,
    ) -> None:
        self.patience_s, self.wait_s = patience_s, wait_s
        self._remote = Remote(address, token=token, patience_s=min(10.0, patience_s), **options)

    def __enter__(self) -> "RemoteTable":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._remote.close()

    @property
    def max_attempts(self) -> int | None:
        """How often the server lets a task try a row; setting it needs a token with the scope admin."""
        return self._ask("settings")["max_attempts"]

    @max_attempts.setter
    def max_attempts(self, value: int | None) -> None:
        self._ask("set", **{**self._ask("settings"), "max_attempts": value})

    @property
    def retry_s(self) -> float:
        """After how many seconds * 2 ** attempts a failed row is due again; set like `max_attempts`."""
        return self._ask("settings")["retry_s"]

    @retry_s.setter
    def retry_s(self, value: float) -> None:
        self._ask("set", **{**self._ask("settings"), "retry_s": value})

    def get(self, row_id: str) -> Row | None:
        """The row of this id, or None."""
        found = self._ask("get", id=row_id)
        return None if found is None else row_of(found)

    def get_many(self, ids: Sequence[str]) -> list[Row]:
        """The rows of these ids that are there, in order of id."""
        found: list[Row] = []
        stream = iter(sorted(set(ids)))
        while part := list(islice(stream, _CHUNK_ROWS)):
            found += map(row_of, self._ask("get_many", ids=part)["rows"])
        return found

    def scan(
        self, *, kept_by: Sequence[str] = (), limit: int | None = None, where: Any = None, after: str = ""
    ) -> Iterator[Row]:
        """Rows in order of id with all their results; `where` is a filter of `krablet.filters`.

        Goes on after the last row where the connection breaks.
        """
        deadline = time.monotonic() + self.patience_s
        while limit is None or limit > 0:
            try:
                pieces = self._remote.stream(
                    "scan", where=where, kept_by=list(kept_by), after=after, limit=limit, columns=None
                )
                for batch in batches(pieces):
                    for row in rows_of(batch):
                        yield row
                        after, limit = row.id, None if limit is None else limit - 1
                    deadline = time.monotonic() + self.patience_s
                return
            except (Broken, Busy, ShardDown):
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_S[0])

    def count(self, *, where: Any = None, kept_by: Sequence[str] = (), cap: int = 10_000) -> int:
        """How many rows there are, counted up to `cap`."""
        return self._ask("count", where=where, kept_by=list(kept_by), cap=cap)["rows"]

    def add(self, rows: Iterable[Row]) -> int:
        """Take in rows without their results, ignoring ids that are there already; return how many were new."""
        stream = ([row.id, row.blob, check_row(row)] for row in rows)
        return sum(self._ask("add", rows=part) for part in _parts(stream))

    def register(self, tasks: Sequence[Task]) -> None:
        """Make the tasks and their `after` known; due rows are queued."""
        self._ask("register", tasks=[_said(task) for task in tasks])

    def claim(self, task: Task, worker: str, limit: int, lease_s: float) -> list[Claim]:
        """Lease up to `limit` due rows; an empty answer means none now, `pending` tells whether some come later."""
        check_limit(limit, lease_s)
        args = {"task": _said(task), "worker": worker, "limit": limit, "lease_s": lease_s, "wait_s": self.wait_s}
        return [claim_of(plain) for plain in self._ask("claim", **args)]

    def complete(self, task: str, results: Mapping[Claim, Result]) -> int:
        """Store the results whose claims are still held and return how many these are, or ValueError and nothing."""
        given = [
            [claim.id, claim.token, result_text(result, task, claim.id), result.drop]
            for claim, result in results.items()
        ]
        return sum(self._ask("complete", task=task, results=part) for part in _parts(given))

    def fail(self, task: str, claim: Claim, error: str) -> None:
        """Send a row that is still held to the end of the queue, or set it aside after its last attempt."""
        self._ask("fail", task=task, id=claim.id, token=claim.token, error=_sendable(error))

    def put(self, task: str, results: Mapping[str, Result]) -> None:
        """Store results by row id; ValueError names ids that are not in the table, after storing the others."""
        check_name(task)
        given = [[row_id, result_text(result, task, row_id), result.drop] for row_id, result in results.items()]
        refused: ValueError | None = None
        for part in _parts(given):
            try:
                self._ask("put", task=task, results=part)
            except ValueError as error:
                refused = refused or error
        if refused is not None:
            raise refused

    def extend(self, task: str, claims: Iterable[Claim], lease_s: float) -> int:
        """Let claims that are still held last `lease_s` from now, if that is longer; return how many are held."""
        given = [[claim.id, claim.token] for claim in claims]
        return sum(self._ask("extend", task=task, claims=part, lease_s=lease_s) for part in _parts(given))

    def release(self, worker: str, *, crashed: bool = False) -> int:
        """End every lease of this worker, as if never claimed, or as lost in a crash; return how many."""
        return self._ask("release", worker=worker, crashed=crashed)

    def pause(self, task: str) -> None:
        """Give no more claims of this task until `resume`; needs a token with the scope admin, as the next two do."""
        self._ask("pause", task=task)

    def resume(self, task: str) -> None:
        """Undo `pause`."""
        self._ask("resume", task=task)

    def prioritise(self, task: str, ids: Iterable[str], priority: int) -> int:
        """Let these queued rows be claimed before all of a lower priority; return for how many it is another one."""
        return sum(self._ask("prioritise", task=task, ids=p, priority=priority) for p in _parts(ids)) if ids else 0

    def pending(self, task: str) -> int:
        """Rows that this task has yet to answer: due, waiting for another attempt, or leased by anybody."""
        return self._ask("pending", task=task)

    def backlog(self, task: str) -> int:
        """About `pending`, for autoscaling."""
        return self._ask("backlog", task=task)

    def due(self, task: str) -> int:
        """About how many rows could be claimed now."""
        return self._ask("due", task=task)

    def dead(self, task: str) -> list[Dead]:
        """The rows that this task gave up on, in order of id."""
        return [Dead(id=row_id, error=error, attempts=tries) for row_id, error, tries in self._ask("dead", task=task)]

    def revive(self, task: str) -> int:
        """Give the task's dead rows all their attempts again; return how many."""
        return self._ask("revive", task=task)

    def stats(self) -> dict[str, Stats]:
        """Where every task stands; reads all results."""
        return {task: Stats(**stats) for task, stats in self._ask("stats").items()}

    def status(self) -> dict[str, Any]:
        """How the shards of the server stand."""
        return self._ask("status")

    def _ask(self, verb: str, **args: Any) -> Any:
        """The verb's answer, asked again until patience ends where the failure may pass."""
        deadline, pause_s = time.monotonic() + self.patience_s, _PAUSE_S[0]
        while True:
            try:
                return self._remote.call(verb, **args)
            except (Broken, Busy, ShardDown):
                if time.monotonic() + pause_s > deadline:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_S[1])


def _said(task: Task) -> dict[str, Any]:
    """A task as the server needs to know it."""
    reads = getattr(task, "reads", None)
    return {
        "name": task.name,
        "after": list(task.after),
        "columns": task_columns(task),
        "indexed": list(task_indexed(task)),
        "reads": None if reads is None else list(reads),
    }


def _parts(items: Iterable[Any]) -> Iterator[list[Any]]:
    """The items in parts that fit into a message."""
    part: list[Any] = []
    letters = 0
    for item in items:
        part.append(item)
        letters += sum(len(cell) for cell in item if isinstance(cell, str))
        if len(part) >= _CHUNK_ROWS or letters > _CHUNK_LETTERS:
            yield part
            part, letters = [], 0
    if part:
        yield part


def _sendable(text: str) -> str:
    """The text with what cannot be sent or stored replaced."""
    return json.loads(json.dumps(text)).encode("utf-8", "replace").decode().replace("\0", "?")
