"""The figures of a run: ranks of its samples, beside those of real pictures and of chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krea_data.loader import Batches
from krea_model.evaluate import bootstrap, retrieval_rank
from krea_model.evaluate.bootstrap import median
from krea_model.minilm import MiniLM
from krea_model.weights import write_tensors
from safetensors.torch import load_file
from torch import Tensor, tensor

from krea_launcher.asking import prompt_of
from krea_launcher.judge import Judge, Space, Tell, fit_space

if TYPE_CHECKING:
    from krea_launcher.quickstart import Quickstart

__all__ = ["Ranking", "fitted", "judged", "load_ranking", "summary"]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Pictures against the concepts of a run. targets `n e`: the embeddings of the concepts."""

    judge: Judge
    space: Space
    targets: Tensor
    concepts: Sequence[str]

    def numbers(self, concepts: Sequence[str]) -> list[int]:
        """The row of each concept in `targets`."""
        rows = {concept: row for row, concept in enumerate(self.concepts)}
        return [rows[concept] for concept in concepts]

    def places(self, images: Tensor, concepts: Sequence[str], tell: Tell) -> list[float]:
        """The place of each picture's own concept among all, 1 is best; images `b 3 H W`, uint8."""
        found = self.space(self.judge(images, tell))
        return retrieval_rank(found, self.targets, self.numbers(concepts)).ranks.tolist()

    def margins(self, images: Tensor, concepts: Sequence[str], tell: Tell) -> Tensor:
        """How much nearer each picture is to its own concept than to the nearest other one, `b`, in cosines."""
        near = self.space(self.judge(images, tell)) @ self.targets.T
        own = Tensor(self.numbers(concepts)).long()[:, None]
        return (near.gather(1, own) - near.scatter(1, own, -1).amax(1, keepdim=True)).squeeze(1)


def fitted(work: "Quickstart", folder: Path) -> dict[str, Any]:
    """Fit the joint space on the real pictures that were trained on; those of withheld pairs are its own test."""
    judge = Judge()
    kept = [one for one in work.records if work.keep(one) and one["meta"]["concept"] in work.vocabulary]
    concepts = sorted({one["meta"]["concept"] for one in kept})
    held = [one for one in work.questions if one["withheld"]]
    names = {one["id"] for one in [*kept, *held]}
    batch = Batches(work.shards, len(names), keep=lambda one: one["id"] in names).at(0)
    found = judge(batch.images, lambda done, total: work.progress.tick("look at real pictures", done, total))
    place = {one: row for row, one in enumerate(batch.ids)}
    tags = {one["meta"]["concept"]: ", ".join([one["meta"]["concept"], *one["meta"].get("tags", [])]) for one in kept}
    targets = MiniLM().embed([tags[concept] for concept in concepts])
    own = targets[[concepts.index(one["meta"]["concept"]) for one in kept]]
    space = fit_space(found[[place[one["id"]] for one in kept]], own)
    write_tensors(folder / "space.safetensors", {**space.tensors(), "targets": targets}, {})
    ceiling: list[float] = []
    if held:
        seen = space(found[[place[one["id"]] for one in held]])
        ceiling = retrieval_rank(seen, targets, [concepts.index(one["concept"]) for one in held]).ranks.tolist()
    return {"concepts": concepts, "real_withheld": summary(ceiling, [one["id"] for one in held], len(concepts))}


def load_ranking(folder: Path, concepts: Sequence[str]) -> Ranking:
    """What `fitted` left."""
    tensors = load_file(folder / "space.safetensors")
    targets = tensors.pop("targets")
    return Ranking(Judge(), Space(**tensors), targets, concepts)


def judged(work: "Quickstart") -> dict[str, Any]:
    """Draw every question with the last stage and with the one before, rank all, keep the last ranks by prompt.

    Withheld pairs are few and are drawn four times each.
    """
    known = work.yardstick.concepts
    questions = [one for one in work.questions for _ in range(4 if one["withheld"] else 1)]
    pairs = [(prompt_of(one), 1000 + i) for i, one in enumerate(questions)]
    found = {}
    for stage in work.drawn[-2:]:
        images = work.samples(stage, pairs)
        tell = lambda done, total: work.progress.tick("look at samples", done, total)  # noqa: E731
        places = work.yardstick.places(images, [one["concept"] for one in questions], tell)
        found[stage] = [{**one, "rank": rank} for one, rank in zip(questions, places, strict=True)]
    return {
        "concepts": len(known),
        "samples": found[work.drawn[-1]],
        "stages": {stage: _by_kind(samples, len(known)) for stage, samples in found.items()},
    }


def _by_kind(samples: Sequence[Mapping[str, Any]], concepts: int) -> dict[str, Any]:
    kinds = {
        kind: [one for one in samples if one["withheld"] == (kind == "withheld")] for kind in ("trained", "withheld")
    }
    return {
        kind: summary([one["rank"] for one in some], [prompt_of(one) for one in some], concepts)
        for kind, some in kinds.items()
    }


def summary(found: Sequence[float], prompts: Sequence[str], concepts: int) -> dict[str, Any]:
    """Count, median rank with its 95 % interval over prompts, its share of all concepts (0.5 is chance), recall."""
    if not found:
        return {"count": 0}
    names = list(dict.fromkeys(prompts))
    middle = bootstrap(tensor(found), [names.index(one) for one in prompts], median)
    return {
        "count": len(found),
        "median_rank": middle.value,
        "median_between": [middle.low, middle.high],
        "median_share": round(middle.value / concepts, 4),
        "recall_at_1": round(sum(r <= 1 for r in found) / len(found), 3),
        "recall_at_10": round(sum(r <= 10 for r in found) / len(found), 3),
    }
