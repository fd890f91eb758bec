"""Provenance, the share of on-policy pairs, files, and batches that can be replayed."""

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from krea_rl.pairs import Member, Pair, PairBatches, PairSet, best_and_worst, corrupt, settle
from krea_train.interfaces import Batches


def pair(i: int, on_policy: bool = True, prompt: str = "a cat") -> Pair:
    winner = Member(image=f"w{i}", origin="step-100", on_policy=on_policy)
    return Pair(
        prompt=prompt, winner=winner, loser=Member(image=f"l{i}", origin="step-10", on_policy=False), reason="human"
    )


def test_share_must_exceed_one_half() -> None:
    assert PairSet((pair(0), pair(1), pair(2, False))).share == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match=r"share 0\.500 of 2 pairs is not above 0\.5"):
        PairSet((pair(0), pair(1, False)))
    with pytest.raises(ValueError, match="0 pairs"):
        PairSet(())
    with pytest.raises(ValueError, match="two pictures"):
        Pair(prompt="", winner=pair(0).winner, loser=pair(0).winner, reason="x")


def test_files_come_back_whole_and_name_a_bad_line(tmp_path: Path) -> None:
    pairs = PairSet((pair(0, prompt='a "caf\u00e9" sign'), pair(1)))
    path = tmp_path / "pairs.jsonl"
    pairs.save(path)
    assert PairSet.load(path) == pairs
    assert [p.name for p in tmp_path.iterdir()] == ["pairs.jsonl"]
    path.write_text(path.read_text() + '{"prompt": "no pictures"}\n')
    with pytest.raises(ValueError, match=r"line 3 of .* is not a pair"):
        PairSet.load(path)


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, others = tmp_path / "pairs.jsonl", [PairSet((pair(2), pair(3)))]

    def interrupted(one: Pair) -> dict[str, Any]:
        if others:
            others.pop().save(path)
        return asdict(one)

    monkeypatch.setattr("krea_rl.pairs.asdict", interrupted)
    PairSet((pair(0), pair(1))).save(path)
    assert PairSet.load(path) == PairSet((pair(0), pair(1)))
    assert [p.name for p in tmp_path.iterdir()] == ["pairs.jsonl"]


def load(key: str) -> torch.Tensor:
    return torch.full((3, 4, 4), int(key[1:]) + (100 if key[0] == "l" else 0), dtype=torch.uint8)


def test_batches_interleave_winner_and_loser_and_replay() -> None:
    pairs = PairSet(tuple(pair(i, prompt=f"prompt {i}") for i in range(5)))
    stream: Batches = PairBatches(pairs, load, 2, seed=3)
    first = list(islice(stream, 5))
    for batch in first:
        pixels = batch.images[:, 0, 0, 0].tolist()
        assert [p + 100 for p in pixels[::2]] == pixels[1::2]
        assert [c["long"] for c in batch.captions] == [f"prompt {p}" for p in pixels[::2] for _ in range(2)]
    epoch = [i for batch in first[:2] for i in batch.ids]
    assert len(set(epoch)) == 8
    again = PairBatches(pairs, load, 2, seed=3)
    again.load_state_dict({"place": 3})
    assert next(iter(again)).ids == first[3].ids
    assert stream.state_dict() == {"place": 5}


def test_pictures_of_two_sizes_do_not_make_a_batch() -> None:
    pairs = PairSet((pair(0), pair(1)))
    with pytest.raises(ValueError, match="resize them"):
        PairBatches(pairs, lambda key: torch.zeros(3, 4, 4 + int(key[1:]), dtype=torch.uint8), 2).batch(0)
    with pytest.raises(ValueError, match="use 1 to 2"):
        PairBatches(pairs, load, 3)


def test_best_and_worst_leave_out_small_margins() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.5, 0.52, 0.51]])
    found = best_and_worst(["a", "b"], scores, [["x", "y", "z"], ["u", "v", "w"]], origin="step-7", margin=0.1)
    assert [(p.prompt, p.winner.image, p.loser.image) for p in found] == [("a", "y", "x")]
    assert PairSet(tuple(found)).share == 1


def test_contradicting_judgements_are_dropped_both() -> None:
    against = Pair(prompt="a cat", winner=pair(0).loser, loser=pair(0).winner, reason="human")
    kept, dropped = settle([pair(0), pair(1), against])
    assert kept == [pair(1)]
    assert dropped == [pair(0), against]


@pytest.mark.parametrize("kind", ["blur", "noise", "saturate", "shuffle"])
def test_corruptions_change_what_they_name(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(60, 200, (3, 17, 12), generator=generator, dtype=torch.uint8)
    worse = corrupt(image, kind, 1, "a")  # type: ignore[arg-type]
    assert worse.shape == image.shape
    assert worse.dtype == torch.uint8
    assert torch.equal(worse, corrupt(image, kind, 1, "a"))  # type: ignore[arg-type]
    rough = (image.float().diff(dim=2).abs().mean(), worse.float().diff(dim=2).abs().mean())
    if kind == "blur":
        assert rough[1] < rough[0] / 2
    elif kind == "noise":
        assert rough[1] > rough[0]
    elif kind == "saturate":
        assert worse.float().std(0).mean() > 1.5 * image.float().std(0).mean()
    else:
        assert torch.equal(worse.flatten(1).sort(1).values, image.flatten(1).sort(1).values)
        assert not torch.equal(worse, image)


def test_unknown_corruption_is_refused() -> None:
    with pytest.raises(ValueError, match="is not one of"):
        corrupt(torch.zeros(3, 4, 4, dtype=torch.uint8), "melt", 1, "a")  # type: ignore[arg-type]
