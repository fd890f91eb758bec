import os
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from krea_data.krablet import ServerError
from krea_data.krablet.funnels.spool import Spool
from krea_data.krablet.rpc import Busy

BODIES = [b"one", b"two" * 100, b"three"]


def filled(folder: Path, bodies: list[bytes], **options: int) -> Spool:
    spool = Spool(folder, **options)
    assert list(spool.replay()) == []
    for body in bodies:
        spool.append(body).result(10)
    return spool


def left(folder: Path) -> list[bytes]:
    spool = Spool(folder)
    bodies = [body for _, body in spool.replay()]
    spool.close()
    return bodies


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.seg"))


def test_what_was_appended_is_on_disk_until_it_is_stored(tmp_path: Path) -> None:
    filled(tmp_path, BODIES).close()
    assert left(tmp_path) == BODIES
    spool = Spool(tmp_path)
    for segment, _ in spool.replay():
        spool.stored(segment)
    assert segments(tmp_path) == []
    spool.stored(spool.append(b"four").result(10))
    spool.append(b"five").result(10)
    spool.close()
    assert left(tmp_path) == [b"four", b"five"]  # a file goes as a whole; storing again is harmless


def test_files_are_rolled_and_deleted_one_by_one(tmp_path: Path) -> None:
    spool = Spool(tmp_path, segment_bytes=10)
    numbers = [spool.append(bytes([n]) * 20).result(10) for n in range(4)]
    assert len(set(numbers)) == 4
    spool.stored(numbers[1])
    assert [int(path.stem) for path in segments(tmp_path)] == [numbers[0], numbers[2], numbers[3]]
    spool.close()
    assert left(tmp_path) == [bytes([n]) * 20 for n in (0, 2, 3)]


def test_appends_of_many_threads_are_synced_together_and_kept_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    futures = [spool.append(b"%d" % n) for n in range(500)]
    assert {future.result(10) for future in futures} == {1}
    spool.close()
    assert left(tmp_path) == [b"%d" % n for n in range(500)]


@given(cut=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_torn_tail_is_cut_off_wherever_it_was_torn(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("spool")
    filled(folder, BODIES).close()
    (path,) = segments(folder)
    size = path.stat().st_size
    os.truncate(path, cut % (size + 1))
    ends = [8 + 3, 8 + 3 + 8 + 300, size]
    assert left(folder) == BODIES[: sum(cut % (size + 1) >= end for end in ends)]
    spool = Spool(folder)
    kept = [body for _, body in spool.replay()]
    spool.append(b"new").result(10)
    spool.close()
    assert left(folder) == [*kept, b"new"]


def test_garbage_at_the_end_is_cut_off_and_in_the_middle_is_damage(tmp_path: Path) -> None:
    spool = filled(tmp_path, BODIES, segment_bytes=1)
    spool.close()
    first, _, last = segments(tmp_path)
    last.write_bytes(last.read_bytes() + struct.pack(">II", 3, zlib.crc32(b"xyz")) + b"xyy")
    assert left(tmp_path) == BODIES
    raw = bytearray(first.read_bytes())
    raw[-1] ^= 1
    first.write_bytes(raw)
    with pytest.raises(ServerError, match="is damaged at byte 0; move it away"):
        left(tmp_path)


def test_a_full_spool_is_busy(tmp_path: Path) -> None:
    spool = Spool(tmp_path, most_bytes=100, segment_bytes=10)
    number = spool.append(b"x" * 80).result(10)
    with pytest.raises(Busy, match="holds its 100 bytes"):
        spool.append(b"x" * 20)
    spool.append(b"y").result(10)  # into the next file
    spool.stored(number)
    spool.append(b"x" * 20).result(10)
    spool.close()
    with pytest.raises(Busy, match="closed"):
        spool.append(b"x")


def test_a_disk_that_fails_is_said_and_the_spool_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    spool.append(b"one").result(10)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fdatasync", full)
        with pytest.raises(ServerError, match="No space left"):
            spool.append(b"two").result(10)
    spool.append(b"three").result(10)
    spool.close()
    assert left(tmp_path) == [b"one", b"three"]


def test_a_spool_has_one_owner(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with pytest.raises(ValueError, match="another process uses"):
        Spool(tmp_path)
    spool.close()
    Spool(tmp_path).close()
