"""What a run asks its model for: the rows of the sheets, and what is drawn to be ranked or compared."""

from collections.abc import Mapping, Sequence
from typing import Any

from krea_data.demo import STYLES, withheld_concept, withheld_pair
from krea_data.tasks.caption import medium

__all__ = ["candidates", "prompt_of", "sheet_prompts", "spread"]

SHOWN = ("red apple", "green apple", "rocket", "tiger face", "sunflower", "pizza", "house", "guitar", "owl", "cactus")


def prompt_of(question: Mapping[str, Any]) -> str:
    """The prompt that asks for a concept in a style."""
    return medium({**question, "label": question["concept"]})


def candidates(records: Sequence[Mapping[str, Any]], vocabulary: Sequence[str]) -> list[dict[str, Any]]:
    """Every pair of a trained concept and a style that has a picture, by id, and whether the pair was withheld."""
    chosen = {concept for concept in vocabulary if not withheld_concept(concept)}
    found = []
    for record in sorted(records, key=lambda one: one["id"]):
        concept, style = record["meta"]["concept"], record["meta"]["style"]
        if concept in chosen:
            held = withheld_pair(concept, style)
            found.append({"concept": concept, "style": style, "id": record["id"], "withheld": held})
    return found


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly from first to last."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


def sheet_prompts(vocabulary: Sequence[str]) -> dict[str, str]:
    """Well-known concepts in turn through the styles, then some withheld ones; each prompt with a remark or ""."""
    shown = [c for c in SHOWN if c in vocabulary] or list(vocabulary[:6])
    known = {f"{concept}, {STYLES[i % len(STYLES)]}": "" for i, concept in enumerate(shown)}
    pairs = [f"{c}, {s}" for c in vocabulary for s in STYLES if withheld_pair(c, s)]
    whole = [f"{c}, {STYLES[1]}" for c in vocabulary if withheld_concept(c)]
    return known | dict.fromkeys(pairs[:4], "withheld pair") | dict.fromkeys(whole[:2], "withheld concept")
