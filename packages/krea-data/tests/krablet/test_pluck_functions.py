"""Functions are signed, and what is not right is refused before it is unpickled."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cloudpickle
import pytest
from krea_data.krablet import Krablet, KrabletError, pluck
from krea_data.krablet.pluck import functions
from krea_data.krablet.pluck.functions import RefusedError, checked, fetch, pickled, store
from krea_data.krablet.pluck.keys import KEY_FILE, key_path, load_key, make_key
from krea_data.krablet.pluck.pods import job_object, worker_command
from krea_data.rows import Row
from krea_data.testing import rows

KEY = bytes(32)


def fine(rows: Sequence[Row]) -> list[dict[str, int]]:
    return [{} for _ in rows]


class Trap:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (os.environ["TRAP"],)


@pytest.fixture
def table(new_dsns: Callable[[int], list[str]]) -> Iterator[Krablet]:
    with Krablet(new_dsns(1), patience_s=20.0) as table:
        table.add(rows(20))
        yield table


def test_a_signed_function_is_itself_again() -> None:
    signed = pickled(lambda n: n + 1, KEY)
    assert cloudpickle.loads(checked(signed, KEY))(1) == 2
    assert signed.python == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert "@" in signed.created_by


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        ({}, bytes(31) + b"1", "not signed with this worker's key"),
        ({"blob": b"x"}, KEY, "not signed"),
        ({"python": "3.99"}, KEY, "not signed"),
        ({"cloudpickle": "9.0"}, KEY, "not signed"),
        ({"signature": b""}, KEY, "not signed"),
    ],
)
def test_what_was_changed_is_refused(change: dict[str, object], key: bytes, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        checked(replace(pickled(len, KEY), **change), key)  # pyright: ignore[reportArgumentType]


def test_other_versions_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    signed = pickled(len, KEY)
    with monkeypatch.context() as patch:
        patch.setattr(functions, "_python", lambda: "3.99")
        with pytest.raises(RefusedError, match=r"pickled by Python 3\.\d+ and this worker is Python 3\.99"):
            checked(signed, KEY)
    monkeypatch.setattr(cloudpickle, "__version__", "99.1")
    with pytest.raises(RefusedError, match=r"pickled by cloudpickle .* and this worker has 99\.1"):
        checked(signed, KEY)


@pytest.mark.postgres
def test_a_function_is_stored_once_under_its_sha256(table: Krablet) -> None:
    signed = pickled(fine, KEY)
    for _ in range(2):
        assert table.guarded(0, lambda c, _: store(c, signed)) == signed.sha256
    assert table.guarded(0, lambda c, _: fetch(c, signed.sha256)) == signed
    assert table.guarded(0, lambda c, _: c.execute("select count(*) from fn").fetchone()) == (1,)
    table.guarded(0, lambda c, _: c.execute("update fn set blob = 'other'"))
    with pytest.raises(RefusedError, match="was changed since it was stored"):
        table.guarded(0, lambda c, _: fetch(c, signed.sha256))
    with pytest.raises(RefusedError, match="is not on the krablet"):
        table.guarded(0, lambda c, _: fetch(c, "0" * 64))


@pytest.mark.postgres
def test_workers_refuse_without_unpickling(table: Krablet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap = tmp_path / "trap"
    monkeypatch.setenv("TRAP", str(trap))
    key_file, other = make_key(tmp_path / "key"), make_key(tmp_path / "other")
    signed = pickled(Trap(), load_key(other))
    images = pluck.Table("images", krablet=table, key_file=key_file)
    with monkeypatch.context() as patch:
        patch.setattr("krea_data.krablet.pluck.table.pickled", lambda *_: signed)
        with images.map(fine, into="score", workers=2, show=False) as map:
            with pytest.raises(KrabletError, match="is not signed with this worker's key"):
                map.wait(60)
    assert not trap.exists()
    assert list(table.scan(kept_by=["score"])) == []


@pytest.mark.postgres
def test_a_worker_joins_by_command(table: Krablet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key_file = make_key(tmp_path / "key")
    images = pluck.Table("images", krablet=table, key_file=key_file)

    def join(name: str, **env: str) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "KRABLET_DSNS": "\n".join(table.dsns), KEY_FILE: str(key_file), **env}
        command = worker_command(name, sys.executable)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    with images.map(lambda rows: [{"pid": 1} for _ in rows], into="score", workers=0, show=False) as map:
        with pytest.raises(TimeoutError):
            map.wait(0.2)
        refused = join(map.name, **{KEY_FILE: str(make_key(tmp_path / "other"))})
        assert (refused.returncode, refused.stdout) == (3, "")
        assert refused.stderr.count("\n") == 1
        assert "not signed with this worker's key" in refused.stderr
        assert map.progress().problem is not None
        assert join(map.name).returncode == 0
        assert map.wait(10) == pluck.Mapped(rows=20)
    missing = join("nothing")
    assert (missing.returncode, "there is no map 'nothing'" in missing.stderr) == (3, True)
    assert "name the map" in join("", KRABLET_DSNS="").stderr


def test_a_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    path = make_key(tmp_path / "new" / "key")
    key = load_key(path)
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key(make_key(path)) == key
    assert os.listdir(path.parent) == ["key"]
    path.chmod(0o644)
    with pytest.raises(ValueError, match=r"mode 0644\); chmod 600"):
        load_key(path)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(ValueError, match="not 64 or more hex digits"):
        load_key(path)
    with pytest.raises(ValueError, match="No such file"):
        load_key(tmp_path / "nowhere")


def test_the_key_of_local_servers_is_made_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv(KEY_FILE, raising=False)
    assert key_path(["host=/tmp/x dbname=y"]) == tmp_path / "krablet" / "pluck.key"
    with pytest.raises(ValueError, match="name the file of the key as key_file or in KRABLET_KEY_FILE"):
        key_path(["host=/tmp/x", "host=db.example dbname=y"])
    monkeypatch.setenv(KEY_FILE, "/some/key")
    assert key_path(["host=db.example"]) == Path("/some/key")
    assert key_path(["host=db.example"], tmp_path) == tmp_path


def test_the_command_makes_a_key(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "krea_data.krablet.pluck", str(tmp_path / "key")], check=True)
    assert len(load_key(tmp_path / "key")) == 32


def test_pods_get_secrets_and_no_dsn_in_their_command() -> None:
    job = job_object("score", run="score-1", image="krea:1", workers=3, secret="krablet")
    assert (job["apiVersion"], job["kind"], job["metadata"]["name"]) == ("batch/v1", "Job", "score-1")
    assert (job["spec"]["parallelism"], job["spec"]["completions"]) == (3, 3)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == list(worker_command("score"))
    refs = {entry["name"]: entry.get("valueFrom", {}).get("secretKeyRef", {}).get("key") for entry in container["env"]}
    assert refs == {"KRABLET_DSNS": "dsns", "KRABLET_KEY_FILE": None}
    assert pod["volumes"][0]["secret"] == {
        "secretName": "krablet",
        "defaultMode": 0o400,
        "items": [{"key": "pluck.key", "path": "pluck.key"}],
    }
    assert job["spec"]["template"]["metadata"]["labels"] == job["metadata"]["labels"]
    with pytest.raises(ValueError, match="no name for a Job"):
        job_object("score", run="No Name", image="i", workers=1, secret="s")
    with pytest.raises(ValueError, match="workers 0"):
        job_object("score", run="a", image="i", workers=0, secret="s")
