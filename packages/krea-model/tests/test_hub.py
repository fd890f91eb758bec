"""Ids of the hub: what is asked for, the real layout of its cache without a network, and errors in one sentence."""

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import krea_model
import pytest
import torch
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects
from krea_model import hub
from krea_model.testing_folder import tiny_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("released") / "files", distilled=True)


def cached(folder: Path, cache: Path, name: str) -> Path:
    """The layout that the hub's client keeps: blobs by hash, a ref per branch, a snapshot of links."""
    home = cache / f"models--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    (home / "blobs").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(file for file in folder.rglob("*") if file.is_file())):
        blob, link = home / "blobs" / f"{number:040x}", snapshot / file.relative_to(folder)
        blob.write_bytes(file.read_bytes())
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_a_real_cache_is_read_without_a_network(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cached(folder, tmp_path, "krea/Krea-2-Turbo")
    assert hub.fetch("krea/Krea-2-Turbo", cache=tmp_path, offline=True) == snapshot
    monkeypatch.setattr(
        hub, "snapshot_download", lambda name, **more: huggingface_hub.snapshot_download(name, **more | HERE)
    )
    HERE = {"cache_dir": tmp_path, "local_files_only": True}
    pipeline = krea_model.load("krea/Krea-2-Turbo", dtype=torch.float32)
    assert pipeline.about == {"name": "krea/Krea-2-Turbo"}
    assert pipeline.defaults.steps == 8
    plain = krea_model.load(folder, dtype=torch.float32)
    assert pipeline.sha256 == plain.sha256
    size: dict[str, Any] = {"width_px": 16, "height_px": 16}
    assert torch.equal(pipeline.draw(["a fox"], [0], **size)[0], plain.draw(["a fox"], [0], **size)[0])


def test_what_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def strict(
        repo_id: str, *, revision: str | None, cache_dir: Path | None, local_files_only: bool, allow_patterns: list[str]
    ) -> str:
        assert (repo_id, revision, cache_dir, local_files_only) == ("krea/Krea-2-Raw", "v2", None, False)
        wanted = ["model_index.json", "vae/config.json", "tokenizer/merges.txt", "transformer/a-00001-of-2.safetensors"]
        refused = ["raw.safetensors", "vae/old.bin", "text_encoder/model.pt", "code.py", "vae/model.py", "README.md"]
        assert list(filter_repo_objects([*wanted, *refused], allow_patterns=allow_patterns)) == wanted
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", strict)
    assert hub.fetch("krea/Krea-2-Raw", revision="v2") == folder


def raising(error: BaseException) -> Callable[..., str]:
    def fetch(*_: object, **__: object) -> str:
        raise error

    return fetch


def answer() -> Any:
    return SimpleNamespace(headers={}, request=None, status_code=404)


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (errors.LocalEntryNotFoundError("nothing"), OSError, "neither a folder here nor in the hub's cache"),
        (errors.OfflineModeIsEnabled("offline"), OSError, "the hub cannot be reached"),
        (errors.RepositoryNotFoundError("404", response=answer()), ValueError, "the hub knows no such model"),
        (errors.GatedRepoError("403", response=answer()), ValueError, "asks for its licence to be accepted"),
    ],
)
def test_errors_are_one_sentence(
    error: BaseException, kind: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "snapshot_download", raising(error))
    with pytest.raises(kind, match=says) as caught:
        krea_model.load("nobody/nothing")
    assert "nobody/nothing" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_cache_and_network_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="connect once, or give the path of a folder"):
        hub.fetch("nobody/nothing", cache=tmp_path, offline=True)


def test_names_that_are_no_ids_never_reach_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "snapshot_download", raising(AssertionError("asked")))
    monkeypatch.chdir(tmp_path)
    for name in ("model", "runs/first/model", "./model", "../up", "/abs/olute", "runs/raw.safetensors"):
        with pytest.raises(ValueError, match="is no model folder"):
            krea_model.load(name)
    with pytest.raises(ValueError, match="is no id of the hub"):
        hub.fetch("../up")


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "krea_model.hub")
    with pytest.raises(ImportError, match=r"krea-model\[text,vae\]"):
        importlib.import_module("krea_model.hub")
