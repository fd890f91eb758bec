"""The measures are admitted only because they pass this table of pictures with known style and content."""

import pytest
import torch
from krea_style.leakage import layout_similarity, measure, style_similarity
from krea_style.testing import look, mask, paint
from torch import Tensor

COUNT = 100


def painted(masks: Tensor, looks: list) -> Tensor:
    return torch.stack([paint(content, style) for content, style in zip(masks, looks, strict=True)])


CONTENT, THEIRS, OTHER = (torch.stack([mask(1000 * k + i) for i in range(COUNT)]) for k in range(3))
OWN, REFERENCE = ([look(1000 * k + i) for i in range(COUNT)] for k in range(2))
PLAIN, REF = painted(CONTENT, OWN), painted(THEIRS, REFERENCE)
OUTPUTS = {
    "no reference": PLAIN,
    "perfect style": painted(CONTENT, REFERENCE),
    "content copied": painted(THEIRS, OWN),
    "half content": painted((CONTENT + THEIRS) / 2, REFERENCE),
    "other content": painted(OTHER, REFERENCE),
    "copy": REF,
}


@pytest.mark.parametrize(
    ("name", "adherence", "leakage"),
    [
        ("no reference", (0.0, 0.0), (0.0, 0.0)),
        ("perfect style", (0.85, 1.0), (-0.1, 0.10)),
        ("content copied", (-0.1, 0.10), (0.85, 1.0)),
        ("half content", (0.5, 0.95), (0.2, 0.8)),
        ("other content", (0.85, 1.0), (-0.15, 0.10)),
        ("copy", (0.99, 1.01), (0.99, 1.01)),
    ],
)
def test_calibration(name: str, adherence: tuple[float, float], leakage: tuple[float, float]) -> None:
    found = measure(OUTPUTS[name], REF, PLAIN)
    assert adherence[0] - 1e-5 <= found.adherence <= adherence[1] + 1e-5
    assert leakage[0] - 1e-5 <= found.leakage <= leakage[1] + 1e-5


def test_raw_similarity_would_not_pass_the_table() -> None:
    def raw(a: Tensor) -> Tensor:
        return torch.cosine_similarity(a.flatten(1), REF.flatten(1))

    found = (raw(OUTPUTS["perfect style"]) - raw(PLAIN)).mean() / (1 - raw(PLAIN)).mean()
    assert found > 0.4  # it calls style a leak


def test_layout_does_not_see_colours_and_style_does_not_see_places() -> None:
    assert layout_similarity(PLAIN, -PLAIN).min() > 0.99
    assert layout_similarity(PLAIN, 0.3 * PLAIN + 0.2).min() > 0.99
    assert style_similarity(PLAIN, PLAIN.flip((2, 3))).min() > 0.95
    assert style_similarity(PLAIN, PLAIN.flip(2)).mean() < 0.8  # slanted stripes now slant the other way
    assert style_similarity(PLAIN, REF).mean() < 0.4


def test_adherence_grows_with_the_share_of_style() -> None:
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    blends = [measure(PLAIN.lerp(OUTPUTS["perfect style"], share), REF, PLAIN).adherence for share in shares]
    assert blends == sorted(blends)


def test_pictures_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="of one shape"):
        measure(PLAIN, REF[:3], PLAIN)
