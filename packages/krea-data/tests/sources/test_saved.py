import json

import pyarrow as pa
import pytest
from krea_data.sources import ingest
from krea_data.sources.saved import SavedSource

datasets = pytest.importorskip("datasets")


@pytest.fixture
def saved(tmp_path, png):
    """A function that saves a dataset of these columns with the real package, and returns the folder."""

    def save(columns, features, splits=None, **more):
        features = datasets.Features(features)
        datasets.disable_progress_bars()
        made = datasets.Dataset.from_dict(columns, features=features, **more)
        if splits:
            made = datasets.DatasetDict({name: made.select(range(*part)) for name, part in splits.items()})
        made.save_to_disk(str(tmp_path / "saved"))
        return tmp_path / "saved"

    return save


def rows_of(table, blobs, folder, **more):
    ingest(table, blobs, SavedSource(name="hf", folder=folder, **more))
    return {row.id: row for row in table.scan()}


def test_a_dataset_that_the_real_package_wrote(table, blobs, saved, png):
    folder = saved(
        {
            "image": [{"bytes": png(n), "path": None} for n in range(5)],
            "text": [f"number {n}" for n in range(5)],
            "label": [0, 1, 0, 1, None],
            "n": list(range(5)),
        },
        {
            "image": datasets.Image(),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "n": datasets.Value("int64"),
        },
    )
    rows = rows_of(table, blobs, folder, licence="cc0", author="me")
    assert list(rows) == [f"hf/all/{n:09d}" for n in range(5)]
    for n, row in enumerate(rows.values()):
        assert blobs.get(row.blob) == png(n)
        assert row.meta["caption"] == f"number {n}"
        assert row.meta.get("label") == ("cat", "dog", "cat", "dog", None)[n]
        assert (row.meta["licence"], row.meta["author"]) == ("CC0-1.0", "me")
        assert row.meta["stated"] == {"n": n}


def test_splits_and_shards_and_the_licence_of_the_dataset(table, blobs, tmp_path, png):
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    columns = {"image": [{"bytes": png(n), "path": None} for n in range(7)], "text": [str(n) for n in range(7)]}
    info = datasets.DatasetInfo(features=features, license="https://creativecommons.org/licenses/by/4.0/")
    whole = datasets.Dataset.from_dict(columns, features=features, info=info)
    datasets.disable_progress_bars()
    made = datasets.DatasetDict(train=whole.select(range(5)), test=whole.select(range(5, 7)))
    made.save_to_disk(str(tmp_path / "d"), num_shards={"train": 2, "test": 1})
    assert len(list((tmp_path / "d" / "train").glob("*.arrow"))) == 2
    rows = rows_of(table, blobs, tmp_path / "d")
    assert list(rows) == [f"hf/test/{n:09d}" for n in range(2)] + [f"hf/train/{n:09d}" for n in range(5)]
    assert [rows[f"hf/train/{n:09d}"].meta["caption"] for n in range(5)] == list("01234")
    assert [rows[f"hf/test/{n:09d}"].meta["caption"] for n in range(2)] == list("56")
    assert {row.meta["licence"] for row in rows.values()} == {"CC-BY-4.0"}
    again = ingest(table, blobs, SavedSource(name="hf", folder=tmp_path / "d"))
    assert (again.new, again.there) == (0, 7)


def test_shuffled_rows_come_in_the_order_in_which_they_were_saved(table, blobs, tmp_path, png):
    features = datasets.Features({"image": datasets.Image(), "n": datasets.Value("int64")})
    columns = {"image": [{"bytes": png(n), "path": None} for n in range(9)], "n": list(range(9))}
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_dict(columns, features=features).shuffle(seed=1)
    made.save_to_disk(str(tmp_path / "d"))
    rows = rows_of(table, blobs, tmp_path / "d")
    assert [row.meta["stated"]["n"] for row in rows.values()] == made["n"][:]
    assert [blobs.get(row.blob) for row in rows.values()] == [png(n) for n in made["n"]]


def test_lists_of_pictures_and_several_columns(table, blobs, saved, png):
    folder = saved(
        {
            "views": [[{"bytes": png(1), "path": None}, {"bytes": png(2), "path": None}], []],
            "front": [{"bytes": png(3), "path": None}, None],
        },
        {"views": datasets.List(datasets.Image()), "front": datasets.Image()},
    )
    rows = rows_of(table, blobs, folder)
    assert [blobs.get(row.blob) if row.blob else row.meta["problem"] for row in rows.values()] == [
        png(3),
        png(1),
        png(2),
        "the dataset has no picture in this row",
    ]
    assert list(rows)[:3] == [f"hf/all/000000000.{name}" for name in ("front", "views.0", "views.1")]


def test_pictures_by_path_are_read_from_allowed_folders_alone(table, blobs, tmp_path, saved, png):
    folder = saved({"image": [{"bytes": png(1), "path": "x.png"}]}, {"image": datasets.Image()})
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.png").write_bytes(png(2))
    (folder / "b.png").write_bytes(png(3))
    paths = [str(outside / "a.png"), "b.png", "../outside/a.png", "none.png", "/etc/passwd"]
    cells = pa.array(
        [{"bytes": None, "path": path} for path in paths], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    name = json.loads((folder / "state.json").read_text())["_data_files"][0]["filename"]
    batch = pa.record_batch({"image": cells})
    with pa.ipc.new_stream(str(folder / name), batch.schema) as stream:
        stream.write_batch(batch)
    rows = list(rows_of(table, blobs, folder).values())
    assert [bool(row.blob) for row in rows] == [False, True, False, False, False]
    assert "out of the dataset's folder" in rows[0].meta["problem"]
    assert "no file" in rows[3].meta["problem"]
    ingest(table, blobs, SavedSource(name="hf", folder=folder, roots=(outside,)))
    good = {row.id: blobs.get(row.blob) for row in table.scan() if row.blob}
    assert good == {"hf/all/000000001": png(3), "hf@2/all/000000000": png(2), "hf@2/all/000000002": png(2)}


def test_a_file_that_is_cut_short_says_where(table, blobs, tmp_path, png):
    features = datasets.Features({"image": datasets.Image()})
    columns = {"image": [{"bytes": png(n), "path": None} for n in range(50)]}
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(a=made, b=made).save_to_disk(str(tmp_path / "d"))
    (file,) = (tmp_path / "d" / "a").glob("*.arrow")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 3])
    rows = rows_of(table, blobs, tmp_path / "d")
    (told,) = [row for row in rows.values() if not row.blob]
    assert told.id.startswith("hf/a/(broken at ")
    assert "breaks off" in told.meta["problem"]
    assert len([row for row in rows.values() if row.id.startswith("hf/b/") and row.blob]) == 50


def test_folders_that_are_no_dataset_are_refused(tmp_path, saved):
    with pytest.raises(ValueError, match="holds no dataset"):
        SavedSource(name="hf", folder=tmp_path)
    folder = saved({"n": [1]}, {"n": datasets.Value("int64")})
    with pytest.raises(ValueError, match="no column of type Image"):
        SavedSource(name="hf", folder=folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        SavedSource(name="hf", folder=folder)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../../etc/passwd"}]}))
    with pytest.raises(ValueError, match="names no data files"):
        SavedSource(name="hf", folder=folder)
