"""The recipe from end to end: ask a model about a sample, train a head on its answers, run it over all rows."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from krea_data.classify.files import load, save
from krea_data.classify.head import train
from krea_data.classify.labels import LabellerError, given, summary
from krea_data.classify.questions import ARTIFACT
from krea_data.columns import check_columns, task_columns
from krea_data.memory import MemoryTable
from krea_data.rows import Row
from krea_data.tasks.classify import Classify
from krea_data.tasks.embed import Embed
from krea_data.tasks.label import AskLabel, labels_of, result
from krea_data.testing import MemoryBlobs
from krea_data.vectors import vectors_of
from krea_data.worker import run
from PIL import Image


class Tints:
    """A picture's mean colour and how much it varies."""

    name = "tints/1"

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        pixels = [np.asarray(image, dtype=np.float32) / 255 for image in images]
        return np.array([[*one.mean(axis=(0, 1)), *one.std(axis=(0, 1))] for one in pixels], dtype=np.float32)


class Eye:
    """Says yes to reddish pictures; on some it fails, each time in another way."""

    model = "eye-1"

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, image: Image.Image, prompt: str) -> str:
        self.asked += 1
        red, green, blue = np.asarray(image, dtype=np.float64).mean(axis=(0, 1))
        if blue > 235:
            raise TimeoutError("too late")
        if blue > 215:
            raise LabellerError("busy")
        if blue > 200:
            return "I cannot help with that."
        return '{"answer": "yes"}' if red > green else '{"answer": "no"}'


def corpus(blobs: MemoryBlobs, count: int) -> list[Row]:
    draw = np.random.default_rng(2)
    found = []
    for number in range(count):
        pixels = draw.integers(0, 256, 3) + draw.normal(0, 4, (16, 16, 3))
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
        found.append(Row(id=f"r{number:03d}", blob=blobs.put(file.getvalue())))
    return found


def test_from_answers_to_a_head_that_runs_on_all_rows(blobs: MemoryBlobs, tmp_path: Path) -> None:
    rows, eye = corpus(blobs, 300), Eye()
    sample = MemoryTable([*rows[:200], Row(id="zz", blob=blobs.put(b"no picture"))])
    ask = AskLabel(blobs=blobs, labeller=eye, question=ARTIFACT, after=())
    run(sample, [ask], worker="w")
    labels = labels_of(sample.scan())
    outcomes = summary(labels, ARTIFACT)["outcomes"]
    assert set(outcomes) == {"answered", "timeout", "failed", "refused"}
    assert sum(outcomes.values()) == 201
    assert {label.answer for label in labels if label.target} == {'{"answer": "yes"}'}
    assert eye.asked == 200, "the broken file was not sent"
    assert {(label.model, label.prompt) for label in labels} == {("eye-1", ARTIFACT.version)}

    table = MemoryTable(rows)
    run(table, [Embed(blobs=blobs, embedder=Tints(), after=())], worker="w")
    kept, vectors = vectors_of(table.scan())
    told = {label.row: label.target for label in labels if label.target is not None}
    places = [place for place, row in enumerate(kept) if row.id in told]
    targets = [told[kept[place].id] for place in places]
    card = summary(labels, ARTIFACT)
    head = train(vectors[places], targets, name="artifact", embedder=Tints.name, labels=card)
    save(head, tmp_path / "artifact.safetensors")
    assert head.card["labels"]["outcomes"] == outcomes

    task = Classify(head=load(tmp_path / "artifact.safetensors"), drop_from=0.9)
    run(table, [task], worker="w")
    new = [row for row in table.scan() if row.id >= "r200"]
    colours = {row.id: np.asarray(Image.open(io.BytesIO(blobs.get(row.blob)))).mean(axis=(0, 1)) for row in new}
    clear = [row for row in new if abs(colours[row.id][0] - colours[row.id][1]) > 60]
    truth = ["yes" if colours[row.id][0] > colours[row.id][1] else "no" for row in clear]
    answers = [row.results["classify"].value["answer"] for row in clear]
    assert all(answer in (true, "unsure") for answer, true in zip(answers, truth, strict=True))
    assert np.mean([answer == true for answer, true in zip(answers, truth, strict=True)]) > 0.8
    assert {row.results["classify"].drop for row in clear} == {None, "artifact"}


def test_given_labels_lie_in_rows_too(blobs: MemoryBlobs, stored: Callable[..., Row]) -> None:
    row = stored(Image.new("RGB", (8, 8)))
    task = AskLabel(blobs=blobs, labeller=Eye(), question=ARTIFACT)
    table = MemoryTable([row])
    (label,) = given({row.id: True}, "by hand")
    table.put("label", {row.id: result(label)})
    assert labels_of(table.scan()) == [label]
    check_columns(result(label).value, task_columns(task), "label")
    assert labels_of(table.scan(), "another") == []
