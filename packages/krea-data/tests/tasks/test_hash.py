import imagehash
import numpy as np
import pytest
from krea_data.tasks import hash as hashes
from krea_data.tasks.hash import Hash, colour_hash, hexadecimal, perceptual_hash
from PIL import Image, ImageDraw


def pictures():
    """Noise, photographs' kind of gradients, and symmetric drawings, whose coefficients are zero but for rounding."""
    draw = np.random.default_rng(7)
    found = [
        Image.fromarray(draw.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((48, 48), (31, 77), (90, 64))
    ]
    for number in range(90):
        side = int(draw.integers(20, 140))
        colours = [tuple(draw.integers(0, 256, 3).tolist()) for _ in range(4)]
        image = Image.new("RGB", (side, side), colours[0] if number % 3 else "white")
        pen = ImageDraw.Draw(image)
        margin = int(draw.integers(1, side // 4))
        pen.ellipse((margin, margin, side - 1 - margin, side - 1 - margin), fill=colours[1])
        if number % 2:
            pen.rectangle((side // 3, side // 3, side - 1 - side // 3, side - 1 - side // 3), fill=colours[2])
        if number % 5 == 0:
            pen.line(tuple(draw.integers(0, side, 4).tolist()), fill=colours[3], width=5)
        found.append(image)
    found.append(Image.linear_gradient("L").convert("RGB"))
    found.append(Image.radial_gradient("L").convert("RGB"))
    found += [Image.new("RGB", (50, 50), colour) for colour in ("white", "black", "red", (20, 30, 40))]
    return found


def test_perceptual_hash_is_that_of_imagehash_bit_by_bit():
    images = pictures()
    for image, bits in zip(images, perceptual_hash(images), strict=True):
        theirs = imagehash.phash(image, hash_size=12)
        assert np.array_equal(bits, theirs.hash.ravel())
        assert hexadecimal(bits) == str(theirs)


def test_colour_hash_is_that_of_imagehash_bit_by_bit():
    images = pictures()
    hues = Image.merge(
        "HSV", [Image.linear_gradient("L"), Image.linear_gradient("L").rotate(90), Image.new("L", (256, 256), 200)]
    )
    for image, bits in zip([*images, hues.convert("RGB")], colour_hash([*images, hues.convert("RGB")]), strict=True):
        theirs = imagehash.colorhash(image, binbits=3)
        assert np.array_equal(bits, theirs.hash.ravel())
        assert hexadecimal(bits) == str(theirs)


@pytest.mark.parametrize("table", [False, True])
def test_colours_count_the_same_by_hand_and_by_the_table_of_all_colours(table):
    draw = np.random.default_rng(5)
    images = pictures()
    every = draw.integers(0, 256, (700, 300, 3), dtype=np.uint8)  # taller than what is looked up at a time
    greyish = (every[..., :1] // 2 + draw.integers(0, 90, every.shape)).astype(np.uint8)  # of all saturations
    images += [Image.fromarray(every), Image.fromarray(greyish)]
    between = Image.new("RGB", (50, 50), (255, 85, 85))  # of the saturation that is neither faint nor bright
    between.paste((255, 0, 0), (0, 0, 50, 25))
    images.append(between)
    found = colour_hash(images, table=table)
    for image, bits in zip(images, found, strict=True):
        assert np.array_equal(bits, imagehash.colorhash(image, binbits=3).hash.ravel())
    assert colour_hash([], table=table).shape == (0, 42)
    assert list(hashes._colour_counts(images[-3], table=table)) == hashes._colour_counts(images[-3], table=False)
    assert sum(hashes._colour_counts(images[-3], table=table)) == 700 * 300


def test_the_table_of_all_colours_is_made_when_it_pays(monkeypatch):
    made: list[bool] = []
    monkeypatch.setattr(hashes, "_PAYS", 5_000)
    monkeypatch.setattr(hashes._Pace, "pixels", 0)
    monkeypatch.setattr(hashes, "_pace", hashes._Pace())
    monkeypatch.setattr(hashes, "_colour_counts", lambda image, *, table: made.append(table) or [0] * 15)
    for _ in range(3):
        colour_hash([Image.new("RGB", (50, 50))])
    assert made == [False, False, True]


def test_a_batch_hashes_as_one_by_one():
    images = pictures()[:70]  # more than one pass
    assert np.array_equal(perceptual_hash(images), np.concatenate([perceptual_hash([image]) for image in images]))


def test_the_task_writes_hex_and_marks_what_has_no_shape(blobs, stored):
    shape = pictures()[0]
    shaped, empty = Hash(blobs=blobs)([stored(shape), stored(Image.new("RGB", (64, 64), (250, 10, 0)))])
    assert shaped.value["phash"] == str(imagehash.phash(shape, hash_size=12))
    assert shaped.value["vague"] is False
    assert empty.value["vague"] is True
    assert empty.value["mean"] == "fa0a00"
    assert shaped.drop is None
    assert empty.drop is None


@pytest.mark.network
def test_both_hashes_on_the_real_corpus(tmp_path):
    from krea_data import demo

    folder = demo.corpus(tmp_path, ("twemoji",))
    store = demo.blobs(folder)
    images = [Image.open(store.path(row.blob)).convert("RGB") for row in demo.rows(folder)]
    assert len(images) > 1_900
    for image, shape, colour in zip(images, perceptual_hash(images), colour_hash(images), strict=True):
        assert np.array_equal(shape, imagehash.phash(image, hash_size=12).hash.ravel())
        assert np.array_equal(colour, imagehash.colorhash(image, binbits=3).hash.ravel())
