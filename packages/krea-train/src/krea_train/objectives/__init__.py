"""Losses that `fit` can train: each is a value with `(model, batch, step) -> (loss, metrics)`."""

from krea_train.objectives.align import Alignment
from krea_train.objectives.distill import Distillation, Pair
from krea_train.objectives.flow import FlowMatching

__all__ = ["Alignment", "Distillation", "FlowMatching", "Pair"]
