import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from krea_data.krablet.moves.move import plan
from krea_data.krablet.router import SlotMap, even, merged
from krea_data.rows import Row

SLOTS = [33, 16, 57, 58]


def test_slots_are_fixed_for_ever() -> None:
    slots = even(3)
    assert [slots.slot(key) for key in ("noto/1f34e", "a", "", "\u00e4\U0001f34e")] == SLOTS
    assert [int.from_bytes(hashlib.blake2b(b"a", digest_size=8).digest(), "big") >> 58] == SLOTS[1:2]


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 64])
def test_a_new_krablet_has_equal_ranges_of_slots(shards: int) -> None:
    slots = even(shards)
    keys = [f"key {n}" for n in range(4000)]
    parts = slots.split(keys, str)
    assert sorted(key for part in parts.values() for key in part) == sorted(keys)
    ranges = [sorted({slots.slot(key) for key in parts[number]}) for number in range(shards)]
    assert [slot for part in ranges for slot in part] == list(range(64))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
    assert ranges == [slots.held(number) for number in range(shards)]


def test_bad_counts_are_named() -> None:
    with pytest.raises(ValueError, match="65 shards"):
        even(65)
    with pytest.raises(ValueError, match="0 bits"):
        even(1, bits=0)
    with pytest.raises(ValueError, match="a map of 4 slots"):
        SlotMap(bits=2, shards=(0,), epochs=(1,))


def test_of_two_maps_the_newer_one_counts_slot_by_slot() -> None:
    mine = SlotMap(bits=2, shards=(0, 0, 1, 1), epochs=(1, 3, 1, 1))
    theirs = SlotMap(bits=2, shards=(2, 1, 1, 2), epochs=(2, 2, 1, 4))
    assert mine.newer(theirs) == SlotMap(bits=2, shards=(2, 0, 1, 2), epochs=(2, 3, 1, 4)) == theirs.newer(mine)
    assert mine.newer(even(2, bits=2)) is mine, "who compares by identity sees that there is no news"


@given(st.lists(st.integers(0, 5), min_size=16, max_size=16), st.integers(1, 6))
def test_a_plan_evens_out_with_the_fewest_moves(shards: list[int], numbers: int) -> None:
    shards = [shard % numbers for shard in shards]
    steps = plan(SlotMap(bits=4, shards=tuple(shards), epochs=(1,) * 16), range(numbers))
    before, after = Counter(shards), list(shards)
    for slot, to in steps:
        after[slot] = to
    counts = [after.count(number) for number in range(numbers)]
    assert max(counts) - min(counts) <= 1
    assert len({slot for slot, _ in steps}) == len(steps)
    most, over = 16 // numbers, sum(max(0, before[number] - 16 // numbers) for number in range(numbers))
    assert over - 16 % numbers <= len(steps) <= over, f"at most {most} or one more may stay"


def test_merged_reads_no_more_than_it_gives() -> None:
    read: list[str] = []

    def stream(names: str):
        for name in names:
            read.append(name)
            yield Row(id=name, blob="")

    assert [row.id for row in merged([stream("adg"), stream("bcz")], 3)] == ["a", "b", "c"]
    assert sorted(read) == ["a", "b", "c", "d"]
