import io
import tarfile
from pathlib import Path

import pytest
from krea_curator.sourcing import source_at
from krea_data.memory import MemoryTable
from krea_data.sources import FolderSource, WebDatasetSource, ingest
from krea_data.testing import MemoryBlobs, picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three pictures."""
    folder = tmp_path / "My Pictures"
    folder.mkdir()
    for n in range(3):
        (folder / f"{n}.png").write_bytes(picture(n))
    return folder


def tar(path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for n in range(2):
            info = tarfile.TarInfo(f"{n:04d}.png")
            info.size = len(picture(n))
            archive.addfile(info, io.BytesIO(picture(n)))
    return path


def test_a_folder_is_what_lies_in_it(folder: Path, tmp_path: Path) -> None:
    found = source_at([folder], None, "CC0-1.0", None)
    assert isinstance(found, FolderSource)
    assert found.name == "my-pictures"
    table, blobs = MemoryTable(), MemoryBlobs()
    assert ingest(table, blobs, found).new == 3
    assert {row.meta["licence"] for row in table.scan()} == {"CC0-1.0"}
    (tmp_path / "tars").mkdir()
    tars = [tar(tmp_path / "tars" / f"{n}.tar") for n in range(2)]
    for places in (tars, [tmp_path / "tars"]):
        found = source_at(places, "set", None, None)
        assert isinstance(found, WebDatasetSource)
        assert list(found.tars) == tars
    (folder / "rows.jsonl").write_text("")
    assert source_at([folder], None, None, None) is None


def test_lists_and_saved_datasets_are_told_apart(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from krea_data.sources.saved import SavedSource
    from krea_data.sources.urls import UrlSource
    from pyarrow import parquet

    path = tmp_path / "list.parquet"
    parquet.write_table(pa.table({"url": ["http://127.0.0.1:9/a.png"]}), path)
    assert isinstance(source_at([path], None, None, None), UrlSource)
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "dataset_info.json").write_text('{"features": {"image": {"_type": "Image"}}}')
    (saved / "state.json").write_text('{"_data_files": []}')
    assert isinstance(source_at([saved], None, None, None), SavedSource)


@pytest.mark.parametrize("name", ["x.doc", "nowhere"])
def test_what_fits_nothing_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.doc").write_text("x")
    with pytest.raises(ValueError, match=name):
        source_at([tmp_path / name], None, None, None)


def test_a_place_without_a_name_needs_one() -> None:
    with pytest.raises(ValueError, match="--name"):
        source_at([Path("/")], None, None, None)
