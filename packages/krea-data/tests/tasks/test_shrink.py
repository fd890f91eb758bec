import numpy as np
import pytest
from krea_data.tasks import shrink
from krea_data.tasks.shrink import shrunk
from PIL import Image


def pictures(width, height, count=4):
    """Noise, black on white, which rounds beyond both ends, and a gradient."""
    draw = np.random.default_rng(width * 1000 + height)
    noise = [Image.fromarray(draw.integers(0, 256, (height, width), dtype=np.uint8)) for _ in range(count)]
    hard = [Image.fromarray(255 * draw.integers(0, 2, (height, width), dtype=np.uint8)) for _ in range(count)]
    return [*noise, *hard, Image.linear_gradient("L").resize((width, height))]


def by_pillow(images, small):
    return [np.asarray(image.resize((small, small), Image.Resampling.LANCZOS)) for image in images]


SIZES = [
    (48, 48),
    (47, 52),
    (52, 47),
    (20, 30),
    (30, 20),
    (1, 7),
    (128, 128),
    (100, 64),
    (64, 100),
    (300, 40),
    (600, 513),
    (3001, 50),
]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_every_pixel_is_that_of_pillow(width, height, monkeypatch):
    images = pictures(width, height)
    expected = by_pillow(images, 48)
    monkeypatch.setattr(shrink, "_by_pillow", lambda images, small: pytest.fail("Pillow did it"))
    assert np.array_equal(shrunk(images, 48), expected)


def test_pictures_of_many_sizes_keep_their_places():
    images = [image for size in ((60, 60), (61, 60), (200, 90)) for image in pictures(*size, 2)]
    images = images[::2] + images[1::2] + pictures(33, 35)[:1]
    assert np.array_equal(shrunk(images, 48), by_pillow(images, 48))
    assert shrunk([], 48).shape == (0, 48, 48)


def test_pictures_too_large_for_exact_sums_are_left_to_pillow():
    assert shrink._groups(2900, 48)
    assert not shrink._groups(4001, 48)


def test_weights_that_are_not_exact_are_left_to_pillow(monkeypatch):
    images = pictures(90, 91)
    shrink._groups.cache_clear()
    shrink._down_first.cache_clear()
    monkeypatch.setattr(shrink, "_EXACT", 1000)
    assert np.array_equal(shrunk(images, 48), by_pillow(images, 48))
    assert shrink._down_first(90, 91, 48) is None
    shrink._groups.cache_clear()
    shrink._down_first.cache_clear()


def test_a_pillow_that_rounds_in_another_way_does_it_itself(monkeypatch):
    images = pictures(77, 78)
    shrink._down_first.cache_clear()
    made = shrink._made
    monkeypatch.setattr(shrink, "_made", lambda *given, **more: made(*given, **more) + 1)
    assert np.array_equal(shrunk(images, 48), by_pillow(images, 48))
    shrink._down_first.cache_clear()
