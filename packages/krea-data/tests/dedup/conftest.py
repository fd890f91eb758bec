"""One server for these tests, krablets of two shards in it, and rows with hashes made up by hand."""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import count

import psycopg
import pytest
from krea_data.krablet import Cluster, Krablet, up
from krea_data.krablet.connection import make_conninfo
from krea_data.rows import Result, Row
from psycopg import sql


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with up(tmp_path_factory.mktemp("dedup")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def new_dsns(cluster: Cluster) -> Callable[[int], list[str]]:
    """A function that makes so many empty shards."""
    numbers = count()

    def make(shards: int) -> list[str]:
        names = [f"dedup_{next(numbers)}" for _ in range(shards)]
        with psycopg.connect(cluster.dsns[0], autocommit=True) as connection:
            for name in names:
                connection.execute(sql.SQL("create schema {}").format(sql.Identifier(name)))
        return [make_conninfo(cluster.dsns[0], options=f"-csearch_path={name}") for name in names]

    return make


@pytest.fixture
def krablet(new_dsns: Callable[[int], list[str]]) -> Iterator[Krablet]:
    """A krablet of two empty shards with few slots."""
    with Krablet(new_dsns(2), patience_s=20.0, bits=4) as krablet:
        yield krablet


@pytest.fixture
def row() -> Callable[..., Row]:
    """A function that makes a row which `decode` and `hash` have looked at."""

    def make(
        row_id: str,
        phash: int = 0,
        colour: int = 0,
        *,
        blob: str | None = None,
        mean: str = "808080",
        vague: bool = False,
        size: tuple[int, int] = (64, 64),
        **meta: object,
    ) -> Row:
        value = {"phash": f"{phash:036x}", "colour": f"{colour:011x}", "mean": mean, "vague": vague}
        looked = {"width": size[0], "height": size[1]}
        results = {"decode": Result(value=looked), "hash": Result(value=value)}
        return Row(id=row_id, blob=blob or f"bytes of {row_id}", meta=meta, results=results)

    return make


@pytest.fixture
def many(row: Callable[..., Row]) -> Callable[[int, int], list[Row]]:
    """A function that makes rows of pictures of which many are near others, in chains too, and some are the same."""

    def make(seed: int, pictures: int) -> list[Row]:
        draw = random.Random(seed)
        found: list[Row] = []
        while len(found) < pictures:
            shape = draw.getrandbits(144)
            for _ in range(draw.choice((1, 1, 2, 7))):
                shape ^= sum(1 << bit for bit in draw.sample(range(144), draw.randrange(8)))
                blob, colour = f"bytes {len(found)}", draw.choice((0, 0, 1, 3, 7))
                mean, vague = draw.choice(("808080", "8a8080", "a08080")), draw.random() < 0.03
                for copy in range(draw.choice((1, 1, 1, 2))):
                    side, since = (
                        draw.choice((64, 64, 128)),
                        {"since": draw.randrange(3)} if draw.random() < 0.5 else {},
                    )
                    name = f"{draw.randrange(10**6):06d}/{len(found)}-{copy}"
                    given = {"blob": blob, "mean": mean, "vague": vague, "size": (side, 64)}
                    found.append(row(name, shape, colour, **given, **since))
        return found

    return make


@pytest.fixture
def bare() -> Callable[[Sequence[Row]], list[Row]]:
    """A function that gives rows without their results, as they are added to a table."""
    return lambda rows: [Row(id=one.id, blob=one.blob, meta=one.meta) for one in rows]
