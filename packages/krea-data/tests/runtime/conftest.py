"""The folder's own modules can be imported here and, by the path that they are handed, in processes of tasks."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """A function that runs something of process.py, and kills it at the end of the test if it still runs."""
    started: list[subprocess.Popen[str]] = []

    def start(what: str, **arguments: Any) -> "subprocess.Popen[str]":
        command = [sys.executable, str(HERE / "process.py"), what, json.dumps(arguments)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def new_dsn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """A function that makes an empty shard."""
    import psycopg
    from krea_data.krablet import up
    from krea_data.krablet.connection import make_conninfo
    from psycopg import sql

    numbers = count()
    with up(tmp_path_factory.mktemp("cluster"), 1) as cluster:

        def make() -> str:
            name = f"shard_{next(numbers)}"
            with psycopg.connect(cluster.dsns[0], autocommit=True) as connection:
                connection.execute(sql.SQL("create schema {}").format(sql.Identifier(name)))
            return make_conninfo(cluster.dsns[0], options=f"-csearch_path={name}")

        yield make


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """A function that waits until something is so."""

    def wait(condition: Callable[[], object]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.02)

    return wait
