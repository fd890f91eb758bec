"""How much two texts say the same, without a model: the words they share, rare ones counting more, endings ignored."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Weights", "contained", "overlap", "stem", "stems"]

_WORD = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af]|[^\W_]+")
_EMPTY_TEXT = """
a an and are as at be by for from has have in is it its of on or that the their there this to was were which
with into onto over under while who whose
"""
_EMPTY = frozenset(_EMPTY_TEXT.split())
_LOST_E = re.compile(r"\A[^aeiou]+[aeiouy][^aeiouwxy]\Z|(?:[cvuz]|[^aeo]at|bl|dg|[eo]us|eas|ais)\Z")  # "bak" was "bake"
_DOUBLED = re.compile(r"([bdgmnprt])\1\Z")


def stem(word: str) -> str:
    """A word without its English ending: "running", "runs" and "run" are one, "berries" and "berry" too."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and re.search(r"(?:ss|x|z|ch|sh)es\Z", word):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        bare = word.removesuffix(ending)
        if bare != word and len(bare) >= 3 and re.search(r"[aeiouy]", bare):
            single = _DOUBLED.sub(r"\1", bare)
            return f"{bare}e" if single == bare and _LOST_E.search(bare) else single
    return word


def stems(text: str) -> frozenset[str]:
    """The stems of a text's words, without accents and without words that say nothing."""
    folded = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(letter for letter in folded if not unicodedata.combining(letter))
    return frozenset(stem(word) for word in _WORD.findall(plain) if word not in _EMPTY)


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """How much each stem says: the logarithm of how rare it is among texts; `unseen` for one that is in none."""

    known: Mapping[str, float]
    unseen: float

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Weights":
        """Weights from a corpus of texts, each of which counts a word once."""
        counts: Counter[str] = Counter()
        total = 0
        for text in texts:
            counts.update(stems(text))
            total += 1
        weights = {word: math.log((1 + total) / (0.5 + count)) for word, count in counts.items()}
        return cls(known=weights, unseen=math.log(2 * (1 + total)))

    def mass(self, words: Iterable[str]) -> float:
        """What words say together."""
        return sum(self.known.get(word, self.unseen) for word in words)


def contained(part: frozenset[str], whole: frozenset[str], weights: Weights) -> float:
    """The share, by weight, of `part` that is in `whole`; 0 where `part` says nothing."""
    mass = weights.mass(part)
    return weights.mass(part & whole) / mass if mass > 0 else 0.0


def overlap(one: frozenset[str], other: frozenset[str], weights: Weights) -> float:
    """How much of the text that says less is in the other, from 0 to 1; the same in either order."""
    less, more = sorted((one, other), key=weights.mass)
    return contained(less, more, weights)
