"""Ingesting into a real krablet: what it knows is asked by id, and a killed run is taken up where it was."""

import subprocess
import sys

import pytest
from krea_data.blobs import FolderBlobs
from krea_data.krablet import Krablet, up
from krea_data.sources import FolderSource, Unavailable, ingest
from krea_data.sources.ingest import Ingested
from krea_data.sources.known import asker

RUN = """
import sys, time
from pathlib import Path
from krea_data.blobs import FolderBlobs
from krea_data.krablet import Krablet
from krea_data.sources import FolderSource, ingest

def told(done, total):
    print(done, flush=True)
    time.sleep(0.05)

with Krablet(sys.argv[3:]) as table:
    ingest(table, FolderBlobs(Path(sys.argv[2])), FolderSource(name="photos", folder=Path(sys.argv[1])), told)
"""


@pytest.fixture(scope="module")
def krablet(tmp_path_factory):
    with up(tmp_path_factory.mktemp("cluster"), 2) as cluster, Krablet(cluster.dsns) as table:
        yield table


def test_what_is_there_is_asked_for_by_id(krablet, blobs, listed, png, monkeypatch):
    monkeypatch.setattr(krablet, "scan", None)
    items = [(f"{n:03d}", png(n)) for n in range(300)]
    items[7] = ("007", Unavailable("timed out", passing=True))
    items[8] = ("008", Unavailable("HTTP 404"))
    source = listed(items, name="asked")
    assert ingest(krablet, blobs, source) == Ingested(new=300, without=2)
    assert asker(krablet, ())(["asked/007", "asked/008", "asked/009", "asked/none"]) == {
        "asked/007": True,
        "asked/008": False,
        "asked/009": False,
    }
    source.read.clear()
    assert ingest(krablet, blobs, source) == Ingested(there=299, still=1)
    source.items[7] = ("007", png(7))
    assert ingest(krablet, blobs, source) == Ingested(new=1, there=299)
    source.read.clear()
    assert ingest(krablet, blobs, source) == Ingested(there=300)
    assert source.read == []


def test_a_killed_run_is_taken_up_where_it_was(krablet, tmp_path, png):
    pictures, store = tmp_path / "pictures", tmp_path / "blobs"
    pictures.mkdir()
    for n in range(1500):
        (pictures / f"{n:05d}.png").write_bytes(png(n))
    command = [sys.executable, "-c", RUN, str(pictures), str(store), *krablet.dsns]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
        process.kill()
    rows = [row for row in krablet.scan() if row.id.startswith("photos/")]
    assert 0 < len(rows) < 1500
    result = ingest(krablet, FolderBlobs(store), FolderSource(name="photos", folder=pictures))
    assert result == Ingested(new=1500 - len(rows), there=len(rows))
    rows = [row for row in krablet.scan() if row.id.startswith("photos/")]
    assert [row.id for row in rows] == [f"photos/{n:05d}.png" for n in range(1500)]
    assert all(FolderBlobs(store).get(row.blob) == png(n) for n, row in enumerate(rows))
