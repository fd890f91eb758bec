"""Exact radius search in the band index inside PostgreSQL: recall, growth, and beside faiss and a BK-tree.

    python benchmarks/curation/radius.py [--quick]

Codes are hashes of the demo corpus, where that has been fetched, with 20 to 60 of 144 bits flipped, so that bits depend
on each other as in real tables; a query is a code of the table with up to 8 bits flipped. All are asked for everything
within 8 bits. Ours is durable, may be asked over a socket by many, and lies on two shards; the peers lie in the memory
of the process that asks. Recall is that of links among the real hashes against brute force.
"""

import argparse
import importlib
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
from krea_data import demo
from krea_data.dedup import Index, Limits
from krea_data.dedup.codes import Codes
from krea_data.demo.cache import default_cache
from krea_data.krablet import Krablet, up
from krea_data.tasks.hash import colour_hash, perceptual_hash
from krea_data.tasks.picture import decode

RADIUS = 8
LIMITS = Limits(phash_limit=RADIUS, colour_limit=42, mean_limit=255)
_SOME = 1000


def real(most: int) -> np.ndarray:
    """Hashes `n 186` of pictures of the demo corpus, each kind of bytes once; else random ones."""
    for folder in sorted(default_cache().glob("corpus-*")):
        if (folder / "rows.jsonl").exists():
            rows, store = demo.rows(folder), demo.blobs(folder)
            blobs = sorted({row.blob for row in rows})[:most]
            parts = []
            for start in range(0, len(blobs), 64):
                images = [decode(store.get(blob))[0] for blob in blobs[start : start + 64]]
                parts.append(np.concatenate([perceptual_hash(images), colour_hash(images)], axis=1))
            bits = np.concatenate(parts)
            shape = bits[:, :144].sum(axis=1)
            return bits[(shape >= 36) & (shape <= 108)]
    print("   no demo corpus has been drawn here (krea-curate fetch-demo): codes are random, which is easier")
    return np.random.default_rng(0).random((most, 186)) < 0.5


def flipped(draw: np.random.Generator, bits: np.ndarray, least: int, most: int) -> np.ndarray:
    """The codes with so many bits of shape flipped."""
    order = draw.random((len(bits), 144)).argsort(axis=1).argsort(axis=1)
    found = bits.copy()
    found[:, :144] ^= order < draw.integers(least, most + 1, len(bits))[:, None]
    return found


def codes(draw: np.random.Generator, bits: np.ndarray) -> Codes:
    nodes = [uuid.UUID(bytes=draw.bytes(16)).hex for _ in range(len(bits))]
    return Codes(nodes, bits, np.zeros(len(bits), np.int64), np.zeros(len(bits), np.bool_))


