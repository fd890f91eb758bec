"""Short wishes into detailed prompts."""

from krea_expander.diversity import distances, text_distances
from krea_expander.expand import LEVELS, Expansion, Level, expand
from krea_expander.faithful import faithfulness, missing
from krea_expander.interfaces import (
    LanguageModel,
    LanguageModelError,
    LimitedError,
    Message,
    UnavailableError,
    UnusableError,
)
from krea_expander.pairs import Pair, pairs, shorten
from krea_expander.rules import expand_by_rules

__all__ = [
    "LEVELS",
    "Expansion",
    "LanguageModel",
    "LanguageModelError",
    "Level",
    "LimitedError",
    "Message",
    "Pair",
    "UnavailableError",
    "UnusableError",
    "distances",
    "expand",
    "expand_by_rules",
    "faithfulness",
    "missing",
    "pairs",
    "shorten",
    "text_distances",
]
