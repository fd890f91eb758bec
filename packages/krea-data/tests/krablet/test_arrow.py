from typing import Any

import pytest
from krea_data.krablet.readers.arrow import Writer, batches
from krea_data.krablet.readers.selects import all_columns
from krea_data.krablet.rpc import Broken


def pieces_of(count: int, end: bool = True) -> list[bytes]:
    writer = Writer(all_columns(()))
    pieces = [writer.page([(f"{page}/{n}", "b", "{}") for n in range(10)]) for page in range(count)]
    return [*pieces, writer.end(10 * count, ["shard 1"])] if end else pieces


def test_a_stream_says_its_end() -> None:
    ends: list[dict[str, Any]] = []
    assert sum(batch.num_rows for batch in batches(pieces_of(3), ends.append)) == 30
    assert ends == [{"rows": 30, "missing": ["shard 1"]}]
    assert [batch.num_rows for batch in batches(pieces_of(0))] == []
    whole = b"".join(pieces_of(3))
    for cut in (pieces_of(3, end=False), [whole[:-400]], [whole[:1000]], [whole[:5]], [], [b"no arrow at all"]):
        with pytest.raises(Broken, match="cut off"):
            list(batches(cut))
    assert sum(batch.num_rows for batch in batches(bytes([byte]) for byte in whole)) == 30
