import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from krea_data import MemoryTable, Result, Row, run
from krea_data.captions.records import caption_rows, record
from krea_data.tasks.agreement import Agreement, calibrated
from krea_data.tasks.caption import long
from krea_data.tasks.colour import Palette

KINDS = {
    "food": ("red apple", "green apple", "yellow lemon", "coffee cup", "birthday cake", "pumpkin pie", "red pepper"),
    "vehicle": ("police car", "fire engine", "school bus", "steam train", "sailing boat", "red car", "toy train"),
    "animal": ("grey cat", "running dog", "polar bear", "brown horse", "sleeping cat", "rubber duck", "wild duck"),
    "building": ("tall lighthouse", "stone castle", "old bridge", "bakery window", "garden gate", "stone bridge"),
    "plant": ("oak tree", "cherry blossom", "desert cactus", "green leaf", "palm tree", "red flower"),
    "thing": ("stop sign", "road sign", "alarm clock", "wooden chair", "open book", "broken umbrella", "flying kite"),
}
THINGS = [thing for things in KINDS.values() for thing in things]
KIND = {thing: kind for kind, things in KINDS.items() for thing in things}
STYLES = ("flat style", "3D style", "Noto style")
PLACES = ("on a white ground", "in front of a wall", "under a blue sky", "beside a road", "on a table")


def caption_of(thing: str, draw: random.Random) -> str:
    """What a model may say of a thing: other words around it, and now and then another word for it."""
    words = thing.split()
    said = thing if draw.random() < 0.8 else words[-1]
    endings = {"sailing": "sails", "running": "runs", "flying": "flies"}
    said = " ".join(endings.get(word, word) for word in said.split())
    place, light = draw.choice(PLACES), draw.choice(("soft", "bright", "warm", "even"))
    kind = f", a {KIND[thing]}," if draw.random() < 0.4 else ""
    return f"A {said}{kind} {place}, drawn with simple shapes and clear outlines in {light} light, seen from the front."


