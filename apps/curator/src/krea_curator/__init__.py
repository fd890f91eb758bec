"""Curate images: fetch, ingest, run tasks, export shards."""

from krea_curator.compose import ORDER, Home, dedup, export, funnel, ingest, open_table, tasks, worker_command
from krea_curator.curation import curate
from krea_curator.recipe import Recipe

__all__ = [
    "ORDER",
    "Home",
    "Recipe",
    "curate",
    "dedup",
    "export",
    "funnel",
    "ingest",
    "open_table",
    "tasks",
    "worker_command",
]
