import io
import pickle
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from krea_data.classify.head import Head
from krea_data.classify.limits import Limits
from krea_data.classify.matched import Draws
from krea_data.columns import check_columns, task_columns
from krea_data.rows import Result, Row
from krea_data.tasks.synthetic import Synthetic
from krea_data.testing import MemoryBlobs
from krea_data.vectors import packed
from PIL import Image
from PIL.PngImagePlugin import PngInfo

COMPOSITE = (
    b'<x:xmpmeta><rdf:Description Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/'
    b'compositeWithTrainedAlgorithmicMedia"/></x:xmpmeta>'
)
# the brightness of the picture decides: white 1, black 0
HEAD = Head(name="bright", embedder="mean/1", weights=np.array([10], np.float32), bias=-5.0, limits=Limits(0.2, 0.8))


class Mean:
    """Brightness, 0 to 1; counts the pictures."""

    name = "mean/1"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        self.seen += len(images)
        return np.array([[np.asarray(image).mean() / 255] for image in images], dtype=np.float32)


def stating(image: Image.Image) -> bytes:
    chunks = PngInfo()
    chunks.add_text("parameters", "a fox\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1")
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


def with_vector(row: Row, image: Image.Image, model: str = "mean/1") -> Row:
    vector = packed(Mean()([image])[0])
    return Row(id=row.id, blob=row.blob, results={"embed": Result(value={"model": model, "vector": vector})})


BLACK, WHITE, GREY = (Image.new("RGB", (40, 40), name) for name in ("black", "white", "#808080"))
Store = Callable[..., Row]


def test_what_the_file_says_comes_before_the_head(blobs: MemoryBlobs, stored: Store) -> None:
    rows = [with_vector(stored(stating(BLACK), "a"), BLACK), with_vector(stored(BLACK, "b"), BLACK)]
    rows.append(with_vector(stored(WHITE, "c"), WHITE))
    stated, dark, bright = Synthetic(blobs=blobs, head=HEAD)(rows)
    assert (stated.value["answer"], stated.value["evidence"], stated.value["score"]) == ("yes", "a1111", 1.0)
    assert "Steps: 20" in stated.value["detail"]
    assert (dark.value["answer"], dark.value["evidence"]) == ("no", "head")
    assert (bright.value["answer"], bright.value["version"]) == ("yes", HEAD.version)
    assert [result.drop for result in (stated, dark, bright)] == [None] * 3


def test_without_evidence_and_head_nothing_is_known(blobs: MemoryBlobs, stored: Store) -> None:
    (found,) = Synthetic(blobs=blobs, drop_from=0.0)([stored(WHITE)])
    assert found.value == {"answer": "unsure", "evidence": "none"}
    assert found.drop is None
    (found,) = Synthetic(blobs=blobs, head=HEAD)([stored(WHITE)])
    assert found.value["evidence"] == "none", "the row has no vector"


def test_a_generated_part_turns_no_into_unsure(blobs: MemoryBlobs, stored: Store) -> None:
    def partly(image: Image.Image, name: str) -> Row:
        file = io.BytesIO()
        image.save(file, "PNG")
        return with_vector(stored(file.getvalue() + COMPOSITE, name), image)

    alone, dark, bright = (
        Synthetic(blobs=blobs)([partly(BLACK, "a")])[0],
        *Synthetic(blobs=blobs, head=HEAD)([partly(BLACK, "b"), partly(WHITE, "c")]),
    )
    assert (alone.value["answer"], alone.value["evidence"]) == ("unsure", "iptc")
    assert (dark.value["answer"], dark.value["evidence"]) == ("unsure", "iptc")
    assert dark.value["score"] < 0.1
    assert (bright.value["answer"], bright.value["evidence"]) == ("yes", "head")


def test_only_a_yes_above_the_limit_is_dropped(blobs: MemoryBlobs, stored: Store) -> None:
    rows = [with_vector(stored(image, str(place)), image) for place, image in enumerate((BLACK, GREY, WHITE))]
    rows.append(stored(stating(BLACK), "a"))
    drops = [result.drop for result in Synthetic(blobs=blobs, head=HEAD, drop_from=0.999)(rows)]
    assert drops == [None, None, None, "synthetic"]
    drops = [result.drop for result in Synthetic(blobs=blobs, head=HEAD, drop_from=0.5)(rows)]
    assert drops == [None, None, "synthetic", "synthetic"]


def test_several_looks_that_disagree_are_unsure(blobs: MemoryBlobs, stored: Store) -> None:
    """A black picture with a white rim that the cut of a re-encoding takes off."""

    class Corner(Mean):
        def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
            self.seen += len(images)
            return np.array([[np.asarray(image)[0, 0].mean() / 255] for image in images], dtype=np.float32)

    rim = BLACK.copy()
    rim.paste("white", (0, 0, 40, 1))
    rim.paste("white", (0, 0, 1, 40))
    row = stored(rim)
    row = Row(
        id=row.id, blob=row.blob, results={"embed": Result(value={"model": "mean/1", "vector": packed(np.ones(1))})}
    )
    embedder = Corner()
    task = Synthetic(blobs=blobs, head=HEAD, embedder=embedder, looks=4, draws=Draws(formats=("PNG",)))
    (found,) = task([row])
    assert embedder.seen == 4
    assert len(found.value["scores"]) == 5
    assert found.value["answer"] == "unsure"
    assert task([row])[0] == found, "looks depend on the row alone"
    (steady,) = Synthetic(blobs=blobs, head=HEAD, embedder=Corner(), looks=4)([with_vector(stored(WHITE), WHITE)])
    assert steady.value["answer"] == "yes"


def test_a_task_can_be_sent_to_a_worker(blobs: MemoryBlobs, stored: Store) -> None:
    task, row = Synthetic(blobs=blobs, head=HEAD, drop_from=0.5), with_vector(stored(WHITE), WHITE)
    assert pickle.loads(pickle.dumps(task))([row]) == task([row])


def test_values_keep_their_columns(blobs: MemoryBlobs, stored: Store) -> None:
    task = Synthetic(blobs=blobs, head=HEAD)
    for row in (stored(stating(BLACK)), with_vector(stored(WHITE), WHITE), stored(GREY)):
        check_columns(task([row])[0].value, task_columns(task), "synthetic")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"looks": 2}, "needs an embedder"),
        ({"drop_from": 7}, "no score"),
        ({"embedder": type("Other", (Mean,), {"name": "other"})(), "head": HEAD}, "not of other"),
    ],
)
def test_settings_that_do_not_fit_are_named(blobs: MemoryBlobs, settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Synthetic(blobs=blobs, **settings)


def test_vectors_of_another_embedder_are_refused(blobs: MemoryBlobs, stored: Store) -> None:
    with pytest.raises(ValueError, match="come from other/2"):
        Synthetic(blobs=blobs, head=HEAD)([with_vector(stored(WHITE), WHITE, "other/2")])
