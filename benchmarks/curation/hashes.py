"""Perceptual and colour hash of decoded pictures beside imagehash, and from files beside imagededup.

    python benchmarks/curation/hashes.py [--quick]

Both sides hash the same decoded pictures on one core, in turn, round after round; every bit is compared. Pictures are
photograph-like (many scales of colour, and noise), and the drawings of the demo corpus where that has been fetched:
flat drawings on white cost imagehash less. imagededup, whose perceptual hash has 64 bits and no colour, is run by a
Python that has it: this one, or that which IMAGEDEDUP_PYTHON names.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from krea_data import demo
from krea_data.demo.cache import default_cache
from krea_data.tasks.hash import colour_hash, perceptual_hash
from krea_data.tasks.picture import decode
from PIL import Image

_PEER = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
from imagededup.methods import PHash
hasher, files = PHash(verbose=False), sys.argv[1:]
hasher.encode_image(image_file=files[0])
start = time.perf_counter()
found = [hasher.encode_image(image_file=file) for file in files]
print(json.dumps(time.perf_counter() - start))
"""


def photographs(count: int, side: int, seed: int = 0) -> list[Image.Image]:
    """Pictures with colours of many scales, and noise."""
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        pixels = draw.normal(0, 3, (side, side, 3))
        for cells, weight in ((3, 0.5), (12, 0.3), (60, 0.15)):
            small = Image.fromarray(draw.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            pixels += weight * np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))
        found.append(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))
    return found


def drawings(count: int) -> list[Image.Image]:
    """Some pictures of a demo corpus that has been drawn before, evenly spread."""
    for folder in sorted(default_cache().glob("corpus-*")):
        if (folder / "rows.jsonl").exists():
            rows, store = demo.rows(folder), demo.blobs(folder)
            picked = rows[:: max(1, len(rows) // count)][:count]
            return [decode(store.get(row.blob))[0] for row in picked]
    return []


def ours(images: Sequence[Image.Image]) -> np.ndarray:
    return np.concatenate([perceptual_hash(images), colour_hash(images, table=True)], axis=1)


def theirs(images: Sequence[Image.Image]) -> np.ndarray:
    import imagehash

    both = [(imagehash.phash(image, hash_size=12), imagehash.colorhash(image, binbits=3)) for image in images]
    return np.array([np.concatenate([shape.hash.ravel(), colour.hash.ravel()]) for shape, colour in both])


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def beside_imagehash(what: str, images: Sequence[Image.Image], rounds: int) -> float:
    """How many times as fast we are; AssertionError for a bit that differs."""
    assert np.array_equal(ours(images), theirs(images)), f"bits of {what} differ"
    pairs = [(seconds(lambda: ours(images)), seconds(lambda: theirs(images))) for _ in range(rounds)]
    mine, other = (statistics.median(side) / len(images) for side in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"   {len(images)} {what}: {1 / mine:.0f} images/s, imagehash {1 / other:.0f}; {ratio:.2f}x, all bits equal")
    return ratio


def beside_imagededup(images: Sequence[Image.Image], rounds: int) -> float | None:
    """From files: decode, both hashes, against its 64 bits without colour."""
    python = os.environ.get("IMAGEDEDUP_PYTHON")
    if python is None and importlib.util.find_spec("imagededup") is None:
        print("   imagededup is not installed, and IMAGEDEDUP_PYTHON names no Python that has it: left out")
        return None
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number:04d}.jpg" for number in range(len(images))]
        for file, image in zip(files, images, strict=True):
            image.save(file, quality=90)

        def mine() -> None:
            for start in range(0, len(files), 64):
                ours([decode(file.read_bytes())[0] for file in files[start : start + 64]])

        mine()
        pairs = []
        for _ in range(rounds):
            said = subprocess.run(
                [python or sys.executable, "-c", _PEER, *map(str, files)], capture_output=True, text=True, check=True
            )
            pairs.append((seconds(mine), json.loads(said.stdout.splitlines()[-1])))
    ratio = statistics.median(b / a for a, b in pairs)
    a, b = (len(images) / statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"   from JPEG files: {a:.0f} images/s, imagededup {b:.0f}; {ratio:.2f}x")
    return ratio


def measured(quick: bool = False) -> dict[str, float]:
    """The figures by name."""
    count, rounds = (8, 1) if quick else (64, 7)
    found: dict[str, float] = {}
    for side in (256,) if quick else (256, 512, 1024):
        images = photographs(count if side < 1024 else count // 4, side)
        found[f"hash_vs_imagehash_{side}px"] = beside_imagehash(f"photographs of {side} px", images, rounds)
    found["hash_vs_imagehash"] = found["hash_vs_imagehash_256px" if quick else "hash_vs_imagehash_512px"]
    if images := drawings(count * 4):
        found["hash_vs_imagehash_drawings"] = beside_imagehash(f"drawings of {images[0].width} px", images, rounds)
    else:
        print("   no demo corpus has been drawn here (krea-curate fetch-demo): drawings are left out")
    ratio = beside_imagededup(photographs(count * 2, 512), 1 if quick else 3)
    return found if ratio is None else found | {"hash_vs_imagededup": ratio}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    print(measured(parser.parse_args().quick))
