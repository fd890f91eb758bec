"""Curation on PostgreSQL: queues, filters, captions, shards."""

from krea_data.blobs import FolderBlobs
from krea_data.interfaces import Blobs, Table, Task
from krea_data.memory import MemoryTable
from krea_data.rows import Claim, Result, Row
from krea_data.worker import run

__all__ = ["Blobs", "Claim", "FolderBlobs", "MemoryTable", "Result", "Row", "Table", "Task", "run"]
