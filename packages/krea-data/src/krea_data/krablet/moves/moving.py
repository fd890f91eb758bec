"""One slot on its way from one shard to another, step by step; see `move`."""

import random
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import psycopg
from psycopg import Connection, sql
from psycopg.types.json import Jsonb

from krea_data.krablet.connection import passing
from krea_data.krablet.dag import load
from krea_data.krablet.errors import KrabletError, ShardDown
from krea_data.krablet.moves.clone import Shape, clone_controls, clone_tables, moving_tables
from krea_data.krablet.moves.transfer import Incoming, copy_page, purge, replay, take_notes
from krea_data.krablet.opening import without_password
from krea_data.krablet.shards import Shards
from krea_data.krablet.slots import Member, activate, know_member, slots_of

__all__ = ["PAGE_ROWS", "Moved", "Mover", "Report", "Step"]

T = TypeVar("T")
Step = Literal["begun", "copied", "caught up", "handed over", "purged"]
PAGE_ROWS = 2000
_FEW = 200  # changes that are left to the end, when nobody may write
_PASSES = 50
_REST_S = 0.5
_LOCK_S = 0.3  # to wait for tables that are in use, while others wait for us


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """How far a slot has come."""

    slot: int
    source: int
    to: int
    step: Step
    rows: int = 0  # that were copied by this call
    pause_s: float = 0.0  # for how long the source's writers were kept waiting at the most


Report = Callable[[Moved], None]


class _Again(Exception):  # noqa: N818 - never seen outside of this file
    """Tables, columns or tasks have come since; take them in and try again."""


