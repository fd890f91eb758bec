import json
from collections.abc import Callable
from typing import Any

import pytest
from krea_data import MemoryTable, Result, Row, run
from krea_data.captions.asking import Answer, Question
from krea_data.captions.endpoint import Endpoint
from krea_data.captions.records import caption_rows
from krea_data.captions.testing import ChatServer, FakeChat, completion
from krea_data.loader import Batches
from krea_data.shards import export, index
from krea_data.tasks.caption import Caption, captions
from krea_data.tasks.rewrite import Rewrite
from krea_data.testing import MemoryBlobs
from PIL import Image, ImageDraw

LONG = (
    'A red stop sign with the word "STOP" stands on a grey pole beside a quiet country road, while green fields and a'
    " few trees fill the background under a pale sky."
)
FORMS: dict[str, Any] = {
    "tags": ["stop sign", "road", "field", "road"],
    "short": "red stop sign",
    "medium": 'A red sign with the word "STOP" stands beside a country road.',
    "paragraph": 'A red stop sign stands on a grey pole beside a quiet country road. It has the word "STOP" on it.'
    " Green fields and a few trees fill the background, and the sky above them is pale.",
    "structured": {"subject": "stop sign", "objects": ["pole", "road"], "colours": ["red"], "text": ["STOP"]},
}
META = {"label": "stop sign", "style": "flat style", "group": "travel-places", "tags": ["sign", "stop"]}


def described(row: Row, text: str | None = LONG, **more: Any) -> Row:
    value = {"source": "vlm", "model": "seer", "prompt": "describe/1-aa", "ocr": True, "notes": []}
    value |= {"text": text} if text else {"failed": "refused", "error": "no"}
    read = {"texts": [{"text": "STOP", "confidence": 0.99, "box": [0, 0, 1, 1]}]}
    results = {"describe": Result(value=value | more), "ocr": Result(value=read)}
    return Row(id=row.id, blob=row.blob, meta=row.meta, results=results)


@pytest.fixture
def picture() -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((8, 8, 56, 56), fill="#cc1020")
    return image


def test_without_a_model_it_writes_what_the_rules_write(
    blobs: MemoryBlobs, stored: Callable[..., Row], picture: Image.Image
) -> None:
    row = stored(picture, **META)
    (old,), (new,) = Caption(blobs=blobs)([row]), Rewrite(blobs=blobs)([row])
    for key, value in old.value.items():
        if isinstance(value, dict):
            assert {name: new.value[key][name] for name in value} == value
        else:
            assert new.value[key] == value
    assert new.value["tags"]["text"] == "stop sign, flat style, sign, stop, red"
    structure = json.loads(new.value["structured"]["text"])
    assert structure == {
        **{"subject": "stop sign", "objects": ["sign", "stop"], "colours": ["red"]},
        **{"style": "flat style", "setting": "on white"},
    }
    assert new.value["long"] | {"text": ""} == {
        **{"text": "", "source": "label, style, group, tags, measured colours"},
        **{"length": "long", "format": "paragraph", "ocr": False},
    }
    assert "model" not in new.value["long"]


def test_a_description_becomes_every_form(blobs: MemoryBlobs, stored: Callable[..., Row], picture: Image.Image) -> None:
    chat = FakeChat(lambda question: json.dumps(FORMS), model="writer")
    (result,) = Rewrite(blobs=blobs, chat=chat)([described(stored(picture, **META))])
    value = result.value
    assert value["long"] == {
        **{"text": LONG, "source": "vlm", "length": "long", "format": "paragraph"},
        **{"model": "seer", "prompt": "describe/1-aa", "ocr": True},
    }
    assert value["tags"]["text"] == "stop sign, road, field"
    assert {form: value[form]["text"] for form in ("short", "medium", "paragraph")} == {
        form: FORMS[form] for form in ("short", "medium", "paragraph")
    }
    assert json.loads(value["structured"]["text"]) == FORMS["structured"]
    assert {value[form]["source"] for form in FORMS} == {"llm"}
    assert {value[form]["model"] for form in FORMS} == {"writer"}
    assert all(value[form]["prompt"].startswith("rewrite/1-") and value[form]["ocr"] for form in FORMS)
    assert (value["by_rule"], value["long_source"]) == (0, "vlm")
    assert json.dumps(LONG) in chat.asked[0].text


