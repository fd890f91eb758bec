"""Which prompts are drawn, how pictures are scored, and which of two pictures wins."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from krea_data import demo
from krea_launcher import asking, prefer
from krea_launcher.judge import Judge, Space
from krea_launcher.presets import smoke
from krea_launcher.ranking import Ranking
from krea_rl.pairs import PairSet
from safetensors.torch import load_file
from torch import Tensor

CONCEPTS = [f"thing {n}" for n in range(300)]


def records() -> list[dict[str, Any]]:
    names = [(concept, style) for concept in CONCEPTS for style in demo.STYLES]
    return [{"id": f"{c}/{s}", "meta": {"concept": c, "style": s}} for c, s in names]


def test_spread_is_even_and_keeps_few_as_they_are() -> None:
    assert asking.spread(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert asking.spread([3, 1], 5) == [3, 1]
    assert len(set(asking.spread(list(range(633)), 96))) == 96


def test_practice_never_meets_what_is_ranked_or_withheld() -> None:
    candidates = asking.candidates(records(), CONCEPTS)
    questions = asking.questions(candidates, 40)
    practice = asking.practice(candidates, questions)
    assert sum(not one["withheld"] for one in questions) == 40
    assert any(one["withheld"] for one in questions)
    assert not {one["id"] for one in practice} & {one["id"] for one in questions}
    assert not any(demo.withheld_pair(one["concept"], one["style"]) for one in practice)
    assert not any(demo.withheld_concept(one["concept"]) for one in [*practice, *questions])
    with pytest.raises(ValueError, match="none to learn preferences from"):
        asking.practice([], [])


def test_sheets_name_what_was_withheld() -> None:
    prompts = asking.sheet_prompts(CONCEPTS)
    for prompt, remark in prompts.items():
        concept, _, style = prompt.partition(", ")
        assert (remark == "withheld pair") == demo.withheld_pair(concept, style)
        assert (remark == "withheld concept") == (
            not demo.withheld_pair(concept, style) and demo.withheld_concept(concept)
        )
    assert {"", "withheld pair", "withheld concept"} == set(prompts.values())


def test_margins_are_to_the_nearest_other_concept() -> None:
    space = Space(torch.zeros(2), torch.ones(2), torch.eye(2), torch.zeros(2))
    looked = lambda images, tell: images  # noqa: E731
    ranking = Ranking(cast(Judge, looked), space, torch.eye(2), ["east", "north"])
    points = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    found = ranking.margins(points, ["east", "east", "north"], lambda done, total: None)
    torch.testing.assert_close(found, torch.tensor([1.0, -0.2, 0.2]))


def test_the_real_picture_wins_over_all_and_the_best_over_the_worst(tmp_path: Path) -> None:
    preset = replace(smoke(), preference=replace(smoke().preference, group=3))
    real = {"a": 200, "b": 201}

    def flat(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)

    inputs = prefer.Inputs(
        folder=tmp_path,
        draw=lambda wanted: flat([seed - prefer.SEEDS for _, seed in wanted]),
        real=lambda prompts: flat([real[prompt] for prompt in prompts]),
        score=lambda images, concepts: torch.tensor([0.3, 0.1, 0.2, 0.5, 0.5, 0.5]),
        text=cast(Any, None),
        autoencoder=cast(Any, None),
    )
    found = prefer.pairs(inputs, preset, [("a", "thing"), ("b", "thing")])
    pictures = load_file(tmp_path / "pictures.safetensors")["pictures"][:, 0, 0, 0].tolist()
    pairs = PairSet.load(tmp_path / "pairs.jsonl").pairs
    seen = {(one.prompt, pictures[int(one.winner.image)], pictures[int(one.loser.image)]) for one in pairs}
    own = {("a", 0, 1)}  # the group of "b" has no order
    assert seen == own | {("a", 200, n) for n in range(3)} | {("b", 201, n) for n in range(3, 6)}
    assert found == {"pictures": 6, "pairs": 7}
