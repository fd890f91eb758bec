"""What a funnel does with a request before it waits: read it, check it, keep the order of its producer."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from krea_data.krablet.flush import Results, Target
from krea_data.krablet.records import DELETE, REPLACE, UPDATE, Record, Write, check_id
from krea_data.krablet.rpc.errors import Busy

__all__ = ["ACKS", "Order", "Request", "read_request"]

ACKS = ("committed", "journaled", "accepted")
_OPS = (UPDATE, DELETE, REPLACE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request: number `seq` of a producer, who will never again send one below `floor`."""

    producer: UUID
    seq: int
    floor: int
    target: str
    ack: str
    ids: list[str]
    writes: list[Write]


def read_request(args: Mapping[str, Any], target: Target) -> Request:
    """The request in the arguments of `write`, or ValueError; nothing of a bad request is done.

    `names` and `columns` hold the values column by column, `ops` what each row's write is if some are no updates.
    """
    try:
        producer, seq, floor = UUID(bytes=args["producer"]), int(args["seq"]), int(args["floor"])
        ids, names, columns = list(args["ids"]), list(args["names"]), list(args["columns"])
        ops, ack = args.get("ops") or [UPDATE] * len(ids), str(args.get("ack", ACKS[0]))
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"this is no request of a funnel's client: {type(error).__name__} {error}") from error
    if ack not in ACKS:
        raise ValueError(f"ack {ack!r} is none of {ACKS}")
    if not 0 <= floor <= seq:
        raise ValueError(f"request {seq} is below its own floor {floor}")
    for row_id in ids:
        check_id(row_id)
    if len(set(ids)) < len(ids):
        raise ValueError("a request has an id twice; join their writes first")
    if any(len(column) != len(ids) for column in (ops, *columns)) or len(columns) != len(names):
        raise ValueError(f"a request of {len(ids)} rows has columns of other lengths")
    if not set(ops) <= set(_OPS):
        raise ValueError(f"ops are {_OPS}")
    writes = _writes(target, ids, ops, dict(zip(names, columns, strict=True)))
    return Request(producer=producer, seq=seq, floor=floor, target=args["target"], ack=ack, ids=ids, writes=writes)


def _writes(target: Target, ids: Sequence[str], ops: Sequence[int], given: Mapping[str, Sequence[Any]]) -> list[Write]:
    record = target if isinstance(target, Record) else target.record
    known = [column.name for column in record.columns]
    if not given.keys() <= set(known):
        raise ValueError(f"values {sorted(given)} are not among the columns {known} of {record.name}")
    if isinstance(target, Results):
        return _result_writes(target, ids, ops, given)
    empty = [None] * len(ids)
    columns = [
        list(map(column.checked, given[column.name], ids)) if column.name in given else empty
        for column in record.columns
    ]
    return [list(write) for write in zip(ops, *columns, strict=True)]


def _result_writes(
    target: Results, ids: Sequence[str], ops: Sequence[int], given: Mapping[str, Sequence[Any]]
) -> list[Write]:
    """Writes that replace a result: its value as JSON text, and why the row is dropped."""
    if DELETE in ops:
        raise ValueError(f"a result of {target.task} cannot be deleted; write another one")
    values, drops = given.get("value", [{}] * len(ids)), given.get("dropped", [None] * len(ids))
    return [
        [REPLACE, target.text(row_id, value, drop), drop]
        for row_id, value, drop in zip(ids, values, drops, strict=True)
    ]


class Order:
    """Lets each producer's requests in by their numbers, so that what it wrote later stays later.

    A producer that is not known, after a restart say, begins with its floor: the lowest request that may still come.
    """

    def __init__(self, most: int = 100_000) -> None:
        self._last: OrderedDict[UUID, int] = OrderedDict()
        self._most = most

    def check(self, request: Request) -> None:
        """`Busy` for a request that came before an earlier one."""
        last = self._last.get(request.producer, -1)
        if request.seq > last + 1 and request.seq > request.floor:
            raise Busy(f"request {request.seq} came before {max(last + 1, request.floor)}", 0.005)

    def note(self, request: Request) -> None:
        """The request is in."""
        self._last[request.producer] = max(request.seq, self._last.get(request.producer, -1))
        self._last.move_to_end(request.producer)
        if len(self._last) > self._most:
            self._last.popitem(last=False)
