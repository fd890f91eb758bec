"""The table that the limits were chosen by, on the clip art of the demo corpus, drawn at 128 pixels."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import imagehash
import numpy as np
import pytest
from krea_data import demo
from krea_data.dedup import Index, Limits, repair
from krea_data.dedup.codes import codes_of, node_of
from krea_data.krablet import Krablet
from krea_data.rows import Result, Row
from krea_data.tasks import Decode, Dedup, Hash
from krea_data.tasks.picture import decode

# Rule: pairs within it, and those of them whose pixels differ. The drawing is not that of the survey, whose table has
# 941, 10179, 1022, 1692, 1110 and 795 pairs, 661 of them identical.
TABLE = {
    "phash8 = 0": (944, 282),
    "phash8 <= 6": (4195, 3533),
    "phash12 <= 4": (1066, 404),
    "phash12 <= 8": (1610, 948),
    "phash12 <= 8 and colour <= 2": (1005, 343),
    "phash12 <= 4 and colour <= 2": (804, 142),
}
IDENTICAL = 662


def apart(bits: np.ndarray, one: int) -> np.ndarray:
    """How many bits each picture after this one differs from it."""
    packed = np.packbits(bits, axis=1)
    return np.bitwise_count(packed[one] ^ packed[one + 1 :]).sum(axis=1)


def counted(rows: Sequence[Row], small: np.ndarray) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """By rule: pairs, those that are not identical, and identical ones that are missed."""
    named = {node: number for number, node in enumerate(sorted({node_of(row.blob) for row in rows}))}
    nodes = np.array([named[node_of(row.blob)] for row in rows])
    codes = codes_of(rows)
    place = {node: number for number, node in enumerate(codes.nodes)}
    bits = codes.bits[[place[node_of(row.blob)] for row in rows]]
    pairs, other, missed = Counter[str](), Counter[str](), Counter[str]()
    for one in range(len(rows) - 1):
        tiny, shape, colour = apart(small, one), apart(bits[:, :144], one), apart(bits[:, 144:], one)
        same = nodes[one + 1 :] == nodes[one]
        rules = (
            tiny == 0,
            tiny <= 6,
            shape <= 4,
            shape <= 8,
            (shape <= 8) & (colour <= 2),
            (shape <= 4) & (colour <= 2),
        )
        for name, within in zip(TABLE, rules, strict=True):
            pairs[name] += int(within.sum())
            other[name] += int((within & ~same).sum())
            missed[name] += int((same & ~within).sum())
    return pairs, other, missed


@pytest.mark.network
@pytest.mark.postgres
def test_the_clip_art_has_the_copies_that_are_known(tmp_path: Path, krablet: Krablet, bare: Callable) -> None:
    folder = demo.corpus(tmp_path, ("clipart",), side_px=128)
    rows, store = demo.rows(folder), demo.blobs(folder)
    if not rows:
        pytest.skip("the clip art could not be fetched here")
    for task in (Decode(blobs=store, aspect_limit=math.inf), Hash(blobs=store)):
        answers = [result for start in range(0, len(rows), 64) for result in task(rows[start : start + 64])]
        rows = [
            Row(id=row.id, blob=row.blob, meta=row.meta, results={**row.results, task.name: answer})
            for row, answer in zip(rows, answers, strict=True)
        ]
    small = np.array([imagehash.phash(decode(store.get(row.blob))[0]).hash.ravel() for row in rows])
    pairs, other, missed = counted(rows, small)
    assert {name: (pairs[name], other[name]) for name in TABLE} == TABLE
    assert set(missed.values()) == {0}
    assert sum(n * (n - 1) // 2 for n in Counter(row.blob for row in rows).values()) == IDENTICAL
    krablet.add(bare(rows))
    index = Index(krablet, {"dedup": Limits()})
    for start in range(0, len(rows), 500):
        index.take(rows[start : start + 500])
    repair(index, "dedup")
    found: dict[str, Result] = {row.id: row.results["dedup"] for row in krablet.scan()}
    assert found == Dedup().compare(rows)
    assert Counter(result.drop for result in found.values())["duplicate"] == len(rows) - len({row.blob for row in rows})
