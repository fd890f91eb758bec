"""Codec-matched pairs: pictures whose classes differ in the codec of their files, and a little in themselves."""

import io

import numpy as np
import pytest
from krea_data.classify.head import Config, train
from krea_data.classify.matched import Draws, Encoding, encodings, matched
from krea_data.classify.measures import roc_auc
from krea_data.testing import picture
from PIL import Image, ImageFilter

SIDE = 64


def drawings(count: int, start: int) -> list[Image.Image]:
    """Shapes with some grain, as photographs have it."""
    found = []
    for seed in range(start, start + count):
        draw = np.random.default_rng(seed)
        pixels = np.asarray(Image.open(io.BytesIO(picture(seed, SIDE))), dtype=np.float64)
        found.append(Image.fromarray((pixels + draw.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)))
    return found


def generated(image: Image.Image) -> Image.Image:
    """A trace that survives re-encoding: a generator that draws broadly and smears fine detail."""
    small = image.resize((SIDE // 3, SIDE // 3), Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)
    return Image.blend(image, small.filter(ImageFilter.SMOOTH), 0.6)


def as_jpeg(images: list[Image.Image]) -> list[Image.Image]:
    found = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=35)
        found.append(Image.open(file).convert("RGB"))
    return found


def features(images: list[Image.Image]) -> np.ndarray:
    """What an encoder would see of codecs: the spectrum at 32 px, and steps across lines of every place in a block."""
    rows = []
    for image in images:
        grey = np.asarray(image.convert("L"), dtype=np.float64)
        steps = np.abs(np.diff(grey, axis=1)).mean(axis=0)
        places = [steps[place::8].mean() for place in range(8)]
        small = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float64)
        waves = np.log1p(np.abs(np.fft.rfft2(small)))
        bands = [waves[low : low + 4, low : low + 4].mean() for low in range(0, 16, 2)]
        rows.append([*places, *np.log1p(places), *bands])
    return np.array(rows)


def learned(pairs: list[tuple[Image.Image, bool]], groups: list[int]) -> object:
    images, targets = [image for image, _ in pairs], [target for _, target in pairs]
    return train(features(images), targets, name="s", embedder="f", groups=groups, config=Config(penalty=3.0))


def auc(head: object, real: list[Image.Image], made: list[Image.Image]) -> float:
    scores = head(features(real + made))  # type: ignore[operator]
    return roc_auc(scores, np.arange(len(scores)) >= len(real))


def test_without_matching_the_head_learns_the_codec_and_with_it_the_picture() -> None:
    """Real files are JPEG and generated ones PNG. What counts is what it says when it is the other way round."""
    first, second = drawings(120, 0), drawings(120, 1000)
    real, made = as_jpeg(first), [generated(image) for image in drawings(120, 2000)]
    usual = as_jpeg(second), [generated(image) for image in second]
    swapped = second, as_jpeg([generated(image) for image in second])

    pairs = [(image, False) for image in real] + [(image, True) for image in made]
    plain = learned(pairs, list(range(120)) * 2)
    examples = list(matched(real, made, 7, copies=3))
    even = learned([(one.image, one.generated) for one in examples], [one.group for one in examples])

    assert auc(plain, *usual) > 0.95
    assert auc(plain, *swapped) < 0.6, "it takes JPEG for real"
    assert auc(even, *swapped) > 0.75


def test_where_only_the_codec_differs_matching_leaves_nothing_to_learn() -> None:
    first, second = drawings(120, 0), drawings(120, 1000)
    real, made = as_jpeg(first), drawings(120, 2000)
    plain = learned([(i, False) for i in real] + [(i, True) for i in made], list(range(120)) * 2)
    examples = list(matched(real, made, 7, copies=3, draws=Draws(quality=(30, 60), scales=(0.4, 0.6))))
    even = learned([(one.image, one.generated) for one in examples], [one.group for one in examples])
    assert auc(plain, as_jpeg(second), second) > 0.95
    assert even.card["roc_auc"] < 0.65  # type: ignore[attr-defined]


def test_both_classes_get_the_same_draws() -> None:
    examples = list(matched(drawings(6, 0), drawings(6, 50), 3, copies=4))
    assert len(examples) == 48
    real, made = ([(one.group, one.encoding) for one in examples if one.generated is kind] for kind in (False, True))
    assert real == made
    assert len({encoding for _, encoding in real}) > 20
    again = list(matched(drawings(6, 0), drawings(6, 50), 3, copies=4))
    assert all(a.image.tobytes() == b.image.tobytes() for a, b in zip(examples, again, strict=True))
    assert next(matched(drawings(2, 0), drawings(2, 50), 4)).encoding != examples[0].encoding


def test_draws_are_within_their_ranges() -> None:
    draws = Draws(formats=("JPEG",), quality=(50, 60), scales=(0.9, 1.0), resampling=("box",), passes=(1, 3))
    found = encodings(50, 1, 2, draws)
    assert {len(chain) for chain in found} == {1, 2, 3}
    assert {one.format for chain in found for one in chain} == {"JPEG"}
    assert all(50 <= one.quality <= 60 and 0.9 <= one.scale <= 1 for chain in found for one in chain)
    assert all(one.scale == 1 for chain in found for one in chain[1:])
    assert {len(chain) for chain in encodings(20, 1, 2, Draws(passes=(2, 2)))} == {2}
    assert found[:5] == encodings(5, 1, 2, draws), "a further copy leaves the others as they are"
    assert encodings(5, 1, 3, draws) != found[:5]


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "PNG"])
def test_every_format_gives_a_picture_back(form: str) -> None:
    encoding = Encoding(format=form, quality=70, chroma="4:2:0", scale=0.5, resampling="lanczos", offset=(3, 4))
    found = encoding(drawings(1, 0)[0])
    assert found.size == (30, 30)
    assert found.mode == "RGB"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: list(matched(drawings(1, 0), [], 0)), "1 real and 0 generated"),
        (lambda: list(matched(drawings(1, 0), [Image.new("RGB", (9, 9))], 0)), "scale both alike"),
        (lambda: Draws(formats=("TIFF",)), "TIFF"),
        (lambda: Draws(quality=(60, 50)), "rising"),
        (lambda: Draws(passes=(0, 2)), "passes"),
    ],
)
def test_bad_input_is_named(make: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()  # type: ignore[operator]
