"""What a feature means: words that its strongest pictures share and others do not, or what a caller says who looks.

Without a vision-language model a feature is named from the labels of its pictures. A word is good if it is on most of
the strongest pictures (its purity) and rare elsewhere (its lift); features without such a word stay without a name.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from krea_data.sae.sparse import Sparse

__all__ = ["Feature", "Namer", "dominant", "name_features"]

Namer = Callable[[Sequence[int], Sequence[str]], str]
"""A name from the numbers of a feature's strongest rows and the words found by statistics, such as a model's answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Feature:
    """One latent: `share` of rows that have it, `top` rows, strongest first, and words with (purity, lift)."""

    latent: int
    name: str
    share: float
    strongest: float
    top: tuple[int, ...]
    words: Mapping[str, tuple[float, float]]


def name_features(
    found: Sparse,
    labels: Sequence[Sequence[str]],
    *,
    top: int = 16,
    purity: float = 0.5,
    lift: float = 3.0,
    namer: Namer | None = None,
) -> list[Feature]:
    """Every feature that any row has, in order of its latent; `labels` are the words of each row.

    A name is up to three words that at least `purity` of the top rows have, `lift` times as often as all rows, the
    most telling first; "" where there are none. `namer` has the last word. ValueError if rows and labels differ.
    """
    if len(found) != len(labels):
        raise ValueError(f"{len(found)} rows have activations and {len(labels)} have labels; give each row a list")
    everywhere = Counter(word for words in labels for word in set(words))
    features: list[Feature] = []
    for latent, rows, values in found.columns():
        chosen: tuple[int, ...] = tuple(rows[:top].tolist())
        words = _words([labels[row] for row in chosen], everywhere, len(labels), purity, lift)
        name = ", ".join(list(words)[:3])
        features.append(
            Feature(
                latent=latent,
                name=name if namer is None else namer(chosen, list(words)),
                share=len(rows) / len(labels),
                strongest=float(values[0]),
                top=chosen,
                words=words,
            )
        )
    return features


def dominant(
    found: Sparse, features: Sequence[Feature], row: int, *, most: int = 5, share: float = 0.25
) -> list[tuple[str, float]]:
    """The named features of a row as (name, strength relative to the feature's strongest), best first.

    At most `most`, and none that is weaker than `share` of its strongest.
    """
    named = {feature.latent: feature for feature in features if feature.name}
    latents, values = found.row(row)
    ratios = [
        (named[latent].name, value / named[latent].strongest)
        for latent, value in zip(latents.tolist(), values.tolist(), strict=True)
        if latent in named
    ]
    best: dict[str, float] = {}  # several features may have one name
    for name, strength in ratios:
        if strength >= share:
            best[name] = max(strength, best.get(name, 0.0))
    return sorted(((name, round(strength, 4)) for name, strength in best.items()), key=lambda t: (-t[1], t[0]))[:most]


def _words(
    labels: Sequence[Sequence[str]], everywhere: Counter[str], rows: int, purity: float, lift: float
) -> dict[str, tuple[float, float]]:
    """Words with (purity, lift) that are good enough, the most telling first."""
    counts = Counter(word for words in labels for word in set(words))
    found: dict[str, tuple[float, float]] = {}
    for word, count in counts.items():
        pure = count / len(labels)
        if count > 1 and pure >= purity and pure >= lift * everywhere[word] / rows:
            found[word] = round(pure, 4), round(pure * rows / everywhere[word], 2)
    telling = {word: pure * float(np.log(much)) for word, (pure, much) in found.items()}
    return {word: found[word] for word in sorted(found, key=lambda word: (-telling[word], word))}
