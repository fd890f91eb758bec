"""A dump comes back on any number of shards as it was, and a damaged one does not come back at all."""

import gzip
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from krea_data.krablet import Krablet
from krea_data.krablet.checks.check import check
from krea_data.krablet.dumps import backup
from krea_data.krablet.dumps import folder as dumps
from krea_data.krablet.dumps.backup import dump
from krea_data.krablet.dumps.restore import restore
from krea_data.krablet.funnels.pieces import Rows
from krea_data.krablet.moves import move
from krea_data.krablet.records.rules import Column, Record
from krea_data.krablet.records.tables import declare_record, upsert
from krea_data.rows import Result, Row
from psycopg import sql

NewDsns = Callable[[int], list[str]]
COUNTS = Record("counts", (Column("hits", "int", "add"), Column("tags", "texts", "union"), Column("at", "float")))


class Named:
    """A task that is worked on by hand."""

    def __init__(self, name: str, *after: str, columns: Mapping[str, type] | None = None) -> None:
        self.name, self.after, self.columns = name, after, dict(columns or {})

    def __call__(self, rows: Sequence[Row]) -> Sequence[Result]:
        raise NotImplementedError


FIRST, SECOND = Named("first", columns={"score": float}), Named("second", "first")


def fill(krablet: Krablet, rows: int = 300) -> None:
    """Rows in every state that there is."""
    odd = 'quote " backslash \\ newline \n tab \t snowman ☃ \x01\x02\x7f'
    krablet.register([FIRST, SECOND])
    krablet.add(
        Row(id=f"id/{n:04d} {odd if n % 50 == 0 else ''}", blob=f"{n:064x}", meta={"n": n, odd: odd})
        for n in range(rows)
    )
    claims = krablet.claim(FIRST, "worker", rows // 2, 600)
    krablet.complete(
        "first",
        {c: Result(value={"score": 0.1 * n, "text": odd}, drop="odd" if n % 3 else None) for n, c in enumerate(claims)},
    )
    for claim in krablet.claim(SECOND, "worker", 8, 600):
        krablet.fail("second", claim, f"it failed {odd}")
    krablet.claim(SECOND, "another", 5, 600)
    krablet.prioritise("first", [f"id/{n:04d} " for n in range(rows)], 3)
    krablet.pause("second")
    krablet.put("score", {c.id: Result(value={"é": [1, 2.5, None, 1e300, 12345678901234567890]}) for c in claims[:20]})
    doomed = Krablet(krablet.dsns, max_attempts=1)
    for claim in doomed.claim(FIRST, "worker", 4, 600):
        doomed.fail("first", claim, "no hope")
    doomed.close()
    writes = {
        f"key/{n}": COUNTS.write(f"key/{n}", {"hits": n, "tags": [odd, str(n)], "at": 1 / (n + 1)}) for n in range(50)
    }
    for number in krablet.shards.numbers:
        krablet.shards.attempt(number, lambda c: declare_record(c, COUNTS))
    slots = krablet.router
    for number in krablet.shards.numbers:
        mine = {
            key: write
            for key, write in sorted(writes.items(), key=lambda p: (slots.slot(p[0]), p[0]))
            if slots.shard(key) == number
        }
        _, *columns = zip(*mine.values(), strict=True)
        statement, values = upsert(COUNTS, Rows([slots.slot(key) for key in mine], list(mine), None, columns))
        krablet.shards.attempt(number, lambda c, s=statement, v=values: c.execute(s, v))


def content(krablet: Krablet) -> dict[str, list[str]]:
    """All rows of all tables with a slot, and all tasks and records; but for the places in a queue of equal times."""
    found: dict[str, list[str]] = {}
    names = (
        "select table_name from information_schema.columns"
        " where table_schema = current_schema() and column_name = 'slot'"
    )
    tasks = "select to_jsonb(task) - 'number' - 'bands' from task order by number"
    for number in krablet.shards.numbers:
        with krablet.shards.connection(number) as connection:
            tables = {name for (name,) in connection.execute(names).fetchall()} - {
                "slot_map",
                "away",
                "outgoing",
                "change",
            }
            for name in sorted(tables):
                rows = connection.execute(
                    sql.SQL("select (to_jsonb(t) - 'n')::text from {} t").format(sql.Identifier(name))
                )
                found.setdefault(name, []).extend(text for (text,) in rows.fetchall())
            rows = connection.execute(tasks)
            found[f"tasks of {number}"] = [str(task) for (task,) in rows.fetchall()]
            rows = connection.execute("select to_jsonb(t)::text from record t order by name")
            found[f"records of {number}"] = [text for (text,) in rows.fetchall()]
    return {name: rows if " of " in name else sorted(rows) for name, rows in found.items()}


def rows_of(found: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {name: rows for name, rows in found.items() if " of " not in name}


@pytest.mark.parametrize("shards", [1, 3])
def test_a_dump_comes_back_on_another_number_of_shards(
    krablet: Krablet, new_dsns: NewDsns, tmp_path: Path, shards: int
) -> None:
    fill(krablet)
    steps: list[tuple[int, int]] = []
    manifest = dump(krablet, tmp_path / "dump", on_slots=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (64, 64)
    assert manifest.rows > 700
    before = content(krablet)
    assert len(before["dead"]) == 4
    with Krablet(new_dsns(shards)) as back:
        assert restore(tmp_path / "dump", back).name == manifest.name
        after = content(back)
        assert rows_of(after) == rows_of(before)
        for number in range(shards):
            assert after[f"tasks of {number}"] == before["tasks of 0"]
            assert after[f"records of {number}"] == before["records of 0"]
        assert [one for one in check(back.dsns) if one.level == "broken"] == []
        assert back.stats() == krablet.stats()
        assert list(back.scan()) == list(krablet.scan())


def test_the_queues_go_on_where_they_were(krablet: Krablet, new_dsns: NewDsns, tmp_path: Path) -> None:
    krablet.register([FIRST])
    krablet.add(Row(id=f"{n}", blob="b") for n in range(40))
    held = krablet.claim(FIRST, "worker", 10, 600)
    dump(krablet, tmp_path / "dump")
    with Krablet(new_dsns(3)) as back:
        restore(tmp_path / "dump", back)
        assert back.pending("first") == 40
        assert back.complete("first", {held[0]: Result(value={})}) == 1  # the lease is as good as before
        others = back.claim(FIRST, "another", 100, 600) + back.claim(FIRST, "another", 100, 600)
        assert {claim.id for claim in others} == {f"{n}" for n in range(40)} - {claim.id for claim in held}
        assert min(claim.token for claim in others) > max(claim.token for claim in held)


def test_a_dump_and_a_restore_that_were_cut_off_go_on(
    krablet: Krablet, new_dsns: NewDsns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(krablet, 100)
    folder = tmp_path / "dump"
    read = backup._read_slot

    def cut(connection: Any, number: int, slot: int, work: Path) -> Any:
        if slot == 40:
            raise KeyboardInterrupt
        return read(connection, number, slot, work)

    with monkeypatch.context() as patch:
        patch.setattr(backup, "_read_slot", cut)
        with pytest.raises(KeyboardInterrupt):
            dump(krablet, folder)
    assert not folder.exists()
    with pytest.raises(ValueError, match="it was cut off; dump again"):
        dumps.read_manifest(folder)
    seen: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(backup, "_read_slot", lambda c, n, slot, w: seen.append(slot) or read(c, n, slot, w))
        dump(krablet, folder)
    assert 0 < len(seen) < 40
    assert not folder.with_name("dump.partial").exists()
    dsns = new_dsns(3)
    with Krablet(dsns) as back:

        def stop(what: str, done: int, total: int) -> None:
            if (what, done) == ("written", 20):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            restore(folder, back, on_step=stop)
        assert any("a restore was cut off" in one.text for one in check(dsns))
        assert back.claim(FIRST, "worker", 10, 60) == []  # nobody works on a half of it
        restore(folder, back)
        assert rows_of(content(back)) == rows_of(content(krablet))
        assert [one for one in check(dsns) if one.level == "broken"] == []


def test_a_slot_that_moves_is_dumped_where_it_is(krablet: Krablet, new_dsns: NewDsns, tmp_path: Path) -> None:
    fill(krablet, 100)
    with Krablet(krablet.dsns) as other:
        move.move(other, range(10, 16), 1)
    dump(krablet, tmp_path / "dump")  # which does not know of it
    with Krablet(new_dsns(1)) as back:
        restore(tmp_path / "dump", back)
        assert rows_of(content(back)) == rows_of(content(krablet))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _edit(path: Path) -> None:
    lines = gzip.decompress(path.read_bytes()).replace(b'"blob": "0', b'"blob": "1', 1)
    path.write_bytes(gzip.compress(lines))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: next((f / "images").iterdir()).unlink(), "No such file"),
        (lambda f: _cut(next((f / "images").iterdir())), "not what was written"),
        (lambda f: _edit(next((f / "images").iterdir())), "not what was written"),
        (lambda f: _cut(f / "manifest.json"), "cannot be read"),
        (
            lambda f: (f / "manifest.json").write_text(
                (f / "manifest.json").read_text().replace('"rows": 1,', '"rows": 2,', 1)
            ),
            "not what",
        ),
        (lambda f: (f / "manifest.json").unlink(), "holds no manifest.json: give the folder"),
    ],
)
def test_a_damaged_dump_is_refused_before_anything_is_written(
    krablet: Krablet, new_dsns: NewDsns, tmp_path: Path, harm: Callable[[Path], object], says: str
) -> None:
    krablet.add(Row(id=f"{n}", blob="0") for n in range(60))
    dump(krablet, tmp_path / "dump")
    harm(tmp_path / "dump")
    with Krablet(new_dsns(1)) as back:
        with pytest.raises(ValueError, match=says) as told:
            restore(tmp_path / "dump", back)
        assert "\n" not in str(told.value)
        assert list(back.scan()) == []
        assert check(back.dsns, quick=True) == [one for one in check(back.dsns, quick=True) if one.level != "broken"]


def test_what_does_not_fit_is_refused(krablet: Krablet, new_dsns: NewDsns, tmp_path: Path) -> None:
    krablet.add([Row(id="1", blob="b")])
    dump(krablet, tmp_path / "dump")
    with pytest.raises(ValueError, match="is there already"):
        dump(krablet, tmp_path / "dump")
    with pytest.raises(ValueError, match="holds rows already; use empty databases"):
        restore(tmp_path / "dump", krablet)
    with Krablet(new_dsns(1), bits=4) as other:
        with pytest.raises(ValueError, match="2 \\*\\* 6 slots, the krablet 2 \\*\\* 4"):
            restore(tmp_path / "dump", other)
        with pytest.raises(ValueError, match=r"holds no manifest\.json"):
            restore(tmp_path / "nothing", other)
        shutil.copytree(tmp_path / "dump", tmp_path / "other.partial")
        (tmp_path / "other.partial" / "manifest.json").unlink()
        (tmp_path / "other.partial" / "plan.json").write_text(json.dumps({"krablet": "another"}))
        with pytest.raises(ValueError, match="a part of another dump"):
            dump(other, tmp_path / "other")
