import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krea_data.fitting import Size, fitted, nearest, sizes
from PIL import Image


@pytest.mark.parametrize("side_px", [256, 512, 1024])
def test_sizes_have_about_the_same_pixels(side_px: int) -> None:
    found = sizes(side_px)
    assert Size(side_px, side_px) in found
    assert all(size.width % 16 == size.height % 16 == 0 for size in found)
    assert all(abs(size.width * size.height / side_px**2 - 1) < 0.07 for size in found)
    aspects = [size.width / size.height for size in found]
    assert aspects == sorted(set(aspects))
    assert min(aspects) >= 0.5
    assert max(aspects) <= 2
    assert {Size(size.height, size.width) for size in found} == set(found), "upright as well as lying"


@given(st.integers(1, 3000), st.integers(1, 3000))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_nearest_size_is_never_larger_than_the_picture(width: int, height: int) -> None:
    known = sizes(256)
    size = nearest(known, width, height)
    if size is None:
        assert min(width, height) < 512
        return
    assert size.width <= width
    assert size.height <= height

    def kept(one: Size) -> float:
        scale = max(one.width / width, one.height / height)
        return one.width * one.height / scale**2 / (width * height)

    assert kept(size) >= max(kept(one) for one in known) - 1e-9, "it cuts the least off"


def test_the_middle_is_kept_in_proportion() -> None:
    pixels = np.zeros((300, 600, 3), np.uint8)
    pixels[100:200, 250:350] = 255  # a square in the middle
    small = np.asarray(fitted(Image.fromarray(pixels), Size(96, 96)))
    white = small[..., 0] > 127
    rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
    assert (len(rows), len(columns)) == (32, 32)
    assert (rows[0] + rows[-1], columns[0] + columns[-1]) == (95, 95)


@pytest.mark.parametrize(("side_px", "step_px", "most"), [(100, 16, 2), (8, 16, 2), (64, 0, 2), (64, 16, 0.5)])
def test_bad_sizes_are_named(side_px: int, step_px: int, most: float) -> None:
    with pytest.raises(ValueError, match="must be a multiple"):
        sizes(side_px, step_px=step_px, most=most)
