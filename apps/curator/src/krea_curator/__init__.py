"""Curate images: fetch, ingest, run tasks, export shards."""

__all__: list[str] = []
