"""What a funnel does with a request before it waits: read it, check it, keep the order of its producer."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from krea_data.krablet.funnels.flush import Results, Target
from krea_data.krablet.funnels.pieces import Columns
from krea_data.krablet.records.rules import DELETE, REPLACE, UPDATE, Record, check_ids
from krea_data.krablet.rpc.errors import Busy

__all__ = ["ACKS", "Order", "Request", "read_request"]

ACKS = ("committed", "journaled", "accepted")
_OPS = (UPDATE, DELETE, REPLACE)


@dataclass(frozen=True, slots=True)
class Request:
    """One request: number `seq` of a producer, who will never again send one below `floor`."""

    producer: UUID
    seq: int
    floor: int
    target: str
    ack: str
    ids: list[str]
    ops: list[int] | None  # None: all are updates
    columns: Columns


def read_request(args: Mapping[str, Any], target: Target) -> Request:
    """The request in the arguments of `write`, or ValueError; nothing of a bad request is done.

    `names` and `columns` hold the values column by column, `ops` what each row's write is if some are no updates.
    """
    try:
        producer, seq, floor = UUID(bytes=args["producer"]), int(args["seq"]), int(args["floor"])
        ids, names, columns = list(args["ids"]), list(args["names"]), list(args["columns"])
        ops, ack = args.get("ops"), str(args.get("ack", ACKS[0]))
        lengths = {len(column) for column in (ops or ids, *columns)}
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"this is no request of a funnel's client: {type(error).__name__} {error}") from error
    if ack not in ACKS:
        raise ValueError(f"ack {ack!r} is none of {ACKS}")
    if not 0 <= floor <= seq:
        raise ValueError(f"request {seq} is below its own floor {floor}")
    check_ids(ids)
    if len(set(ids)) < len(ids):
        raise ValueError("a request has an id twice; join their writes first")
    if lengths != {len(ids)} or len(columns) != len(names):
        raise ValueError(f"a request of {len(ids)} rows has columns of other lengths")
    if not set(ops or ()) <= set(_OPS):
        raise ValueError(f"ops are {_OPS}")
    columns = _columns(target, ids, ops or (), dict(zip(names, columns, strict=True)))
    if isinstance(target, Results):
        ops = [REPLACE] * len(ids)
    ops = list(ops) if ops and any(ops) else None
    return Request(producer, seq, floor, target=args["target"], ack=ack, ids=ids, ops=ops, columns=columns)


def _columns(target: Target, ids: Sequence[str], ops: Sequence[int], given: Mapping[str, Sequence[Any]]) -> Columns:
    record = target if isinstance(target, Record) else target.record
    known = [column.name for column in record.columns]
    if not given.keys() <= set(known):
        raise ValueError(f"values {sorted(given)} are not among the columns {known} of {record.name}")
    if isinstance(target, Results):
        return _result_columns(target, ids, ops, given)
    return [column.checked_all(given[column.name], ids) if column.name in given else None for column in record.columns]


def _result_columns(
    target: Results, ids: Sequence[str], ops: Sequence[int], given: Mapping[str, Sequence[Any]]
) -> Columns:
    """Results as JSON text, and why rows are dropped."""
    if DELETE in ops:
        raise ValueError(f"a result of {target.task} cannot be deleted; write another one")
    values, drops = given.get("value", [{}] * len(ids)), given.get("dropped", [None] * len(ids))
    return [list(map(target.text, ids, values, drops)), drops]


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
