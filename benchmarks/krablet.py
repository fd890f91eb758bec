"""The krablet against its peers in one run: `python benchmarks/krablet.py [--json] [--quick] [--only queues]`.

Every part of `warehouse/` is measured on embedded servers of its own, one part after another: contended upserts through
funnel servers, queues beside pgqueuer and procrastinate, maps beside Dask, reads beside PgBouncer, moves of slots under
load, shards and workers, and the size of tables under churn. Ratios above 1 mean that we are faster. A part alone takes
one to three minutes; `--quick` runs all in tiny sizes, whose figures mean nothing.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from krea_data.krablet import up

PARTS = ("upserts", "queues", "maps", "reads", "moves", "scaling", "churn")
KEYS = ("funnel_vs_autocommit", "jobs_vs_pgqueuer", "jobs_vs_procrastinate", "shards_2_vs_1", "pluck_overhead_us")


def measured(parts: Sequence[str] = PARTS, *, quick: bool = False) -> dict[str, float]:
    """The figures of the parts by name, each on a fresh server; progress is printed."""
    found: dict[str, float] = {}
    for name in parts:
        part = importlib.import_module(f"warehouse.{name}")
        start = time.monotonic()
        print(f"-- {name}: {(part.__doc__ or '').partition(chr(10))[0]}", flush=True)
        with tempfile.TemporaryDirectory() as folder, up(Path(folder) / "krablet", shards=1) as cluster:
            found |= part.measured(cluster.dsns, quick=quick)
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
