import email.utils
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from krea_expander import LimitedError, UnavailableError, UnusableError, expand
from krea_expander.http import Endpoint

Answer = tuple[int, dict[str, str], str]


def chat(*texts: str | None) -> Answer:
    choices = [{"index": i, "message": {"role": "assistant", "content": text}} for i, text in enumerate(texts)]
    return 200, {"Content-Type": "application/json"}, json.dumps({"choices": choices})


class Service:
    """A chat service whose answers are given one after the other; the last one is repeated."""

    def __init__(self) -> None:
        self.answers: list[Answer | Callable[[dict[str, Any]], Answer]] = []
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                answer = service.answers.pop(0) if len(service.answers) > 1 else service.answers[0]
                status, headers, text = answer(body) if callable(answer) else answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:
                """Keep quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    thread = threading.Thread(target=service.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield service
    service.server.shutdown()
    thread.join()
    service.server.server_close()


@pytest.fixture
def endpoint(service: Service) -> Iterator[Endpoint]:
    with Endpoint(service.url, "small-model", key="secret", timeout_s=60.0, wait_s=10.0) as endpoint:
        endpoint.waited = []  # type: ignore[attr-defined]
        endpoint.pause = endpoint.waited.append  # type: ignore[attr-defined]
        yield endpoint


WISH = [{"role": "user", "content": "red apple"}]


def test_a_call(service: Service, endpoint: Endpoint) -> None:
    service.answers = [chat("one", None)]
    assert endpoint(WISH, 2, 7) == ["one", ""]  # type: ignore[arg-type]
    path, headers, body = service.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == "Bearer secret"
    assert body == {
        "model": "small-model",
        "messages": WISH,
        "n": 2,
        "seed": 7,
        "max_tokens": 1024,
        "temperature": 0.9,
    }


def test_a_service_that_gives_one_at_a_time_is_asked_again(service: Service, endpoint: Endpoint) -> None:
    service.answers = [lambda body: chat(f"seed {body['seed']} of {body['n']}")]
    assert endpoint(WISH, 3, 7) == ["seed 7 of 3", "seed 8 of 2", "seed 9 of 1"]  # type: ignore[arg-type]
    service.answers = [chat("a", "b", "c")]
    assert endpoint(WISH, 2, 7) == ["a", "b"]  # type: ignore[arg-type]


def test_an_answer_that_was_cut_off_ends_with_a_sentence(service: Service, endpoint: Endpoint) -> None:
    status, headers, text = chat("A red apple. It lies on")
    service.answers = [(status, headers, text.replace('"index": 0', '"finish_reason": "length"'))]
    assert endpoint(WISH, 1, 0) == ["A red apple."]  # type: ignore[arg-type]


def test_waiting_as_long_as_asked(service: Service, endpoint: Endpoint) -> None:
    date = email.utils.formatdate(time.time() + 4, usegmt=True)
    service.answers = [
        (429, {"Retry-After": "1.5"}, ""),
        (503, {"Retry-After": date}, ""),
        (500, {}, "oops"),
        chat("ok"),
    ]
    assert endpoint(WISH, 1, 0) == ["ok"]  # type: ignore[arg-type]
    first, second, third = endpoint.waited  # type: ignore[attr-defined]
    assert first == 1.5
    assert 0 < second <= 4
    assert third == 2.0


def test_waiting_no_longer_than_allowed(service: Service, endpoint: Endpoint) -> None:
    service.answers = [(429, {"Retry-After": "3600"}, "")]
    with pytest.raises(LimitedError, match="wait 3600 s"):
        endpoint(WISH, 1, 0)  # type: ignore[arg-type]
    assert endpoint.waited == []  # type: ignore[attr-defined]
    service.answers = [(429, {"Retry-After": "0"}, "")]
    with pytest.raises(LimitedError):
        endpoint(WISH, 1, 0)  # type: ignore[arg-type]
    assert endpoint.waited == [0, 0, 0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        ((500, {}, "boom"), UnavailableError, "status 500: 'boom'"),
        ((401, {}, ""), UnusableError, "refuses the key"),
        ((404, {}, ""), UnusableError, "should end in /v1"),
        ((400, {}, '{"error": "context too long"}'), UnusableError, "status 400.*context too long"),
        ((200, {"Content-Type": "text/html"}, "<html><title>Log in</title>"), UnusableError, "a web page.*'Log in'"),
        ((200, {}, "<!doctype html>"), UnusableError, "a web page"),
        ((200, {}, "plain"), UnusableError, "shape of a chat completion: 'plain'"),
        ((200, {}, "{}"), UnusableError, "shape"),
        ((200, {}, '{"choices": [{"message": null}]}'), UnusableError, "shape"),
        ((200, {}, '{"choices": []}'), UnusableError, "no choices"),
        ((200, {}, '{"choices": [{"message": {"content": 5}}]}'), UnusableError, "no choices"),
        ((302, {"Location": "/login"}, ""), UnusableError, "status 302"),
    ],
)
def test_odd_answers_are_one_clear_error(
    service: Service, endpoint: Endpoint, answer: Answer, error: type[Exception], text: str
) -> None:
    service.answers = [answer]
    with pytest.raises(error, match=text) as caught:
        endpoint(WISH, 1, 0)  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


def test_silence_and_absence(service: Service) -> None:
    done = threading.Event()

    def slow(body: dict[str, Any]) -> Answer:
        done.wait(10)
        return chat("late")

    service.answers = [slow]
    with Endpoint(service.url, "m", timeout_s=0.2) as endpoint, pytest.raises(UnavailableError, match=r"within 0\.2 s"):
        endpoint(WISH, 1, 0)  # type: ignore[arg-type]
    done.set()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with Endpoint(url, "m") as endpoint, pytest.raises(UnavailableError, match="cannot be reached"):
        endpoint(WISH, 1, 0)  # type: ignore[arg-type]


def test_the_user_still_gets_a_prompt(service: Service, endpoint: Endpoint) -> None:
    service.answers = [(200, {"Content-Type": "text/html"}, "<title>Captive portal</title>")]
    (expansion,) = expand("red apple", endpoint)
    assert (expansion.text, expansion.source) == ("red apple", "prompt")
    assert "Captive portal" in expansion.notes[0]
    service.answers = [chat("<think>x</think>A shiny red apple on a shelf.")]
    assert expand("red apple", endpoint)[0].source == "model"


def test_an_address_needs_a_scheme() -> None:
    with pytest.raises(ValueError, match="no web address"):
        Endpoint("localhost:8000", "m")
    assert httpx.__version__
