"""Bring a shard's database to the schema of this package: forward only, each migration once, checked every time."""

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files

from psycopg import Connection
from psycopg.rows import scalar_row

from krea_data.krablet.errors import SchemaError

__all__ = ["Migration", "migrate", "migrations"]

_OLDEST_SERVER = 150000  # as the server numbers its versions: 15
_HEADING = re.compile(r"^-- migration (\d+): (.+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Migration:
    """One step of the schema."""

    number: int
    title: str
    statements: str

    @property
    def digest(self) -> str:
        """What tells an edited migration from the one that was applied."""
        return hashlib.sha256(self.statements.encode()).hexdigest()


def migrations() -> list[Migration]:
    """The steps in the folder `schema`, a file each, in order; a released one is never edited."""
    found = sorted(files("krea_data.krablet").joinpath("schema").iterdir(), key=lambda file: file.name)
    _, *parts = _HEADING.split("\n".join(file.read_text("utf-8") for file in found if file.name.endswith(".sql")))
    return [
        Migration(number=int(number), title=title, statements=statements.strip())
        for number, title, statements in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    ]


def migrate(connection: Connection, steps: list[Migration] | None = None) -> int:
    """Apply what is missing and return how many steps that was; `SchemaError` if the database is not ours to change.

    Several processes may do this at once: they wait for each other.
    """
    steps = migrations() if steps is None else steps
    if connection.info.server_version < _OLDEST_SERVER:
        version = connection.info.server_version // 10000
        raise SchemaError(f"PostgreSQL {version} is too old; the krablet needs {_OLDEST_SERVER // 10000} or newer")
    with connection.transaction(), connection.cursor(row_factory=scalar_row) as cursor:
        # One after another, per schema: the lock ends with the transaction.
        cursor.execute("select pg_advisory_xact_lock(hashtextextended('krablet ' || current_schema(), 0))")
        cursor.execute(
            "create table if not exists migration (number int primary key, title text not null, digest text not null,"
            " applied_at timestamptz not null default now())"
        )
        applied = dict(connection.execute("select number, digest from migration order by number").fetchall())
        missing = _missing(applied, steps)
        for step in missing:
            cursor.execute(step.statements.encode())
            cursor.execute(
                "insert into migration (number, title, digest) values (%s, %s, %s)",
                (step.number, step.title, step.digest),
            )
    return len(missing)


def _missing(applied: dict[int, str], steps: list[Migration]) -> list[Migration]:
    known = {step.number: step for step in steps}
    for number, digest in applied.items():
        if number not in known:
            raise SchemaError(
                f"the database has migration {number}, this package ends at {max(known)}; use a newer krea-data"
            )
        if known[number].digest != digest:
            raise SchemaError(
                f"migration {number} ({known[number].title}) differs from the one that this database was built with;"
                " restore the folder `schema` and add a new migration instead"
            )
    return [step for step in steps if step.number not in applied]
