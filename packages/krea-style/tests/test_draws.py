"""Draws are named by their key."""

import torch
from krea_style.draws import normals, uniforms


def test_equal_names_draw_alike_and_others_do_not() -> None:
    keys = [(0, "a", 1, "x"), (0, "a", 2, "x"), (0, "b", 1, "x"), (1, "a", 1, "x"), (0, "a", 1, "y")]
    found = [normals(*key, (4,)) for key in keys]
    assert torch.equal(found[0], normals(*keys[0], (4,)))
    assert len({tuple(row.tolist()) for row in found}) == len(keys)


def test_distributions() -> None:
    assert abs(normals(0, "n", 0, "", (20000,)).std().item() - 1) < 0.03
    u = uniforms(0, "u", 0, range(2000))
    assert abs(u.mean().item() - 0.5) < 0.03
    assert 0 <= u.min() < u.max() < 1
