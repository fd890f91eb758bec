"""Room for a part of the benchmark in a database that others use too."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from krea_data.krablet.connection import make_conninfo
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict


@contextmanager
def empty_schema(dsn: str, name: str) -> Iterator[str]:
    """The DSN of an empty schema, which is dropped afterwards."""
    parts = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if key != "options"}
    named = sql.Identifier(name)
    with psycopg.connect(make_conninfo(**parts), autocommit=True) as connection:
        connection.execute(sql.SQL("drop schema if exists {} cascade").format(named))
        connection.execute(sql.SQL("create schema {}").format(named))
        try:
            yield make_conninfo(**{**parts, "options": f"-csearch_path={name}"})
        finally:
            connection.execute(sql.SQL("drop schema {} cascade").format(named))
