"""All shards as a reader knows them: a pool to each, its tasks, and the map of slots, each as it was last heard.

Every statement says with its rows which version of the DAG the shard has. A shard that got a task, or whose slots
were moved, has a new version: then the reader asks the shard what it knows now, and does the statement again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

import psycopg

from krea_data.krablet.errors import KrabletError, SchemaError, ShardDown
from krea_data.krablet.opening import with_password
from krea_data.krablet.readers.pools import Pool, Session
from krea_data.krablet.readers.selects import KNOWN, Known
from krea_data.krablet.router import SlotMap

__all__ = ["Build", "Fleet"]

T = TypeVar("T")
Build = Callable[[Known], tuple[bytes, Mapping[str, Any]]]  # a statement and its values, for what a shard knows
_DAG_CHANGES = 20  # in the middle of one read: more than that is a mistake


class Fleet:
    """Pools to every shard, by number. Belongs to one event loop; `options` are those of `Pool`."""

    def __init__(self, dsns: Sequence[str], **options: Any) -> None:
        self.dsns = list(dsns)
        self.pools = {number: Pool(number, dsn, **options) for number, dsn in enumerate(dsns)}
        self.map: SlotMap | None = None
        self._options = options
        self._known: dict[int, Known] = {}
        self._asking: asyncio.Task[SlotMap] | None = None

    async def close(self) -> None:
        """Close all connections that nobody uses."""
        for pool in self.pools.values():
            await pool.close()

    def held(self, number: int) -> list[int]:
        """The slots of a shard, as far as is known."""
        return [] if self.map is None else self.map.held(number)

    async def slots(self) -> SlotMap:
        """The map from ids to shards; asks the first shard that answers, if none has said it yet."""
        if self.map is not None:
            return self.map
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(self._first_map())
        return await asyncio.shield(self._asking)

    async def tasks(self, *, partial: bool = False) -> tuple[tuple[str, ...], list[str]]:
        """All tasks that have results somewhere, in the order in which they came, and the shards that are down."""
        await self.slots()
        found, missing = await self.gathered({number: self._tasks(number) for number in self.pools}, partial)
        return tuple(dict.fromkeys(task for number in sorted(found) for task in found[number])), missing

    async def lines(
        self, number: int, build: Build, *, timeout_s: float, prepare: bool = False, long: bool = False
    ) -> list[tuple]:
        """What a statement gives that was built for the DAG that the shard has; every line begins with its version."""

        async def work(session: Session) -> list[tuple]:
            for _ in range(_DAG_CHANGES):
                known = self._known.get(number) or await self._load(number, session)
                statement, values = build(known)
                lines = await session.rows(statement, values, prepare=prepare)
                if lines and lines[0][0] == known.version:
                    return lines
                if self._known.get(number) is known:
                    del self._known[number]
            raise SchemaError(f"{self.pools[number].name} gets new tasks all the time; register them once")

        return await self.pools[number].run(work, timeout_s=timeout_s, long=long)

    async def gathered(self, works: Mapping[int, Awaitable[T]], partial: bool) -> tuple[dict[int, T], list[str]]:
        """The answers by shard, and with `partial` the names of the shards that are down."""
        answers = await asyncio.gather(*works.values(), return_exceptions=True)
        found: dict[int, T] = {}
        missing: list[str] = []
        for number, answer in zip(works, answers, strict=True):
            if isinstance(answer, ShardDown) and partial:
                missing.append(self.pools[number].name)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found[number] = answer
        return found, missing

    async def status(self) -> list[dict[str, Any]]:
        """Of every shard its name, whether it answers, and how its pool stands."""

        async def one(pool: Pool) -> dict[str, Any]:
            error: str | None = None
            try:
                await pool.run(_alive, timeout_s=2.0)
            except (KrabletError, psycopg.Error) as failed:
                error = str(failed)
            state = pool.state
            counts = {"open": state.open, "busy": state.busy, "waiting": state.waiting}
            return {"shard": pool.name, "up": error is None, "error": error, **counts}

        return list(await asyncio.gather(*map(one, self.pools.values())))

    async def _first_map(self) -> SlotMap:
        failed: ShardDown | None = None
        for number in list(self.pools):
            try:
                await self.pools[number].run(lambda session, n=number: self._load(n, session))
            except ShardDown as error:
                failed = error
            if self.map is not None:
                return self.map
        raise failed or ShardDown("no shard answers")

    async def _tasks(self, number: int) -> tuple[str, ...]:
        known = self._known.get(number)
        if known is None:
            known = await self.pools[number].run(lambda session: self._load(number, session))
        return known.tasks

    async def _load(self, number: int, session: Session) -> Known:
        """Ask a shard what it knows, and take over what is news."""
        try:
            lines = await session.rows(KNOWN.encode(), {})
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
            lines = []
        if not lines or lines[0][4] is None:
            raise SchemaError(f"{self.pools[number].name} is no shard of this version yet; open it once with Krablet")
        version, found, bits, tasks, shards, epochs, members = lines[0]
        if found != number:
            raise SchemaError(
                f"{self.pools[number].name} was set up as shard {found}; give the DSNs of all shards in their order"
            )
        self._learn(SlotMap(bits=bits, shards=tuple(shards), epochs=tuple(epochs)), members)
        known = self._known[number] = Known(version=version, tasks=tuple(tasks))
        return known

    def _learn(self, slots: SlotMap, members: Sequence[Sequence[str]]) -> None:
        """Take over the news of a map; a shard that joined is reached as the first one is."""
        if self.map is not None and self.map.bits != slots.bits:
            raise SchemaError(f"shards with 2 ** {self.map.bits} and 2 ** {slots.bits} slots are of different krablets")
        self.map = slots if self.map is None else self.map.newer(slots)
        joined = {int(number): dsn for number, dsn in members}
        for number in set(self.map.shards) - self.pools.keys():
            if number not in joined:
                raise SchemaError(f"slots lie on shard {number}, of which there is no DSN; give the DSNs of all shards")
            self.pools[number] = Pool(number, with_password(joined[number], self.dsns[0]), **self._options)


async def _alive(session: Session) -> None:
    await session.rows(b"select 1", {})