def demo_rows(wrong: Sequence[int] = (), seed: int = 7) -> list[Row]:
    """Three pictures of each thing, each with label, tags and a description; those in `wrong` have another's."""
    draw = random.Random(seed)
    rows: list[Row] = []
    for number, thing in enumerate(thing for thing in THINGS for _ in STYLES):
        style = STYLES[number % 3]
        meta = {"label": thing, "style": style, "tags": [thing.split()[-1], KIND[thing]]}
        shown = THINGS[(number // 3 + 11) % len(THINGS)] if number in wrong else thing
        text = caption_of(shown, draw)
        captions = {
            "short": record("short", f"{shown}", "llm", model="m", prompt="p"),
            "long": record("long", text, "vlm", model="m", prompt="p"),
        }
        read = [{"text": "BAKERY", "confidence": 0.9, "box": [0, 0, 9, 9]}] if "bakery" in thing else []
        results = {
            "ocr": Result(value={"texts": read}),
            "describe": Result(value={"text": text, "source": "vlm", "model": "m", "prompt": "p", "ocr": bool(read)}),
            "caption": Result(value=captions),
        }
        rows.append(Row(id=f"demo/{number:03d}", blob="0", meta=meta, results=results))
    return rows


def fails(task: Agreement, rows: Sequence[Row]) -> set[str]:
    return {row.id for row, result in zip(rows, task(rows), strict=True) if result.value["fails"]}


def test_the_limit_catches_swapped_captions_and_few_others() -> None:
    task, found = calibrated(demo_rows(), share=0.95)
    assert found.swapped == 4 * len(demo_rows())
    assert found.caught >= 0.95
    assert found.marked <= 0.05
    assert 0 < task.limit < 1
    looser = calibrated(demo_rows(), share=0.6)[1]
    assert looser.limit < found.limit
    assert 0.6 <= looser.caught < found.caught
    assert calibrated(demo_rows(), seed=3)[1] == calibrated(demo_rows(), seed=3)[1]


def test_captions_of_other_pictures_are_marked_and_score_lower() -> None:
    rows = demo_rows(wrong=[4, 17, 30, 61, 88, 99])
    task, found = calibrated(rows)
    marked = fails(task, rows)
    wrong = {f"demo/{number:03d}" for number in (4, 17, 30, 61, 88, 99)}
    assert wrong <= marked
    assert len(marked - wrong) <= 0.05 * len(rows)
    right = {row.id: result.value["score"] for row, result in zip(demo_rows(), task(demo_rows()), strict=True)}
    swapped = {row.id: result.value["score"] for row, result in zip(rows, task(rows), strict=True)}
    assert all(swapped[one] < right[one] for one in wrong)
    assert found.marked == pytest.approx(len(marked) / len(rows), abs=1e-9)


def test_a_run_marks_rows_and_drops_only_on_request() -> None:
    rows = demo_rows(wrong=[5])
    task, _ = calibrated(rows)
    for one, drops in ((task, set()), (replace(task, drop=True), {"caption fails"})):
        table = MemoryTable(rows)
        for name in ("ocr", "describe", "caption"):
            table.put(name, {row.id: row.results[name] for row in rows})
        run(table, [one], worker="me")
        assert set(table.stats()["agreement"].dropped) == drops
    seen = {row.id: row for row in table.scan()}
    assert seen["demo/005"].dropped == ("agreement", "caption fails")
    value = seen["demo/005"].results["agreement"].value
    assert (value["fails"], value["worst"]) == (True, "label")
    assert value["score"] < value["limit"]
    scores = {one.form: one.agreement for one in caption_rows(seen["demo/000"])}
    assert scores["short"] == 1
    assert scores["long"] is not None


def test_read_text_is_evidence() -> None:
    rows = demo_rows()
    task, _ = calibrated(rows)
    place = next(number for number, row in enumerate(rows) if row.meta["label"] == "bakery window")
    (result,) = task([rows[place]])
    assert result.value["against"].keys() == {"label", "ocr"}
    assert result.value["against"]["ocr"] in (0, 1)

    def said(text: str) -> float:
        describe = Result(value={**rows[place].results["describe"].value, "text": text})
        row = Row(id="x", blob="0", results={**rows[place].results, "describe": describe})
        return task([row])[0].value["score"]

    assert said('A window with the word "Bakery" above it.') == 1
    assert said("A bakery's window.") == 1
    assert said('A window with the word "Butcher" above it.') == 0


def test_a_caption_is_not_compared_with_what_it_was_made_from() -> None:
    meta = {"label": "red apple", "style": "flat style", "tags": ["fruit"]}
    text = long(meta, Palette(colours=("red",), background="white"))
    rules = {"long": record("long", text, "label, style, group, tags, measured colours")}
    row = Row(id="a", blob="0", meta=meta, results={"caption": Result(value=rules)})
    task, _ = calibrated(demo_rows())
    value = task([row])[0].value
    assert (value["score"], value["fails"], value["worst"], value["by"]) == (None, False, None, {"long": None})
    assert task([Row(id="b", blob="0")])[0].value == {"fails": False, "by": {}}


def two_models(wrong: Sequence[int]) -> list[Row]:
    """Rows without labels, described by two models, of which the second is wrong about some."""
    rows = []
    for one, other in zip(demo_rows(), demo_rows(wrong, seed=8), strict=True):
        results = {"describe": one.results["describe"], "second": other.results["describe"]}
        rows.append(Row(id=one.id, blob="0", results=results | {"caption": one.results["caption"]}))
    return rows


def test_captions_of_two_models_are_compared() -> None:
    wrong = range(2, 100, 9)
    rows = two_models(wrong)
    task, found = calibrated(rows, described=("describe", "second"))
    assert found.caught >= 0.95
    marked = fails(task, rows)
    assert len(marked & {f"demo/{number:03d}" for number in wrong}) >= 0.8 * len(wrong)
    assert found.marked < 0.4, "words alone tell two descriptions of one thing apart from those of two things"
    for now, before in zip(task([rows[n] for n in wrong]), task([two_models([])[n] for n in wrong]), strict=True):
        assert now.value["score"] < before.value["score"]
        assert now.value["against"].keys() == {"second"}


def test_an_encoder_takes_the_place_of_words() -> None:
    def encoder(texts: Sequence[str]) -> np.ndarray:
        places = {thing.split()[-1]: number for number, thing in enumerate(THINGS)}
        vectors = np.zeros((len(texts), len(THINGS)), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in text.lower().replace(",", " ").split():
                if word in places:
                    vector[places[word]] = 1
        return vectors

    rows = demo_rows(wrong=[8])
    task, found = calibrated(rows, encoder=encoder)
    assert task([rows[8]])[0].value["score"] == 0
    assert task([rows[0]])[0].value["score"] == pytest.approx(1)
    assert found.caught >= 0.95


def test_too_little_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="give more rows"):
        calibrated(demo_rows()[:1])
    with pytest.raises(ValueError, match="share 95 is not between 0 and 1"):
        calibrated(demo_rows(), share=95)
