import pytest
import torch
from krea_train import AdamW, Average, Optimizer, State
from krea_train.average import constant
from krea_train.testing import Squares
from torch import nn


def make(features: int = 2, *, averaged: bool = True) -> State:
    model = nn.Linear(features, 2)
    average = Average(model, constant(0.9)) if averaged else None
    return State(model=model, optimizer=Optimizer(model, AdamW(lr=0.1)), batches=Squares(count=2), average=average)


def test_a_state_becomes_another():
    a, b = make(), make()
    a.step, a.images = 5, 10
    next(iter(a.batches))
    b.load_state_dict(a.state_dict())
    assert (b.step, b.images) == (5, 10)
    assert b.batches.state_dict() == {"position": 1}
    assert torch.equal(a.model.state_dict()["weight"], b.model.state_dict()["weight"])


@pytest.mark.parametrize(
    ("features", "averaged", "sentence"),
    [(3, True, r"'weight' is \(2, 2\) in the checkpoint, \(2, 3\)"), (2, False, "do not agree on averaging")],
)
def test_the_state_of_another_run_is_refused(features: int, averaged: bool, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        make(features, averaged=averaged).load_state_dict(make().state_dict())


def test_another_architecture_is_refused():
    state = make()
    parts = state.state_dict()
    parts["model"] = {"else": torch.zeros(1)}
    with pytest.raises(ValueError, match="another model: 3 names differ, the first is 'bias'"):
        state.load_state_dict(parts)
