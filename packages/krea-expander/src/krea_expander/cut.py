"""Answers that a limit of tokens cut off."""

import re

__all__ = ["whole_sentences"]


def whole_sentences(text: str) -> str:
    """The text up to its last finished sentence, or as it is if none is finished."""
    ends = list(re.finditer(r"[.!?\u3002\uff01\uff1f][\"'\u201d\u2019)]*(?=\s|\Z)", text))
    return text[: ends[-1].end()] if ends else text
