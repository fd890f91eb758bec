"""The table in memory: the definition of correct.

A row is due for a task when the task has neither answered it nor given it up, and every task in `after` kept it.
A claim is held while its token is the row's newest and the row is still due. Everything else follows; the krablet
says the same in SQL and runs the same tests (`krea_data.contract.TableContract`).
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from krea_data.checks import check_lease, check_limit, check_name, check_priority, check_row, dag_order
from krea_data.columns import task_columns, task_indexed, typed_text
from krea_data.interfaces import Task
from krea_data.memory_queue import Entry, allowance
from krea_data.rows import Claim, Dead, Result, Row, Stats

__all__ = ["MemoryTable"]

_LONGEST_WAIT_S = 3600.0  # for another attempt


class MemoryTable:
    """`Table` and `Queues` of one process, for tests and small work; nothing survives the process."""

    def __init__(
        self,
        rows: Iterable[Row] = (),
        *,
        max_attempts: int | None = 5,
        retry_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_attempts = max_attempts
        self.retry_s = retry_s
        self._clock = clock
        self._lock = threading.RLock()
        self._rows: dict[str, Row] = {}
        self._results: dict[str, dict[str, Result]] = {}
        self._after: dict[str, tuple[str, ...]] = {}
        self._columns, self._paused = dict[str, dict[str, str]](), set[str]()
        self._queues: dict[str, dict[str, Entry]] = {}
        self._dead: dict[str, dict[str, Dead]] = {}
        self._token = 0
        self.add(rows)

    def add(self, rows: Iterable[Row]) -> int:
        """Take in rows without their results, ignoring ids that are there already; return how many were new."""
        checked = [(row, check_row(row)) for row in rows]
        with self._lock:
            before = len(self._rows)
            for row, meta in checked:
                self._rows.setdefault(row.id, Row(id=row.id, blob=row.blob, meta=json.loads(meta)))
                self._results.setdefault(row.id, {})
            return len(self._rows) - before

    def register(self, tasks: Sequence[Task]) -> None:
        """Make the tasks, their `after` and their columns known, or ValueError for a bad name or a circle."""
        new = {check_name(task.name): tuple(map(check_name, task.after)) for task in tasks}
        columns = {task.name: task_columns(task) for task in tasks if task_indexed(task) or task_columns(task)}
        with self._lock:
            dag_order({**self._after, **new})
            self._after.update(new)
            for name, typed in columns.items():
                self._columns[name] = {**self._columns.get(name, {}), **typed}

    def claim(self, task: Task, worker: str, limit: int, lease_s: float) -> list[Claim]:
        """Lease up to `limit` due rows; an empty answer means none now, `pending` tells whether some come later."""
        check_limit(limit, lease_s)
        with self._lock:
            self.register([task])
            if task.name in self._paused:
                return []
            now = self._clock()
            queue = [
                (-entry.priority, entry.due_at, entry.order, row_id) for row_id, entry in self._due(task.name, now)
            ]
            self._token += 1
            claims: list[Claim] = []
            room = limit
            for *_, row_id in sorted(queue)[:limit]:
                entry = self._queues[task.name][row_id]
                if self._buried(task.name, row_id, entry):
                    continue
                crashes = entry.crashes + (entry.token is not None)
                room = min(room, allowance(limit, crashes, self._spent(entry.attempts + 1)))
                if len(claims) >= room:
                    break
                entry.crashes, entry.attempts, entry.held_until = crashes, entry.attempts + 1, now + lease_s
                entry.token, entry.worker = self._token, worker
                row = self._row(row_id, getattr(task, "reads", None))
                claims.append(Claim(row=row, token=self._token, id=row_id, attempt=entry.attempts))
            return claims

    def complete(self, task: str, results: Mapping[Claim, Result]) -> int:
        """Store the results whose claims are still held and return how many these are, or ValueError and nothing."""
        with self._lock:
            checked = {claim: self._normal(result, task, claim.id) for claim, result in results.items()}
            held = {claim.id: result for claim, result in checked.items() if self._held(task, claim)}
            self._store(task, held)
            return len(held)

    def fail(self, task: str, claim: Claim, error: str) -> None:
        """Send a row that is still held to the end of the queue, or set it aside after its last attempt."""
        with self._lock:
            if self._held(task, claim):
                entry = self._queues[task][claim.id]
                entry.token, entry.error, entry.held_until = None, error, float("-inf")
                entry.due_at = self._clock() + min(self.retry_s * 2 ** min(entry.attempts, 60), _LONGEST_WAIT_S)
                self._buried(task, claim.id, entry)

    def put(self, task: str, results: Mapping[str, Result]) -> None:
        """Store results by row id; ValueError names ids that are not in the table, after storing the others."""
        check_name(task)
        with self._lock:
            checked = {row_id: self._normal(result, task, row_id) for row_id, result in results.items()}
            unknown = sorted(checked.keys() - self._rows.keys())
            self._store(task, {row_id: checked[row_id] for row_id in checked if row_id in self._rows})
        if unknown:
            raise ValueError(f"{len(unknown)} ids such as {unknown[0]!r} are not in the table; add their rows first")

    def scan(self, *, kept_by: Sequence[str] = (), limit: int | None = None) -> Iterator[Row]:
        """Rows in order of id with all their results in the order in which they came in."""
        with self._lock:
            rows = [self._row(row_id) for row_id in sorted(self._rows)]
        kept = [row for row in rows if all(map(row.kept_by, kept_by))]
        return iter(kept[:limit])

    def pending(self, task: str) -> int:
        """Rows that this task has yet to answer: due, waiting for another attempt, or leased by anybody."""
        with self._lock:
            return len(self._entries(task))

    def due(self, task: str) -> int:
        """Rows that could be claimed now."""
        with self._lock:
            return len(self._due(task, self._clock()))

    def backlog(self, task: str) -> int:
        """About `pending`, for autoscaling; here exactly."""
        return self.pending(task)

    def pause(self, task: str) -> None:
        """Give no more claims of this task until `resume`; rows keep arriving."""
        with self._lock:
            self._paused.add(self._known(task))

    def resume(self, task: str) -> None:
        """Undo `pause`."""
        with self._lock:
            self._paused.discard(self._known(task))

    def prioritise(self, task: str, ids: Iterable[str], priority: int) -> int:
        """Let these queued rows be claimed before all of a lower priority; return for how many it is another one."""
        check_priority(priority)
        with self._lock:
            now, queue = self._clock(), self._entries(task)
            changed = [queue[row_id] for row_id in set(ids) & queue.keys() if queue[row_id].priority != priority]
            for entry in changed:
                entry.priority = priority
                if entry.due_at <= now:
                    entry.due_at = now  # the end of the new band
            return len(changed)

    def extend(self, task: str, claims: Iterable[Claim], lease_s: float) -> int:
        """Let claims that are still held last `lease_s` from now, if that is longer; return how many are held."""
        check_lease(lease_s)
        with self._lock:
            end = self._clock() + lease_s
            held = {claim.id for claim in claims if self._held(task, claim)}
            for row_id in held:
                entry = self._queues[task][row_id]
                entry.held_until = max(entry.held_until, end)
            return len(held)

    def release(self, worker: str, *, crashed: bool = False) -> int:
        """End every lease of this worker, as if never claimed, or as lost in a crash; return how many."""
        with self._lock:
            now = self._clock()
            entries = [entry for task in self._after for entry in self._entries(task).values()]
            leased = [entry for entry in entries if entry.worker == worker and entry.token and entry.held_until > now]
            for entry in leased:
                entry.due_at, entry.held_until = now, float("-inf")
                if not crashed:
                    entry.token, entry.attempts = None, entry.attempts - 1
            return len(leased)

    def dead(self, task: str) -> list[Dead]:
        """The rows that this task gave up on, in order of id."""
        with self._lock:
            return [self._dead[task][row_id] for row_id in sorted(self._dead.get(task, {}))]

    def revive(self, task: str) -> int:
        """Give the task's dead rows all their attempts again, say after a bug was fixed; return how many."""
        with self._lock:
            return len(self._dead.pop(task, {}))

    def stats(self) -> dict[str, Stats]:
        """Where every task stands."""
        with self._lock:
            known = {name for results in self._results.values() for name in results}.union(self._after)
            return {task: self._task_stats(task) for task in sorted(known)}

    def _known(self, task: str) -> str:
        if task not in self._after:
            raise ValueError(f"there is no queue of a task {task!r}; register the task first, or look at its name")
        return task

    def _task_stats(self, task: str) -> Stats:
        results = [found[task] for found in self._results.values() if task in found]
        dropped = Counter(result.drop for result in results if result.drop is not None)
        now = self._clock()
        leased = sum(e.token is not None and e.held_until > now for e in self._entries(task).values())
        return Stats(
            done=len(results),
            kept=len(results) - dropped.total(),
            dropped=dict(dropped),
            queued=len(self._entries(task)) - leased,
            leased=leased,
            dead=len(self._dead.get(task, {})),
        )

    def _row(self, row_id: str, reads: Sequence[str] | None = None) -> Row:
        row, found = self._rows[row_id], self._results[row_id]
        results = {name: result for name, result in found.items() if reads is None or name in reads}
        return Row(id=row.id, blob=row.blob, meta=row.meta, results=results)

    def _is_due(self, task: str, row_id: str) -> bool:
        results = self._results[row_id]
        kept = all(name in results and results[name].drop is None for name in self._after[task])
        return kept and task not in results and row_id not in self._dead.get(task, {})

    def _entries(self, task: str) -> dict[str, Entry]:
        """The task's queue, brought up to date with the rule of what is due."""
        queue = self._queues.setdefault(task, {})
        due = {row_id for row_id in self._rows if task in self._after and self._is_due(task, row_id)}
        for row_id in queue.keys() - due:
            del queue[row_id]
        for row_id in sorted(due - queue.keys()):
            queue[row_id] = Entry(order=len(self._rows) + len(queue))
        return queue

    def _due(self, task: str, now: float) -> list[tuple[str, Entry]]:
        """The rows that could be claimed, with their places."""
        return [
            (row_id, entry)
            for row_id, entry in self._entries(task).items()
            if max(entry.due_at, entry.held_until) <= now
        ]

    def _held(self, task: str, claim: Claim) -> bool:
        entry = self._entries(task).get(claim.id)
        return entry is not None and entry.token == claim.token

    def _spent(self, attempts: int) -> bool:
        return self.max_attempts is not None and attempts >= self.max_attempts

    def _buried(self, task: str, row_id: str, entry: Entry) -> bool:
        """Set the row aside if it has no attempt left."""
        if not self._spent(entry.attempts):
            return False
        error = entry.error if entry.token is None else f"its worker {entry.worker} vanished"
        self._dead.setdefault(task, {})[row_id] = Dead(id=row_id, error=error, attempts=entry.attempts)
        del self._queues[task][row_id]
        return True

    def _store(self, task: str, results: Mapping[str, Result]) -> None:
        for row_id, result in results.items():
            self._results[row_id].pop(task, None)  # so that a new answer comes last
            self._results[row_id][task] = result
            self._dead.get(task, {}).pop(row_id, None)
        for name in [task, *(name for name, after in self._after.items() if task in after)]:
            self._entries(name)  # ends the leases of rows that are no longer due

    def _normal(self, result: Result, task: str, row_id: str) -> Result:
        """The result as it would come back from JSON, so that both tables answer alike."""
        text = typed_text(result, task, row_id, self._columns.get(task, {}))
        return Result(value=json.loads(text), drop=result.drop)
