"""Blobs that were read before a task asks for them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from krea_data.interfaces import Blobs

__all__ = ["Given", "read_ahead"]


class Given:
    """`Blobs` that hands out what was read ahead, and the store's own where that is nothing.

    `on_get` is told the key of every blob that is asked for: a sign of life, and of where a task is.
    """

    def __init__(self, store: Blobs, on_get: Callable[[str], None] = lambda key: None) -> None:
        self._store, self._on_get = store, on_get
        self._held: Mapping[str, bytes] = {}

    def hold(self, blobs: Mapping[str, bytes]) -> None:
        """Hand these out from now on, in place of those before."""
        self._held = blobs

    def get(self, key: str) -> bytes:
        """The bytes of a blob; raises what the store raises."""
        self._on_get(key)
        data = self._held.get(key)
        return self._store.get(key) if data is None else data

    def put(self, data: bytes) -> str:
        """Store and return the key."""
        return self._store.put(data)

    def __contains__(self, key: str) -> bool:
        return key in self._held or key in self._store  # type: ignore[operator]

    def __getattr__(self, name: str) -> Any:
        """Whatever else the store offers."""
        if name == "_store":  # while this is being copied
            raise AttributeError(name)
        return getattr(self._store, name)


def read_ahead(store: Blobs, keys: Iterable[str], most_bytes: int, go_on: Callable[[], bool]) -> dict[str, bytes]:
    """The blobs of these keys, in order, up to about `most_bytes`; whoever needs more of them reads for himself.

    What cannot be read is left out: the task meets the error where it can be told of the row.
    """
    found: dict[str, bytes] = {}
    taken = 0
    for key in dict.fromkeys(keys):
        if taken >= most_bytes or not go_on():
            break
        try:
            found[key] = store.get(key)
        except Exception:  # noqa: BLE001 - the task will get the same
            continue
        taken += len(found[key])
    return found
