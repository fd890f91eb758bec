"""Whether a value is a plain number: what configurations, files and callers may give in the place of one."""

import math
import operator
from typing import SupportsFloat, SupportsIndex

__all__ = ["is_number", "is_whole"]


def is_whole(value: object, least: float = -math.inf) -> bool:
    """Whether it is a whole number (of Python or numpy, no boolean and no float) of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return False
    try:
        return operator.index(value) >= least
    except TypeError:  # a tensor of several numbers, or of fractions
        return False


def is_number(value: object, above: float = -math.inf) -> bool:
    """Whether it is one real number, finite and more than `above`; neither text nor a boolean is."""
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        return False
    try:
        return math.isfinite(float(value)) and float(value) > above
    except (TypeError, ValueError, OverflowError, RuntimeError):  # an array or tensor of several numbers
        return False
