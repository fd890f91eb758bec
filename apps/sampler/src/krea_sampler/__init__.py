"""Draw pictures from prompts."""

from krea_sampler.order import Order, Weighted
from krea_sampler.picture import parameters

__all__ = ["Order", "Weighted", "parameters"]
