"""The krablet: tables, queues and funnels on PostgreSQL shards, embedded or by DSN.

table, shards   what a user opens; router, slots, opening and walk say which rows lie where
queues          claims, answers, priorities and figures of the tasks' queues
records         keyed values that many writers change at once
funnels         servers that make few large transactions of many writes, and their clients
readers         servers for everybody who has no DSN, and the table as their clients see it
moves           slots on their way to other shards
pluck           a function over all rows, from a notebook
embedded        PostgreSQL servers of our own in a folder
checks, dumps   is all well; backup and restore
rpc             frames over a socket, for funnels and readers
"""

from krea_data.krablet.embedded.server import Cluster, up
from krea_data.krablet.errors import KrabletError, SchemaError, ServerError, ShardDown
from krea_data.krablet.funnels.funnel import Funnel
from krea_data.krablet.table import Krablet

__all__ = ["Cluster", "Funnel", "Krablet", "KrabletError", "SchemaError", "ServerError", "ShardDown", "up"]
