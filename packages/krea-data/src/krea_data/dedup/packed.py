"""Arrays for PostgreSQL straight from numpy, without a Python object per item; see `krablet.arrays` for the form."""

import struct

import numpy as np
from numpy.typing import NDArray

from krea_data.krablet.arrays import Ints, Texts

__all__ = ["ints", "texts"]

_INT8, _TEXT = 20, 25


def ints(items: NDArray[np.int64]) -> Ints:
    """A parameter of type bigint[]."""
    found = Ints(())
    if len(items):
        pairs = np.empty(len(items), dtype=[("size", ">i4"), ("item", ">i8")])
        pairs["size"], pairs["item"] = 8, items
        found.packed = _head(_INT8, len(items)) + pairs.tobytes()
    return found


def texts(items: NDArray[np.bytes_]) -> Texts:
    """A parameter of type text[], of ASCII texts that are all as long as the array's items are wide."""
    found = Texts(())
    if len(items):
        pairs = np.empty(len(items), dtype=[("size", ">i4"), ("item", items.dtype)])
        pairs["size"], pairs["item"] = items.dtype.itemsize, items
        found.packed = _head(_TEXT, len(items)) + pairs.tobytes()
    return found


def _head(item: int, length: int) -> bytes:
    return struct.pack(">iiiii", 1, 0, item, length, 1)
