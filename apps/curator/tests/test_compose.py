"""What goes in comes out: ingest, tasks in this process, dedup, funnel, export; and what is refused."""

import json
from pathlib import Path

import pytest
from krea_curator import compose, recipe
from krea_curator.compose import ORDER, Home
from krea_curator.options import read_dsns
from krea_curator.recipe import Recipe
from krea_data import shards, worker
from krea_data.blobs import FolderBlobs
from krea_data.memory import MemoryTable

KEPT = 27  # of the corpus's 40 rows


@pytest.fixture
def blobs(tmp_path: Path) -> FolderBlobs:
    return Home(folder=tmp_path / "home").blobs


def curated(blobs: FolderBlobs, corpus: Path, limits: Recipe) -> MemoryTable:
    table = MemoryTable()
    compose.ingest(table, blobs, corpus)
    for _ in range(2):
        worker.run(table, compose.per_row(compose.tasks(blobs, limits)), worker="one")
        compose.dedup(table, limits)
    return table


def test_the_tasks_stand_in_the_order_that_the_funnel_shows(blobs: FolderBlobs) -> None:
    tasks = compose.tasks(blobs, Recipe())
    assert tuple(task.name for task in tasks) == ORDER
    assert [task.after for task in tasks] == [(), *((name,) for name in ORDER[:-1])]


def test_every_row_of_the_corpus_meets_its_fate(blobs: FolderBlobs, corpus: Path, fate: dict) -> None:
    steps = compose.funnel(curated(blobs, corpus, Recipe()))
    assert {(step.task, why): number for step in steps for why, number in step.dropped.items()} == fate
    assert (steps[0].seen, steps[-1].kept) == (40, KEPT)
    assert steps[1].examples["small"] == ("small/0", "small/1")


def test_limits_of_the_recipe_reach_the_tasks(blobs: FolderBlobs, corpus: Path) -> None:
    limits = Recipe(licences=("GPL-3.0-only",), least_px=64)
    first, second, *_ = compose.funnel(curated(blobs, corpus, limits))
    assert first.dropped == {"licence": 38}
    assert second.dropped == {"small": 2}


def test_ingest_twice_is_harmless_and_copies_the_pictures(blobs: FolderBlobs, corpus: Path) -> None:
    table, told = MemoryTable(), []
    assert compose.ingest(table, blobs, corpus, lambda done, total: told.append((done, total))) == 40
    assert told == [(n, 40) for n in range(1, 41)]
    assert compose.ingest(table, blobs, corpus) == 0
    assert all(row.blob in blobs for row in table.scan())


def test_a_damaged_corpus_is_refused_and_named(blobs: FolderBlobs, corpus: Path, tmp_path: Path) -> None:
    lines = (corpus / "rows.jsonl").read_text().splitlines()
    first = demo_path(corpus, lines[0])
    whole = first.read_bytes()
    with pytest.raises(ValueError, match=r"holds no rows\.jsonl"):
        compose.ingest(MemoryTable(), blobs, tmp_path)
    first.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="is not what its hash says"):
        compose.ingest(MemoryTable(), blobs, corpus)
    first.unlink()
    with pytest.raises(ValueError, match=r"picture of good/00 is missing"):
        compose.ingest(MemoryTable(), blobs, corpus)
    for damage in (lines[0][:-9], '{"id": "a"}', "[]"):
        (corpus / "rows.jsonl").write_text(damage)
        with pytest.raises(ValueError, match=r"is damaged"):
            compose.ingest(MemoryTable(), blobs, corpus)


def demo_path(corpus: Path, line: str) -> Path:
    return FolderBlobs(corpus / "blobs").path(json.loads(line)["blob"])


def test_export_holds_exactly_what_everything_kept(blobs: FolderBlobs, corpus: Path, tmp_path: Path) -> None:
    table = curated(blobs, corpus, Recipe())
    out = tmp_path / "some shards"
    assert compose.export(table, blobs, out, shards.Settings(seed=1, per_shard=10)) == KEPT
    found = shards.index(out)
    assert {row["id"] for row in found} == {row.id for row in table.scan(kept_by=ORDER)}
    assert found[0]["captions"]["short"].startswith("thing good")
    assert "CC0-1.0" in (out / "ATTRIBUTION.md").read_text()


def test_export_of_nothing_says_where_to_look(blobs: FolderBlobs, corpus: Path, tmp_path: Path) -> None:
    table = MemoryTable()
    compose.ingest(table, blobs, corpus)
    with pytest.raises(ValueError, match="krea-curate funnel"):
        compose.export(table, blobs, tmp_path / "out", shards.Settings())
    assert not (tmp_path / "out").exists()


def test_an_unknown_task_is_named_with_those_there_are(blobs: FolderBlobs) -> None:
    with pytest.raises(ValueError, match=r"no task 'aesthetic'; there are licence, decode"):
        compose.chosen(["aesthetic"], blobs, Recipe())
    assert [task.name for task in compose.chosen(["hash", "decode"], blobs, Recipe())] == ["decode", "hash"]


def test_a_recipe_comes_back_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    assert recipe.read(path) == Recipe()
    limits = Recipe(least_px=16, licences=("MIT",))
    recipe.write(limits, path)
    assert recipe.read(path) == limits
    for text in ('{"least": 3}', "{", "[1]", "3"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"recipe\.json is not a usable recipe"):
            recipe.read(path)


def test_workers_are_told_their_dsns_by_a_file_that_nobody_else_may_read(tmp_path: Path) -> None:
    home = Home(folder=tmp_path)
    for dsns in (["host=a password=secret", "host=b"], ["host=c"]):
        word = compose.dsns_file(home, dsns)
        assert read_dsns([word]) == dsns
        assert Path(word[1:]).stat().st_mode & 0o777 == 0o600
        assert "secret" not in " ".join(compose.worker_command(tmp_path, [word]))