def test_rows_of_captions_tell_where_each_comes_from(
    blobs: MemoryBlobs, stored: Callable[..., Row], picture: Image.Image
) -> None:
    chat = FakeChat(lambda question: json.dumps(FORMS), model="writer")
    row = described(stored(picture, **META))
    (result,) = Rewrite(blobs=blobs, chat=chat)([row])
    seen = {"caption": result, "agreement": Result(value={"by": {"long": 0.75, "short": None}})}
    rows = caption_rows(Row(id="x", blob=row.blob, results=seen))
    assert [(one.form, one.length, one.format) for one in rows] == [
        ("short", "short", "phrase"),
        ("medium", "medium", "sentence"),
        ("long", "long", "paragraph"),
        ("paragraph", "long", "paragraph"),
        ("tags", "short", "tags"),
        ("structured", "medium", "json"),
    ]
    assert (rows[2].source, rows[2].model, rows[2].ocr, rows[2].agreement) == ("vlm", "seer", True, 0.75)
    assert (rows[0].source, rows[0].model, rows[0].agreement) == ("llm", "writer", None)
    assert caption_rows(Row(id="y", blob=row.blob)) == []
    old = Row(id="z", blob=row.blob, results={"caption": Caption(blobs=blobs)([stored(picture, **META)])[0]})
    assert [(one.form, one.model) for one in caption_rows(old)] == [("short", ""), ("medium", ""), ("long", "")]


@pytest.mark.parametrize(
    ("form", "bad", "reason"),
    [
        ("short", "The image shows a sign", "boilerplate"),
        ("short", "I cannot do that", "refused"),
        ("short", " ".join(["sign"] * 13), "too long"),
        ("short", 7, "no text"),
        ("medium", 'A sign that says "GO" stands at a road.', "invented text"),
        ("medium", "Ein rotes Schild steht auf dem Feld und ist mit einem Wort von der Strasse zu sehen.", "language"),
        ("paragraph", "A sign.", "too short"),
        ("structured", {"subject": "sign", "text": ["GO"]}, "invented text"),
        ("structured", "sign", "no structure"),
        ("tags", "", "empty"),
        ("tags", None, "missing"),
    ],
)
def test_a_form_at_fault_falls_back_to_the_rules_alone(
    blobs: MemoryBlobs, stored: Callable[..., Row], picture: Image.Image, form: str, bad: Any, reason: str
) -> None:
    chat = FakeChat(lambda question: json.dumps(FORMS | {form: bad}))
    (result,) = Rewrite(blobs=blobs, chat=chat)([described(stored(picture, **META))])
    assert result.value["faults"] == {form: reason}
    assert result.value["by_rule"] == 1
    others = {one for one in FORMS if one != form}
    assert {result.value[one]["source"] for one in others} == {"llm"}
    if form == "paragraph":
        assert "paragraph" not in result.value
    else:
        assert result.value[form]["source"].startswith("label")
    assert len(chat.asked) == 2
    assert f'"{form}":' in chat.asked[1].text
    assert not any(f'- "{one}":' in chat.asked[1].text for one in others), "only what is missing is asked for again"


def test_a_second_answer_fills_what_the_first_lacked(
    blobs: MemoryBlobs, stored: Callable[..., Row], picture: Image.Image
) -> None:
    said = ["Sure! " + json.dumps(FORMS | {"short": ""}), "```json\n" + json.dumps({"short": "a\x07 sign"}) + "\n```"]
    (result,) = Rewrite(blobs=blobs, chat=FakeChat(lambda question: said.pop(0)))([described(stored(picture, **META))])
    assert result.value["short"]["text"] == "a sign"
    assert result.value["notes"] == ["control characters removed: 1"]
    assert (result.value["by_rule"], "faults" in result.value, "failed" in result.value) == (0, False, False)


@pytest.mark.parametrize(
    ("answer", "failed"),
    [
        ("I cannot rewrite captions of people.", "refused"),
        ("A red sign stands at the road.", "not json"),
        ("[" * 50_000, "not json"),
        (Answer(failed="empty", error="the answer is empty"), "empty"),
        (Answer(failed="status 413", error="too large"), "status 413"),
    ],
)
def test_a_model_that_fails_leaves_every_form_to_the_rules(
    blobs: MemoryBlobs, stored: Callable[..., Row], picture: Image.Image, answer: str | Answer, failed: str
) -> None:
    (result,) = Rewrite(blobs=blobs, chat=FakeChat(lambda question: answer))([described(stored(picture, **META))])
    assert (result.value["failed"], result.value["by_rule"]) == (failed, 5)
    assert result.value["error"]
    assert result.value["short"]["text"] == "stop sign"
    assert result.value["long"]["text"] == LONG
    assert result.drop is None


