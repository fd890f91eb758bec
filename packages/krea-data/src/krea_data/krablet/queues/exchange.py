"""Answers in, the next rows out: what a busy worker does over and over, in one round trip and one commit.

A commit waits for the disk, and so does whoever claims: to do both at once halves the waiting. The two statements are
those of `complete` and `claim`, in one transaction; whatever is unusual is left to these two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from psycopg import Connection, errors

from krea_data.checks import check_limit
from krea_data.interfaces import Task
from krea_data.krablet.dag import Dag, StaleDag
from krea_data.krablet.queues.answers import Answer, answers_of, complete_rows, send_answers, stored_rows
from krea_data.krablet.queues.bands import bands_of
from krea_data.krablet.queues.claim import Wanted, send_claim, take_claims
from krea_data.krablet.router import SlotMap
from krea_data.krablet.shards import StaleMap
from krea_data.krablet.slots import check_current
from krea_data.rows import Claim, Result

if TYPE_CHECKING:
    from krea_data.krablet.table import Krablet

__all__ = ["exchange"]

_ELSEWHERE = 8  # every so many exchanges the next rows are looked for on all shards


def exchange(
    krablet: Krablet, task: Task, results: Mapping[Claim, Result], worker: str, limit: int, lease_s: float
) -> tuple[int, list[Claim]]:
    """`complete` these results and `claim` up to `limit` rows: how many results were stored, and the claims."""
    check_limit(limit, lease_s)
    slots = krablet.router
    answers = answers_of(results, task.name, krablet.columns(task.name), slots.slot)
    claims: list[Claim] = []

    def swap(connection: Connection, dag: Dag, part: list[Answer]) -> int:
        if task.name not in dag.queued:
            check_current(connection, dag)
            return 0
        floor = krablet.floor(krablet.router.shards[part[0].slot], task.name)
        floor.claims += 1
        place = floor.starts(0, lease_s)[0]
        usual = (
            bands_of(dag, task.name) == floor.bands == (0,) and task.name not in dag.paused and not dag.lacks([task])
        )
        if not usual or len(claims) == limit or (len(krablet.dsns) > 1 and floor.claims % _ELSEWHERE == 0):
            return complete_rows(connection, dag, task.name, part)
        wanted = Wanted(task, worker, limit - len(claims), lease_s, krablet.max_attempts)
        try:
            with connection.pipeline():  # until it ends, one transaction
                stored = send_answers(connection, dag, task.name, part)
                found = send_claim(connection, dag, wanted, place)
        except errors.UniqueViolation:
            return complete_rows(connection, dag, task.name, part)
        count = stored_rows(stored, dag)
        with suppress(StaleDag):  # since the results went in: they are stored, and the claim is made anew
            claims.extend(take_claims(found, dag, wanted, floor))
        return count

    stored = 0
    for number, part in _by_shard(answers, slots).items():
        try:
            stored += krablet.shards.guarded(number, lambda c, d, p=part: swap(c, d, p), slots=slots)
        except StaleMap:  # a slot has moved: its rows are looked for where they are now
            stored += sum(krablet.routed(part, lambda answer: answer.id, swap))
    if len(claims) < limit:
        claims += krablet.claim(task, worker, limit - len(claims), lease_s)
    return stored, claims


def _by_shard(answers: Iterable[Answer], slots: SlotMap) -> dict[int, list[Answer]]:
    parts: dict[int, list[Answer]] = {}
    for answer in answers:
        parts.setdefault(slots.shards[answer.slot], []).append(answer)
    return parts
