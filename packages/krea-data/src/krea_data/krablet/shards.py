"""The shards of one krablet, and the map that leads to them, which may change at any moment.

A caller splits its work by the map that it sees, and does each part under the condition that this is still the map.
Where a shard answers that it has changed, its DAG and its slots are read again; if a slot has moved, `StaleMap` makes
the caller split the rest of its work anew.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TypeVar

from psycopg import Connection

from krea_data.krablet.connection import Shard
from krea_data.krablet.dag import Dag, StaleDag, load
from krea_data.krablet.errors import SchemaError, ShardDown
from krea_data.krablet.opening import enter, open_shards, with_password, without_password
from krea_data.krablet.router import SlotMap
from krea_data.krablet.slots import activate, arrivals, check_current, identity, slots_of

__all__ = ["SHORT_S", "Shards", "StaleMap", "View"]

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741
SHORT_S = 1.0  # the patience with one shard where others have work too
_REST_S, _LONGEST_REST_S = 1.0, 15.0  # a shard that did not answer is left alone for so long, where that can be
_CHANGES = 20  # in the middle of one statement: more than that is a mistake
_log = logging.getLogger(__name__)


class StaleMap(Exception):  # noqa: N818 - never seen outside of the krablet
    """A slot has moved since the caller split its work; split it again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What is known at one moment. No DAG is newer than the map beside it: who knows the DAG knows the slots."""

    slots: SlotMap
    dags: Mapping[int, Dag] = field(default_factory=dict)  # of the shards that were reached


class Shards:
    """All shards by number. Safe among threads."""

    def __init__(self, dsns: Sequence[str], *, bits: int | None, patience_s: float) -> None:
        self.patience_s = patience_s
        self._shards, slots = open_shards(dsns, bits, patience_s)
        self.view = View(slots=slots)
        self._resting: dict[int, tuple[float, float]] = {}  # until when, and for how long
        self._lock = threading.Lock()
        self._turns = count()
        for number in self.numbers:
            try:
                self.attempt(number, lambda c, n=number: self.reload(n, c), patience_s=0)
            except ShardDown:
                if len(self._shards) == 1:
                    raise

    @property
    def numbers(self) -> list[int]:
        """The shards' numbers, in order."""
        return sorted(self._shards)

    @property
    def dsns(self) -> tuple[str, ...]:
        """The shards' DSNs, in order."""
        return tuple(self._shards[number].dsn for number in self.numbers)

    def close(self) -> None:
        """Close the connections that nobody uses."""
        for shard in self._shards.values():
            shard.close()

    def dsn(self, number: int) -> str:
        """A shard's DSN."""
        return self._shards[number].dsn

    def connection(self, number: int) -> AbstractContextManager[Connection]:
        """A connection to a shard, for work of several steps."""
        return self._shards[number].connection()

    def name(self, number: int) -> str:
        """A shard in words."""
        return self._shards[number].name

    def attempt(self, number: int, work: Callable[[Connection], T], *, patience_s: float | None = None) -> T:
        """Do `work` on a shard, waiting for it if it is down; `ShardDown` when patience ends."""
        try:
            answer = self._shards[number].attempt(work, patience_s=patience_s)
        except ShardDown as error:
            _, rest_s = self._resting.get(number, (0.0, 0.0))
            if not rest_s:
                _log.warning("%s; the other shards go on", error)
            rest_s = min(2 * rest_s or _REST_S, _LONGEST_REST_S)
            self._resting[number] = time.monotonic() + rest_s, rest_s
            raise
        if self._resting and self._resting.pop(number, None) is not None:
            _log.warning("%s answers again", self.name(number))
        return answer

    def guarded(
        self,
        number: int,
        work: Callable[[Connection, Dag], T],
        *,
        slots: SlotMap | None = None,
        patience_s: float | None = None,
    ) -> T:
        """Do `work` on a shard with its DAG, again where the connection broke or the DAG turned out to be old.

        With `slots` it is done only while that is the map, which is right for work that was split by it: `StaleMap`
        says that it was not done.
        """

        def current(connection: Connection) -> T:
            for _ in range(_CHANGES):
                view = self.view
                if slots is not None and view.slots is not slots:
                    raise StaleMap
                dag = view.dags.get(number)
                try:
                    if dag is not None:
                        return work(connection, dag)
                except StaleDag:
                    pass
                self.reload(number, connection)
            raise SchemaError(f"{self.name(number)} changes all the time; register tasks once, at the start")

        return self.attempt(number, current, patience_s=patience_s)

    def routed(
        self, items: Iterable[I], key: Callable[[I], str], work: Callable[[Connection, Dag, list[I]], T]
    ) -> list[T]:
        """Do `work` on the items of every shard and return the answers; items follow a slot that moves.

        Where a shard is down, the others' items are worked on before `ShardDown` is raised.
        """
        todo, answers, down = list(items), [], None
        while todo:
            slots, left = self.view.slots, []
            for number, part in slots.split(todo, key).items():
                try:
                    answers.append(self.guarded(number, lambda c, d, p=part: work(c, d, p), slots=slots))
                except StaleMap:
                    left += part
                except ShardDown as error:
                    down = error
            todo = left
        if down is not None:
            raise down
        return answers

    def everywhere(self, work: Callable[[int, Connection, Dag], T]) -> list[T]:
        """Do `work` on all shards and return the answers, as of one map: a slot that moves is met exactly once.

        Work may be done again on shards where it was done.
        """

        def checked(number: int, connection: Connection, dag: Dag) -> T:
            answer = work(number, connection, dag)
            check_current(connection, dag)
            return answer

        while True:
            slots = self.view.slots
            try:
                return [self.guarded(n, lambda c, d, n=n: checked(n, c, d), slots=slots) for n in self.numbers]
            except StaleMap:
                continue

    def reached(self, work: Callable[[int, float | None], T]) -> list[T]:
        """Do `work` with the shards that answer soon, and with a patience; `ShardDown` where none does.

        A shard that did not answer a moment ago is not asked; later it is tried without any patience.
        """
        answers: list[T] = []
        turn = self._turn()
        for number in turn:
            short_s = 0.0 if number in self._resting else min(SHORT_S, self.patience_s)
            try:
                answers.append(work(number, short_s if len(self._shards) > 1 else None))
            except ShardDown:
                if len(self._shards) == 1:
                    raise
        return answers or [work((turn or self.numbers)[0], None)]

    def declare(self, number: int, work: Callable[[Connection], object], patience_s: float | None = None) -> None:
        """Do `work` that changes what a shard knows, and take note of it."""

        def both(connection: Connection) -> None:
            work(connection)
            self.reload(number, connection)

        self.attempt(number, both, patience_s=patience_s)

    def reload(self, number: int, connection: Connection) -> Dag:
        """Read a shard's DAG and slots again; slots that it gave away are served by their new shard from then on."""
        view = self.view.slots
        due = {s: e for s, e in arrivals(connection).items() if (view.shards[s], view.epochs[s]) == (number, e)}
        if due:
            activate(connection, due)
        dag = load(connection)  # before the slots: they must not be older
        found = slots_of(connection, view.bits)
        gone: dict[int, dict[int, int]] = {}
        for slot, (shard, epoch) in enumerate(zip(found.shards, found.epochs, strict=True)):
            if epoch > view.epochs[slot] and shard != number:
                gone.setdefault(shard, {})[slot] = epoch
        if not gone.keys() <= self._shards.keys():
            self._meet(connection)
        for shard, epochs in gone.items():
            self._activate(shard, epochs)
        self.learn(found, {number: dag})
        return dag

    def learn(self, slots: SlotMap, dags: Mapping[int, Dag] | None = None) -> None:
        """Take in a map, and DAGs that are not newer."""
        with self._lock:
            view = self.view
            self.view = replace(view, slots=view.slots.newer(slots), dags={**view.dags, **(dags or {})})

    def join(self, dsn: str) -> int:
        """Make an empty database a further shard, without slots, and return its number; again does no harm."""
        known = self.attempt(0, identity)
        assert known is not None
        for number, member in known.members.items():
            if number not in self._shards:
                self._add(Shard(number, with_password(member.dsn, self.dsns[0]), self.patience_s))
        number = next((n for n, s in self._shards.items() if without_password(s.dsn) == without_password(dsn)), None)
        if number is None:
            new = Shard(len(self._shards), dsn, self.patience_s)
            enter(self._shards, new, known)
            self._add(new)
            number = new.number
        self.attempt(number, lambda c: self.reload(number, c))
        return number

    def _add(self, shard: Shard) -> None:
        """Know a further shard."""
        with self._lock:
            self._shards = {**self._shards, shard.number: shard}

    def _meet(self, connection: Connection) -> None:
        """Get to know the shards that came since we opened."""
        known = identity(connection)
        for number, member in ({} if known is None else known.members).items():
            if number not in self._shards:
                self._add(Shard(number, with_password(member.dsn, self.dsns[0]), self.patience_s))

    def _activate(self, number: int, epochs: Mapping[int, int]) -> None:
        """Have a shard serve what was moved to it, in case whoever moved it was killed before saying so."""
        try:
            self.attempt(number, lambda c: activate(c, epochs), patience_s=min(SHORT_S, self.patience_s))
        except ShardDown:
            return  # its keys will say so

    def _turn(self) -> list[int]:
        """The shards that are worth asking, not always the same one first."""
        numbers = self.numbers
        first = next(self._turns) % len(numbers)
        now = time.monotonic()
        return [n for n in numbers[first:] + numbers[:first] if n not in self._resting or self._resting[n][0] <= now]
