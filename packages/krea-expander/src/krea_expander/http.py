"""A language model behind an OpenAI-style endpoint: vLLM, llama.cpp, or a hosted service."""

import email.utils
import re
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from krea_expander.cut import whole_sentences
from krea_expander.interfaces import LimitedError, Message, UnavailableError, UnusableError

try:
    import httpx
except ImportError as error:
    raise ImportError("the HTTP client is missing; install krea-expander[http]") from error

__all__ = ["Endpoint"]


class Endpoint:
    """Calls `<url>/chat/completions`; `url` usually ends in /v1. Use as a context manager or call `close`.

    timeout_s: for one answer; wait_s: how long all waiting together may take when the service is busy or limits us;
    retries: how often a busy or failing service is asked again; settings: sent along with every request.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        timeout_s: float = 60.0,
        wait_s: float = 30.0,
        retries: int = 3,
        settings: Mapping[str, Any] = MappingProxyType({"max_tokens": 1024, "temperature": 0.9}),
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"endpoint {url!r} is no web address; write one such as http://127.0.0.1:8000/v1")
        self.url = f"{url.rstrip('/')}/chat/completions"
        self.model = model
        self.settings = dict(settings)
        self.retries, self.wait_s = retries, wait_s
        self.pause: Callable[[float], None] = time.sleep
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=timeout_s, headers=headers)

    def __enter__(self) -> "Endpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __call__(self, messages: Sequence[Message], n: int, seed: int) -> list[str]:
        """`n` answers; servers that give one at a time are asked again with the next seed."""
        texts: list[str] = []
        while len(texts) < n:
            body = {"model": self.model, "messages": list(messages), "n": n - len(texts), "seed": seed + len(texts)}
            texts += _texts(self._post(body | self.settings))
        return texts[:n]

    def _post(self, body: dict[str, Any]) -> httpx.Response:
        waited_s, attempt = 0.0, 0
        while True:
            response = self._ask(body)
            if response.status_code != 429 and response.status_code < 500:
                return response
            pause_s = _retry_after(response)
            pause_s = 0.5 * 2**attempt if pause_s is None else pause_s
            attempt, waited_s = attempt + 1, waited_s + pause_s
            if attempt > self.retries or waited_s > self.wait_s:
                raise _overload(response, pause_s)
            self.pause(pause_s)

    def _ask(self, body: dict[str, Any]) -> httpx.Response:
        try:
            return self._client.post(self.url, json=body)
        except httpx.TimeoutException as error:
            raise UnavailableError(f"no answer within {self._client.timeout.read:g} s") from error
        except httpx.HTTPError as error:
            raise UnavailableError(f"{self.url} cannot be reached ({type(error).__name__})") from error


def _overload(response: httpx.Response, pause_s: float) -> LimitedError | UnavailableError:
    if response.status_code == 429:
        return LimitedError(f"the service asks to wait {pause_s:g} s; try again later or ask less often")
    return UnavailableError(f"the service fails with status {response.status_code}: {_excerpt(response)}")


def _texts(response: httpx.Response) -> list[str]:
    """The answers in a response; UnusableError for everything that is none."""
    status = response.status_code
    if status in (401, 403):
        raise UnusableError(f"the service refuses the key (status {status}); check it")
    if status == 404:
        raise UnusableError(f"{response.url} does not exist; check the address (it should end in /v1) and the model")
    if "html" in response.headers.get("content-type", "") or response.text.lstrip()[:1] == "<":
        raise UnusableError(f"a web page came instead of an answer ({_excerpt(response)}); check the address")
    if status != 200:
        raise UnusableError(f"the service refuses the request with status {status}: {_excerpt(response)}")
    try:
        choices = response.json()["choices"]
        texts = [choice["message"]["content"] or "" for choice in choices]
    except (ValueError, KeyError, TypeError) as error:
        raise UnusableError(f"the answer has not the shape of a chat completion: {_excerpt(response)}") from error
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UnusableError("the service gave no choices; check that the model can chat")
    cut = [choice.get("finish_reason") == "length" for choice in choices]
    return [whole_sentences(text) if short else text for text, short in zip(texts, cut, strict=True)]


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds from the Retry-After header, which holds a number or a date."""
    value = response.headers.get("retry-after", "")
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _excerpt(response: httpx.Response) -> str:
    """The page's title or the first words, on one line."""
    title = re.search(r"<title[^>]*>(.*?)</title>", response.text, re.IGNORECASE | re.DOTALL)
    words = (title.group(1) if title else response.text).split()
    return repr(" ".join(words)[:120])
