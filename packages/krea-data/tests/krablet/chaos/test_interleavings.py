"""Leases, tokens, versions and moves in every order of their steps."""

import pytest

from .model import RULES, Model, State, Worker, explore


def test_every_order_of_steps_answers_the_row_once() -> None:
    states, broken = explore(Model())
    assert broken == []
    assert states > 5000, "the search went through something"


@pytest.mark.slow
def test_three_workers() -> None:
    states, broken = explore(Model(claims=1), State(workers=(Worker(), Worker(), Worker())))
    assert broken == []
    assert states > 5000


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_can_be_left_out(rule: str) -> None:
    _, broken = explore(Model(without=frozenset({rule})))
    assert broken, f"without the rule '{rule}' nothing breaks: the search is blind, or the rule of no use"


def test_the_row_can_be_answered_from_everywhere() -> None:
    """From every state there is a way to the answer, given workers that may still claim."""
    model = Model(claims=1)
    found = [state for state in reached(model) if state.told is None]
    assert found
    for state in found:
        fresh = State(**{**fields(state), "workers": (Worker(claims=0),)})
        assert any(after.told is not None for after in reached(model, fresh)), state


def fields(state: State) -> dict[str, object]:
    """A state's parts by name."""
    return {name: getattr(state, name) for name in State.__slots__}


def reached(model: Model, first: State | None = None) -> set[State]:
    """All states that can be reached."""
    seen, waiting = {first or State()}, [first or State()]
    while waiting:
        for _, after in model.steps(waiting.pop()):
            if after not in seen:
                seen.add(after)
                waiting.append(after)
    return seen
