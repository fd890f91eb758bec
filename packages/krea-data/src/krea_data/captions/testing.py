"""Stand-ins for tests: a chat that answers by a function, and a real server on this machine that does as it is told."""

import json
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from krea_data.captions.asking import Answer, Question

__all__ = ["ChatServer", "FakeChat", "completion"]


class FakeChat:
    """Answers every question by `answer`, a text or an `Answer`, and remembers what it was asked."""

    def __init__(self, answer: Callable[[Question], str | Answer], model: str = "fake") -> None:
        self.answer, self.model = answer, model
        self.asked: list[Question] = []

    def patience_s(self, questions: int) -> float:
        """How long so many questions may take at worst."""
        return float(questions)

    def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer each."""
        self.asked += questions
        said = [self.answer(question) for question in questions]
        return [Answer(text=one) if isinstance(one, str) else one for one in said]


def completion(text: Any, finish: str = "stop", **message: Any) -> bytes:
    """The body of an OpenAI-style reply with this content."""
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    return json.dumps({"choices": [choice]}).encode()


class ChatServer:
    """A server on a free port. `reply` gets the question's JSON and returns a status, a body and maybe headers; a body
    of None keeps the asker waiting until the server closes. Use as a context manager; `asked` are the questions.
    """

    def __init__(self, reply: Callable[[dict[str, Any]], tuple[Any, ...]]) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self._now, self._lock, self._closing = 0, threading.Lock(), threading.Event()
        self._reply = reply
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "ChatServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            self.asked.append(body)
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            status, data, *headers = self._reply(body)
        finally:
            with self._lock:
                self._now -= 1
        if data is None:
            self._closing.wait()
            return
        handler.send_response(status)
        for name, value in (headers[0] if headers else {}).items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                try:
                    server._answer(self)
                except (ConnectionError, TimeoutError):  # the asker went away
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
