import base64
import gzip
import io
import json
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
from krea_data.captions.asking import AccessError, Answer, Question
from krea_data.captions.endpoint import Endpoint
from krea_data.captions.testing import ChatServer, completion
from PIL import Image

ASK = Question(system="be exact", text="what is it?")
Reply = Callable[[dict[str, Any]], tuple[Any, ...]]


def ask(reply: Reply, *questions: Question, **settings: Any) -> tuple[list[Answer], ChatServer, list[float]]:
    """Answers, the server that gave them, and the pauses that were made."""
    pauses: list[float] = []
    with ChatServer(reply) as server:
        endpoint = Endpoint(server.url, "tiny", **{"timeout_s": 20.0, **settings})
        endpoint.pause = pauses.append
        answers = endpoint(questions or [ASK])
    return answers, server, pauses


def in_turn(*replies: tuple[Any, ...]) -> Reply:
    left = list(replies)
    return lambda body: left.pop(0) if len(left) > 1 else left[0]


def test_a_question_travels_with_its_picture_and_key() -> None:
    question = Question(system="be exact", text="what?", image=Image.effect_noise((300, 150), 90))
    answers, server, _ = ask(lambda body: (200, completion("an apple")), question, key="secret", longest_px=100)
    assert answers == [Answer(text="an apple")]
    assert server.headers[0]["authorization"] == "Bearer secret"
    body = server.asked[0]
    assert (body["model"], body["max_tokens"]) == ("tiny", 1024)
    assert body["messages"][0] == {"role": "system", "content": "be exact"}
    picture, text = body["messages"][1]["content"]
    assert text == {"type": "text", "text": "what?"}
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (100, 50)


def test_answers_stand_in_the_order_of_their_questions_and_few_are_asked_at_once() -> None:
    both, free = threading.Barrier(2, timeout=20), threading.Event()

    def reply(body: dict[str, Any]) -> tuple[int, bytes]:
        text = body["messages"][1]["content"]
        if not free.is_set():
            both.wait()
            free.set()
        return 200, completion(f"answer {text}")

    questions = [Question(system="", text=str(number)) for number in range(12)]
    answers, server, _ = ask(reply, *questions, parallel=2)
    assert [answer.text for answer in answers] == [f"answer {number}" for number in range(12)]
    assert server.most_at_once == 2


@pytest.mark.parametrize("status", [429, 500, 503, 408])
def test_a_busy_or_failing_service_is_asked_again_with_longer_pauses(status: int) -> None:
    bad = (status, b"oops")
    answers, server, pauses = ask(in_turn(bad, bad, (200, completion("yes"))))
    assert answers == [Answer(text="yes")]
    assert len(server.asked) == 3
    assert pauses == [0.5, 1.0]


def test_the_pause_that_a_service_states_is_kept_unless_it_is_too_long() -> None:
    limited = (429, b"slow down", {"Retry-After": "7"})
    answers, _, pauses = ask(in_turn(limited, (200, completion("yes"))))
    assert (answers[0].text, pauses) == ("yes", [7.0])
    answers, _, pauses = ask(in_turn(limited), wait_s=15.0)
    assert pauses == [7.0, 7.0]
    assert (answers[0].failed, answers[0].again) == ("limited", True)


def test_a_service_that_keeps_failing_says_how() -> None:
    (answer,), server, _ = ask(lambda body: (500, b"<html><title>Bad\nday</title></html>"), retries=2)
    assert len(server.asked) == 3
    assert (answer.failed, answer.again) == ("status 500", True)
    assert answer.error == "the service fails with status 500: 'Bad day'"


def test_a_service_that_does_not_answer_is_asked_again_and_given_up() -> None:
    (answer,), server, pauses = ask(lambda body: (200, None), timeout_s=0.2, retries=1)
    assert (answer.failed, answer.again) == ("timeout", True)
    assert answer.error == "no whole answer within 0.2 s"
    assert (len(server.asked), pauses) == (2, [0.5])


def test_one_row_that_gets_no_answer_leaves_the_others_alone() -> None:
    def reply(body: dict[str, Any]) -> tuple[int, bytes | None]:
        text = body["messages"][1]["content"]
        return 200, None if text == "1" else completion(text)

    questions = [Question(system="", text=str(number)) for number in range(4)]
    answers, _, _ = ask(reply, *questions, timeout_s=2.0, retries=0)
    assert [answer.text for answer in answers] == ["0", "", "2", "3"]
    assert answers[1].failed == "timeout"


