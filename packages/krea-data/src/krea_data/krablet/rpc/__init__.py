"""Calls over a socket: length-prefixed msgpack frames, tokens, TLS, back-pressure. See `wire` for the protocol."""

from krea_data.krablet.rpc.client import Client, Remote
from krea_data.krablet.rpc.errors import Broken, Busy, Refused, RpcError
from krea_data.krablet.rpc.server import Server, Service, serve
from krea_data.krablet.rpc.tokens import Caller, Tokens

__all__ = [
    "Broken",
    "Busy",
    "Caller",
    "Client",
    "Refused",
    "Remote",
    "RpcError",
    "Server",
    "Service",
    "Tokens",
    "serve",
]
