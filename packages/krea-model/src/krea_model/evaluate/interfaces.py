"""What an evaluation asks of the models that look at pictures and read prompts."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

__all__ = ["Embedder", "Joint", "TextEmbedder"]


class Embedder(Protocol):
    """Pictures `b 3 H W`, uint8 -> features `b f`, on the CPU; one picture's features do not depend on the others."""

    def __call__(self, images: Tensor, /) -> Tensor: ...


class TextEmbedder(Protocol):
    """Prompts -> embeddings `b e`, on the CPU."""

    def __call__(self, prompts: Sequence[str], /) -> Tensor: ...


class Joint(Protocol):
    """One space for pictures and words, as that of CLIP: cosines between the two mean something."""

    @property
    def images(self) -> Embedder: ...

    @property
    def texts(self) -> TextEmbedder: ...
