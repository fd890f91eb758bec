"""Maps in worker processes: functions of all kinds, and what goes wrong in them."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from krea_data.krablet import Krablet, KrabletError, pluck
from krea_data.krablet.pluck.keys import make_key
from krea_data.rows import Result, Row
from krea_data.testing import rows

pytestmark = pytest.mark.postgres
ROWS = 120


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return make_key(tmp_path / "pluck.key")


@pytest.fixture
def table(new_dsns: Callable[[int], list[str]]) -> Iterator[Krablet]:
    with Krablet(new_dsns(2), patience_s=20.0) as table:
        table.add(rows(ROWS))
        yield table


@pytest.fixture
def images(table: Krablet, key_file: Path) -> pluck.Table:
    return pluck.Table("images", krablet=table, key_file=key_file)


def values(table: Krablet, task: str = "score") -> dict[str, Any]:
    return {row.id: row.results[task].value for row in table.scan(kept_by=[task])}


def test_closures_and_lambdas_go_to_workers(table: Krablet, images: pluck.Table) -> None:
    plus = 7
    with images.map(lambda rows: [{"n": len(row.id) + plus} for row in rows], into="score", batch=8, workers=2) as map:
        assert map.wait(60) == pluck.Mapped(rows=ROWS)
        assert map.progress().share == 1.0
    assert {value["n"] for value in values(table).values()} == {len("synthetic/00000") + 7}


def test_a_class_keeps_its_state_in_each_worker(table: Krablet, images: pluck.Table) -> None:
    class Counter:
        def __init__(self, step: int = 1) -> None:
            self.step, self.calls, self.pid = step, 0, os.getpid()

        def __call__(self, rows: Sequence[Row]) -> list[dict[str, int]]:
            self.calls += self.step
            return [{"calls": self.calls, "pid": self.pid} for _ in rows]

    with images.map(partial(Counter, 3), into="score", batch=10, workers=2, show=False) as map:
        map.wait(60)
    found = values(table).values()
    assert len(found) == ROWS
    for pid in {value["pid"] for value in found}:
        calls = {value["calls"] for value in found if value["pid"] == pid}
        assert calls == set(range(3, 3 + 3 * len(calls), 3))


def test_only_a_range_of_keys_or_what_a_filter_leaves(table: Krablet, key_file: Path) -> None:
    def none(rows: Sequence[Row]) -> list[dict[str, int]]:
        return [{} for _ in rows]

    def mapped(into: str, **which: Any) -> list[str]:
        with pluck.Table("images", krablet=table, key_file=key_file, **which).map(none, into=into, workers=1) as map:
            map.wait(60)
        return sorted(values(table, into))

    ids = [row.id for row in rows(ROWS)]
    assert mapped("a", key="synthetic/0001") == ids[10:20]
    assert mapped("b", key=("synthetic/00003", "synthetic/00005")) == ids[3:5]
    assert mapped("c", key=(ids[-2], None)) == ids[-2:]
    styled = {"field": "meta.style", "op": "eq", "value": "3d"}
    assert mapped("d", key="synthetic/0001", where=styled) == ids[11:20:2]
    assert mapped("e", kept_by=["b"], where=styled) == ids[3:4]


def test_rows_that_raise_exit_hang_or_eat_memory_cost_attempts(table: Krablet, images: pluck.Table) -> None:
    def odd(rows: Sequence[Row]) -> list[dict[str, str]]:
        for row in rows:
            match int(row.id[-5:]):
                case 11:
                    raise RuntimeError("cannot work on eleven")
                case 22:
                    os._exit(5)
                case 33:
                    time.sleep(3600)
                case 44:
                    sys.exit("enough")
                case 55:
                    _ = bytearray(8 << 30)
                case 66:
                    os.kill(os.getpid(), signal.SIGSEGV)
        return [{"id": row.id} for row in rows]

    with images.map(odd, into="score", batch=32, workers=2, timeout_s=0.5, memory_mb=4096, show=False) as map:
        assert map.wait(100) == pluck.Mapped(rows=ROWS - 6, failed=6)
        errors = {int(failure.id[-5:]): failure for failure in map.errors()}
    assert {number: failure.error for number, failure in errors.items()} == {
        11: "RuntimeError: cannot work on eleven",
        22: "the process of the function ended with exit code 5",
        33: "took longer than 0.5 s for a batch",
        44: "SystemExit: enough",
        55: "MemoryError: ",
        66: "the process of the function was killed by SIGSEGV",
    }
    assert 'in odd\n    raise RuntimeError("cannot work on eleven")' in errors[11].traceback
    assert errors[11].attempts > 1
    assert errors[11].worker
    assert len(values(table)) == ROWS - 6


def test_a_function_that_forks_answers_once(table: Krablet, images: pluck.Table) -> None:
    def forks(rows: Sequence[Row]) -> list[dict[str, int]]:
        if os.fork() == 0 and rows[0].id.endswith("0"):
            time.sleep(3600)  # and holds the pipe open
        return [{"n": 1} for _ in rows]

    with images.map(forks, into="score", batch=10, workers=1, show=False) as map:
        assert map.wait(60) == pluck.Mapped(rows=ROWS)
    assert len(values(table)) == ROWS


def test_a_worker_that_is_killed_is_replaced_and_its_page_is_done_again(table: Krablet, images: pluck.Table) -> None:
    def slow(rows: Sequence[Row]) -> list[dict[str, int]]:
        time.sleep(0.05)
        return [{} for _ in rows]

    with images.map(slow, into="score", batch=4, workers=2, show=False) as map:
        while map.progress().rows < ROWS // 4:
            time.sleep(0.02)
        os.kill(map.pids[0], signal.SIGKILL)
        assert map.wait(60) == pluck.Mapped(rows=ROWS)


def test_a_row_that_takes_its_worker_down_is_condemned_alone(table: Krablet, images: pluck.Table) -> None:
    def deadly(rows: Sequence[Row]) -> list[dict[str, int]]:
        if any(row.id.endswith("00077") for row in rows):
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(3600)
        return [{} for _ in rows]

    with images.map(deadly, into="score", batch=32, workers=1, show=False) as map:
        assert map.wait(100) == pluck.Mapped(rows=ROWS - 1, failed=1)
        (failure,) = map.errors()
    assert (failure.id, failure.error) == ("synthetic/00077", "4 workers were lost while they worked on this row")


def test_progress_only_grows_and_results_come_while_the_map_runs(table: Krablet, images: pluck.Table) -> None:
    def slow(rows: Sequence[Row]) -> list[Result]:
        time.sleep(0.05)
        return [Result(value={"id": row.id}, drop="odd" if row.id[-1] in "13579" else None) for row in rows]

    table.put("score", {"synthetic/00000": Result(value={"old": True})})
    seen: list[tuple[str, Result]] = []
    early = 0
    counts: list[int] = []
    with images.map(slow, into="score", batch=5, workers=2, show=False) as map:
        for row_id, result in map.results():
            counts.append(map.progress().rows)
            early += counts[-1] < ROWS - 1
            seen.append((row_id, result))
        assert map.wait(10) == pluck.Mapped(rows=ROWS - 1)
    assert counts == sorted(counts)
    assert early
    assert sorted(row_id for row_id, _ in seen) == [row.id for row in rows(ROWS)][1:]
    assert all(result == Result(value={"id": i}, drop="odd" if i[-1] in "13579" else None) for i, result in seen)


def test_what_is_cancelled_goes_on_by_the_same_name(table: Krablet, images: pluck.Table) -> None:
    def slow(rows: Sequence[Row]) -> list[dict[str, str]]:
        time.sleep(0.05)
        return [{"by": "first"} for _ in rows]

    map = images.map(slow, into="score", name="mine", batch=5, workers=2, show=False)
    while map.progress().rows < 20:
        time.sleep(0.02)
    done = map.cancel()
    assert 0 < done.rows < ROWS
    assert map.progress().state == "cancelled"
    assert len(values(table)) == done.rows
    with pytest.raises(ValueError, match="'mine' asks another question"):
        images.map(slow, into="other", name="mine", workers=0)
    with images.map(lambda rows: [{"by": "second"} for _ in rows], into="score", name="mine", workers=1) as again:
        assert again.wait(60) == pluck.Mapped(rows=ROWS)
    by = [value["by"] for value in values(table).values()]
    assert (by.count("first"), by.count("second")) == (done.rows, ROWS - done.rows)


def test_a_long_batch_outlives_its_lease_and_is_cut_short_by_cancel(table: Krablet, images: pluck.Table) -> None:
    def sleeps(rows: Sequence[Row]) -> list[dict[str, int]]:
        time.sleep(1.5 if rows[0].id.endswith("0") else 3600)
        return [{"pid": os.getpid()} for _ in rows]

    part = pluck.Table("images", krablet=table, key_file=images.key_file, key=("synthetic/00010", "synthetic/00012"))
    map = part.map(sleeps, into="score", batch=1, workers=2, lease_s=0.6, show=False)
    while map.progress().rows < 1:
        time.sleep(0.05)
    started = time.monotonic()
    assert map.cancel() == pluck.Mapped(rows=1)
    assert time.monotonic() - started < 20


def test_a_function_that_a_worker_cannot_load_is_one_sentence(
    table: Krablet, images: pluck.Table, tmp_path: Path
) -> None:
    (tmp_path / "only_here.py").write_text("def fn(rows):\n    return [{} for _ in rows]\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import only_here  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(tmp_path))
    with images.map(only_here.fn, into="score", workers=1, show=False) as map:
        with pytest.raises(KrabletError, match=r"needs the module 'only_here', which this worker .* cannot import"):
            map.wait(60)
    with images.map(only_here.fn, into="score", workers=1, by_value=[only_here], show=False) as map:
        assert map.wait(60) == pluck.Mapped(rows=ROWS)

    def lacking(rows: Sequence[Row]) -> None:
        import no_such_module  # noqa: F401  # pyright: ignore[reportMissingImports]

    with images.map(lacking, into="other", workers=1, show=False) as map:
        with pytest.raises(KrabletError, match="needs the module 'no_such_module'"):
            map.wait(60)


def test_a_class_that_cannot_start_is_told_with_its_traceback(images: pluck.Table) -> None:
    class Broken:
        def __init__(self) -> None:
            raise RuntimeError("no weights here")

        def __call__(self, rows: Sequence[Row]) -> None: ...

    with images.map(Broken, into="score", workers=1, show=False) as map:
        with pytest.raises(KrabletError, match="cannot be loaded in the worker: RuntimeError: no weights here"):
            map.wait(60)


def test_what_does_not_pickle_and_bad_arguments_are_named(images: pluck.Table) -> None:
    lock = threading.Lock()
    with pytest.raises(ValueError, match=r"cannot be pickled .*lock"):
        images.map(lambda rows: [lock for _ in rows], into="score")
    with pytest.raises(ValueError, match="workers -1"):
        images.map(len, into="score", workers=-1)
    with pytest.raises(ValueError, match="timeout_s 0"):
        images.map(len, into="score", timeout_s=0)
    with pytest.raises(ValueError, match="memory_mb 1 "):
        images.map(len, into="score", memory_mb=1)
    with pytest.raises(ValueError, match="empty range"):
        pluck.Table("images", krablet=images.krablet, key=("b", "a"))
    with pytest.raises(ValueError, match="takes 65 MiB"):
        images.map(partial(len, bytes(65 << 20)), into="score")
