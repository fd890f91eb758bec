import random
import threading
from collections.abc import Callable

import numpy as np
import psycopg
import pytest
from krea_data.dedup import Index, Limits
from krea_data.dedup.codes import codes_from, codes_of, node_of
from krea_data.krablet import Krablet
from krea_data.rows import Row
from krea_data.tasks.dedup import links

pytestmark = pytest.mark.postgres
ANY_MEAN = 255


def stored(krablet: Krablet, what: str = "id, other, phash, colour") -> set[tuple]:
    """All ends of links that are copies."""
    found: set[tuple] = set()
    for dsn in krablet.dsns:
        with psycopg.connect(dsn) as connection:
            found |= set(connection.execute(f"select {what} from dedup_link where kind = 'copy'".encode()).fetchall())
    return found


def brute(rows: list[Row], limits: Limits) -> set[tuple]:
    """The same by comparing each with each."""
    codes = codes_of(rows)
    found: set[tuple] = set()
    for mine in range(len(codes)):
        shape = (codes.bits[:, :144] != codes.bits[mine, :144]).sum(axis=1)
        colour = (codes.bits[:, 144:] != codes.bits[mine, 144:]).sum(axis=1)
        shades = [abs((codes.means >> bits & 255) - (codes.means[mine] >> bits & 255)) for bits in (0, 8, 16)]
        near = (shape <= limits.phash_limit) & (colour <= limits.colour_limit) & ~codes.vague & ~codes.vague[mine]
        near &= np.max(shades, axis=0) <= limits.mean_limit
        near[mine] = False
        for other in np.flatnonzero(near).tolist():
            found.add((codes.nodes[mine], codes.nodes[other], int(shape[other]), int(colour[other])))
    return found


@pytest.mark.parametrize("phash_limit", [0, 3, 8, 12])
def test_every_pair_is_found_that_brute_force_finds(krablet: Krablet, many: Callable, phash_limit: int) -> None:
    rows = many(phash_limit, 250)
    limits = Limits(phash_limit=phash_limit)
    index = Index(krablet, {"dedup": limits})
    for start in range(0, len(rows), 60):
        index.take(rows[start : start + 60])
    expected = brute(rows, limits)
    assert stored(krablet) == expected
    assert expected


def test_links_are_those_of_the_pass_over_the_whole_table(krablet: Krablet, many: Callable) -> None:
    rows = [row for row in many(5, 200) if not row.results["hash"].value["vague"]]
    Index(krablet, {"dedup": Limits(mean_limit=ANY_MEAN)}).take(rows)
    nodes = [node_of(row.blob) for row in rows]
    hashes = [row.results["hash"].value for row in rows]
    found = links([one["phash"] for one in hashes], [one["colour"] for one in hashes])
    expected = {(nodes[i], nodes[j], *apart) for (i, j), apart in found.items() if nodes[i] != nodes[j]}
    assert stored(krablet) == expected | {(b, a, *apart) for a, b, *apart in expected}


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_arrival_does_not_matter(krablet: Krablet, many: Callable, seed: int) -> None:
    rows = many(9, 120)
    random.Random(seed).shuffle(rows)
    index = Index(krablet, {"dedup": Limits()})
    draw, start = random.Random(seed), 0
    while start < len(rows):
        size = draw.choice((1, 7, 40))
        index.take(rows[start : start + size])
        start += size
    assert stored(krablet) == brute(rows, Limits())


def test_pictures_that_arrive_at_the_same_moment_find_each_other(krablet: Krablet, row: Callable) -> None:
    index = Index(krablet, {"dedup": Limits()})
    placed = threading.Barrier(2, timeout=20)
    place = index.place

    def slowly(codes: object) -> None:
        placed.wait()
        place(codes)  # type: ignore[arg-type]

    index.place = slowly  # type: ignore[method-assign]
    rows = [row(f"a/{n}", n) for n in (1, 3)]
    threads = [threading.Thread(target=index.take, args=([one],)) for one in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored(krablet) == brute(rows, Limits())


def test_many_threads_at_once_miss_nothing(krablet: Krablet, many: Callable) -> None:
    rows = many(11, 240)
    index = Index(krablet, {"dedup": Limits()})
    threads = [
        threading.Thread(target=lambda part=rows[n::6]: [index.take(part[k : k + 9]) for k in range(0, len(part), 9)])
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored(krablet) == brute(rows, Limits())


def test_taking_rows_again_changes_nothing(krablet: Krablet, many: Callable) -> None:
    rows = many(2, 60)
    index = Index(krablet, {"dedup": Limits()})
    index.take(rows)
    before = stored(krablet, "id, other, phash, colour, mean, rule, found_at")
    assert sum(index.take(rows)) == 0
    assert stored(krablet, "id, other, phash, colour, mean, rule, found_at") == before


def test_one_cut_off_after_the_look_up_is_found_by_later_ones_and_does_it_again(
    krablet: Krablet, row: Callable
) -> None:
    first, second = row("a/1", 1), row("a/2", 3)
    index = Index(krablet, {"dedup": Limits()})
    index.compare(codes_of([first]))  # and then its process was killed
    assert index.take([second]) == [1]
    assert stored(krablet) == brute([first, second], Limits())
    assert index.take([first]) == [1]
    assert stored(krablet) == brute([first, second], Limits())


def test_links_count_what_was_there(krablet: Krablet, row: Callable) -> None:
    index = Index(krablet, {"dedup": Limits()})
    rows = [row("a/1", 1), row("a/2", 3), row("a/3", (1 << 60) - 1 << 80), row("a/4", 3, blob="bytes of a/2")]
    assert index.take(rows) == [1, 1, 0, 1]
    assert index.take([]) == []
    rule = "shape <= 8 of 144 bits, colour <= 2 of 42 bits, mean colour <= 16 of 255"
    assert {what for *_, what in stored(krablet, "id, rule")} == {rule}


def test_what_has_no_shape_is_not_looked_up(krablet: Krablet, row: Callable) -> None:
    index = Index(krablet, {"dedup": Limits()})
    assert index.take([row("a/1", vague=True), row("a/2", vague=True), row("a/3")]) == [0, 0, 0]


def test_a_wider_stage_is_served_after_another_search(krablet: Krablet, many: Callable) -> None:
    rows = many(4, 150)
    narrow, wide = Limits(phash_limit=4, colour_limit=1), Limits(phash_limit=12, colour_limit=3)
    Index(krablet, {"dedup": narrow}).take(rows)
    both = Index(krablet, {"dedup": narrow, "midtrain": wide})
    assert both.search_again() == len(codes_of(rows))
    assert both.search_again() == 0
    assert stored(krablet) == brute(rows, wide)
    assert len(brute(rows, wide)) > len(brute(rows, narrow)) > 0


def test_rows_without_a_hash_are_refused(krablet: Krablet) -> None:
    with pytest.raises(ValueError, match="run the task hash"):
        Index(krablet, {"dedup": Limits()}).take([Row(id="a/1", blob="x")])


def test_an_index_needs_stages(krablet: Krablet) -> None:
    with pytest.raises(ValueError, match="limits of a stage"):
        Index(krablet, {})


def test_codes_come_back_from_the_database_as_they_were(many: Callable) -> None:
    codes = codes_of(many(1, 20))
    texts = [text.decode() for text in codes.texts.tolist()]
    again = codes_from(list(zip(codes.nodes, texts, codes.means.tolist(), codes.vague.tolist(), strict=True)))
    assert list(again.nodes) == list(codes.nodes)
    assert np.array_equal(again.bits, codes.bits)
    assert len(codes_from([])) == len(codes_of([])) == 0
