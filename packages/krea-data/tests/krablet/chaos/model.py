"""One row, two workers, a clock and a mover: every order in which their steps can happen.

A step is one statement or one transaction of the real thing, which nothing can come between:

look(w, s)      a worker reads the map and the version of a shard (`Shards.reload`); where it knows that the slot went
                elsewhere it has the new shard serve it (`slots.activate`)
claim(w, s)     `claim._LEASE`, on any shard: that must have the version that the worker knows, the row be due (never
                leased, or its lease over), and its slot not be in `away`; it gets the next token of the sequence
complete(w)     `answers._HELD`, where the worker's map says: the version again, and the row must have this claim's
                token; then it leaves the queue and its answer is stored. With another token the worker is told 0
forget(w)       a worker dies with its claim
expire(s)       the server's clock passes the end of a lease
begin, copy     `Mover._begin`, `_copy`: the target holds the slot in `away`, changes on the source are noted
catch_up        `transfer.replay`: what was noted is written again
hand_over       `Mover._hand_over`: in one transaction under locks the rest, the target's sequence above the source's,
                the new place and version on the source
activate        `slots.activate`: the slot leaves the target's `away`, which gets another version
purge           `Mover._purge`: the source's rows go

A mover may die after any step; another goes on by what the shards say, which is all that a mover knows here. Rules
that are left out (`RULES`) stand for mistakes: the search has to find what each of them breaks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

RULES = ("token", "version", "away", "tokens above", "notes", "lock")
SOURCE, TARGET = 0, 1
Holder = tuple[int, int]  # worker, and which of its claims; the model's own note, which no shard has


class RuleError(AssertionError):
    """A rule that every row relies on does not hold."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The row in a shard's queue."""

    token: int = 0
    live: bool = False
    holder: Holder | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """What one shard has of the slot."""

    version: int = 1
    sequence: int = 0
    queued: Entry | None = None
    answer: Holder | None = None
    away: str = ""  # "in", "out"


@dataclass(frozen=True, slots=True)
class Worker:
    """What a worker believes and holds."""

    owner: int = SOURCE
    versions: tuple[int, int] = (1, 1)
    token: int = 0
    claims: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """Everything."""

    shards: tuple[Shard, Shard] = (Shard(queued=Entry()), Shard())
    workers: tuple[Worker, ...] = (Worker(), Worker())
    moved: bool = False  # what the source's map says
    began: bool = False
    copied: bool = False
    noted: bool = False  # a change on the source that the target lacks
    sent: bool = False  # only without the lock: the rest went out, the slot is not yet given away
    told: Holder | None = None  # whose answer was acknowledged


