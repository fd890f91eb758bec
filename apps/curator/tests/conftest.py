"""A corpus of forty synthetic pictures whose fate is known, and a home with a running embedded krablet."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from krea_curator import compose
from krea_curator.compose import Home
from krea_data.blobs import FolderBlobs
from krea_data.testing import picture

FATE = {
    ("licence", "licence"): 2,
    ("decode", "broken"): 1,
    ("decode", "small"): 2,
    ("flat", "blank"): 1,
    ("flat", "bars"): 3,  # of thirty made-up pictures three happen to look letterboxed
    ("dedup", "duplicate"): 2,
    ("dedup", "near duplicate"): 1,
    ("caption", "no label"): 1,
}


def white_png(side_px: int) -> bytes:
    """A white picture, made without any library."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side_px, side_px, 8, 2, 0, 0, 0)
    body = zlib.compress((b"\0" + b"\xff" * 3 * side_px) * side_px)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def entries() -> list[tuple[str, bytes, dict]]:
    """(id, picture, changes to its meta) of every row."""
    rows: list[tuple[str, bytes, dict]] = [(f"good/{n:02d}", picture(n, 48), {}) for n in range(30)]
    rows += [(f"gpl/{n}", picture(100 + n, 48), {"licence": "GPL-3.0-only"}) for n in range(2)]
    rows += [("odd/broken", b"this is no picture", {}), ("odd/blank", white_png(48), {})]
    rows += [(f"small/{n}", picture(200 + n, 16), {}) for n in range(2)]
    rows += [(f"twin/{n}", picture(n, 48), {}) for n in range(2)]
    rows += [("twin/near", picture(2, 48) + b"\0", {}), ("odd/nameless", picture(300, 48), {"label": ""})]
    return rows


@pytest.fixture
def fate() -> dict[tuple[str, str], int]:
    """Rows of the corpus by the task that drops them and its reason."""
    return FATE


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The folder of the corpus."""
    folder = tmp_path / "a corpus"
    blobs = FolderBlobs(folder / "blobs")
    lines = []
    for row_id, data, changes in entries():
        meta = {"source": "synthetic", "style": "flat", "label": f"thing {row_id}", "licence": "CC0-1.0"} | changes
        lines.append(json.dumps({"id": row_id, "blob": blobs.put(data), "meta": meta}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home of the test's own, whose krablet stays up."""
    where = Home(folder=tmp_path / "a home")
    with compose.dsns(where):
        yield where


@pytest.fixture(scope="session")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home without rows for all tests that add none."""
    where = Home(folder=tmp_path_factory.mktemp("empty home"))
    with compose.dsns(where):
        yield where
