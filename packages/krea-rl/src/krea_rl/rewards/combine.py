"""Several rewards at once: names, weights, and conditions of one reward on another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from krea_rl.interfaces import Reward

__all__ = ["Rewards", "Term"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One reward with its weight.

    gate: (name of another term, threshold): where that one scores below the threshold this one scores 0, so that an
        easy reward cannot be collected while the hard one fails (GDPO, arXiv 2601.05242, section on conditions).
    applies: which prompts the reward can judge; the others score 0 for the whole group and so teach nothing.
    """

    name: str
    reward: Reward
    weight: float = 1.0
    gate: tuple[str, float] | None = None
    applies: Callable[[str], bool] | None = None

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(
                f"weight {self.weight} of reward {self.name!r} must be positive; leave the term out instead"
            )


class Rewards:
    """Terms scored together: `(prompts, images) -> {name: b}`. ValueError for anything that is not a finite score."""

    def __init__(self, *terms: Term) -> None:
        names = [term.name for term in terms]
        if not terms or len(set(names)) != len(names):
            raise ValueError(f"reward names {names} must be distinct, at least one")
        for term in terms:
            if term.gate and (term.gate[0] not in names or term.gate[0] == term.name):
                raise ValueError(f"reward {term.name!r} is gated by {term.gate[0]!r}, which is not another of {names}")
        self.terms = terms

    @property
    def weights(self) -> dict[str, float]:
        return {term.name: term.weight for term in self.terms}

    def __call__(self, prompts: Sequence[str], images: Tensor) -> dict[str, Tensor]:
        """images: `b c H W` in [-1, 1] -> gated scores per name, fp32 on the CPU."""
        if len(prompts) != len(images):
            raise ValueError(f"{len(prompts)} prompts for {len(images)} images; give one prompt per image")
        raw = {term.name: score(term, prompts, images) for term in self.terms}
        return {term.name: gated(term, raw) for term in self.terms}


def score(term: Term, prompts: Sequence[str], images: Tensor) -> Tensor:
    """Scores `b` of one term where it applies, 0 elsewhere."""
    judged = [i for i, prompt in enumerate(prompts) if term.applies is None or term.applies(prompt)]
    scores = torch.zeros(len(prompts))
    if not judged:
        return scores
    found = term.reward([prompts[i] for i in judged], images[torch.tensor(judged, device=images.device)])
    if tuple(found.shape) != (len(judged),):
        raise ValueError(
            f"reward {term.name!r} returned shape {tuple(found.shape)} for {len(judged)} images; return one score each"
        )
    found = found.detach().float().cpu()
    bad = (~torch.isfinite(found)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"reward {term.name!r} returned {found[bad[0]].item()} for prompt {prompts[judged[bad[0]]]!r} "
            f"({len(bad)} of {len(judged)} scores are not finite); a score must be finite: repair the reward or drop it"
        )
    scores[judged] = found
    return scores


def gated(term: Term, raw: dict[str, Tensor]) -> Tensor:
    """The term's scores, 0 where the reward that gates it stays below its threshold."""
    if term.gate is None:
        return raw[term.name]
    name, threshold = term.gate
    return torch.where(raw[name] >= threshold, raw[term.name], torch.zeros_like(raw[term.name]))
