"""The joint space: features of the real network, a ridge that solves its equation, ranks in it."""

import numpy as np
import pytest
import torch
from krea_launcher.judge import Judge, fit_space
from krea_model.evaluate import retrieval_rank


def test_features_come_from_the_layer_before_the_classifier() -> None:
    images = torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    judge = Judge()
    found = judge(images)
    assert found.shape == (3, 1024)
    assert found.min() >= 0  # after a rectifier and a mean
    assert torch.allclose(judge(images[1:2])[0], found[1], atol=1e-4)


def test_space_finds_a_linear_map_in_which_pictures_find_their_concepts() -> None:
    draw = torch.Generator().manual_seed(0)
    targets = torch.nn.functional.normalize(torch.randn(20, 8, generator=draw), dim=-1)
    concepts = torch.arange(200) % 20
    features = targets[concepts] @ torch.randn(8, 30, generator=draw) + 0.01 * torch.randn(200, 30, generator=draw)
    space = fit_space(features, targets[concepts], ridge=0.1)
    assert retrieval_rank(space(features), targets, concepts.tolist()).ranks.tolist() == [1] * 200
    wrong = retrieval_rank(space(features), targets, ((concepts + 1) % 20).tolist()).ranks
    assert wrong.mean() > 5


def test_ridge_agrees_with_the_normal_equations() -> None:
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(50, 5, generator=draw), torch.randn(50, 3, generator=draw)
    space = fit_space(x, y, ridge=2.0)
    z = ((x - x.mean(0)) / x.std(0)).double()
    left = np.vstack([z.numpy(), np.sqrt(2.0) * np.eye(5)])
    right = np.vstack([(y - y.mean(0)).numpy(), np.zeros((5, 3))])
    w = np.linalg.lstsq(left, right, rcond=None)[0]
    assert space.weight.numpy() == pytest.approx(w, abs=1e-5)
