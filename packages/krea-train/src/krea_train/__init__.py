"""One training loop for every stage of a Krea 2 model."""

from krea_train.average import Average
from krea_train.loop import Settings, fit
from krea_train.objectives import Alignment, Distillation, FlowMatching, Pair
from krea_train.optim import AdamW, Muon, Optimizer, warmup_stable_decay
from krea_train.state import State

__all__ = [
    "AdamW",
    "Alignment",
    "Average",
    "Distillation",
    "FlowMatching",
    "Muon",
    "Optimizer",
    "Pair",
    "Settings",
    "State",
    "fit",
    "warmup_stable_decay",
]
