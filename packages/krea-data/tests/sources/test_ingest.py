import errno
import threading

import pytest
from krea_data.blobs import FolderBlobs
from krea_data.memory import MemoryTable
from krea_data.rows import Row
from krea_data.sources import Unavailable, ingest, row_id
from krea_data.sources.ingest import Ingested
from krea_data.tasks import Decode
from krea_data.worker import run


def test_every_entry_becomes_a_row_in_its_order(table, blobs, listed, png):
    source = listed([(f"{n:03d}.png", png(n)) for n in range(300)])
    seen = []
    assert ingest(table, blobs, source, lambda done, total: seen.append((done, total))) == Ingested(new=300)
    rows = list(table.scan())
    assert [row.id for row in rows] == [f"list/{n:03d}.png" for n in range(300)]
    assert blobs.get(rows[7].blob) == png(7)
    assert rows[7].meta == {"source": "list", "licence": "unknown", "bytes_read": len(png(7))}
    assert seen[-1] == (300, 300)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_again_reads_nothing_and_what_is_new_comes(table, blobs, listed, png):
    source = listed([(f"{n}", png(n)) for n in range(20)])
    ingest(table, blobs, source)
    source.read.clear()
    assert ingest(table, blobs, source) == Ingested(there=20)
    assert source.read == []
    source.items.insert(3, ("new", png(99)))
    assert ingest(table, blobs, source) == Ingested(new=1, there=20)
    assert source.read == ["new"]


def test_a_run_that_breaks_off_is_taken_up_where_it_was(blobs, listed, png):
    class Frail(MemoryTable):
        calls = 0

        def add(self, rows):
            rows = list(rows)
            Frail.calls += 1
            if rows and Frail.calls == 4:
                raise ConnectionError("the database went away")
            return super().add(rows)

    table = Frail()
    source = listed([(f"{n:04d}", png(n)) for n in range(1000)])
    with pytest.raises(ConnectionError):
        ingest(table, blobs, source)
    before = len(list(table.scan()))
    assert 0 < before < 1000
    source.read.clear()
    assert ingest(table, blobs, source) == Ingested(new=1000 - before, there=before)
    assert len(source.read) == 1000 - before
    assert len(list(table.scan())) == 1000


def test_what_has_no_bytes_is_a_row_that_says_why(table, blobs, listed, png):
    items = [
        ("gone", Unavailable("HTTP 410", meta={"http_status": 410})),
        ("good", png(1)),
        ("denied", PermissionError(13, "Permission denied")),
    ]
    assert ingest(table, blobs, listed(items)) == Ingested(new=3, without=2)
    rows = {row.id: row for row in table.scan()}
    assert rows["list/gone"].blob == ""
    assert rows["list/gone"].meta["problem"] == "HTTP 410"
    assert rows["list/gone"].meta["problem_passes"] is False
    assert rows["list/gone"].meta["http_status"] == 410
    assert rows["list/denied"].meta["problem"] == "it cannot be read: Permission denied"
    run(table, [Decode(blobs=blobs)], worker="w")
    dropped = {row.id: (row.dropped, row.results["decode"].value.get("error")) for row in table.scan()}
    assert dropped["list/gone"] == (("decode", "missing"), "HTTP 410")
    assert dropped["list/good"] == (None, None)
    assert table.stats()["decode"].dead == 0


def test_what_may_pass_is_tried_again_and_stands_beside_the_failure(table, blobs, listed, png):
    source = listed([("a", Unavailable("timed out", passing=True)), ("b", Unavailable("HTTP 404")), ("c", png(3))])
    assert ingest(table, blobs, source) == Ingested(new=3, without=2)
    source.read.clear()
    assert ingest(table, blobs, source) == Ingested(there=2, still=1)
    assert source.read == ["a"]
    assert len(list(table.scan())) == 3
    source.items[0] = ("a", png(1))
    assert ingest(table, blobs, source) == Ingested(new=1, there=2)
    rows = {row.id: row for row in table.scan()}
    assert blobs.get(rows["list@2/a"].blob) == png(1)
    assert rows["list@2/a"].meta["instead_of"] == "list/a"
    assert "problem" not in rows["list@2/a"].meta
    source.read.clear()
    assert ingest(table, blobs, source) == Ingested(there=3)
    assert source.read == []


