"""What a run asks its model for: the rows of the sheets, and what is drawn to be ranked or compared."""

from collections.abc import Mapping, Sequence
from typing import Any

from krea_data.demo import STYLES, withheld_concept, withheld_pair
from krea_data.tasks.caption import medium

__all__ = ["candidates", "practice", "prompt_of", "questions", "sheet_prompts", "spread"]

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


def questions(candidates: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """All withheld pairs of concepts that were trained on in some style, and `count` pairs that were trained on.

    Every second pair that was trained on is left for practice.
    """
    seen = [one for one in candidates if not one["withheld"]]
    known = {one["concept"] for one in seen}
    held = [one for one in candidates if one["withheld"] and one["concept"] in known]
    return [*held, *spread(seen[::2], count)]


def practice(candidates: Sequence[dict[str, Any]], questions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs that were trained on and are not among the questions; ValueError if there are none."""
    asked = {one["id"] for one in questions}
    found = [one for one in candidates if not one["withheld"] and one["id"] not in asked]
    if not found:
        raise ValueError(f"{len(candidates)} pictures leave none to learn preferences from; take more concepts")
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
