"""A funnel as a server: takes requests of many clients and stores them in few large transactions.

Verbs: `write` (a request, see `intake`), `declare` and `describe` (of records), `status`. A target is "record:NAME" or
"result:TASK". Every target has a lane for each shard, so a shard that is down holds up nobody else, and requests for
one row are stored in their order. `run_funnel` is a funnel in a process of its own.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import lru_cache
from typing import Any
from uuid import UUID

import msgpack

from krea_data.krablet.dag import declare
from krea_data.krablet.funnels.flush import Results, Target
from krea_data.krablet.funnels.intake import Order, Request, read_request
from krea_data.krablet.funnels.lane import Job, Lane, Limits
from krea_data.krablet.funnels.marks import prune_marks
from krea_data.krablet.funnels.pieces import Piece, Rows
from krea_data.krablet.funnels.spool import Spool
from krea_data.krablet.funnels.storing import store_routed, widened
from krea_data.krablet.records.rules import Column, Record
from krea_data.krablet.records.tables import declare_record, load_records, upsert
from krea_data.krablet.rpc.errors import Busy
from krea_data.krablet.rpc.tokens import Caller
from krea_data.krablet.shards import Shards

__all__ = ["FunnelService"]

_LOG = logging.getLogger(__name__)
_HOT_IDS = 1 << 16
_MOVE_S = 5.0
_SCOPES = {"write": "write", "declare": "write", "describe": "write", "status": "read"}


class _Ticket:
    """A request on its way: how many of its pieces are not stored, and what came of it."""

    def __init__(self, pieces: int) -> None:
        self.left = pieces
        self.refused: dict[str, str] = {}
        self.error: Exception | None = None
        self.future: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
        self.segment: Future[int] | None = None

    def settle(self, piece: Piece, error: Exception | None) -> bool:
        """Note one piece; True for the last one."""
        self.left -= 1
        self.error = self.error or error
        self.refused.update(piece.refused)
        if self.left:
            return False
        if not self.future.done():
            if self.error is not None:
                self.future.set_exception(self.error)
                self.future.exception()  # nobody may wait for it
            else:
                self.future.set_result(self.refused)
        return True


class FunnelService:
    """The rpc Service of a funnel over the shards of a krablet. `start` it on its loop, `close` it there in the end."""

    def __init__(self, shards: Shards, *, spool: Spool | None = None, limits: Limits | None = None) -> None:
        self.shards = shards
        self.limits = limits or Limits()
        self._spool = spool
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._map, self._moved_at = shards.view.slots, 0.0
        self._slot = lru_cache(_HOT_IDS)(shards.view.slots.slot)  # an id's slot is the same for ever
        self._targets: dict[str, Target] = {}
        self._open: dict[tuple[UUID, int], _Ticket] = {}
        self._order = Order()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pruning: asyncio.Task[None] | None = None

    @property
    def scopes(self) -> Mapping[str, str]:
        return _SCOPES

    async def start(self, *, marks_s: float = 7 * 86400.0) -> None:
        """Store what is in the spool. Marks of producers that were silent for `marks_s` are forgotten."""
        self._loop = asyncio.get_running_loop()
        if self._spool is not None:
            await self._replay(self._spool)
        self._pruning = self._loop.create_task(self._prune(marks_s))

    async def close(self) -> None:
        """Store all that waits, and end."""
        if self._pruning is not None:
            self._pruning.cancel()
        await asyncio.gather(*(asyncio.to_thread(lane.close) for lane in list(self._lanes.values())))
        await asyncio.sleep(0)  # what the lanes said in the end
        if self._spool is not None:
            await asyncio.to_thread(self._spool.close)

    async def call(self, verb: str, args: dict[str, Any], caller: Caller) -> Any:
        if verb == "write":
            return await self._write(args)
        if verb == "declare":
            record = Record(str(args["name"]), tuple(Column(*map(str, column)) for column in args["columns"]))
            await asyncio.to_thread(self._declare, record)
            return None
        if verb == "describe":
            target = await self._target(str(args["target"]))
            record = target.record if isinstance(target, Results) else target
            return [[column.name, column.type, column.rule] for column in record.columns]
        return self.status()

    def status(self) -> dict[str, Any]:
        """How every lane stands, and the spool."""
        lanes = {
            lane.name: {
                "rows": lane.rows,
                "bytes": lane.bytes,
                "age_s": lane.age_s,
                "rows_per_s": lane.rate,
                "batches": lane.batches,
                "stored": lane.stored,
            }
            for lane in list(self._lanes.values())
        }
        return {"lanes": lanes, "spool_bytes": self._spool.size if self._spool else 0, "requests": len(self._open)}

    async def _write(self, args: Mapping[str, Any]) -> dict[str, Any] | None:
        target = await self._target(str(args.get("target")))
        if isinstance(target, Record) and not set(args.get("names", ())) <= {c.name for c in target.columns}:
            del self._targets[str(args["target"])]  # another process may have added columns
            target = await self._target(str(args["target"]))
        request = read_request(args, target)
        ticket = self._open.get((request.producer, request.seq)) or self._take(request, target, args)
        if request.ack == "accepted":
            return None
        if request.ack == "journaled" and ticket.segment is not None:
            try:
                await asyncio.wrap_future(ticket.segment)
            except Exception:  # noqa: BLE001 - then it is acknowledged when it is committed
                _LOG.exception("a request could not be spooled")
            else:
                return None
        refused = await asyncio.shield(ticket.future)
        return {"refused": refused} if refused else None

    def _take(self, request: Request, target: Target, args: Mapping[str, Any]) -> _Ticket:
        """Let a request into its lanes, or `Busy` and nothing."""
        self._order.check(request)
        self._follow()
        jobs = self._jobs(request, target)
        for lane, piece in jobs:
            lane.check_room(len(piece.rows.ids), piece.rows.size)
        ticket = _Ticket(len(jobs))
        if request.ack == "journaled":
            if self._spool is None:
                raise ValueError("this funnel has no spool; ask for 'committed', or start it with one")
            ticket.segment = self._spool.append(_packed(args))
        self._order.note(request)
        self._admit(request, ticket, jobs)
        return ticket

    def _admit(self, request: Request, ticket: _Ticket, jobs: Sequence[tuple[Lane, Piece]]) -> None:
        key = request.producer, request.seq
        self._open[key] = ticket

        def done(piece: Piece, error: Exception | None) -> None:
            if ticket.settle(piece, error):
                self._open.pop(key, None)
                if ticket.segment is not None and self._spool is not None and ticket.error is None:
                    ticket.segment.add_done_callback(self._forget)

        for lane, piece in jobs:
            kept = request.ack != "committed"
            lane.submit(Job(piece, piece.rows.size, lambda error, piece=piece: done(piece, error), kept=kept))
        if not jobs:
            ticket.future.set_result({})
            del self._open[key]

    def _forget(self, segment: Future[int]) -> None:
        if self._spool is not None and segment.exception() is None:
            self._spool.stored(segment.result())

    def _jobs(self, request: Request, target: Target) -> list[tuple[Lane, Piece]]:
        """The request's rows by lane: all that live on one shard are stored together, which its mark relies on."""
        rows = Rows(list(map(self._slot, request.ids)), request.ids, request.ops, request.columns)
        whole = Piece(request.producer, request.seq, request.floor, rows)
        shards = self._map.shards
        numbers = sorted({shards[slot] for slot in set(rows.slots)})
        parts = [(n, whole.part(lambda slot, n=n: shards[slot] == n)) for n in numbers]
        jobs = [(self._lane(request.target, target, n), part) for n, part in parts if part is not None]
        if isinstance(target, Record):
            for _, piece in jobs:
                piece.rows.upsert = upsert(target, piece.rows)  # here, while the lane waits for the database
        return jobs

    def _follow(self) -> None:
        """Use the map of slots as it is now. A slot that moved changes its lane, so what is in the old one goes first.

        `Busy` while it does; a shard that is down holds nobody up for longer than `_MOVE_S`.
        """
        if self._map is self.shards.view.slots:
            return
        now = time.monotonic()
        self._moved_at = self._moved_at or now
        if now < self._moved_at + _MOVE_S and any(lane.rows for lane in self._lanes.values()):
            raise Busy("slots have moved; what came before them is stored first", 0.01)
        self._map, self._moved_at = self.shards.view.slots, 0.0

    def _lane(self, name: str, target: Target, number: int) -> Lane:
        lane = self._lanes.get((name, number))
        if lane is None:

            def write(pieces: Sequence[Piece]) -> None:
                store_routed(self.shards, widened(self._targets.get(name, target), pieces), pieces)

            lane = self._lanes[name, number] = Lane(f"{name}/{number}", write, self.limits, self._settle)
        return lane

    def _settle(self, ended: Sequence[tuple[Job, Exception | None]]) -> None:
        """Called by the lanes' threads."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(_tell, ended)

    async def _target(self, name: str) -> Target:
        target = self._targets.get(name)
        if target is None:
            target = await asyncio.to_thread(self._look_up, name)
            self._targets[name] = target
        return target

    def _look_up(self, name: str) -> Target:
        kind, _, rest = name.partition(":")
        if kind == "record":
            found = self.shards.attempt(self.shards.numbers[0], load_records)
            if rest not in found:
                raise LookupError(f"there is no record {rest!r}; declare it first")
            return found[rest]
        if kind == "result":
            for number in self.shards.numbers:
                self.shards.attempt(number, lambda c: declare(c, {}, [rest]))
            return Results(rest)
        raise ValueError(f"{name!r} is neither record:NAME nor result:TASK")

    def _declare(self, record: Record) -> None:
        for number in self.shards.numbers:
            self.shards.attempt(number, lambda c: declare_record(c, record))
        self._targets.pop(f"record:{record.name}", None)

    async def _replay(self, spool: Spool) -> None:
        """Store what an earlier process had taken and not stored, before anybody else may write."""
        tickets: list[_Ticket] = []
        for segment, body in spool.replay():
            args = msgpack.unpackb(body, timestamp=3, strict_map_key=False)
            target = await self._target(args["target"])
            request = read_request(args, target)
            jobs = self._jobs(request, target)
            while any(lane.rows > self.limits.waiting_rows for lane, _ in jobs):
                await asyncio.sleep(0.01)
            ticket = _Ticket(len(jobs))
            ticket.segment = Future()
            ticket.segment.set_result(segment)
            self._admit(request, ticket, jobs)
            tickets.append(ticket)
        for ticket in tickets:
            await ticket.future
        if tickets:
            _LOG.warning("stored %d requests from the spool in %s", len(tickets), spool.folder)

    async def _prune(self, age_s: float) -> None:
        while True:
            await asyncio.sleep(3600)
            for number in self.shards.numbers:
                try:
                    await asyncio.to_thread(self.shards.attempt, number, lambda c: prune_marks(c, age_s))
                except Exception:  # noqa: BLE001 - the next hour is another try
                    _LOG.exception("marks of %s were not pruned", self.shards.name(number))


def _tell(ended: Sequence[tuple[Job, Exception | None]]) -> None:
    for job, error in ended:
        job.done(error)


def _packed(args: Mapping[str, Any]) -> bytes:
    return bytes(msgpack.packb(args, use_bin_type=True, datetime=True) or b"")
