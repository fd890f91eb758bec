import errno
import json
import logging
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from krea_train import checkpoint
from krea_train.checkpoint import CheckpointError
from safetensors import SafetensorError
from torch import Tensor

PROGRAM = Path(__file__).parent / "programs" / "saves.py"
PARTS = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def tree(step: int) -> dict[str, Any]:
    shared = torch.arange(6.0).reshape(2, 3)
    return {
        "model": {"w.weight": torch.full((3, 4), float(step)), "w.bias": torch.zeros(3, dtype=torch.bfloat16)},
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "m": shared}, 1: {"m": shared, "t": shared.T}},
            "groups": [{"lr": 0.1, "betas": (0.9, 0.95), "names": ["a/b", "$odd"], "none": None, "flag": True}],
            "$odd": {"a/b": torch.ones(1), "a": {"b": torch.zeros(1)}},
        },
        "progress": {"step": step},
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_a_tree_comes_back_as_it_was(tmp_path: Path):
    path = checkpoint.save(tmp_path, 12, tree(12), notes={"stage": "pretrain-256"})
    assert path.name == "step-000012"
    assert same(checkpoint.load(path), tree(12))
    assert checkpoint.verify(path)["notes"] == {"stage": "pretrain-256"}
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name]


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    path = checkpoint.save(tmp_path, 1, tree(1))
    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refuse)
    assert same(checkpoint.load(path), tree(1))


def test_what_cannot_be_stored_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="cannot store set at 'a'"):
        checkpoint.save(tmp_path, 1, {"odd": {"a": {1}}})
    assert checkpoint.newest(tmp_path) is None


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, truncate, empty, Path.unlink])
@pytest.mark.parametrize("name", PARTS)
def test_a_damaged_file_is_refused_by_name_and_the_one_before_is_used(
    tmp_path: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
):
    checkpoint.save(tmp_path, 1, tree(1))
    path = checkpoint.save(tmp_path, 2, tree(2))
    damage(path / name)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(path)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.newest(tmp_path) == tmp_path / "step-000001"
    assert name in caplog.text


def test_every_byte_of_the_manifest_counts(tmp_path: Path):
    path = checkpoint.save(tmp_path, 1, {"progress": {"step": 1}}) / "manifest.json"
    data = path.read_bytes()
    for i in range(0, len(data), 7):
        changed = bytearray(data)
        changed[i] ^= 1
        path.write_bytes(changed)
        if changed.split() != data.split():  # white space between values means nothing
            with pytest.raises(CheckpointError, match=r"manifest\.json"):
                checkpoint.verify(path.parent)


def test_a_renamed_checkpoint_is_refused(tmp_path: Path):
    checkpoint.save(tmp_path, 1, tree(1)).rename(tmp_path / "step-000009")
    with pytest.raises(CheckpointError, match="another folder"):
        checkpoint.verify(tmp_path / "step-000009")


def test_a_good_checkpoint_is_never_written_again_and_a_damaged_one_is(tmp_path: Path):
    path = checkpoint.save(tmp_path, 1, tree(1))
    checkpoint.save(tmp_path, 1, tree(5))
    assert same(checkpoint.load(path), tree(1))
    flip(path / "model.safetensors")
    checkpoint.save(tmp_path, 1, tree(5))
    assert checkpoint.load(path)["progress"] == {"step": 5}
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_pruning_keeps_two_complete_ones(tmp_path: Path):
    for step in range(1, 6):
        checkpoint.save(tmp_path, step, tree(step))
    truncate(tmp_path / "step-000005" / "model.safetensors")
    checkpoint.prune(tmp_path, keep=2)
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [3, 4, 5]
    with pytest.raises(ValueError, match="keep 1"):
        checkpoint.prune(tmp_path, keep=1)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
    def full(tensors: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    first = checkpoint.save(tmp_path, 1, tree(1))
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 2, tree(2))
    assert list(tmp_path.iterdir()) == [first]
    assert checkpoint.newest(tmp_path) == first


def test_a_folder_has_one_owner_who_clears_leftovers(tmp_path: Path):
    (tmp_path / "step-000007.partial-abc").mkdir()
    with checkpoint.claim(tmp_path):
        assert not list(tmp_path.glob("*.partial-*"))
        with pytest.raises(CheckpointError, match="in use by another run"), checkpoint.claim(tmp_path):
            pass
    with checkpoint.claim(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()


def test_the_manifest_is_what_the_readme_says(tmp_path: Path):
    path = checkpoint.save(tmp_path, 3, tree(3))
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest) == {"format", "step", "torch", "notes", "files", "digest"}
    assert set(manifest["files"]) == {p.name for p in path.iterdir()} - {"manifest.json"}
    if tool := shutil.which("sha256sum"):
        out = subprocess.run([tool, path / "model.safetensors"], capture_output=True, text=True, check=True).stdout
        assert out.split()[0] == manifest["files"]["model.safetensors"]["sha256"]


@pytest.mark.skipif(sys.platform == "win32", reason="uses fork and SIGKILL")
def test_a_killed_writer_never_loses_what_was_committed(tmp_path: Path):
    out = subprocess.run([sys.executable, PROGRAM, tmp_path, "30"], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert "30 kills" in out.stdout
