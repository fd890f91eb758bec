import numpy as np
import pytest
from krea_data.tasks.complexity import Complexity, lost
from PIL import Image, ImageDraw


def stripes(width):
    row = np.arange(64) // width % 2 * 255
    return Image.fromarray(np.tile(row, (64, 1)).astype(np.uint8)).convert("RGB")


def test_fine_stripes_are_lost_and_broad_ones_are_not():
    assert lost(stripes(1), 32) == pytest.approx(1, abs=0.05)
    assert lost(stripes(16), 32) < 0.1
    assert lost(stripes(2), 32) < lost(stripes(2), 16)


def test_nothing_is_lost_at_the_full_side_or_on_one_colour():
    assert lost(stripes(1), 64) == 0
    assert lost(Image.new("RGB", (64, 64), "red"), 8) == 0


def test_the_task_drops_what_half_the_side_cannot_show(blobs, stored):
    shape = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(shape).ellipse((8, 8, 56, 56), fill="red")
    results = Complexity(blobs=blobs)([stored(shape), stored(stripes(1))])
    assert [result.drop for result in results] == [None, "complex"]
    assert results[0].value["side_px"] == 32
    assert results[0].value["lost"] < 0.1


def test_the_side_can_be_chosen(blobs, stored):
    task = Complexity(blobs=blobs, side_px=8)
    assert task([stored(stripes(4))])[0].drop == "complex"
