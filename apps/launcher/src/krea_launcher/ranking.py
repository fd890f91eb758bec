"""The figures of a run: ranks of its samples, beside those of real pictures and of chance."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from krea_data.loader import Batches
from krea_data.tasks.caption import medium
from krea_model.minilm import MiniLM
from torch import Tensor

from krea_launcher.judge import Judge, fit_space, ranks

if TYPE_CHECKING:
    from krea_launcher.quickstart import Quickstart

__all__ = ["judged", "summary"]


def judged(work: "Quickstart") -> dict[str, Any]:
    """Draw every question once with the last stage, rank all, and keep the pictures' ranks by prompt.

    The space is fitted on the real pictures that were trained on; those of withheld pairs are its own test.
    """
    judge, tell = Judge(), work.progress.tick
    kept = [one for one in work.records if work.keep(one) and one["meta"]["concept"] in work.vocabulary]
    withheld = [one for one in work.questions if one["withheld"]]
    names = {one["id"] for one in kept} | {one["id"] for one in withheld}
    batch = Batches(work.shards, len(names), keep=lambda one: one["id"] in names).at(0)
    found = judge(batch.images, lambda done, total: tell("look at real pictures", done, total))
    place = {one: row for row, one in enumerate(batch.ids)}
    concepts = sorted({one["meta"]["concept"] for one in kept})
    tags = {one["meta"]["concept"]: ", ".join([one["meta"]["concept"], *one["meta"].get("tags", [])]) for one in kept}
    targets = MiniLM().embed([tags[concept] for concept in concepts])
    own = [concepts.index(one["meta"]["concept"]) for one in kept]
    space = fit_space(found[[place[one["id"]] for one in kept]], targets[own])
    questions = [one for one in work.questions if one["concept"] in tags]
    images = _drawn(work, questions)
    answers = ranks(
        space(judge(images, lambda done, total: tell("look at samples", done, total))),
        [concepts.index(one["concept"]) for one in questions],
        targets,
    )
    real = [one for one in withheld if one["concept"] in tags]
    ceiling: list[int] = []
    if real:
        seen = space(found[[place[one["id"]] for one in real]])
        ceiling = ranks(seen, [concepts.index(one["concept"]) for one in real], targets)
    samples = [{**one, "rank": rank} for one, rank in zip(questions, answers, strict=True)]
    return {
        "concepts": len(concepts),
        "samples": samples,
        "trained": summary([one["rank"] for one in samples if not one["withheld"]], len(concepts)),
        "withheld": summary([one["rank"] for one in samples if one["withheld"]], len(concepts)),
        "real_withheld": summary(ceiling, len(concepts)),
    }


def _drawn(work: "Quickstart", questions: Sequence[Mapping[str, Any]]) -> Tensor:
    prompts = [medium({**one, "label": one["concept"]}) for one in questions]
    work.progress.tick(f"draw {len(prompts)} samples", 0, 1)
    images = work.samples(work.preset.stages[-1], [(prompt, 1000 + i) for i, prompt in enumerate(prompts)])
    return images


def summary(found: Sequence[int], concepts: int) -> dict[str, Any]:
    """Count, median rank, its share of all concepts (0.5 is chance), and recall at 1 and 10."""
    if not found:
        return {"count": 0}
    middle = median(found)
    return {
        "count": len(found),
        "median_rank": middle,
        "median_share": round(middle / concepts, 4),
        "recall_at_1": round(sum(r <= 1 for r in found) / len(found), 3),
        "recall_at_10": round(sum(r <= 10 for r in found) / len(found), 3),
    }
