"""Curation against its peers in one run: `python benchmarks/data.py [--json] [--quick] [--only radius]`.

Every part of `curation/` is measured one after another: hashes beside imagehash and imagededup, radius search inside
PostgreSQL beside faiss and a BK-tree, concepts beside danker. Parts that are not there, and peers that are not
installed, are left out with a message. Ratios above 1 mean that we are faster. `--quick` runs all in tiny sizes, whose
figures mean nothing.
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# Before numpy is there: all are measured on one core, and ours must not have more of them than the peer.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

PARTS = ("hashes", "radius", "concepts")
KEYS = ("hash_vs_imagehash", "hash_vs_imagededup", "radius_recall", "radius_vs_faiss", "pagerank_vs_danker")
FOLDER = Path(__file__).parent / "curation"


def measured(parts: Sequence[str] = PARTS, *, quick: bool = False) -> dict[str, float]:
    """The figures of the parts by name; progress is printed."""
    found: dict[str, float] = {}
    for name in parts:
        if not (FOLDER / f"{name}.py").exists():
            print(f"-- {name} is not here", flush=True)
            continue
        part = importlib.import_module(f"curation.{name}")
        start = time.monotonic()
        print(f"-- {name}: {(part.__doc__ or '').partition(chr(10))[0]}", flush=True)
        found |= part.measured(quick)
        print(f"-- {name} took {time.monotonic() - start:.0f} s", flush=True)
    return found


def ordered(figures: Mapping[str, float]) -> dict[str, float]:
    """The main figures first, the others by name."""
    first = {name: figures[name] for name in KEYS if name in figures}
    return first | dict(sorted(figures.items()))


def main() -> None:
    """Print the figures, as one JSON object in the last line if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--only", action="append", choices=PARTS, help="one part; may be repeated")
    options = parser.parse_args()
    cores, (load, *_) = os.cpu_count() or 1, os.getloadavg()
    print(f"{cores} cores, load {load:.1f}" + ("; others are at work here, ratios suffer" if load > 0.5 else ""))
    found = ordered(measured(options.only or PARTS, quick=options.quick))
    if options.json:
        print(json.dumps({name: round(value, 4) for name, value in found.items()}))
    else:
        print("\n".join(f"{name}: {value:.4g}" for name, value in found.items()))


if __name__ == "__main__":
    sys.exit(main())
