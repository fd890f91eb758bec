"""What can go wrong between a client and a server, and how an error of the server reaches its caller.

RpcError
    Refused     the token is wrong, or lacks the scope that the verb needs
    Busy        the server has enough to do; try again after `retry_after_s`
    Broken      the connection was lost or never there: what was sent may or may not have been done
"""

from typing import Any

from krea_data.krablet.errors import KrabletError, SchemaError, ServerError, ShardDown

__all__ = ["Broken", "Busy", "Refused", "RpcError", "described", "restored"]


class RpcError(KrabletError):
    """A call failed for a reason that is not the caller's."""


class Refused(RpcError):  # noqa: N818 - reads as what happened
    """The token is wrong, or lacks the scope that the verb needs."""


class Busy(RpcError):  # noqa: N818 - reads as what happened
    """The server has enough to do; nothing was done, and the same call may succeed after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float = 0.1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Broken(RpcError):  # noqa: N818 - reads as what happened
    """The connection was lost or never there: what was sent may or may not have been done."""


# Kinds that travel by name, the most special first; a subclass arrives as the first that it is.
_KINDS: tuple[type[Exception], ...] = (
    Busy,
    Refused,
    Broken,
    RpcError,
    ShardDown,
    SchemaError,
    ServerError,
    ValueError,
    LookupError,
)


def described(error: BaseException) -> tuple[str, str, dict[str, Any]]:
    """Kind, message and details of an error as they go over the wire; the message of an unknown kind stays here."""
    extra = {"retry_after_s": error.retry_after_s} if isinstance(error, Busy) else {}
    for kind in _KINDS:
        if isinstance(error, kind):
            # KeyError shows its message in quotes; its argument is what was meant.
            message = error.args[0] if isinstance(error, KeyError) and error.args else error
            return kind.__name__, str(message), extra
    return type(error).__name__, "", extra


def restored(kind: str, message: str, extra: dict[str, Any]) -> Exception:
    """The error that a server described."""
    if kind == Busy.__name__:
        return Busy(message, float(extra.get("retry_after_s", 0.1)))
    for known in _KINDS:
        if known.__name__ == kind:
            return known(message)
    return RpcError(f"the server failed with {kind}; its log says more")
