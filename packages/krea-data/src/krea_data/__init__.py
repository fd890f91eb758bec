"""Curation on PostgreSQL: queues, filters, captions, shards."""

__all__: list[str] = []
