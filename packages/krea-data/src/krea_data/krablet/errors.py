"""What can go wrong around a krablet, in one tree.

KrabletError
    ServerError     the embedded server cannot be set up, started or reached
    ShardDown       a shard did not answer for as long as the caller has patience
    SchemaError     a database is newer than this package, was changed by hand, or is another shard

What a caller gave wrong is a ValueError, as everywhere.
"""

__all__ = ["KrabletError", "SchemaError", "ServerError", "ShardDown"]


class KrabletError(Exception):
    """Anything that a krablet reports and that is not the fault of an argument."""


class ServerError(KrabletError):
    """The embedded server cannot be set up, started or reached."""


class ShardDown(KrabletError):  # noqa: N818 - reads as what happened
    """A shard did not answer for as long as the caller has patience; the other shards go on."""


class SchemaError(KrabletError):
    """A database is newer than this package, was changed by hand, or is not the shard it is taken for."""
