"""A model behind an OpenAI-style endpoint: vLLM, llama.cpp, or a hosted service; pictures travel as data URLs."""

import json
import os
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import MappingProxyType
from typing import Any

from krea_data.captions.asking import Answer, Question
from krea_data.captions.data_urls import data_url
from krea_data.captions.replies import Reply, answer_of, pause_of

try:
    import httpx
except ImportError as error:
    raise ImportError("asking an endpoint needs httpx; install krea-data[captions]") from error

__all__ = ["Endpoint"]


class Endpoint:
    """Asks `<url>/chat/completions`; `url` usually ends in /v1. Connections last for one call.

    timeout_s: for one answer, from the question to its last byte; retries: how often a question is put again after a
    time-out, 429 or 5xx, with pauses that double or that the service states, `wait_s` together at most; parallel: how
    many questions are under way at a time; longest_px: the longer side at which pictures are sent; answer_bytes: at
    which an answer is given up; settings: sent along with every question.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        timeout_s: float = 120.0,
        retries: int = 3,
        wait_s: float = 60.0,
        parallel: int = 8,
        longest_px: int = 1024,
        answer_bytes: int = 1 << 20,
        settings: Mapping[str, Any] = MappingProxyType({"max_tokens": 1024, "temperature": 0.2}),
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"endpoint {url!r} is no web address; write one such as http://127.0.0.1:8000/v1")
        if parallel < 1 or retries < 0 or timeout_s <= 0 or wait_s < 0 or longest_px < 1 or answer_bytes < 1:
            raise ValueError(
                f"parallel {parallel}, retries {retries}, timeout_s {timeout_s}, wait_s {wait_s}, longest_px"
                f" {longest_px} and answer_bytes {answer_bytes} must be positive (retries and wait_s may be 0)"
            )
        self.url = f"{url.rstrip('/')}/chat/completions"
        self.model, self.parallel, self.retries = model, parallel, retries
        self.timeout_s, self.wait_s = timeout_s, wait_s
        self.longest_px, self.answer_bytes = longest_px, answer_bytes
        self.settings = dict(settings)
        self.pause: Callable[[float], None] = time.sleep
        self._key = key

    @classmethod
    def from_environment(cls, prefix: str = "KREA_VLM", **settings: Any) -> "Endpoint":
        """The endpoint that `<prefix>_URL`, `<prefix>_MODEL` and, if it wants one, `<prefix>_KEY` name."""
        stated = {name: os.environ.get(f"{prefix}_{name}", "").strip() for name in ("URL", "MODEL", "KEY")}
        if missing := [f"{prefix}_{name}" for name in ("URL", "MODEL") if not stated[name]]:
            raise ValueError(f"{' and '.join(missing)} must be set in the environment; see Endpoint")
        return cls(stated["URL"], stated["MODEL"], key=stated["KEY"] or None, **settings)

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r}, {self.model!r})"

    def patience_s(self, questions: int) -> float:
        """How long so many questions may take at worst."""
        turns = -(-questions // self.parallel)
        return turns * (2 * self.timeout_s * (self.retries + 1) + self.wait_s)

    def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer each, in order; a failure is that question's alone. AccessError if the service takes none."""
        if not questions:
            return []
        with self._opened() as client, ThreadPoolExecutor(min(self.parallel, len(questions))) as pool:
            futures = [pool.submit(self._answer, client, question) for question in questions]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _opened(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx.Limits(max_connections=self.parallel, max_keepalive_connections=self.parallel)
        timeout = httpx.Timeout(self.timeout_s, pool=None)
        return httpx.Client(timeout=timeout, headers=headers, limits=limits, verify=_trusted())

    def _answer(self, client: httpx.Client, question: Question) -> Answer:
        body = json.dumps(self._body(question)).encode()
        waited_s, attempt = 0.0, 0
        while True:
            said = self._ask(client, body)
            answer = said if isinstance(said, Answer) else answer_of(said)
            if not answer.again:
                return answer
            stated_s = pause_of(said.headers) if isinstance(said, Reply) else None
            pause_s = 0.5 * 2**attempt if stated_s is None else stated_s
            attempt, waited_s = attempt + 1, waited_s + pause_s
            if attempt > self.retries or waited_s > self.wait_s:
                return answer
            self.pause(pause_s)

    def _body(self, question: Question) -> dict[str, Any]:
        content: Any = question.text
        if question.image is not None:
            picture = {"type": "image_url", "image_url": {"url": data_url(question.image, self.longest_px)}}
            content = [picture, {"type": "text", "text": question.text}]
        messages = [{"role": "system", "content": question.system}, {"role": "user", "content": content}]
        return {"model": self.model, "messages": messages, **self.settings}

    def _ask(self, client: httpx.Client, body: bytes) -> Reply | Answer:
        """What came back, cut at the limits of time and size, or why nothing did."""
        deadline = time.monotonic() + self.timeout_s
        kind = {"content-type": "application/json"}
        try:
            with client.stream("POST", self.url, content=body, headers=kind) as response:
                data = bytearray()
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > self.answer_bytes:
                        return Answer(failed="too long", error=f"the answer is over {self.answer_bytes} bytes")
                    if time.monotonic() > deadline:
                        return self._late()
                return Reply(url=self.url, status=response.status_code, headers=response.headers, body=bytes(data))
        except httpx.TimeoutException:
            return self._late()
        except httpx.HTTPError as error:
            said = f"{self.url} cannot be reached ({type(error).__name__})"
            return Answer(failed="unreachable", error=said, again=True)

    def _late(self) -> Answer:
        return Answer(failed="timeout", error=f"no whole answer within {self.timeout_s:g} s", again=True)


@cache
def _trusted() -> ssl.SSLContext:
    """Whom to trust; read once, as that takes longer than many an answer."""
    return httpx.create_ssl_context()
