"""The one shape that style references ask of the outside: pictures to style tokens."""

from typing import Protocol

from torch import Tensor

__all__ = ["StyleEncoder"]


class StyleEncoder(Protocol):
    """What a picture looks like, not what it shows, in a few tokens.

    images: `b 3 H W` in [-1, 1] -> `b m f`, m tokens of width f per picture.
    """

    def __call__(self, images: Tensor) -> Tensor: ...
