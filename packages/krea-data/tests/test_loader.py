import io
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from krea_data.loader import Batches
from krea_data.rows import Result, Row
from krea_data.shards import export
from krea_data.testing import MemoryBlobs, picture
from PIL import Image


def row(blobs, number, side_px=16):
    text = {length: {"text": f"{length} {number}", "source": "label"} for length in ("short", "medium", "long")}
    size = {"width": side_px, "height": side_px, "format": "PNG"}
    results = {"decode": Result(value=size), "caption": Result(value=text)}
    meta = {"style": ("flat", "3D")[number % 2]}
    return Row(id=f"test/{number:03d}", blob=blobs.put(picture(number, side_px)), meta=meta, results=results)


@pytest.fixture(scope="module")
def blobs():
    return MemoryBlobs()


@pytest.fixture(scope="module")
def folder(blobs, tmp_path_factory):
    return export([row(blobs, number) for number in range(23)], blobs, tmp_path_factory.mktemp("export") / "out")


def test_a_batch_has_pictures_with_their_captions(folder, blobs):
    batch = Batches(folder, 5).at(0)
    assert batch.images.shape == (5, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    for image, captions, row_id in zip(batch.images, batch.captions, batch.ids, strict=True):
        number = int(row_id[-3:])
        assert captions == {length: f"{length} {number}" for length in ("short", "medium", "long")}
        expected = Image.open(io.BytesIO(picture(number, 16)))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize("world", [1, 3])
def test_an_epoch_has_every_picture_once_over_all_ranks(folder, world):
    streams = [Batches(folder, 4, rank=rank, world=world) for rank in range(world)]
    order = [one for number in range(30) for stream in streams for one in stream.at(number).ids]
    for epoch in range(3):
        assert set(Counter(order[23 * epoch : 23 * (epoch + 1)]).values()) == {1}
        assert len(set(order[23 * epoch : 23 * (epoch + 1)])) == 23
    assert order[:23] != order[23:46]


def test_more_ranks_share_out_the_same_order(folder):
    alone = Batches(folder, 6, seed=4)
    pair = [Batches(folder, 3, seed=4, rank=rank, world=2) for rank in range(2)]
    for number in range(10):
        assert alone.at(number).ids == pair[0].at(number).ids + pair[1].at(number).ids


def test_batch_n_is_a_function_of_seed_and_n(folder):
    first = [batch.ids for batch in itertools.islice(Batches(folder, 4, seed=1), 20)]
    again = Batches(folder, 4, seed=1)
    assert [again.at(number).ids for number in reversed(range(20))] == first[::-1]
    assert [batch.ids for batch in itertools.islice(Batches(folder, 4, seed=2), 20)] != first


def test_a_stream_goes_on_where_its_state_was_taken(folder):
    whole = [batch.ids for batch in itertools.islice(Batches(folder, 4), 12)]
    first = Batches(folder, 4)
    begun = [batch.ids for batch in itertools.islice(first, 7)]
    second = Batches(folder, 4)
    second.load_state_dict(first.state_dict())
    assert begun + [batch.ids for batch in itertools.islice(second, 5)] == whole


def test_the_state_of_another_stream_is_refused(folder):
    state = Batches(folder, 4).state_dict()
    for other in (Batches(folder, 5), Batches(folder, 4, seed=1), Batches(folder, 4, world=2)):
        with pytest.raises(ValueError, match="the saved stream had"):
            other.load_state_dict(state)


def test_smaller_sides_average_areas(folder):
    large, small = Batches(folder, 4).at(3), Batches(folder, 4, side_px=8).at(3)
    assert large.ids == small.ids
    expected = torch.nn.functional.avg_pool2d(large.images.float(), 2)
    assert small.images.shape == (4, 3, 8, 8)
    assert (small.images.float() - expected).abs().max() <= 1


def test_records_can_be_chosen(folder):
    flat = Batches(folder, 4, keep=lambda record: record["meta"]["style"] == "flat")
    assert len(flat) == 12
    assert {int(one[-3:]) % 2 for batch in itertools.islice(flat, 6) for one in batch.ids} == {0}
    with pytest.raises(ValueError, match="no picture"):
        Batches(folder, 4, keep=lambda record: False)


def test_two_sizes_are_refused(blobs, tmp_path):
    out = export([row(blobs, 1), row(blobs, 2, 24)], blobs, tmp_path / "out")
    with pytest.raises(ValueError, match="2 sizes"):
        Batches(out, 1)
    assert len(Batches(out, 1, keep=lambda record: record["width"] == 24)) == 1


@pytest.mark.parametrize("given", [{"batch": 0}, {"batch": 1, "rank": 2, "world": 2}])
def test_wrong_settings_are_refused(folder, given):
    with pytest.raises(ValueError, match="at least 1"):
        Batches(folder, **given)
