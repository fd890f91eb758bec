import random

import numpy as np
import pytest
from krea_data.dedup import bands
from krea_data.dedup.limits import MOST_BITS, Limits, widest


def shapes(numbers: list[int]) -> np.ndarray:
    return np.array([[number >> bit & 1 for bit in range(144)] for number in numbers], dtype=np.bool_)


def test_the_bands_share_out_all_bits_once() -> None:
    assert sorted(np.concatenate(bands.shares()).tolist()) == list(range(144))
    assert [len(mine) for mine in bands.shares()] == list(bands.SIZES)


@pytest.mark.parametrize("radius", range(MOST_BITS + 1))
def test_tolerances_leave_no_room_for_a_pair_within_the_radius(radius: int) -> None:
    assert sum(most + 1 for most in bands.tolerances(radius)) > radius


@pytest.mark.parametrize("radius", [0, 1, 5, 6, 8, 11, 14])
def test_whatever_bits_are_flipped_a_key_is_shared(radius: int) -> None:
    draw = random.Random(radius)
    shares = bands.shares()
    for _ in range(60):
        shape, left = draw.getrandbits(144), radius
        flipped: set[int] = set()
        for mine, most in draw.sample(list(zip(shares, bands.tolerances(radius), strict=True)), len(shares)):
            worst = min(left, most + 1)  # just too much for this band
            flipped |= set(draw.sample(mine.tolist(), worst))
            left -= worst
        near = shape ^ sum(1 << bit for bit in flipped)
        assert (shape ^ near).bit_count() == radius
        stored, asked = bands.values(shapes([near])), bands.probes(bands.values(shapes([shape])), radius)
        assert set(stored[0].tolist()) & set(asked[0].tolist())


def test_a_look_up_is_done_once() -> None:
    asked = bands.probes(bands.values(shapes([1 << 70])), 8)
    assert len(set(asked[0].tolist())) == asked.shape[1] == 6 + 3 * 27


def test_keys_have_slots_and_texts_that_never_change() -> None:
    keys = bands.values(shapes([0, 1, (1 << 144) - 1]))
    assert bands.key_texts(keys)[0].tolist() == [b"------", b"0-----", b"1-----", b"2-----", b"3-----", b"4-----"]
    assert bands.key_texts(keys)[1].tolist()[0] == b"-----0"
    assert bands.key_texts(keys)[2].tolist() == [b"--6zzz", b"0-6zzz", b"1-6zzz", b"26zzzz", b"36zzzz", b"46zzzz"]
    assert bands.key_slots(keys[:, :3], 6).tolist() == [[56, 49, 57], [36, 49, 57], [52, 16, 3]]


def test_slots_share_out_keys_evenly() -> None:
    keys = np.arange(64_000, dtype=np.uint64)
    counts = np.bincount(bands.key_slots(keys, 6), minlength=64)
    assert counts.min() > 850
    assert counts.max() < 1150


def test_limits_say_what_they_are() -> None:
    wide, narrow = Limits(phash_limit=14, colour_limit=1), Limits(phash_limit=8, colour_limit=2)
    assert widest([wide, narrow]) == Limits(phash_limit=14, colour_limit=2)
    assert widest([wide, narrow]).covers(wide)
    assert not wide.covers(narrow)
    assert narrow.hold(8, 2, 16)
    assert not any(narrow.hold(*beyond) for beyond in ((9, 2, 16), (8, 3, 16), (8, 2, 17)))
    assert narrow.rule == "shape <= 8 of 144 bits, colour <= 2 of 42 bits, mean colour <= 16 of 255"


@pytest.mark.parametrize("wrong", [{"phash_limit": 18}, {"phash_limit": -1}, {"colour_limit": 43}, {"mean_limit": 256}])
def test_limits_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="8, 2 and 16 are usual"):
        Limits(**wrong)
