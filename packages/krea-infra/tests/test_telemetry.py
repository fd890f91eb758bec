import io
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from krea_infra.telemetry import json_lines, lines, prometheus, read_json_lines, tee


class Scalar:
    """As a tensor of one element: only float works on it."""

    def __float__(self) -> float:
        return 0.25


def test_console_lines() -> None:
    stream = io.StringIO()
    lines(stream)(3, {"loss": Scalar(), "rate": 1234567})
    assert stream.getvalue() == "step      3  loss 0.25  rate 1.235e+06\n"


def test_json_lines_append_and_keep_odd_numbers(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "log.jsonl"
    json_lines(path)(1, {"loss": Scalar()})
    json_lines(path)(2, {"loss": math.nan, "norm": math.inf, "low": -math.inf})
    first, second = read_json_lines(path)
    assert first == {"step": 1, "loss": 0.25}
    assert math.isnan(second["loss"])
    assert (second["norm"], second["low"]) == (math.inf, -math.inf)


@pytest.mark.parametrize("length", [0, 1, 70_000])
def test_a_torn_line_is_cut_off(tmp_path: Path, length: int) -> None:
    path = tmp_path / "log.jsonl"
    json_lines(path)(1, {"loss": 1})
    with path.open("a") as file:
        file.write("x" * length)
    assert read_json_lines(path) == [{"step": 1, "loss": 1.0}]
    json_lines(path)(2, {"loss": 2})
    assert [row["step"] for row in read_json_lines(path)] == [1, 2]
    path.write_text("x" * length)
    json_lines(path)(3, {})
    assert read_json_lines(path) == [{"step": 3}]


def test_killed_while_writing_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    code = f"""
import pathlib
from krea_infra.telemetry import json_lines
sink = json_lines(pathlib.Path({str(path)!r}))
step = 0
while True:
    step += 1
    sink(step, {{"loss": 1 / step}})
    if step == 50:
        print("go", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
    rows = read_json_lines(path)
    assert len(rows) >= 50
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))


def test_a_short_write_is_taken_back_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    sink = json_lines(path)
    sink(1, {})
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:3]))
    with pytest.raises(OSError, match="disk full"):
        sink(2, {})
    monkeypatch.undo()
    sink(3, {})
    assert [row["step"] for row in read_json_lines(path)] == [1, 3]


def test_prometheus_text_is_read_back_by_the_official_parser(tmp_path: Path) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    path = tmp_path / "textfile" / "krea.prom"
    sink = prometheus(path, labels={"run": 'say "hi"\\n'})
    sink(1, {"loss/train": 0.5})
    sink(2, {"loss/train": 0.125, "grad norm": math.inf, "bad": math.nan, "low": -math.inf})
    found = {s.name: s for family in parser.text_string_to_metric_families(path.read_text()) for s in family.samples}
    assert found["krea_step"].value == 2
    assert found["krea_loss_train"].value == 0.125
    assert found["krea_loss_train"].labels == {"run": 'say "hi"\\n'}
    assert found["krea_grad_norm"].value == math.inf
    assert found["krea_low"].value == -math.inf
    assert math.isnan(found["krea_bad"].value)
    assert list(path.parent.iterdir()) == [path]


def test_tee_serves_everybody_and_then_complains() -> None:
    seen = []

    def broken(step: int, metrics: object) -> None:
        raise OSError("disk full")

    both = tee(broken, lambda step, metrics: seen.append(step))
    with pytest.raises(ExceptionGroup, match="1 of 2 sinks failed at step 7") as error:
        both(7, {})
    assert seen == [7]
    assert isinstance(error.value.exceptions[0], OSError)
    tee()(1, {})
