"""The krablet: tables, queues and funnels on PostgreSQL shards, embedded or by DSN."""

from krea_data.krablet.errors import KrabletError, SchemaError, ServerError, ShardDown
from krea_data.krablet.funnel import Funnel
from krea_data.krablet.server import Cluster, up
from krea_data.krablet.table import Krablet

__all__ = ["Cluster", "Funnel", "Krablet", "KrabletError", "SchemaError", "ServerError", "ShardDown", "up"]
