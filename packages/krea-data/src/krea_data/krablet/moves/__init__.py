"""Slots move from shard to shard while everybody goes on working."""

__all__: list[str] = []