def near(bits: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Places of the packed codes within the radius."""
    return np.flatnonzero(np.bitwise_count(bits ^ one).sum(axis=1) <= RADIUS)


def recall(krablet: Krablet, bits: np.ndarray) -> float:
    """Of the links that brute force finds among real hashes, the share that arrivals in small batches found."""
    draw = np.random.default_rng(1)
    some = codes(draw, bits)
    index, found = Index(krablet, {"dedup": LIMITS}), set[frozenset[str]]()
    for start in range(0, len(some), 250):
        found |= {
            frozenset(pair[:2]) for pair in index.compare(some.some(np.arange(start, min(start + 250, len(some)))))
        }
    packed = np.packbits(bits[:, :144], axis=1)
    expected = {
        frozenset((some.nodes[one], some.nodes[other]))
        for one in range(len(packed))
        for other in near(packed, packed[one]).tolist()
        if other != one
    }
    print(f"   {len(bits)} real hashes: {len(expected)} links by brute force, {len(found & expected)} of them found,")
    print(f"   {len(found - expected)} others")
    return len(found & expected) / max(1, len(expected))


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def growth(krablet: Krablet, base: np.ndarray, sizes: list[int], queries: int) -> tuple[dict, np.ndarray, np.ndarray]:
    """Fill the index, and at every size ask it; what was put in and asked last is for the peers."""
    draw, index, found = np.random.default_rng(2), Index(krablet, {"dedup": LIMITS}), {}
    packed: list[np.ndarray] = []
    table = asked = np.empty((0, 186), np.bool_)
    filled = 0.0
    for size in sizes:
        while _SOME * len(packed) < size:
            bits = flipped(draw, base[draw.integers(0, len(base), _SOME)], 20, 60)
            some = codes(draw, bits)
            filled += timed(lambda some=some: index.place(some))
            packed.append(np.packbits(bits[:, :144], axis=1))
        table = np.concatenate(packed)
        picked = np.unpackbits(table[draw.choice(len(table), queries)], axis=1).astype(np.bool_)
        asked = flipped(draw, np.concatenate([picked, np.zeros((queries, 42), np.bool_)], axis=1), 0, RADIUS)
        some = codes(draw, asked)
        for number in krablet.shards.numbers:
            krablet.shards.attempt(number, lambda c: c.execute("analyze dedup_band"))
        index.near(some.some(np.arange(min(200, queries))))
        hits: list[tuple] = []
        took = timed(lambda some=some, hits=hits: hits.extend(index.near(some)))
        assert len({hit[0] for hit in hits}) == queries, "a planted neighbour was missed"
        found |= {f"radius_query_ms_{size}": took / queries * 1e3, f"radius_place_us_{size}": filled / size * 1e6}
        print(f"   {size} codes: {filled / size * 1e6:.0f} us each to put in, {took / queries * 1e3:.3f} ms to ask")
    return found, table, np.packbits(asked[:, :144], axis=1)


def beside_faiss(table: np.ndarray, asked: np.ndarray, query_s: float) -> dict[str, float]:
    """Our time of a query as a share of faiss's, with all pairs compared and with bands."""
    try:
        faiss = importlib.import_module("faiss")
    except ImportError:
        print("   faiss is not installed (pip install faiss-cpu): left out")
        return {}
    faiss.omp_set_num_threads(1)
    found, some = {}, asked[:500]
    flat, bands = faiss.IndexBinaryFlat(144), faiss.IndexBinaryMultiHash(144, 9, 16)
    for name, index, these in (("flat", flat, some), ("multihash", bands, asked)):
        built = timed(lambda index=index: index.add(table))
        took = timed(lambda index=index, these=these: index.range_search(these, RADIUS + 1)) / len(these)
        found[f"radius_vs_faiss_{name}"] = took / query_s
        print(f"   faiss {name}: {built:.1f} s to build, {took * 1e3:.3f} ms to ask; {took / query_s:.3f}x")
    return found | {"radius_vs_faiss": found["radius_vs_faiss_flat"]}


def beside_tree(table: np.ndarray, asked: np.ndarray, query_s: float) -> dict[str, float]:
    """Our time of a query as a share of a BK-tree's."""
    try:
        pybktree = importlib.import_module("pybktree")
    except ImportError:
        print("   pybktree is not installed (pip install pybktree): left out")
        return {}
    numbers = [int.from_bytes(one.tobytes()) for one in table[:100_000]]
    start = time.perf_counter()
    tree = pybktree.BKTree(lambda a, b: (a ^ b).bit_count(), numbers)
    built = time.perf_counter() - start
    some = [int.from_bytes(one.tobytes()) for one in asked[:20]]
    took = timed(lambda: [tree.find(one, RADIUS) for one in some]) / len(some)
    print(f"   BK-tree of {len(numbers)}: {built:.1f} s to build, {took * 1e3:.1f} ms to ask; {took / query_s:.0f}x")
    return {"radius_vs_bktree": took / query_s}


def measured(quick: bool = False) -> dict[str, float]:
    """The figures by name."""
    sizes, queries = ([1000, 4000], 100) if quick else ([10_000, 100_000, 1_000_000], 10_000)
    base = real(500 if quick else 20_000)
    with tempfile.TemporaryDirectory() as folder, up(Path(folder) / "krablet", shards=2) as cluster:
        with Krablet(cluster.dsns) as krablet:
            found = {"radius_recall": recall(krablet, base)}
    with tempfile.TemporaryDirectory() as folder, up(Path(folder) / "krablet", shards=2) as cluster:
        with Krablet(cluster.dsns) as krablet:
            grown, table, asked = growth(krablet, base, sizes, queries)
    found |= grown | {"radius_growth": grown[f"radius_query_ms_{sizes[-1]}"] / grown[f"radius_query_ms_{sizes[0]}"]}
    query_s = grown[f"radius_query_ms_{sizes[-1]}"] / 1e3
    small_s = grown[f"radius_query_ms_{sizes[-2]}"] / 1e3
    return found | beside_faiss(table, asked, query_s) | beside_tree(table[: sizes[-2]], asked, small_s)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    print(measured(parser.parse_args().quick))
