"""Readers: servers through which everybody else reads and works, and the table as their clients see it."""

__all__: list[str] = []
