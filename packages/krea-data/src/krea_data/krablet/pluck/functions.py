"""Functions on their way to workers: pickled by value, kept under their sha256, signed, and checked before unpickling.

To unpickle is to run code, so a blob that does not carry the signature of the key that the worker holds is refused, and
one from another Python is explained rather than tried.
"""

import getpass
import hashlib
import hmac
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

try:
    import cloudpickle
except ImportError as error:
    raise ImportError("pluck needs cloudpickle; install krea-data[pluck]") from error

from psycopg import Connection

from krea_data.krablet.errors import KrabletError

__all__ = ["RefusedError", "Signed", "checked", "fetch", "pickled", "store"]

_BLOB_BYTES = 64 << 20
_DOMAIN = b"krablet function 1"


class RefusedError(KrabletError):
    """A worker will not run the function: its signature, its Python or its imports do not fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Signed:
    """A pickled function with what it was made by; the signature covers blob and versions."""

    blob: bytes
    signature: bytes
    python: str  # "3.11"
    cloudpickle: str
    created_by: str

    @property
    def sha256(self) -> str:
        """Its name."""
        return hashlib.sha256(self.blob).hexdigest()


def pickled(fn: Any, key: bytes, by_value: Iterable[ModuleType] = ()) -> Signed:
    """The function or class as a signed blob; code of the modules `by_value` goes along, all else is imported there.

    ValueError if it cannot be pickled or is too large.
    """
    modules = list(by_value)
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        blob = cloudpickle.dumps(fn)
    except Exception as error:
        raise ValueError(
            f"{_name(fn)} cannot be pickled ({_line(error)}); make connections, locks and open files inside it,"
            " or in the __init__ of a class"
        ) from error
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)
    if len(blob) > _BLOB_BYTES:
        raise ValueError(
            f"{_name(fn)} takes {len(blob) >> 20} MiB with what it refers to, and {_BLOB_BYTES >> 20} is the limit;"
            " load large things in the __init__ of a class"
        )
    versions = _python(), cloudpickle.__version__
    return Signed(
        blob=blob,
        signature=_signature(key, blob, *versions),
        python=versions[0],
        cloudpickle=versions[1],
        created_by=_author(),
    )


def checked(signed: Signed, key: bytes) -> bytes:
    """The blob, or `RefusedError` in one sentence. Nothing is unpickled before this."""
    right = _signature(key, signed.blob, signed.python, signed.cloudpickle)
    if not hmac.compare_digest(right, signed.signature):
        raise RefusedError(
            f"the function {signed.sha256[:12]} of {signed.created_by!r} is not signed with this worker's key, or was"
            " changed since; give workers and callers the same key file and submit it again"
        )
    if signed.python != _python():
        raise RefusedError(
            f"the function was pickled by Python {signed.python} and this worker is Python {_python()}, which reads"
            " other byte code; use the same minor version on both sides"
        )
    if signed.cloudpickle.partition(".")[0] != cloudpickle.__version__.partition(".")[0]:
        raise RefusedError(
            f"the function was pickled by cloudpickle {signed.cloudpickle} and this worker has"
            f" {cloudpickle.__version__}; install the same on both sides"
        )
    return signed.blob


def store(connection: Connection, signed: Signed) -> str:
    """Keep a function, once, and return its sha256."""
    connection.execute(
        "insert into fn (sha256, blob, signature, python, cloudpickle, created_by) values (%s, %s, %s, %s, %s, %s)"
        " on conflict (sha256) do update set signature = excluded.signature, python = excluded.python,"
        " cloudpickle = excluded.cloudpickle, created_by = excluded.created_by"
        " where fn.signature <> excluded.signature",
        (signed.sha256, signed.blob, signed.signature, signed.python, signed.cloudpickle, signed.created_by),
    )
    return signed.sha256


def fetch(connection: Connection, sha256: str) -> Signed:
    """The function of this name, or `RefusedError` if it is not there or is another one by now."""
    row = connection.execute(
        "select blob, signature, python, cloudpickle, created_by from fn where sha256 = %s", (sha256,)
    ).fetchone()
    if row is None:
        raise RefusedError(f"the function {sha256[:12]} is not on the krablet any more; submit it again")
    blob, signature, python, version, author = row
    signed = Signed(blob=bytes(blob), signature=bytes(signature), python=python, cloudpickle=version, created_by=author)
    if signed.sha256 != sha256:
        raise RefusedError(f"the function {sha256[:12]} was changed since it was stored; submit it again")
    return signed


def _signature(key: bytes, blob: bytes, python: str, version: str) -> bytes:
    """HMAC-SHA256 over all that decides what is run; the lengths keep the parts apart."""
    mac = hmac.new(key, digestmod="sha256")
    for part in (_DOMAIN, python.encode(), version.encode(), blob):
        mac.update(len(part).to_bytes(8, "big"))
        mac.update(part)
    return mac.digest()


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _author() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no entry for this user, as in many containers
        user = "?"
    return f"{user}@{platform.node()}"


def _name(fn: Any) -> str:
    return getattr(fn, "__qualname__", None) or repr(fn)[:80]


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]