@dataclass(frozen=True, slots=True)
class Model:
    """The steps under all rules but those left out; each worker claims at most `claims` times."""

    without: frozenset[str] = frozenset()
    claims: int = 2

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """What may happen next."""
        for number in range(len(state.workers)):
            yield from self._worker(state, number)
        for place, shard in enumerate(state.shards):
            if shard.queued is not None and shard.queued.live:
                yield f"expire {place}", _set(state, place, queued=replace(shard.queued, live=False))
        yield from self._mover(state)

    def _worker(self, state: State, number: int) -> Iterator[tuple[str, State]]:
        me = state.workers[number]
        for place, shard in enumerate(state.shards):
            if (looked := self._look(state, number, place)) != state:
                yield f"look {number} at {place}", looked
            due = shard.queued is not None and not shard.queued.live
            here = "away" in self.without or not shard.away
            if self._knows(me, state, place) and due and here and not me.token and me.claims < self.claims:
                yield f"claim {number} at {place}", self._claim(state, number, place)
        if me.token:
            yield f"forget {number}", _worked(state, number, token=0)
            if self._knows(me, state, me.owner):
                yield f"complete {number}", self._complete(state, number)

    def _knows(self, me: Worker, state: State, place: int) -> bool:
        return "version" in self.without or me.versions[place] == state.shards[place].version

    def _look(self, state: State, number: int, place: int) -> State:
        me = state.workers[number]
        if state.moved and (me.owner == TARGET or place == SOURCE):
            state = _activated(state)
        heard = state.moved and (place == SOURCE or not state.shards[TARGET].away)
        owner = TARGET if heard else me.owner
        versions = list(me.versions)
        versions[place] = state.shards[place].version
        return _worked(state, number, owner=owner, versions=(versions[0], versions[1]))

    def _claim(self, state: State, number: int, place: int) -> State:
        me = state.workers[number]
        token = state.shards[place].sequence + 1
        entry = Entry(token=token, live=True, holder=(number, me.claims))
        state = self._note(_set(state, place, sequence=token, queued=entry), place)
        return _worked(state, number, token=token, claims=me.claims + 1)

    def _complete(self, state: State, number: int) -> State:
        me = state.workers[number]
        shard, mine = state.shards[me.owner], (number, me.claims - 1)
        held = shard.queued is not None and ("token" in self.without or shard.queued.token == me.token)
        state = _worked(state, number, token=0)
        if not held:
            return state
        assert shard.queued is not None
        if shard.queued.holder != mine:
            raise RuleError(f"worker {number} answers what {shard.queued.holder} holds")
        if shard.answer is not None or state.told is not None:
            raise RuleError(f"worker {number} answers what is answered by {shard.answer or state.told}")
        state = replace(_set(state, me.owner, queued=None, answer=mine), told=mine)
        return self._note(state, me.owner)

    def _note(self, state: State, place: int) -> State:
        return replace(state, noted=True) if place == SOURCE and state.began and not state.moved else state

    def _mover(self, state: State) -> Iterator[tuple[str, State]]:
        source, target = state.shards
        if not state.began:
            yield "begin", replace(_set(state, TARGET, away="in"), began=True)
        elif not state.moved:
            yield "copy", replace(_sent(state), copied=True, noted=state.noted)
            if state.copied and state.noted and "notes" not in self.without:
                yield "catch up", _sent(state)
            if state.copied:
                yield from self._hand_over(state)
        elif target.away == "in":
            yield "activate", _activated(state)
        elif source.away == "out" and (source.queued is not None or source.answer is not None):
            yield "purge", _set(state, SOURCE, queued=None, answer=None)

    def _hand_over(self, state: State) -> Iterator[tuple[str, State]]:
        whole = state if "notes" in self.without else _sent(state)
        if "lock" in self.without and not state.sent:
            yield "send the rest", replace(whole, sent=True)
            return
        if "lock" in self.without:
            whole = state
        source, target = whole.shards
        if "tokens above" not in self.without:
            whole = _set(whole, TARGET, sequence=max(target.sequence, source.sequence + 1))
        whole = _set(whole, SOURCE, away="out", version=source.version + 1)
        yield "hand over", replace(whole, moved=True)


def explore(model: Model, start: State | None = None) -> tuple[int, list[str]]:
    """How many states can be reached, and the steps to the first that is broken, or none."""
    first = start or State()
    seen: dict[State, tuple[State, str] | None] = {first: None}
    waiting = [first]
    while waiting:
        state = waiting.pop()
        try:
            _check(state)
            following = list(_each(model, state))
        except RuleError as error:
            return len(seen), [*_way(seen, state), str(error)]
        for step, after in following:
            if after not in seen:
                seen[after] = (state, step)
                waiting.append(after)
    return len(seen), []


def _each(model: Model, state: State) -> Iterator[tuple[str, State]]:
    yield from model.steps(state)


def _check(state: State) -> None:
    """The row is served by one shard, which has it queued or answered, and an acknowledged answer is the one."""
    owner = TARGET if state.moved else SOURCE
    served = state.shards[owner]
    if (served.queued is None) == (served.answer is None):
        raise RuleError(f"the row is {'both queued and answered' if served.answer else 'lost'}")
    if state.told is not None and served.answer != state.told:
        raise RuleError(f"the answer of {state.told} was acknowledged, and {served.answer} is there")


def _way(seen: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    steps: list[str] = []
    while (before := seen[state]) is not None:
        state, step = before
        steps.append(step)
    return steps[::-1]


def _set(state: State, place: int, **changes: object) -> State:
    shards = list(state.shards)
    shards[place] = replace(shards[place], **changes)  # type: ignore[arg-type]
    return replace(state, shards=(shards[0], shards[1]))


def _worked(state: State, number: int, **changes: object) -> State:
    workers = list(state.workers)
    workers[number] = replace(workers[number], **changes)  # type: ignore[arg-type]
    return replace(state, workers=tuple(workers))


def _sent(state: State) -> State:
    """The target has of the row what the source has."""
    source = state.shards[SOURCE]
    return replace(_set(state, TARGET, queued=source.queued, answer=source.answer), noted=False)


def _activated(state: State) -> State:
    target = state.shards[TARGET]
    return _set(state, TARGET, away="", version=target.version + 1) if state.moved and target.away else state
