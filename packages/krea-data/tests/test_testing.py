import io
import pickle

import pytest
from krea_data.interfaces import Blobs, Task
from krea_data.testing import CrashingTask, FakeTask, MemoryBlobs, picture, rows
from PIL import Image


def test_pictures_are_the_same_for_the_same_seed() -> None:
    assert picture(3) == picture(3) != picture(4)
    assert Image.open(io.BytesIO(picture(3, side_px=48))).size == (48, 48)


def test_rows_have_their_pictures() -> None:
    memory = MemoryBlobs()
    made = rows(5, memory)
    assert [memory.get(row.blob) for row in made] == [picture(number) for number in range(5)]
    assert len(memory) == len({row.id for row in made}) == 5
    with pytest.raises(KeyError):
        memory.get("none")


def test_fakes_are_what_they_stand_for() -> None:
    blobs: Blobs = MemoryBlobs()
    tasks: list[Task] = [FakeTask(), CrashingTask(poison=frozenset({"synthetic/00001"}))]
    assert blobs.get(blobs.put(b"x")) == b"x"
    for task in pickle.loads(pickle.dumps(tasks)):
        assert [result.value["seen"] for result in task(rows(1))] == ["synthetic/00000"]
    with pytest.raises(RuntimeError, match="synthetic/00001"):
        tasks[1](rows(2))
