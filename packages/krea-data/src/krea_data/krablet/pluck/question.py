"""What a map asks for: which rows, what for, within which limits."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from psycopg import sql

from krea_data.checks import check_name
from krea_data.krablet.dag import Dag
from krea_data.krablet.names import result
from krea_data.krablet.readers.filter_sql import compiled
from krea_data.krablet.readers.filters import parse_filter

__all__ = ["Job", "Keys", "Limits", "Question", "key_range"]

Keys = str | tuple[str | None, str | None] | None
"""A prefix of ids, or a half-open range (first, end) of them, or all."""

_LAST, _SURROGATES = 0x10FFFF, range(0xD800, 0xE000)


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """Which rows, and the task whose results are made: rows that have such a result are passed over.

    `low` <= id < `high` where they are given; `where` is a filter as in `krea_data.krablet.readers.filters`.
    """

    into: str
    where: Mapping[str, Any] | None = None
    low: str | None = None
    high: str | None = None

    def __post_init__(self) -> None:
        check_name(self.into)
        parse_filter(self.where)

    @property
    def text(self) -> str:
        """The same for the same question."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @property
    def name(self) -> str:
        """A name for maps that were given none, the same for the same question."""
        if self == Question(into=self.into):
            return self.into
        return f"{self.into} {hashlib.sha256(self.text.encode()).hexdigest()[:12]}"

    def condition(self, dag: Dag) -> tuple[sql.Composable, dict[str, Any]]:
        """The condition on a row `i` of images, and its parameters."""
        values: dict[str, Any] = {}
        parts: list[sql.Composable] = [sql.SQL("i.slot <> all (array(select slot from away)) and ")]
        parts += [sql.SQL("({})").format(compiled(parse_filter(self.where), dag.after, values))]
        if self.low is not None:
            parts.append(sql.SQL(" and i.id >= %(low)s"))
        if self.high is not None:
            parts.append(sql.SQL(" and i.id < %(high)s"))
        if self.into in dag.after:
            # `offset 0`: a look for each row, and no join whose plan suits the table only while it is empty.
            lacks = " and not exists (select from {} d where d.slot = i.slot and d.id = i.id offset 0)"
            parts.append(sql.SQL(lacks).format(result(self.into)))
        return sql.Composed(parts), values | {"low": self.low, "high": self.high}


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much at once, and how long: rows of a batch, seconds of a lease and of a batch, MiB of the function."""

    batch: int = 256
    lease_s: float = 30.0
    timeout_s: float = 300.0
    memory_mb: int | None = None

    def __post_init__(self) -> None:
        if self.batch < 1 or self.lease_s <= 0 or self.timeout_s <= 0:
            raise ValueError(
                f"batch {self.batch}, lease_s {self.lease_s} and timeout_s {self.timeout_s} must all be above 0"
            )
        if self.memory_mb is not None and self.memory_mb < 64:
            raise ValueError(f"memory_mb {self.memory_mb} is below 64, too little for Python itself; give it more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A map: its name, by which it is resumed, and what it does."""

    name: str
    question: Question
    limits: Limits = field(default_factory=Limits)
    fn: str | None = None  # sha256 of the stored function; None: the caller's own process calls it

    def __post_init__(self) -> None:
        if not 0 < len(self.name.encode()) <= 200 or "\0" in self.name:
            raise ValueError(f"{self.name[:80]!r} is no name for a map; use 1 to 200 bytes of text")


def key_range(key: Keys) -> tuple[str | None, str | None]:
    """The (low, high) of a prefix or a range, or ValueError."""
    if key is None:
        return None, None
    if isinstance(key, str):
        return key, _after(key)
    if not isinstance(key, tuple) or len(key) != 2 or not all(end is None or isinstance(end, str) for end in key):
        raise ValueError(f"key {key!r} is neither a prefix nor a range; use 'noto/' or ('a', 'b') or ('a', None)")
    low, high = key
    if low is not None and high is not None and low >= high:
        raise ValueError(f"key {key!r} is an empty range; its end must come after its start")
    return low, high


def _after(prefix: str) -> str | None:
    """The first text behind all that start with the prefix, or None if there is none."""
    while prefix and ord(prefix[-1]) == _LAST:
        prefix = prefix[:-1]
    if not prefix:
        return None
    code = ord(prefix[-1]) + 1
    return prefix[:-1] + chr(_SURROGATES.stop if code in _SURROGATES else code)
