import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from krea_data.demo.cache import default_cache, locked, staged, sweep
from krea_data.demo.errors import FetchError, explain


def test_the_cache_is_chosen_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("KREA_CACHE", str(tmp_path / "mine"))
    assert default_cache() == tmp_path / "mine"
    monkeypatch.delenv("KREA_CACHE")
    if sys.platform.startswith("linux"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert default_cache() == tmp_path / "xdg" / "krea"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert default_cache() == tmp_path / ".cache" / "krea"


def test_the_lock_keeps_others_waiting_and_is_freed(tmp_path):
    waited, order = threading.Event(), []

    def other():
        with locked(tmp_path, waited.set):
            order.append("other")

    with locked(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        assert waited.wait(20)
        order.append("first")
    thread.join(20)
    assert order == ["first", "other"]


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from krea_data.demo.cache import locked, staged
with locked(Path({str(tmp_path)!r})), staged(Path({str(tmp_path)!r}) / "thing") as new:
    (new / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert not (tmp_path / "thing").exists()
    with locked(tmp_path, lambda: pytest.fail("had to wait for a dead process")):
        assert len(list(tmp_path.glob(".new-*"))) == 1
        sweep(tmp_path)
    assert not list(tmp_path.glob(".new-*"))


def test_a_failed_block_leaves_what_was_there(tmp_path):
    target = tmp_path / "thing"
    with staged(target) as new:
        (new / "a").write_text("whole")

    def fail(new):
        (new / "a").write_text("half")
        raise KeyError

    with pytest.raises(KeyError), staged(target) as new:
        fail(new)
    assert (target / "a").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_a_read_only_cache_is_explained(tmp_path, monkeypatch):
    def refuse(*args, **named):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(FetchError, match="KREA_CACHE"), locked(tmp_path):
        pass


def test_a_cache_that_is_a_file_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match="choose another cache folder"), locked(tmp_path / "file" / "cache"):
        pass


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "may not write"),
        (errno.EACCES, "may not write"),
        (errno.EIO, "again"),
    ],
)
def test_errors_say_what_to_do(code, words):
    message = str(explain(OSError(code, os.strerror(code), "/some/where"), "writing it"))
    assert words in message
    assert "/some/where" in message
    assert ";" in message


def test_a_full_disk_while_staging_is_explained(tmp_path):
    with pytest.raises(FetchError, match="disk is full"), staged(Path(tmp_path) / "thing"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