@dataclass(kw_only=True, slots=True)
class Mover:
    """One slot from one shard to another."""

    shards: Shards
    slot: int
    source: int
    to: int
    page_rows: int
    report: Report
    resumed: bool = False  # to be finished if somebody began it, and not to be begun
    mover: uuid.UUID = field(default_factory=uuid.uuid4)
    epoch: int = 0
    rows: int = 0
    pause_s: float = 0.0
    since: float = field(default_factory=time.monotonic)
    tables: dict[str, Shape] = field(default_factory=dict)
    tasks: tuple[object, ...] = ()  # what the source's tasks are
    target_dag: int = -1

    @property
    def way(self) -> Incoming:
        return Incoming(slot=self.slot, mover=self.mover)

    def run(self) -> None:
        if self._both(self._begin):
            self._tell("begun")
            while not self._both(self._hand_over):
                self._both(self._equip)
                while self._both(self._copy):
                    self._tell("copied")
                self._both(self._catch_up)
                self._tell("caught up")
        self._both(self._activate)
        self._tell("handed over")
        self._both(self._purge)
        self._tell("purged")

    def _tell(self, step: Step) -> None:
        """Say how far it is, and let others have the machines for as long as we had them."""
        self.report(
            Moved(slot=self.slot, source=self.source, to=self.to, step=step, rows=self.rows, pause_s=self.pause_s)
        )
        if step != "caught up":
            time.sleep(min(time.monotonic() - self.since, _REST_S))
        self.since = time.monotonic()

    def _both(self, work: Callable[[Connection, Connection], T]) -> T:
        """Do a step, again where a connection broke or tables were in use; every step bears that."""
        deadline = time.monotonic() + self.shards.patience_s
        while True:
            try:
                with self.shards.connection(self.source) as source, self.shards.connection(self.to) as target:
                    return work(source, target)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.UniqueViolation) as error:
                if time.monotonic() > deadline:
                    raise KrabletError(
                        f"the tables of {self.shards.name(self.source)} are in use all the time; end the long"
                        " transactions that write there, and call again to go on"
                    ) from error
            except psycopg.Error as error:
                if not passing(error):
                    raise
                if time.monotonic() > deadline:
                    names = f"{self.shards.name(self.source)} or {self.shards.name(self.to)}"
                    raise ShardDown(f"{names} does not answer: {error}; call again to go on") from error
            time.sleep(random.uniform(0.02, 0.2))

    def _begin(self, source: Connection, target: Connection) -> bool:
        """Take charge of the move; False where the slot has been handed over, or the move was cancelled."""
        with source.transaction():
            source.execute("select from shard for update")
            (owner, epoch) = source.execute(
                "select shard, epoch from slot_map where slot = %s", (self.slot,)
            ).fetchone() or (-1, 0)
            self.epoch = epoch if owner == self.to else epoch + 1
            going = source.execute("select from outgoing where slot = %s", (self.slot,)).rowcount
            if owner != self.source or (self.resumed and not going):
                return False
            (other,) = source.execute(
                "insert into outgoing (slot, other, epoch, mover) values (%s, %s, %s, %s)"
                " on conflict (slot) do update set mover = excluded.mover returning other",
                (self.slot, self.to, self.epoch, self.mover),
            ).fetchone() or (self.to,)
            if other != self.to:
                raise KrabletError(f"slot {self.slot} is on its way to shard {other}; resume or cancel that first")
            know_member(source, self.to, Member(without_password(self.shards.dsn(self.to)), joined=True))
        with target.transaction():
            old = target.execute("select incoming, epoch from away where slot = %s for update", (self.slot,)).fetchone()
            if old is not None and old != (True, self.epoch):
                purge(target, moving_tables(target), self.slot)
                target.execute("delete from away where slot = %s", (self.slot,))
            target.execute(
                "insert into away (slot, other, epoch, incoming, mover) values (%s, %s, %s, true, %s)"
                " on conflict (slot) do update set mover = excluded.mover",
                (self.slot, self.source, self.epoch, self.mover),
            )
        return True

    def _equip(self, source: Connection, target: Connection) -> None:
        """Have changes noted in all tables that there are, and give the target the same tables and tasks."""
        self._check_mine(source)
        self.tasks = _tasks(source)
        self.tables = {shape.name: shape for shape in moving_tables(source)}
        take_notes(source, self.tables.values())
        clone_tables(source, target)
        with target.transaction():
            self.way.fence(target)
            (version,) = target.execute("select dag from shard for share").fetchone() or (-1,)
            (copied,) = target.execute("select copied from away where slot = %s", (self.slot,)).fetchone() or ({},)
            target.execute("update away set copied = copied || %s where slot = %s", (Jsonb({"": version}), self.slot))
        if copied.get("") != version:  # new tasks have filled their queues, maybe with rows that are not here yet
            self._forget(target, [name for name in self.tables if name.startswith("queue_")])
        self.target_dag = version

    def _forget(self, target: Connection, names: Sequence[str]) -> None:
        """Copy these tables again."""
        with target.transaction():
            self.way.fence(target)
            for name in names:
                target.execute(sql.SQL("delete from {} where slot = %s").format(sql.Identifier(name)), (self.slot,))
            target.execute("update away set copied = copied - %s::text[] where slot = %s", (list(names), self.slot))

    def _copy(self, source: Connection, target: Connection) -> bool:
        """Copy a page; False when there is none left."""
        (copied,) = target.execute("select copied from away where slot = %s", (self.slot,)).fetchone() or ({},)
        for name, shape in self.tables.items():
            if name not in copied or copied[name] is not None:
                try:
                    self.rows += copy_page(source, target, shape, self.way, copied.get(name) or "", self.page_rows)
                except psycopg.errors.UniqueViolation:  # a new task has just filled its queue on the target
                    self._forget(target, [name])
                return True
        return False

    def _catch_up(self, source: Connection, target: Connection) -> None:
        for _ in range(_PASSES):
            if (replay(source, target, self.tables, self.way) or 0) <= _FEW:
                return

    def _hand_over(self, source: Connection, target: Connection) -> bool:
        """Give the slot away; False where there is something left to copy first."""
        began = time.monotonic()
        if not self.tables:
            return False
        try:
            with source.transaction():
                self._lock(source)
                self._send_rest(source, target)
                clone_controls(source, target)
                _raise_tokens(source, target)
                self._give_away(source)
        except _Again:
            return False
        finally:
            self.pause_s = max(self.pause_s, time.monotonic() - began)
        return True

    def _check_mine(self, source: Connection) -> None:
        mine = source.execute("select from outgoing where slot = %s and mover = %s", (self.slot, self.mover))
        if not mine.rowcount:
            raise KrabletError(f"another process moves slot {self.slot} now; leave it to that one")

    def _lock(self, source: Connection) -> None:
        """Keep all writers out."""
        source.execute(
            sql.SQL("set local lock_timeout = {}; set local idle_in_transaction_session_timeout = '20s'").format(
                sql.Literal(int(1000 * _LOCK_S))
            )
        )
        source.execute("select from shard for update")
        self._check_mine(source)
        names = sql.SQL(", ").join(map(sql.Identifier, self.tables))
        source.execute(sql.SQL("lock table {} in share row exclusive mode").format(names))
        if {shape.name: shape for shape in moving_tables(source)} != self.tables or _tasks(source) != self.tasks:
            raise _Again

    def _send_rest(self, source: Connection, target: Connection) -> None:
        while True:
            sent = replay(source, target, self.tables, self.way, self.target_dag)
            if sent is None:
                raise _Again
            if not sent:
                return

    def _give_away(self, source: Connection) -> None:
        given = {"slot": self.slot, "to": self.to, "epoch": self.epoch}
        source.execute("update slot_map set shard = %(to)s, epoch = %(epoch)s where slot = %(slot)s", given)
        source.execute("delete from outgoing where slot = %(slot)s", given)
        source.execute(
            "insert into away (slot, other, epoch, incoming) values (%(slot)s, %(to)s, %(epoch)s, false)", given
        )
        source.execute("update shard set dag = dag + 1")

    def _activate(self, source: Connection, target: Connection) -> None:
        """Let the target serve the slot, if the source gave it away, and tell the others."""
        where = slots_of(source, self.shards.view.slots.bits)
        if where.shards[self.slot] != self.to:  # cancelled
            with target.transaction():
                purge(target, moving_tables(target), self.slot)
                target.execute("delete from away where slot = %s and incoming", (self.slot,))
            return
        activate(target, {self.slot: where.epochs[self.slot]})
        self.shards.learn(where)
        for number in set(self.shards.numbers) - {self.source, self.to}:
            _spread(self.shards, number, self.slot, self.to, where.epochs[self.slot])

    def _purge(self, source: Connection, _: Connection) -> None:
        """Delete the source's rows of a slot that it gave away."""
        away = source.execute("select from away where slot = %s and not incoming", (self.slot,))
        if not away.rowcount:
            return
        purge(source, moving_tables(source), self.slot)
        with source.transaction():
            source.execute("select from shard for update")  # no task may come and fill its queue
            purge(source, moving_tables(source), self.slot)
            source.execute("delete from away where slot = %s and not incoming", (self.slot,))


def _tasks(source: Connection) -> tuple[object, ...]:
    """What a change of the shard's tasks changes, but for controls, which go along at the very end."""
    dag = load(source)
    return dag.after, dag.queued, dag.columns, dag.indexed


def _raise_tokens(source: Connection, target: Connection) -> None:
    """Let the target give out no token that the source has given out, or a lease could be taken for another one."""
    (theirs,) = source.execute("select last_value from token").fetchone() or (0,)
    (mine,) = target.execute("select last_value from token").fetchone() or (0,)
    if mine <= theirs:
        target.execute("select setval('token', %s)", (theirs + 1_000_000,))  # far ahead of who takes one right now


def _spread(shards: Shards, number: int, slot: int, to: int, epoch: int) -> None:
    """Let a third shard know where a slot went, for those who ask it first."""

    def tell(connection: Connection) -> None:
        know_member(connection, to, Member(without_password(shards.dsn(to)), joined=True))
        connection.execute(
            "update slot_map set shard = %s, epoch = %s where slot = %s and epoch < %s", (to, epoch, slot, epoch)
        )

    try:
        shards.attempt(number, tell, patience_s=0)
    except ShardDown:
        return
