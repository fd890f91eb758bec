"""One server for all tests of the session; every krablet gets schemas of its own in it."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from krea_data.krablet import Cluster, Krablet, up
from krea_data.krablet.connection import make_conninfo
from psycopg import sql


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with up(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def new_dsns(cluster: Cluster) -> Callable[[int], list[str]]:
    """A function that makes so many empty shards."""
    numbers = count()

    def make(shards: int) -> list[str]:
        names = [f"shard_{next(numbers)}" for _ in range(shards)]
        with psycopg.connect(cluster.dsns[0], autocommit=True) as connection:
            for name in names:
                connection.execute(sql.SQL("create schema {}").format(sql.Identifier(name)))
        return [make_conninfo(cluster.dsns[0], options=f"-csearch_path={name}") for name in names]

    return make


@pytest.fixture
def krablet(new_dsns: Callable[[int], list[str]]) -> Iterator[Krablet]:
    """A krablet of two empty shards."""
    with Krablet(new_dsns(2), max_attempts=4, patience_s=20.0) as krablet:
        yield krablet


@pytest.fixture
def spawn() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """A function that runs something of process.py, and kills it at the end of the test if it still runs."""
    started: list[subprocess.Popen[str]] = []

    def start(what: str, **arguments: Any) -> "subprocess.Popen[str]":
        script = Path(__file__).with_name("process.py")
        command = [sys.executable, str(script), what, json.dumps(arguments)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
