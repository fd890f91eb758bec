import hashlib

import pytest
from krea_data.krablet.router import Router, merged
from krea_data.rows import Row

SLOTS = [33, 16, 57, 58]


def test_slots_are_fixed_for_ever() -> None:
    router = Router(shards=3)
    assert [router.slot(key) for key in ("noto/1f34e", "a", "", "\u00e4\U0001f34e")] == SLOTS
    assert [int.from_bytes(hashlib.blake2b(b"a", digest_size=8).digest(), "big") >> 58] == SLOTS[1:2]


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 64])
def test_shards_hold_ranges_of_slots(shards: int) -> None:
    router = Router(shards=shards)
    keys = [f"key {n}" for n in range(4000)]
    parts = router.split(keys, str)
    assert sorted(key for part in parts.values() for key in part) == sorted(keys)
    ranges = [sorted({router.slot(key) for key in parts[number]}) for number in range(shards)]
    assert [slot for slots in ranges for slot in slots] == list(range(64))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_bad_counts_are_named() -> None:
    with pytest.raises(ValueError, match="65 shards"):
        Router(shards=65)
    with pytest.raises(ValueError, match="0 bits"):
        Router(shards=1, bits=0)


def test_merged_reads_no_more_than_it_gives() -> None:
    read: list[str] = []

    def stream(names: str):
        for name in names:
            read.append(name)
            yield Row(id=name, blob="")

    assert [row.id for row in merged([stream("adg"), stream("bcz")], 3)] == ["a", "b", "c"]
    assert sorted(read) == ["a", "b", "c", "d"]
