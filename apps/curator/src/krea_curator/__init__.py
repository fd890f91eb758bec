"""Curate images: fetch, ingest, run tasks, export shards. From Python: `compose` and `curation`."""

__all__: list[str] = []
