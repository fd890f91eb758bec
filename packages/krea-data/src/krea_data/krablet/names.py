"""The tables that each task has."""

from psycopg import sql

from krea_data.checks import check_name

__all__ = ["queue", "result"]


def queue(task: str) -> sql.Identifier:
    """The task's queue table."""
    return sql.Identifier(f"queue_{check_name(task)}")


def result(task: str) -> sql.Identifier:
    """The task's result table."""
    return sql.Identifier(f"result_{check_name(task)}")
