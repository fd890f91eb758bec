"""A disk that is full: one sentence, nothing acknowledged is lost, and it goes on once there is room."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from krea_data.krablet import Krablet, KrabletError, ServerError, ShardDown, up
from krea_data.krablet.embedded.folder import Folder
from krea_data.krablet.funnels.client import Ack, FunnelClient
from krea_data.rows import Row

from .crew import Crew, wait_for
from .load import COUNTER, counters

pytestmark = pytest.mark.postgres


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that gives a small disk of so many MiB; the test is skipped where none may be mounted."""
    mounted: list[Path] = []

    def mount(size_mib: int) -> Path:
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m,mode=755", "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            pytest.skip(f"mount cannot be run: {error}")
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, leave_bytes: int = 0) -> Path:
    """Take all room but this much."""
    ballast = place / "ballast"
    with ballast.open("ab") as file, suppress(OSError):
        free = os.statvfs(place)
        os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - leave_bytes))
    return ballast


def test_a_full_spool(disk: Callable[[int], Path], new_dsns: Callable[[int], list[str]], tmp_path: Path) -> None:
    place, dsns, address = disk(2), new_dsns(1), f"unix:{tmp_path}/f"
    with Krablet(dsns), Crew(tmp_path) as crew:
        crew.start("funnel", "funnel", dsns=dsns, address=address, spool=str(place / "spool"))
        wait_for((tmp_path / "f").is_socket, "the funnel is not there")
        with FunnelClient(address, ack="journaled", batch_rows=20) as funnel:
            funnel.declare(COUNTER)
            counter = funnel.target("record:chaos")
            with psycopg.connect(dsns[0]) as holder:
                holder.execute("lock table record_chaos in exclusive mode")  # nothing can be committed
                acks = [counter.write(f"k{n % 50}", {"n": 1}) for n in range(50)]
                for ack in acks:
                    ack.result(30)
                ballast = fill(place)
                late = until_stuck(lambda n: counter.write(f"k{n % 50}", {"n": 1}))
                wait_for(lambda: "could not be spooled" in crew.last_words("funnel"), "the funnel says nothing")
            for ack in late:
                ack.result(60)  # now they are committed, which is more
            total = len(acks) + len(late)
            assert sum(counters(dsns).values()) == total
            assert "cannot be written: No space left on device" in crew.last_words("funnel")
            ballast.unlink()
            with psycopg.connect(dsns[0]) as holder:
                holder.execute("lock table record_chaos in exclusive mode")
                counter.write("k0", {"n": 1}).result(30)
                crew.kill("funnel")
            wait_for((tmp_path / "f").is_socket, "the funnel is not there")
            counter.write("k0", {"n": 1}).result(60)
        wait_for(lambda: sum(counters(dsns).values()) == total + 2, "what was spooled is not stored")
        crew.finish()


def until_stuck(write: Callable[[int], Ack]) -> list[Ack]:
    """Write until writes are no longer acknowledged within a second."""
    acks: list[Ack] = []
    while len(acks) < 10_000:
        acks.append(write(len(acks)))
        try:
            acks[-1].result(1.0)
        except TimeoutError:
            return acks
    raise AssertionError("a full spool still acknowledges")


def eat_tables(krablet: Krablet, added: list[str]) -> None:
    """Add rows until there is no room for their tables."""
    for _ in range(3000):
        add(krablet, added)


def eat_log(krablet: Krablet, added: list[str]) -> None:
    """Use up the write-ahead log as well, which takes the server down; a row is added after each piece."""
    piece = "select pg_logical_emit_message(true, 'chaos', repeat('x', 1000000))"
    for _ in range(300):
        krablet.shards.attempt(0, lambda c: c.execute(piece))
        add(krablet, added)


def add(krablet: Krablet, added: list[str]) -> None:
    """Add fifty rows, and write down that they were taken."""
    text = f"{len(added)} ".join(chr(97 + n % 26) for n in range(400))
    rows = [Row(id=f"r/{len(added) + n:06d}", blob="0" * 64, meta={"text": text}) for n in range(50)]
    krablet.add(rows)
    added.extend(row.id for row in rows)


@pytest.mark.parametrize(("eat", "leave_bytes"), [(eat_tables, 256 << 10), (eat_log, 8 << 20)])
def test_a_full_server(
    disk: Callable[[int], Path], eat: Callable[[Krablet, list[str]], None], leave_bytes: int
) -> None:
    place, added = disk(160), list[str]()
    with up(place / "cluster") as cluster, Krablet(cluster.dsns, patience_s=3.0) as krablet:
        for _ in range(5):
            add(krablet, added)
        ballast = fill(place, leave_bytes)
        with pytest.raises(KrabletError) as caught:
            eat(krablet, added)
        assert isinstance(caught.value, ShardDown)
        assert "\n" not in str(caught.value)
        folder = Folder(cluster.root)
        if eat is eat_log:  # the server falls, and cannot start again until there is room
            wait_for(lambda: said(folder), "the keeper says nothing")
            assert said(folder).count("\n") == 1
            assert "is tried again while it is used: the disk is full; make room there" in said(folder)
            assert folder.kept()
            with pytest.raises(ServerError, match=r"did not answer within 0\.5 s: .*the disk is full; make room there"):
                up(cluster.root, timeout_s=0.5)
        ballast.unlink()
        wait_for(lambda: goes_on(krablet, added), "it does not go on")
        assert {row.id for row in krablet.scan()} >= set(added)
        wait_for(lambda: not folder.error.exists(), "the keeper does not take back what it said")
        if eat is eat_log:
            assert folder.log.read_text().count("the disk is full") == 1


def said(folder: Folder) -> str:
    """What is wrong with the servers of the folder."""
    return folder.error.read_text() if folder.error.exists() else ""


def goes_on(krablet: Krablet, added: list[str]) -> bool:
    """Whether rows are taken again."""
    try:
        add(krablet, added)
    except ShardDown:
        return False
    return True
