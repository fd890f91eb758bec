"""What slows a shard's server down or endangers what it holds: snapshots that hold up vacuum, bloat, settings."""

from collections.abc import Iterator
from typing import Any

from psycopg import Connection

from krea_data.krablet.checks.findings import Finding

__all__ = ["warnings"]

_OLD_S = 300  # a snapshot of this age keeps dead rows of the queues
_DEAD_ROWS, _DEAD_SHARE = 10_000, 0.4
_FROZEN = 1_000_000_000  # of the two thousand million transactions after which a server stops
_WAL_BYTES = 16 << 30

# Each gives lines of values for its sentence; no line, no warning.
_RULES: tuple[tuple[str, str], ...] = (
    (
        "select pid, extract(epoch from now() - xact_start)::int, state, coalesce(application_name, '')"
        " from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        f" and (backend_xmin is not null or backend_xid is not null) and now() - xact_start > interval '{_OLD_S} s'",
        "process {} has held a transaction open for {} s ({}, {!r}); vacuum removes nothing that is younger",
    ),
    (
        "select slot_name, (pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) / (1 << 30))::int"
        f" from pg_replication_slots where pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) > {_WAL_BYTES}",
        "replication slot {} keeps {} GiB of the write-ahead log; drop it or start its reader",
    ),
    (
        "select gid from pg_prepared_xacts where prepared < now() - interval '1 hour'",
        "transaction {} was prepared over an hour ago and holds up vacuum; end it",
    ),
    (
        "select relname, n_dead_tup, n_live_tup from pg_stat_user_tables where schemaname = current_schema()"
        f" and n_dead_tup > {_DEAD_ROWS} and n_dead_tup > {_DEAD_SHARE} * (n_live_tup + n_dead_tup)",
        "{} has {} dead rows beside {} live ones; vacuum does not keep up",
    ),
    (
        "select indexrelid::regclass::text from pg_index join pg_class c on c.oid = indrelid"
        " where not indisvalid and c.relnamespace = current_schema()::regnamespace",
        "index {} is invalid and finds nothing; drop it and make it anew",
    ),
    (
        "select age(datfrozenxid) from pg_database"
        f" where datname = current_database() and age(datfrozenxid) > {_FROZEN}",
        "{} transactions since the oldest row was frozen; at 2,000,000,000 the server stops: run vacuum (freeze)",
    ),
    (
        "select count(*), current_setting('max_connections') from pg_stat_activity"
        " where backend_type = 'client backend' having count(*) > 0.8 * current_setting('max_connections')::int",
        "{} of {} connections are taken; put readers and funnels in front",
    ),
    (
        "select name, setting from pg_settings where name in ('fsync', 'full_page_writes', 'synchronous_commit',"
        " 'autovacuum') and setting = 'off'",
        "{} is {}; what is acknowledged may be lost, or tables grow without end",
    ),
)


def warnings(connection: Connection, number: int) -> Iterator[Finding]:
    """What a person should look after on this shard's server."""
    for statement, sentence in _RULES:
        lines: list[tuple[Any, ...]] = connection.execute(statement.encode()).fetchall()
        for line in lines:
            yield Finding(level="warning", rule="server", shard=number, text=sentence.format(*line))
