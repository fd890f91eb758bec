"""A claim over all shards that answer: one after another, the highest priority first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import Connection

from krea_data.interfaces import Task
from krea_data.krablet.dag import Dag
from krea_data.krablet.queues.bands import bands_of, forget_band
from krea_data.krablet.queues.claim import Wanted, claim_rows
from krea_data.rows import Claim

if TYPE_CHECKING:
    from krea_data.krablet.table import Krablet

__all__ = ["claim_shards"]

_TIDY = 50  # of so many claims, one that finds a band empty looks whether it is


def claim_shards(krablet: Krablet, task: Task, worker: str, limit: int, lease_s: float) -> list[Claim]:
    """Lease up to `limit` rows; what another process made urgent on a shard is known once that shard was asked."""
    claims: list[Claim] = []
    asked: set[int] = set()
    while len(claims) < limit:
        known = {band for number in krablet.shards.numbers for band in krablet.floor(number, task.name).bands}
        if not known - asked:
            break
        band = max(known - asked)
        if not _claim_band(krablet, task, band, worker, limit, lease_s, claims):
            asked.add(band)
    return claims


def _claim_band(
    krablet: Krablet, task: Task, band: int, worker: str, limit: int, lease_s: float, claims: list[Claim]
) -> bool:
    """Claim rows of one band, and say whether a shard turned out to have other bands than was thought."""
    changed = False

    def take(number: int, patience_s: float | None) -> None:
        nonlocal changed
        krablet.declare(number, [task], patience_s)
        floor = krablet.floor(number, task.name)
        if changed or len(claims) == limit or band not in floor.bands:
            return

        def work(connection: Connection, dag: Dag) -> list[Claim] | None:
            known, floor.bands = floor.bands, bands_of(dag, task.name)
            if floor.bands != known:
                return None
            wanted = Wanted(task, worker, limit - len(claims), lease_s, krablet.max_attempts, band)
            found = claim_rows(connection, dag, wanted, floor)
            if band and not found and floor.claims % _TIDY == 0:
                forget_band(connection, task.name, band)
            return found

        found = krablet.shards.guarded(number, work, patience_s=patience_s)
        changed = found is None
        claims.extend(found or [])

    krablet.shards.reached(take)
    return changed
