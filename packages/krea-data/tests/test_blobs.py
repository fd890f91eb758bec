import hashlib
import os
import threading

import pytest
from krea_data.blobs import FolderBlobs
from krea_data.interfaces import Blobs


def test_what_is_put_is_got_by_its_sha256(tmp_path):
    blobs: Blobs = FolderBlobs(tmp_path / "a folder")
    key = blobs.put(b"picture")
    assert key == hashlib.sha256(b"picture").hexdigest()
    assert blobs.get(key) == b"picture"
    assert (tmp_path / "a folder" / key[:2] / key).read_bytes() == b"picture"
    assert blobs.put(b"picture") == key
    assert blobs.put(b"") == hashlib.sha256(b"").hexdigest()


def test_what_was_not_put_is_not_there(tmp_path):
    blobs = FolderBlobs(tmp_path)
    key = hashlib.sha256(b"x").hexdigest()
    assert key not in blobs
    with pytest.raises(KeyError):
        blobs.get(key)
    blobs.put(b"x")
    assert key in blobs


@pytest.mark.parametrize("key", ["", "ab", "../../etc/passwd", "G" * 64, "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_only_keys_are_looked_up(tmp_path, key):
    with pytest.raises(ValueError, match="not a blob key"):
        FolderBlobs(tmp_path).get(key)


def test_an_interrupted_put_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        FolderBlobs(tmp_path).put(b"picture")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_many_writers_of_the_same_bytes_agree(tmp_path):
    blobs = FolderBlobs(tmp_path)
    keys: list[str] = []
    threads = [threading.Thread(target=lambda: keys.append(blobs.put(b"x" * 100_000))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8
    assert len(set(keys)) == 1
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
