import json
import math
import random

import pytest
import torch
from krea_model import evaluate
from krea_model.evaluate import (
    Encoders,
    Features,
    ModuleEmbedder,
    Moments,
    bootstrap,
    diversity,
    embed,
    frechet,
    frechet_limit,
    gather,
    kernel_distance,
    kernel_estimate,
    precision_recall,
    retrieval_rank,
    vendi,
)
from krea_model.evaluate.bootstrap import mean, median
from torch import Tensor
from torch.nn.functional import cosine_similarity


def rows(count: int, width: int, seed: int = 0, spread: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(99)) / math.sqrt(width)
    return shift + spread * torch.randn(count, width, generator=generator) @ mix


def pictures(count: int, seed: int = 0, side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def flat(images: Tensor) -> Tensor:
    """A stand-in for an encoder: the mean colours of the four quarters."""
    return torch.nn.functional.adaptive_avg_pool2d(images.float() / 20, 2).flatten(1)


@pytest.mark.parametrize(("n", "m", "width"), [(200, 150, 12), (9, 40, 16)])
def test_frechet_distance_is_that_of_scipys_matrix_root(n, m, width):
    linalg = pytest.importorskip("scipy.linalg")
    a, b = rows(n, width, 1), rows(m, width, 2, spread=1.5, shift=0.3)
    got = frechet(a, b)
    x, y = a.double().numpy(), b.double().numpy()
    import numpy as np

    left, right = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(left @ right + 1e-12 * np.eye(width)).real
    want = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(left + right - 2 * root)
    assert got == pytest.approx(want, rel=1e-4)


def test_frechet_distance_of_known_gaussians():
    exact = Moments(11, torch.zeros(3).double(), 10 * torch.diag(torch.tensor([4.0, 1.0, 9.0])).double())
    other = Moments(6, torch.tensor([1.0, 2, 2]).double(), 5 * torch.diag(torch.tensor([1.0, 1.0, 4.0])).double())
    assert frechet(exact, other) == pytest.approx(9 + 1 + 0 + 1)  # |m|^2 + sum of squared differences of deviations
    assert frechet(exact, exact) == pytest.approx(0, abs=1e-12)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    a, b = rows(50, 5, 1).double(), rows(60, 5, 2, spread=2.0).double()
    assert frechet(a @ turn, b @ turn) == pytest.approx(frechet(a, b), rel=1e-9)
    assert frechet(a + 1e3, b + 1e3) == pytest.approx(frechet(a, b), rel=1e-7)


def test_few_pictures_are_warned_of_and_extrapolation_corrects_them(caplog):
    whole = Moments.of(rows(50_000, 8, 5))
    sets = [rows(100, 8, seed) for seed in range(6, 26)]
    far = sum(frechet(some, whole) for some in sets) / 20
    near = sum(frechet_limit(some, whole) for some in sets) / 20
    assert abs(near) < far / 3  # the true distance is 0
    assert not caplog.records
    frechet(rows(8, 8), whole)
    assert "8 pictures with 8 features" in caplog.text


def test_moments_do_not_depend_on_batches_or_order_and_stand_large_means():
    x = rows(57, 6).double() + 1e6
    parts = [Moments.of(part) for part in x.split([1, 20, 30, 6])]
    forward = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
    tree = parts[3].merge(parts[1]).merge(parts[0].merge(parts[2]))
    for got in (forward, tree, Moments.of(x)):
        assert got.count == 57
        assert torch.allclose(got.covariance, torch.cov(x.T), rtol=1e-8)
        assert torch.allclose(got.mean, x.mean(0), rtol=1e-14)


def test_the_kept_sample_is_uniform_and_the_same_for_any_split():
    x = torch.arange(400.0)[:, None].repeat(1, 2)
    whole = Features.of(x, keep=50, seed=3)
    parts = [Features.of(x[a:b], keep=50, seed=3, first=a) for a, b in ((250, 400), (0, 100), (100, 250))]
    merged = parts[0].merge(parts[1], keep=50).merge(parts[2], keep=50)
    assert torch.equal(merged.kept, whole.kept)
    assert torch.allclose(merged.moments.scatter, whole.moments.scatter)
    assert len(whole.kept[:, 0].unique()) == 50
    found = torch.cat([Features.of(x, keep=50, seed=seed).kept[:, 0] for seed in range(40)])
    counts = torch.histc(found, 4, 0, 400)
    assert ((counts - 500).abs() < 5 * math.sqrt(2000 * 3 / 16)).all()


def test_features_go_through_a_file_and_keep_their_label(tmp_path):
    batches = [pictures(7, 1), pictures(5, 2, side=16)]
    known = gather(batches, {"flat": flat}, keep=6)["flat"]
    evaluate.save(tmp_path / "known.safetensors", known, "flat of squares")
    back = evaluate.load(tmp_path / "known.safetensors", "flat of squares")
    assert back.moments.count == 12
    assert torch.equal(back.moments.scatter, known.moments.scatter)
    assert torch.equal(back.merge(known).kept, known.merge(back).kept)
    with pytest.raises(ValueError, match="not of 'dino'"):
        evaluate.load(tmp_path / "known.safetensors", "dino")
    whole = (tmp_path / "known.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="truncated"):
        evaluate.load(tmp_path / "half.safetensors", "flat of squares")


def test_kernel_distance_is_the_sum_over_pairs():
    a, b = rows(6, 3, 1).double(), rows(5, 3, 2, shift=0.5).double()

    def kernel(x: Tensor, y: Tensor) -> float:
        return float((x @ y / 3 + 1) ** 3)

    inside = [sum(kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j) for s in (a, b)]
    across = sum(kernel(x, y) for x in a for y in b)
    want = inside[0] / 30 + inside[1] / 20 - 2 * across / 30
    assert kernel_distance(a, b) == pytest.approx(want, rel=1e-12)


def test_kernel_distance_is_unbiased_and_its_interval_holds_the_truth():
    found = torch.tensor([kernel_distance(rows(20, 4, 2 * s), rows(20, 4, 2 * s + 1)) for s in range(200)])
    assert abs(found.mean()) < 4 * found.std() / math.sqrt(200)
    assert found.min() < 0
    truth = kernel_distance(rows(3000, 4, 7001), rows(3000, 4, 7002, shift=0.7))
    held = 0
    for seed in range(60):
        one = kernel_estimate(rows(80, 4, seed), rows(80, 4, 500 + seed, shift=0.7), repeats=200, seed=seed)
        held += one.low <= truth <= one.high
    assert held >= 48  # 57 expected of 60


def test_precision_and_recall_by_hand():
    b = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    a = torch.tensor([[0.5], [30.0], [31.0], [32.0], [33.0]])
    # radii of b for one neighbour: 1, 1, 1, 8; only 0.5 lies within. Radii of a: 29.5, 1, 1, 1, 1: it holds all of b.
    assert precision_recall(a, b, neighbours=1) == (0.2, 1.0)
    assert precision_recall(b, b, neighbours=1) == (1.0, 1.0)
    with pytest.raises(ValueError, match="5-th neighbour"):
        precision_recall(a, b, neighbours=5)


def test_ranks_are_those_of_sorting_and_equals_share_their_places():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(30, 5, generator=generator), torch.randn(8, 5, generator=generator)
    own = [i % 8 for i in range(30)]
    places = retrieval_rank(images, texts, own)
    for i, prompt in enumerate(own):
        near = [float(cosine_similarity(images[i], text, 0)) for text in texts]
        assert places.ranks[i] == sorted(near, reverse=True).index(near[prompt]) + 1
        assert places.similarity[i] == pytest.approx(near[prompt], abs=1e-6)
    blind = retrieval_rank(torch.ones(4, 3), torch.ones(5, 3), [0, 1, 2, 4])
    assert blind.ranks.tolist() == [3.0] * 4
    assert blind.recall(1).tolist() == pytest.approx([0.2] * 4)
    assert blind.recall(5).tolist() == [1.0] * 4
    with pytest.raises(ValueError, match="do not fit"):
        retrieval_rank(images, texts, [8] * 30)


def test_diversity_is_the_mean_over_pairs_inside_each_prompt():
    x = rows(7, 6, 3)
    found = diversity(x, ["a", "b", "a", "a", "b", "c", "a"])
    members = [0, 2, 3, 6]
    pairs = [1 - float(cosine_similarity(x[i], x[j], 0)) for i in members for j in members if i < j]
    assert found["a"] == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)
    assert set(found) == {"a", "b"}
    assert diversity(torch.ones(3, 4), [1, 1, 1]) == {1: pytest.approx(0, abs=1e-12)}
    with pytest.raises(ValueError, match="at least 2 of each"):
        diversity(x, list(range(7)))


def test_vendi_score_counts_what_is_different():
    eye = torch.eye(6)
    assert vendi(eye) == pytest.approx(6)
    assert vendi(eye[[0, 0, 0]]) == pytest.approx(1)
    assert vendi(eye[[0, 0, 1, 1, 2, 2, 3, 3]]) == pytest.approx(4)  # more pictures than features


def test_bootstrap_repeats_itself_and_draws_whole_prompts():
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(400, generator=generator)
    alone = bootstrap(values, range(400), mean, seed=5)
    assert alone == bootstrap(values, range(400), mean, seed=5)
    assert alone != bootstrap(values, range(400), mean, seed=6)
    assert alone.low < alone.value < alone.high
    assert (alone.high - alone.low) == pytest.approx(2 * 1.96 * float(values.std()) / 20, rel=0.15)
    copies = bootstrap(values[:100].repeat_interleave(4), [i // 4 for i in range(400)], mean, seed=5)
    honest = bootstrap(values[:100], range(100), mean, seed=5)
    assert (copies.low, copies.high) == pytest.approx((honest.low, honest.high))
    assert median(torch.tensor([1.0, 2.0, 3.0, 10.0])) == 2.5


class Colours:
    """A joint space: pictures by their mean colour, prompts by the colour that they name."""

    def images(self, images: Tensor, /) -> Tensor:
        return images.float().mean((2, 3)) - 127

    def texts(self, prompts, /) -> Tensor:
        names = {"red": 0, "green": 1, "blue": 2}
        return torch.stack([torch.nn.functional.one_hot(torch.tensor(names[p]), 3).float() for p in prompts])


def painted(prompts: list[str], noise: int = 40) -> list[Tensor]:
    rng, out = random.Random(0), []
    for prompt in prompts:
        one = torch.full((3, 8, 8), 40)
        one[["red", "green", "blue"].index(prompt)] = 200
        out.append((one + rng.randint(0, noise)).to(torch.uint8))
    return list(torch.stack(out).split(4))


def test_the_report_tells_good_pictures_from_bad_ones(tmp_path):
    prompts = ["red", "green", "blue"] * 6
    encoders = Encoders(vision={"flat": flat}, joint={"colours": Colours()})
    reference = gather(painted(prompts, 50), encoders.vision)
    good = evaluate.evaluate(painted(prompts), prompts, reference, encoders)
    bad = evaluate.evaluate([pictures(18)], prompts, reference, encoders)
    assert good == evaluate.evaluate(painted(prompts), prompts, reference, encoders)
    assert good.ranks["colours"].mean.value == 1
    assert good.ranks["colours"].recall["1"].value == 1
    assert 1.3 < bad.ranks["colours"].mean.value < 2.7
    assert good.distances["flat"].frechet < bad.distances["flat"].frechet / 3
    assert good.distances["flat"].kernel.value < bad.distances["flat"].kernel.low
    assert good.distances["flat"].frechet_limit is None  # 18 pictures with 12 features
    assert good.distances["flat"].precision == 1
    assert bad.distances["flat"].precision == 0
    many = evaluate.evaluate(painted(prompts) * 6, prompts * 6, reference, encoders).distances["flat"]
    assert many.frechet_limit is not None  # 108 pictures
    assert 0 < good.diversity["flat"].distance.value < 0.05
    good.write(tmp_path / "report.json")
    read = json.loads((tmp_path / "report.json").read_text())
    assert read["ranks"]["colours"]["median"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    good.write(tmp_path / "report.md")
    table = (tmp_path / "report.md").read_text()
    assert "| colours | own prompt among the first 1 | 1 (1 to 1) |" in table
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.json", "report.md"]


def test_the_report_works_with_whatever_encoders_there_are():
    prompts = ["red", "green", "blue"]
    ranked = evaluate.evaluate(painted(prompts), prompts, {}, Encoders(joint={"colours": Colours()}))
    assert (ranked.distances, ranked.diversity) == ({}, {})
    assert ranked.ranks["colours"].prompts == 3
    assert set(ranked.ranks["colours"].recall) == {"1"}  # among the first 5 of 3 says nothing
    only = evaluate.evaluate(painted(prompts), prompts, {}, Encoders(vision={"flat": flat}))
    assert (only.distances, only.ranks, only.diversity) == ({}, {}, {})  # one picture of each prompt


def test_bad_input_is_said():
    encoders = Encoders(vision={"flat": flat})
    with pytest.raises(ValueError, match="4 pictures with 3 prompts"):
        evaluate.evaluate([pictures(4)], ["a"] * 3, {}, encoders)
    with pytest.raises(ValueError, match="'dino', but the encoders of pictures are"):
        evaluate.evaluate([pictures(4)], ["a"] * 4, gather([pictures(3)], {"dino": flat}), encoders)
    with pytest.raises(ValueError, match=r"torch.float32; give \(count, 3, H, W\) in uint8"):
        embed([torch.zeros(1, 3, 8, 8)], flat)
    broken = rows(5, 3)
    broken[2, 1] = math.nan
    with pytest.raises(ValueError, match="picture 2 are not finite"):
        frechet(broken, rows(5, 3))
    with pytest.raises(ValueError, match="same encoder"):
        kernel_distance(rows(5, 3), rows(5, 4))
    with pytest.raises(ValueError, match="wrap it"):
        ModuleEmbedder(lambda x: x, lambda x: x.float())(pictures(2))
    with pytest.raises(ValueError, match="covariance of 1 picture"):
        frechet(rows(1, 3), rows(5, 3))