def test_a_full_disk_is_the_problem_of_its_rows_and_passes(table, tmp_path, listed, png, monkeypatch):
    """ENOSPC while the bytes are written: nothing half-written stays, the run goes on, the next one brings the rest."""
    blobs = FolderBlobs(tmp_path)
    full = {"yes": False}
    real = __import__("os").fdopen

    def fdopen(handle, *args):
        file = real(handle, *args)
        if full["yes"]:
            file.close()
            raise OSError(errno.ENOSPC, "No space left on device")
        return file

    monkeypatch.setattr("krea_data.blobs.os.fdopen", fdopen)
    source = listed([(f"{n}", png(n)) for n in range(10)])
    source.items[4:7] = [(f"{n}", lambda: None) for n in range(4, 7)]
    real_read = source._read

    def read(key, data):
        full["yes"] = key in ("4", "5", "6")
        return real_read(key, png(int(key)))

    source._read = read
    assert ingest(table, blobs, source, workers=1) == Ingested(new=10, without=3)
    bad = [row for row in table.scan() if not row.blob]
    assert [row.id for row in bad] == ["list/4", "list/5", "list/6"]
    assert {row.meta["problem"] for row in bad} == {"it was read, but could not be stored: No space left on device"}
    assert not list(tmp_path.rglob(".new-*"))
    source._read = lambda key, data: real_read(key, png(int(key)))
    full["yes"] = False
    assert ingest(table, blobs, source) == Ingested(new=3, there=7)
    good = {row.id.rpartition("/")[2] for row in table.scan() if row.blob}
    assert good == {str(n) for n in range(10)}


def test_a_store_that_refuses_everything_ends_the_run(table, listed, png):
    class Closed:
        def get(self, key):
            raise KeyError(key)

        def put(self, data):
            raise PermissionError("it refused these credentials")

    with pytest.raises(PermissionError, match="credentials"):
        ingest(table, Closed(), listed([(str(n), png(n)) for n in range(50)]))
    assert list(table.scan()) == []


def test_equal_keys_are_one_row_and_equal_bytes_are_two(table, blobs, listed, png):
    source = listed([("a", png(1)), ("b", png(1)), ("a", png(2))])
    assert ingest(table, blobs, source) == Ingested(new=2, there=1)
    rows = list(table.scan())
    assert [row.id for row in rows] == ["list/a", "list/b"]
    assert rows[0].blob == rows[1].blob
    assert blobs.get(rows[0].blob) == png(1)


def test_keys_that_a_table_cannot_hold_are_written_out(table, blobs, listed, png):
    long = "x" * 5000
    keys = ["a\0b", "new\nline", "\ud800", "ü", long, long + "y", "f" * 880 + "é" * 30]
    assert ingest(table, blobs, listed([(key, png(n)) for n, key in enumerate(keys)])) == Ingested(new=7)
    ids = {row.id for row in table.scan()}
    assert {"list/a\\x00b", "list/new\\nline", "list/\\ud800", "list/ü"} < ids
    assert len(ids) == 7
    assert max(len(one.encode()) for one in ids) <= 900
    assert row_id("list", long) in ids


def test_meta_that_a_table_cannot_hold_costs_the_meta_alone(table, blobs, listed, png):
    source = listed([("a", png(1))])
    entry = next(source.entries())
    object.__setattr__(entry, "meta", lambda: {"caption": "x\0y", "licence": "MIT"})
    source.entries = lambda: iter([entry])
    assert ingest(table, blobs, source) == Ingested(new=1)
    (row,) = table.scan()
    assert blobs.get(row.blob) == png(1)
    assert row.meta["licence"] == "unknown"
    assert "NUL" in row.meta["notes"][0]


def test_reads_run_side_by_side(table, blobs, listed, png):
    """Four reads that wait for each other: with fewer workers none would ever end."""
    meeting = threading.Barrier(4, timeout=20)
    source = listed([(str(n), png(n)) for n in range(8)])
    real = source._read

    def read(key, data):
        meeting.wait()
        return real(key, data)

    source._read = read
    assert ingest(table, blobs, source, workers=4).new == 8


@pytest.mark.parametrize("name", ["", "Upper", "a/b", "a@2", "x" * 41])
def test_a_source_needs_a_name(table, blobs, listed, name):
    with pytest.raises(ValueError, match="name for a source"):
        ingest(table, blobs, listed([], name=name))


def test_rows_of_other_sources_do_not_count(table, blobs, listed, png):
    table.add([Row(id="list2/a", blob="x"), Row(id="lis/a", blob="x")])
    assert ingest(table, blobs, listed([("a", png(1))])).new == 1


def test_workers_are_checked(table, blobs, listed):
    with pytest.raises(ValueError, match="workers 0"):
        ingest(table, blobs, listed([]), workers=0)