def test_without_a_label_the_rules_work_on_the_description(
    blobs: MemoryBlobs, stored: Callable[..., Row], picture: Image.Image
) -> None:
    (result,) = Rewrite(blobs=blobs)([described(stored(picture))])
    assert result.value["short"] == {
        **{"text": "A red stop sign", "source": "rules on the long caption"},
        **{"length": "short", "format": "phrase", "ocr": False},
    }
    assert result.value["medium"]["text"].startswith('A red stop sign with the word "STOP" stands on a grey pole')
    assert result.value["tags"]["text"].startswith("red, stop, sign, word, grey, pole")
    assert json.loads(result.value["structured"]["text"])["text"] == ["STOP"]


def test_a_refused_description_leaves_the_label(
    blobs: MemoryBlobs, stored: Callable[..., Row], picture: Image.Image
) -> None:
    chat = FakeChat(lambda question: json.dumps(FORMS))
    (result,) = Rewrite(blobs=blobs, chat=chat)([described(stored(picture, **META), None)])
    assert result.value["long"]["text"].startswith("a drawing of a stop sign in flat style")
    assert chat.asked == []
    (result,) = Rewrite(blobs=blobs, chat=chat)([described(stored(picture), None)])
    assert result.drop == "no caption"


def test_labels_with_control_characters_are_cleaned_and_noted(
    blobs: MemoryBlobs, stored: Callable[..., Row], picture: Image.Image
) -> None:
    (result,) = Rewrite(blobs=blobs)([stored(picture, label="stop\x1b sign\u202e", tags=["si\x07gn"])])
    assert result.value["short"]["text"] == "stop sign"
    assert result.value["notes"] == ["control characters removed from the metadata: 3"]
    assert Rewrite(blobs=blobs)([stored(picture, label="\x1b\u202e")])[0].drop == "no caption"


def test_a_lost_answer_fails_alone_and_comes_again(
    blobs: MemoryBlobs, stored: Callable[..., Row], picture: Image.Image
) -> None:
    rows = [stored(picture, str(number), **META) for number in range(4)]
    late: list[str] = ["2"]

    def answer(question: Question) -> str | Answer:
        if late and f"picture {late[0]}" in question.text:
            late.pop()
            return Answer(failed="timeout", error="late", again=True)
        return json.dumps(FORMS)

    chat = FakeChat(answer)
    table = MemoryTable(rows, retry_s=0.0)
    table.put(
        "describe", {row.id: described(row, f"{LONG} It is picture {row.id}.").results["describe"] for row in rows}
    )
    table.put("ocr", {row.id: described(row).results["ocr"] for row in rows})
    progress = run(table, [Rewrite(blobs=blobs, chat=chat)], worker="me")["caption"]
    assert (progress.kept, progress.failed, len(chat.asked)) == (4, 1, 5)
    assert all(row.results["caption"].value["by_rule"] == 0 for row in table.scan())


def test_it_asks_a_real_endpoint(blobs: MemoryBlobs, stored: Callable[..., Row], picture: Image.Image) -> None:
    with ChatServer(lambda body: (200, completion(json.dumps(FORMS)))) as server:
        (result,) = Rewrite(blobs=blobs, chat=Endpoint(server.url, "writer"))([described(stored(picture, **META))])
    assert result.value["short"]["model"] == "writer"
    assert isinstance(server.asked[0]["messages"][1]["content"], str)


def test_an_export_and_the_loader_read_these_captions(blobs, stored, picture, tmp_path) -> None:
    chat = FakeChat(lambda question: json.dumps(FORMS))
    row = described(stored(picture, **META))
    (result,) = Rewrite(blobs=blobs, chat=chat)([row])
    decoded = Result(value={"width": 64, "height": 64, "format": "PNG"})
    seen = Row(id=row.id, blob=row.blob, meta=row.meta, results={"decode": decoded, "caption": result})
    assert captions(seen) == {form: result.value[form]["text"] for form in (*FORMS, "long")}
    out = export([seen], blobs, tmp_path / "out")
    assert index(out)[0]["captions"]["long"] == LONG
    assert Batches(out, batch=1).at(0).captions[0]["tags"] == "stop sign, road, field"