def test_a_closed_port_is_unreachable() -> None:
    with ChatServer(lambda body: (200, b"")) as server:
        url = server.url
    endpoint = Endpoint(url, "tiny", retries=1)
    endpoint.pause = lambda seconds: None
    (answer,) = endpoint([ASK])
    assert (answer.failed, answer.again) == ("unreachable", True)
    assert url in answer.error


@pytest.mark.parametrize(
    ("body", "failed", "again"),
    [
        (b"hello", "not json", True),
        (b"", "not json", True),
        (b"[" * 100_000, "not json", True),
        (b"\xff\xfe{}", "not json", True),
        (b"[]", "no choices", True),
        (b'{"choices": []}', "no choices", True),
        (b'{"choices": [{"message": "apple"}]}', "no choices", True),
        (completion(7), "no choices", True),
        (completion(None), "empty", False),
        (completion("  \n"), "empty", False),
        (completion("<think>hm, an apple</think>"), "empty", False),
        (completion(None, refusal="I will not"), "refused", False),
        (completion("an ap", "content_filter"), "refused", False),
        (completion("x" * 200_000), "too long", False),
    ],
)
def test_nonsense_has_its_reason(body: bytes, failed: str, again: bool) -> None:
    (answer,), server, _ = ask(lambda _: (200, body), retries=1, answer_bytes=150_000)
    assert (answer.failed, answer.again, answer.text) == (failed, again, "")
    assert answer.error
    assert len(server.asked) == 1 + again


def test_a_packed_answer_is_measured_unpacked() -> None:
    body = gzip.compress(completion("x" * 5_000_000))
    assert len(body) < 10_000
    (answer,), _, _ = ask(lambda _: (200, body, {"Content-Encoding": "gzip"}), answer_bytes=100_000)
    assert answer.failed == "too long"


def test_answers_in_parts_with_thoughts_or_cut_short_are_read() -> None:
    parts = completion([{"type": "text", "text": "an "}, {"type": "text", "text": "apple"}])
    assert ask(lambda _: (200, parts))[0] == [Answer(text="an apple")]
    assert ask(lambda _: (200, completion("<think>\nred?\n</think>\nan apple")))[0] == [Answer(text="an apple")]
    (answer,), _, _ = ask(lambda _: (200, completion("An apple. It is re", "length")))
    assert answer == Answer(text="An apple.", notes=("cut at the limit of tokens",))


def test_a_picture_that_the_service_refuses_is_that_rows_failure() -> None:
    (answer,), _, _ = ask(lambda _: (400, json.dumps({"error": {"code": "content_policy_violation"}}).encode()))
    assert (answer.failed, answer.again) == ("refused", False)
    (answer,), _, _ = ask(lambda _: (413, b"too large"))
    assert (answer.failed, answer.again) == ("status 413", False)


@pytest.mark.parametrize(
    ("status", "words"), [(401, "check it"), (403, "check it"), (404, "the model"), (302, "address")]
)
def test_a_wrong_key_or_address_ends_it_all(status: int, words: str) -> None:
    with pytest.raises(AccessError, match=words):
        ask(lambda _: (status, b"no"), ASK, ASK, ASK)


def test_an_endpoint_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URL", "MODEL", "KEY"):
        monkeypatch.delenv(f"KREA_VLM_{name}", raising=False)
    with pytest.raises(ValueError, match="KREA_VLM_URL and KREA_VLM_MODEL must be set"):
        Endpoint.from_environment()
    monkeypatch.setenv("KREA_VLM_URL", "http://127.0.0.1:1/v1/")
    monkeypatch.setenv("KREA_VLM_MODEL", "tiny")
    monkeypatch.setenv("KREA_VLM_KEY", "secret")
    endpoint = Endpoint.from_environment(parallel=3)
    assert (endpoint.url, endpoint.model, endpoint.parallel) == ("http://127.0.0.1:1/v1/chat/completions", "tiny", 3)
    assert "secret" not in repr(endpoint)


def test_an_endpoint_travels_to_another_process() -> None:
    with ChatServer(lambda _: (200, completion("yes"))) as server:
        endpoint = Endpoint(server.url, "tiny")
        endpoint([ASK])
        copy = pickle.loads(pickle.dumps(endpoint))
        assert copy([ASK]) == [Answer(text="yes")]


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="no web address"):
        Endpoint("localhost:8000", "tiny")
    with pytest.raises(ValueError, match="parallel 0"):
        Endpoint("http://localhost", "tiny", parallel=0)
