"""Labels by a model behind a real server that answers well, badly, late or not at all."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from krea_data.classify.endpoint import Endpoint
from krea_data.classify.labels import Label, LabellerError, Question, given, pseudo_labels, read, summary
from krea_data.classify.questions import ARTIFACT, SYNTHETIC, UNSAFE
from PIL import Image

QUESTION = Question(name="red", prompt="Is it red?")


@pytest.mark.parametrize(
    ("answer", "target", "outcome"),
    [
        ("yes", True, "answered"),
        ("**No**, it is a photograph.", False, "answered"),
        ('```json\n{"answer": "Yes", "why": "hands"}\n```', True, "answered"),
        ('{"answer": false}', False, "answered"),
        ('{"answer": "unsure"}', None, "unsure"),
        ("Unclear.", None, "unsure"),
        ("<think>no, or yes?</think> Yes.", True, "answered"),
        ("Nobody knows", None, "nonsense"),
        ("yesterday", None, "nonsense"),
        ("", None, "nonsense"),
        (None, None, "nonsense"),
        ('{"answer": 3}', None, "nonsense"),
        ("{" * 5000, None, "nonsense"),
        ("I'm sorry, but I can\u2019t help with that.", None, "refused"),
        ("As an AI model I do not judge pictures", None, "refused"),
    ],
)
def test_answers_are_read(answer: object, target: bool | None, outcome: str) -> None:
    assert read(answer) == (target, outcome)


Reply = Callable[[BaseHTTPRequestHandler, dict], None]


def reply(handler: BaseHTTPRequestHandler, words: object, status: int = 200) -> None:
    data = json.dumps({"choices": [{"message": {"content": words}}]}).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


@pytest.fixture
def served() -> Iterator[tuple[str, dict[str, Reply], list[dict]]]:
    """The server's address, what it answers to a picture's colour, and the requests."""
    replies: dict[str, Reply] = {}
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            text = body["messages"][0]["content"][0]["image_url"]["url"].partition(",")[2]
            pixel = Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB").crop((0, 0, 1, 1)).tobytes()
            replies[f"#{pixel.hex()}"](self, body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", replies, asked
    server.shutdown()
    server.server_close()
    thread.join()


def colour(value: str) -> Callable[[], Image.Image]:
    return lambda: Image.new("RGB", (900, 4), value)


def _stall(handler: BaseHTTPRequestHandler, _: dict) -> None:
    time.sleep(1.5)


def _drip(handler: BaseHTTPRequestHandler, _: dict) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _turn in range(30):
        try:
            handler.wfile.write(b" ")
            handler.wfile.flush()
        except OSError:
            return
        time.sleep(0.05)


def test_every_row_gets_its_outcome(served: tuple[str, dict[str, Reply], list[dict]]) -> None:
    url, replies, asked = served

    def broken() -> Image.Image:
        raise OSError("truncated")

    def page(handler: BaseHTTPRequestHandler, _: dict) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"<html>welcome</html>")

    replies |= {
        "#ff0000": lambda handler, _: reply(handler, '{"answer": "yes"}'),
        "#00ff00": lambda handler, _: reply(handler, "No."),
        "#0000ff": _stall,
        "#00ffff": _drip,
        "#ffff00": lambda handler, _: reply(handler, "banana\0\x07" * 1000),
        "#ff00ff": lambda handler, _: reply(handler, "I cannot assist with this request."),
        "#000000": lambda handler, _: reply(handler, "yes", 400),
        "#ffffff": page,
        "#111111": lambda handler, _: reply(handler, None),
        "#222222": lambda handler, _: handler.connection.close(),
    }
    rows = [(name, colour(name)) for name in replies] + [("broken", broken)]
    labeller = Endpoint(url=url, model="tiny", timeout_s=0.5, pause_s=0.01)
    found = {label.row: label for label in pseudo_labels(rows, labeller, QUESTION, at_once=3)}
    assert list(found) == [name for name, _ in rows]
    outcomes = {name: label.outcome for name, label in found.items()}
    assert outcomes == {
        "#ff0000": "answered",
        "#00ff00": "answered",
        "#0000ff": "timeout",
        "#00ffff": "timeout",
        "#ffff00": "nonsense",
        "#ff00ff": "refused",
        "#000000": "failed",
        "#ffffff": "failed",
        "#111111": "nonsense",
        "#222222": "failed",
        "broken": "failed",
    }
    assert (found["#ff0000"].target, found["#00ff00"].target) == (True, False)
    assert all(label.target is None for name, label in found.items() if outcomes[name] != "answered")
    assert "status 400" in found["#000000"].answer
    assert "truncated" in found["broken"].answer
    assert found["#ffff00"].answer.startswith("bananabanana")
    assert all(label.model == "tiny" and label.prompt == QUESTION.version for label in found.values())
    assert asked[0]["messages"][0]["content"][1]["text"] == "Is it red?"


def test_a_busy_service_is_asked_again(served: tuple[str, dict[str, Reply], list[dict]]) -> None:
    url, replies, asked = served
    replies["#ff0000"] = lambda handler, _: reply(handler, "yes", 503 if len(asked) < 3 else 200)
    labeller = Endpoint(url=url, model="tiny", pause_s=0.01, retries=2)
    assert labeller(Image.new("RGB", (9, 9), "red"), "?") == "yes"
    replies["#ff0000"] = lambda handler, _: reply(handler, "yes", 429)
    with pytest.raises(LabellerError, match="status 429"):
        labeller(Image.new("RGB", (9, 9), "red"), "?")
    assert len(asked) == 6


def test_pictures_are_sent_small_and_the_key_is_not_shown(served: tuple[str, dict[str, Reply], list[dict]]) -> None:
    url, replies, asked = served
    replies["#ff0000"] = lambda handler, _: reply(handler, handler.headers["Authorization"])
    labeller = Endpoint(url=url, model="tiny", key="abc", side_px=100)
    assert labeller(colour("red")(), "?") == "Bearer abc"
    text = asked[0]["messages"][0]["content"][0]["image_url"]["url"].partition(",")[2]
    assert Image.open(io.BytesIO(base64.b64decode(text))).width == 100
    assert "abc" not in repr(labeller)


def test_nobody_there_is_an_outcome_too() -> None:
    labeller = Endpoint(url="http://127.0.0.1:9/v1", model="tiny", timeout_s=0.5)
    (label,) = pseudo_labels([("a", colour("red"))], labeller, QUESTION)
    assert label.outcome == "failed"
    assert "cannot be reached" in label.answer
    with pytest.raises(ValueError, match="no web address"):
        Endpoint(url="localhost", model="tiny")


def test_labels_are_summed_up_for_the_card() -> None:
    labels = [*given({"b": True, "a": False}), Label(row="c", target=None, outcome="refused", model="m", prompt="1")]
    assert [label.row for label in labels] == ["a", "b", "c"]
    found = summary(labels, QUESTION)
    assert found["outcomes"] == {"answered": 2, "refused": 1}
    assert (found["yes"], found["no"], found["models"]) == (1, 1, ["given", "m"])
    assert found["question"] == "red"


def test_questions_have_versions_of_their_own() -> None:
    assert len({one.version for one in (SYNTHETIC, ARTIFACT, UNSAFE, QUESTION)}) == 4
    assert Question(name="other", prompt=QUESTION.prompt).version == QUESTION.version
