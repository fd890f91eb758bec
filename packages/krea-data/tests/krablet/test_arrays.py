from collections.abc import Callable

import pytest
from krea_data.krablet.arrays import Ints, Texts
from krea_data.krablet.connection import Shard

pytestmark = pytest.mark.postgres


@pytest.mark.parametrize("items", [[], [0], [-(2**63), 2**63 - 1, 7], list(range(2000))])
def test_ints_arrive(new_dsns: Callable[[int], list[str]], items: list[int]) -> None:
    shard = Shard(0, new_dsns(1)[0], patience_s=5.0)
    assert shard.attempt(lambda c: c.execute("select %s", (Ints(items),)).fetchone()) == (items,)
    shard.close()


@pytest.mark.parametrize(
    "items", [[], [""], [None], ["a", None, "\u00e4\U0001f34e", "{\"}'\\", " x\n"], ["y" * 70_000]]
)
def test_texts_arrive(new_dsns: Callable[[int], list[str]], items: list[str | None]) -> None:
    shard = Shard(0, new_dsns(1)[0], patience_s=5.0)
    assert shard.attempt(lambda c: c.execute("select %s", (Texts(items),)).fetchone()) == (items,)
    shard.close()
