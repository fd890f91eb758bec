"""Is the quoted text of the prompt in the picture? Edit distance to what a reader sees there."""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["TextReward", "edit_distance", "has_text", "quoted"]

QUOTES = re.compile(r"\"([^\"]+)\"|\u201c([^\u201d]+)\u201d|\u00ab([^\u00bb]+)\u00bb")


class TextReward:
    """1 - edit distance / length of the quoted text, at least 0; case and runs of blanks are ignored.

    read: pictures `b 3 H W` in [-1, 1] -> the text seen in each, for example an OCR model. Prompts without quoted
    text have nothing to judge and are refused: pass `has_text` as the `applies` of the term.
    """

    def __init__(self, read: Callable[[Tensor], Sequence[str]]) -> None:
        self.read = read

    def __call__(self, prompts: Sequence[str], images: Tensor) -> Tensor:
        wanted = [plain(" ".join(quoted(prompt))) for prompt in prompts]
        for prompt, text in zip(prompts, wanted, strict=True):
            if not text:
                raise ValueError(f"prompt {prompt!r} quotes no text; give the term applies=has_text to leave it out")
        seen = [plain(text) for text in self.read(images)]
        scores = [max(0.0, 1 - edit_distance(a, b) / len(a)) for a, b in zip(wanted, seen, strict=True)]
        return torch.tensor(scores)


def quoted(prompt: str) -> list[str]:
    """The texts in double quotation marks, straight or typographic, in order."""
    return [next(part for part in match.groups() if part) for match in QUOTES.finditer(prompt)]


def has_text(prompt: str) -> bool:
    """Whether the prompt quotes any text."""
    return bool(quoted(prompt))


def plain(text: str) -> str:
    """Lower case with single blanks."""
    return " ".join(text.casefold().split())


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: the fewest insertions, deletions and replacements that turn a into b."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]
