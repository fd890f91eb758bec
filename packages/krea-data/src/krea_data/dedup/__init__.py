"""Copies and redraws among the pictures of a krablet: an exact index inside PostgreSQL, repair, and explanations."""

try:
    import psycopg as psycopg
except ImportError as error:
    raise ImportError("the index of copies needs psycopg; install krea-data[postgres]") from error

from krea_data.dedup.explain import Explanation, explain
from krea_data.dedup.index import Index
from krea_data.dedup.limits import Limits
from krea_data.dedup.link import Link
from krea_data.dedup.redraws import Redraws, propose
from krea_data.dedup.repair import forget, repair

__all__ = ["Explanation", "Index", "Limits", "Link", "Redraws", "explain", "forget", "propose", "repair"]
