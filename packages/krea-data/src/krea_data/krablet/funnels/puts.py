"""Puts go through funnels, one a shard: what arrives while a batch is being stored is the next batch."""

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from itertools import islice

import psycopg
from psycopg import Connection

from krea_data.krablet.dag import Dag
from krea_data.krablet.funnels.funnel import Funnel
from krea_data.krablet.queues.answers import Answer, store_rows
from krea_data.krablet.shards import Shards

__all__ = ["Puts"]

_Key = tuple[str, str]  # task, id
_Value = tuple[str, str | None]  # JSON, reason for dropping
_CHUNK_ROWS = 1000
_POISON = (psycopg.DataError, psycopg.errors.ProgramLimitExceeded, psycopg.errors.StatementTooComplex)


class Puts:
    """The funnels of one krablet. Safe among threads."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._funnels: dict[int, Funnel[_Key, _Value]] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Write what was put."""
        for funnel in self._funnels.values():
            funnel.close()

    def store(self, values: Mapping[_Key, _Value]) -> dict[str, Exception]:
        """Store values, and return by id why some were not stored; the first `ShardDown` is raised after the rest."""
        waiting: list[Future[dict[_Key, Exception]]] = []
        stream = iter(values.items())
        while chunk := list(islice(stream, _CHUNK_ROWS)):
            for number, part in self._shards.view.slots.split(chunk, lambda pair: pair[0][1]).items():
                waiting.append(self._funnel(number).submit(dict(part)))
        refused: dict[str, Exception] = {}
        failed: BaseException | None = None
        for future in waiting:
            if (error := future.exception()) is None:
                refused |= {row_id: why for (_, row_id), why in future.result().items()}
            failed = failed or error
        if failed is not None:
            raise failed
        return refused

    def _funnel(self, number: int) -> Funnel[_Key, _Value]:
        with self._lock:
            if number not in self._funnels:
                self._funnels[number] = Funnel(self._write, poison=_POISON)
            return self._funnels[number]

    def _write(self, batch: Mapping[_Key, _Value]) -> dict[_Key, Exception]:
        """Store a batch in one transaction, or in one on each shard if slots moved; return what has no row."""
        slot = self._shards.view.slots.slot

        def store(connection: Connection, dag: Dag, keys: list[_Key]) -> dict[_Key, Exception]:
            refused: dict[_Key, Exception] = {}
            with connection.transaction():
                for task in sorted({task for task, _ in keys}):
                    part = [Answer(slot(row_id), row_id, *batch[task, row_id]) for name, row_id in keys if name == task]
                    for row_id in store_rows(connection, dag, task, part):
                        refused[task, row_id] = ValueError("its id is not in the table; add the row first")
            return refused

        parts = self._shards.routed(batch, lambda key: key[1], store)
        return {key: error for part in parts for key, error in part.items()}
