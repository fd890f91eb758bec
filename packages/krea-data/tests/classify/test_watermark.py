"""Watermarks as the package invisible-watermark writes them (its method dwtDct, one channel)."""

import importlib.util
import io
import math
from typing import Any

import numpy as np
import pytest
from krea_data.classify.watermark import MESSAGES, Message, bits_of, watermark_evidence
from PIL import Image

STEP = 36.0


def photo(seed: int, side: int = 320) -> Image.Image:
    """Soft clouds of many colours, with grain."""
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(50, 206, (20, 20, 3)).astype(np.uint8))
    pixels = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64)
    return Image.fromarray((pixels + draw.normal(0, 3, pixels.shape)).clip(0, 255).astype(np.uint8))


def marked(image: Image.Image, bits: str) -> Image.Image:
    """The picture with these bits in the U channel, worked out from the package's description of dwtDct."""
    rgb = np.asarray(image, dtype=np.float64)
    y = rgb @ np.array([0.299, 0.587, 0.114])
    u, v = (rgb[..., 2] - y) * 0.492 + 128, (rgb[..., 0] - y) * 0.877 + 128
    low = np.sum([np.rint(u)[a::2, b::2] for a in (0, 1) for b in (0, 1)], axis=0) / 2
    fresh, number = low.copy(), 0
    for row in range(low.shape[0] // 4):
        for column in range(low.shape[1] // 4):
            block = fresh[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            place = np.unravel_index(int(np.abs(block.ravel()[1:]).argmax()) + 1, (4, 4))
            wanted = (abs(block[place]) // STEP + 0.25 + 0.5 * int(bits[number % len(bits)])) * STEP
            block[place] = math.copysign(wanted, block[place])
            number += 1
    u = np.rint(u) + np.kron((fresh - low) / 2, np.ones((2, 2)))
    u = u.clip(0, 255)
    blue, red = (u - 128) / 0.492 + y, (v - 128) / 0.877 + y
    green = (y - 0.299 * red - 0.114 * blue) / 0.587
    return Image.fromarray(np.rint(np.stack([red, green, blue], axis=-1)).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.name)
def test_known_messages_are_found(message: Message) -> None:
    found = watermark_evidence(marked(photo(1), message.bits))
    assert found is not None
    assert (found.rule, found.answer) == ("watermark", "yes")
    assert found.detail.startswith(message.name)


def test_red_and_blue_may_have_been_swapped() -> None:
    red, green, blue = photo(2).split()
    blue, green, red = marked(Image.merge("RGB", (blue, green, red)), MESSAGES[2].bits).split()
    found = watermark_evidence(Image.merge("RGB", (red, green, blue)))
    assert found is not None
    assert found.detail.startswith("Stable Diffusion XL")


def test_pictures_without_a_mark_have_none() -> None:
    assert all(watermark_evidence(photo(seed)) is None for seed in range(40))
    for colour in ("white", "black", "red", "blue", "#808080"):
        assert watermark_evidence(Image.new("RGB", (300, 300), colour)) is None
    assert watermark_evidence(marked(photo(1, 200), MESSAGES[2].bits)) is None, "too small to be marked"
    with pytest.raises(ValueError, match="fewer than 256 x 256"):
        bits_of(photo(1, 200), 48)


def test_equality_would_miss_what_distance_finds() -> None:
    file = io.BytesIO()
    marked(photo(3), MESSAGES[0].bits).save(file, "JPEG", quality=92, subsampling=0)
    image = Image.open(file).convert("RGB")
    wrong = int((bits_of(image, 136) != np.array([bit == "1" for bit in MESSAGES[0].bits])).sum())
    found = watermark_evidence(image)
    assert found is not None
    assert f"{wrong} of 136 bits differ" in found.detail


def test_limits_are_what_chance_does_not_reach() -> None:
    for message in MESSAGES:
        count = len(message.bits)
        chances = [sum(math.comb(count, k) for k in range(limit + 1)) / 2**count for limit in range(count)]
        assert chances[message.limit] <= 1e-6 < chances[message.limit + 1]
    assert [len(message.bits) for message in MESSAGES] == [136, 32, 48, 46]


def _package() -> Any:
    """The package's own coder, without its neural one, which needs torch."""
    spec = importlib.util.find_spec("imwatermark")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("invisible-watermark is not installed")
    pytest.importorskip("cv2")
    pytest.importorskip("pywt")
    path = f"{spec.submodule_search_locations[0]}/maxDct.py"
    found = importlib.util.spec_from_file_location("imwatermark_max_dct", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.EmbedMaxDct


def test_it_reads_what_the_package_writes() -> None:
    coder = _package()
    for message in MESSAGES:
        bits = [int(bit) for bit in message.bits]
        for seed in range(3):
            bgr = np.asarray(photo(seed, 768))[..., ::-1].copy()
            written = coder(bits, wmLen=len(bits)).encode(bgr)
            theirs = coder([], wmLen=len(bits)).decode(written)
            image = Image.fromarray(np.ascontiguousarray(written[..., ::-1]))
            assert (bits_of(image, len(bits)) != theirs).mean() < 0.08
            assert watermark_evidence(image, (message,)) is not None
