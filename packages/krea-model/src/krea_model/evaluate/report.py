"""Everything that can be said of a checkpoint's pictures with the encoders at hand, as one report."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor, tensor

from krea_model.evaluate.bootstrap import Estimate, bootstrap, mean, median
from krea_model.evaluate.distances import frechet, frechet_limit, kernel_estimate, precision_recall
from krea_model.evaluate.features import Features, embed
from krea_model.evaluate.interfaces import Embedder, Joint
from krea_model.evaluate.prompts import diversity, retrieval_rank, vendi
from krea_model.inputs import seed_list
from krea_model.tensorfiles import replaced

__all__ = ["Distances", "Diversity", "Encoders", "Ranks", "Report", "evaluate"]

RECALLS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoders:
    """By a name of your choice: encoders of pictures, and of pictures and words in one space; either may be empty."""

    vision: Mapping[str, Embedder] = field(default_factory=dict)
    joint: Mapping[str, Joint] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Distances:
    """To the reference, by one encoder. frechet_limit: as of infinitely many pictures, None where there are fewer than
    eight to each feature; precision, recall: None for fewer than five pictures.
    """

    features: int
    reference: int
    frechet: float
    frechet_limit: float | None
    kernel: Estimate
    precision: float | None
    recall: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Of each picture's prompt among all, by one joint encoder; recall by k. Chance is a rank of (prompts + 1) / 2."""

    prompts: int
    similarity: Estimate
    mean: Estimate
    median: Estimate
    recall: Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True, slots=True)
class Diversity:
    """Inside the prompts that have several pictures, by one encoder: mean cosine distance; vendi: of all pictures."""

    prompts: int
    distance: Estimate
    vendi: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Figures by name of encoder; intervals hold 95 %, by drawing prompts (kernel distances: pictures) anew."""

    images: int
    prompts: int
    seed: int
    distances: Mapping[str, Distances]
    ranks: Mapping[str, Ranks]
    diversity: Mapping[str, Diversity]

    def json(self) -> str:
        """One object, names as in the fields."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def markdown(self) -> str:
        """The same as a table, one line for each figure."""
        lines = [f"{self.images} pictures of {self.prompts} prompts; intervals of 95 %, seed {self.seed}", ""]
        lines += ["| encoder | figure | value |", "| --- | --- | --- |"]
        for group in (self.distances, self.ranks, self.diversity):
            for name, part in group.items():
                lines += [f"| {name} | {figure} | {value} |" for figure, value in _figures(part)]
        return "\n".join(lines) + "\n"

    def write(self, path: str | Path) -> None:
        """The JSON, or with a name that ends in `.md` the table; whole or not at all."""
        path = Path(path)
        with replaced(path) as part:
            part.write_text(self.markdown() if path.suffix == ".md" else self.json())


def evaluate(
    images: Sequence[Tensor],
    prompts: Sequence[str],
    reference: Mapping[str, Features],
    encoders: Encoders,
    *,
    seed: int = 0,
) -> Report:
    """Pictures of a checkpoint against a reference set, against their prompts and against each other.

    images: batches `b 3 H W`, uint8; prompts: one for each picture, in order; draw several pictures of a prompt for its
    diversity. reference: by name of a vision encoder, from `features.gather`; encoders without one are only used for
    diversity. Ranks are among the different prompts.
    """
    if isinstance(prompts, str) or isinstance(images, Tensor) or not all(isinstance(one, str) for one in prompts):
        raise ValueError("pictures or prompts that are no lists; give batches of pictures, and a list of strings")
    (seed,) = seed_list([seed], 1)
    count = sum(len(batch) for batch in images)
    if not count or count != len(prompts):
        raise ValueError(
            f"{count} pictures with {len(prompts)} prompts; give at least one picture and a prompt for each"
        )
    if unknown := sorted(reference.keys() - encoders.vision.keys()):
        raise ValueError(f"a reference for {unknown[0]!r}, but the encoders of pictures are {sorted(encoders.vision)}")
    rows = {name: embed(images, embedder) for name, embedder in encoders.vision.items()}
    several = len(set(prompts)) < len(prompts)
    return Report(
        images=count,
        prompts=len(set(prompts)),
        seed=seed,
        distances={name: _distances(rows[name], known, seed) for name, known in reference.items()},
        ranks={name: _ranks(images, prompts, both, seed) for name, both in encoders.joint.items()},
        diversity={name: _diversity(found, prompts, seed) for name, found in rows.items() if several},
    )


def _distances(rows: Tensor, known: Features, seed: int) -> Distances:
    enough = len(rows) >= 8 * rows.shape[1]
    near = precision_recall(rows, known.kept) if min(len(rows), len(known.kept)) > 4 else (None, None)
    return Distances(
        features=rows.shape[1],
        reference=known.moments.count,
        frechet=frechet(rows, known.moments),
        frechet_limit=frechet_limit(rows, known.moments, seed=seed) if enough else None,
        kernel=kernel_estimate(rows, known.kept, seed=seed),
        precision=near[0],
        recall=near[1],
    )


def _ranks(images: Iterable[Tensor], prompts: Sequence[str], encoder: Joint, seed: int) -> Ranks:
    different = list(dict.fromkeys(prompts))
    own = [different.index(prompt) for prompt in prompts]
    places = retrieval_rank(embed(images, encoder.images), encoder.texts(different), own)
    return Ranks(
        prompts=len(different),
        similarity=bootstrap(places.similarity, own, mean, seed=seed),
        mean=bootstrap(places.ranks, own, mean, seed=seed),
        median=bootstrap(places.ranks, own, median, seed=seed),
        recall={str(k): bootstrap(places.recall(k), own, mean, seed=seed) for k in RECALLS if k < len(different)},
    )


def _diversity(rows: Tensor, prompts: Sequence[str], seed: int) -> Diversity:
    found = tensor(list(diversity(rows, prompts).values()))
    return Diversity(
        prompts=len(found), distance=bootstrap(found, range(len(found)), mean, seed=seed), vendi=vendi(rows)
    )


def _figures(part: Distances | Ranks | Diversity) -> list[tuple[str, str]]:
    if isinstance(part, Distances):
        figures = {
            "Frechet distance": part.frechet,
            "Frechet distance, extrapolated": part.frechet_limit,
            "kernel distance": part.kernel,
            "precision": part.precision,
            "recall": part.recall,
        }
    elif isinstance(part, Ranks):
        figures = {
            "similarity to the prompt": part.similarity,
            f"mean rank among {part.prompts}": part.mean,
            f"median rank among {part.prompts}": part.median,
        } | {f"own prompt among the first {k}": value for k, value in part.recall.items()}
    else:
        figures = {f"diversity inside {part.prompts} prompts": part.distance, "Vendi score": part.vendi}
    return [
        (name, f"{value:.4g}" if isinstance(value, float) else str(value))
        for name, value in figures.items()
        if value is not None
    ]
