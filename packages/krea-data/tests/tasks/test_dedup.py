import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from krea_data.rows import Result, Row
from krea_data.tasks.decode import Decode
from krea_data.tasks.dedup import Dedup, links, stars
from krea_data.tasks.hash import Hash
from PIL import Image, ImageDraw


def row(row_id, phash=0, colour=0, *, blob=None, mean="808080", vague=False, size=(64, 64), **meta):
    value = {"phash": f"{phash:036x}", "colour": f"{colour:011x}", "mean": mean, "vague": vague}
    looked = {"width": size[0], "height": size[1]}
    results = {"decode": Result(value=looked), "hash": Result(value=value)}
    return Row(id=row_id, blob=blob or row_id, meta=meta, results=results)


def gone(rows, **limits):
    results = Dedup(**limits)(rows)
    return {one.id: (r.drop, r.value["kept"]) for one, r in zip(rows, results, strict=True) if r.drop}


@pytest.mark.parametrize("limit", [0, 3, 8])
def test_bands_find_every_pair_that_brute_force_finds(limit):
    draw = random.Random(limit)
    seeds = [draw.getrandbits(144) for _ in range(40)]
    shapes = [
        seed ^ sum(1 << bit for bit in draw.sample(range(144), draw.randrange(12))) for seed in seeds for _ in range(6)
    ]
    colours = [draw.choice([0, 1, 3, 7, 15]) for _ in shapes]
    expected = {
        (i, j): ((shapes[i] ^ shapes[j]).bit_count(), (colours[i] ^ colours[j]).bit_count())
        for i in range(len(shapes))
        for j in range(i + 1, len(shapes))
        if (shapes[i] ^ shapes[j]).bit_count() <= limit and (colours[i] ^ colours[j]).bit_count() <= 2
    }
    found = links([f"{one:036x}" for one in shapes], [f"{one:011x}" for one in colours], phash_limit=limit)
    assert found == expected
    assert expected or limit == 0


def test_many_equal_hashes_are_compared_in_portions(monkeypatch):
    monkeypatch.setattr("krea_data.tasks.dedup._CHUNK", 50)
    found = links(["0" * 36] * 30, ["0" * 11] * 30)
    assert set(found) == {(i, j) for i in range(30) for j in range(i + 1, 30)}


def test_equal_bytes_leave_the_first_by_id():
    rows = [row("a/2", blob="x"), row("a/1", blob="x"), row("a/3", blob="x"), row("a/4", phash=2**80 - 1)]
    assert gone(rows) == {"a/2": ("duplicate", "a/1"), "a/3": ("duplicate", "a/1")}


def test_preferred_rows_stay():
    rows = [row("a/1", blob="x", since=2.0), row("a/2", blob="x", since=0.6), row("a/3", blob="x")]
    assert gone(rows) == {"a/1": ("duplicate", "a/2"), "a/3": ("duplicate", "a/2")}


def test_of_near_copies_the_larger_stays():
    rows = [row("a/1", 0b0), row("a/2", 0b111, size=(128, 128))]
    assert gone(rows) == {"a/1": ("near duplicate", "a/2")}
    assert Dedup()(rows)[0].value == {"kept": "a/2", "phash": 3, "colour": 0}


def test_a_chain_is_broken_at_its_medoid():
    chain = [row(f"a/{place}", (1 << 6 * place) - 1) for place in range(5)]  # each 6 bits from the next, 12 from there
    found = gone(chain)
    by_id = {one.id: int(one.results["hash"].value["phash"], 16) for one in chain}
    assert found
    for lost_id, (_, kept_id) in found.items():
        assert (by_id[lost_id] ^ by_id[kept_id]).bit_count() <= 8
        assert kept_id not in found
    kept = [by_id[one.id] for one in chain if one.id not in found]
    assert all((a ^ b).bit_count() > 8 for place, a in enumerate(kept) for b in kept[place + 1 :])


def test_only_both_hashes_and_the_mean_colour_together_link():
    base = row("a/1", 0, 0)
    assert gone([base, row("a/2", 2**9 - 1, 0)]) == {}
    assert gone([base, row("a/2", 0, 0b111)]) == {}
    assert gone([base, row("a/2", 0, 0, mean="809180")]) == {}
    assert gone([base, row("a/2", 2**8 - 1, 0b11, mean="809080")]) == {"a/2": ("near duplicate", "a/1")}


def test_vague_hashes_link_by_bytes_alone():
    rows = [row("a/1", vague=True), row("a/2", vague=True), row("a/3", blob="a/1", vague=True)]
    assert gone(rows) == {"a/3": ("duplicate", "a/1")}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).filter(lambda pair: pair[0] < pair[1])))
def test_stars_leave_no_link_and_take_nobody_without_one(pairs):
    found = stars(pairs)
    linked = set(pairs)
    for node, medoid in found.items():
        assert (min(node, medoid), max(node, medoid)) in linked
        assert medoid not in found
    stay = {node for pair in pairs for node in pair} - set(found)
    assert not any(left in stay and right in stay for left, right in pairs)


def test_the_order_of_rows_does_not_matter():
    draw = random.Random(3)
    rows = [row(f"a/{n:03d}", sum(1 << bit for bit in draw.sample(range(30), 5)), blob=str(n % 45)) for n in range(60)]
    expected = gone(rows)
    draw.shuffle(rows)
    assert gone(rows) == expected
    assert expected


def test_colour_alone_makes_a_difference(blobs, stored):
    def flag(row_id, colours):
        image = Image.new("RGB", (64, 64), "white")
        for place, colour in enumerate(colours):
            ImageDraw.Draw(image).rectangle((4 + 19 * place, 12, 22 + 19 * place, 50), fill=colour)
        return stored(image, row_id)

    rows = [
        flag("flag/france", ("#0055a4", "#ffffff", "#ef4135")),
        flag("flag/italy", ("#009246", "#ffffff", "#ce2b37")),
        flag("flag/france-again", ("#0055a4", "#fefefe", "#ef4135")),
        flag("heart/orange", ("#f4900c", "#f4900c", "#f4900c")),
        flag("heart/red", ("#e02020", "#e02020", "#e02020")),
    ]
    for task in (Decode(blobs=blobs), Hash(blobs=blobs)):
        results = task(rows)
        rows = [replace(r, results={**r.results, task.name: x}) for r, x in zip(rows, results, strict=True)]
    assert gone(rows) == {"flag/france-again": ("near duplicate", "flag/france")}


def test_rows_without_a_hash_are_refused():
    with pytest.raises(ValueError, match="run the task hash"):
        Dedup()([Row(id="a/1", blob="x")])


def test_limits_are_checked():
    with pytest.raises(ValueError, match="144"):
        Dedup(phash_limit=144)
