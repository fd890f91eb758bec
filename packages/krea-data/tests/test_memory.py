import threading
import time

import pytest
from krea_data.contract import TableContract
from krea_data.memory import MemoryTable
from krea_data.memory_queue import allowance
from krea_data.testing import FakeTask, rows


class TestMemoryTable(TableContract):
    @pytest.fixture
    def table(self) -> MemoryTable:
        self.ahead_s = 0.0
        return MemoryTable(clock=lambda: time.monotonic() + self.ahead_s, max_attempts=4)

    def elapse(self, table: MemoryTable, seconds: float) -> None:
        self.ahead_s += seconds


def test_threads_share_the_rows() -> None:
    table = MemoryTable(rows(300))
    seen: list[str] = []

    def work(name: str) -> None:
        while claims := table.claim(FakeTask(), name, 7, 60.0):
            seen.extend(claim.id for claim in claims)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [row.id for row in rows(300)]


@pytest.mark.parametrize(
    ("limit", "crashes", "last", "rows_wanted"),
    [
        (100, 0, False, 100),
        (100, 0, True, 100),
        (100, 1, False, 12),
        (100, 2, False, 1),
        (1000, 2, True, 1),
        (5, 9, False, 1),
    ],
)
def test_allowance_ends_alone(limit: int, crashes: int, last: bool, rows_wanted: int) -> None:
    assert allowance(limit, crashes, last) == rows_wanted
