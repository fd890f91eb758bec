"""From the reply of an OpenAI-style service to an answer, or to the reason why it is none."""

import email.utils
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from krea_data.captions.asking import AccessError, Answer
from krea_data.captions.clean import whole_sentences

__all__ = ["Reply", "answer_of", "pause_of"]

_MODERATED = re.compile(r"moderation|flagged|content.?(?:policy|filter|management)|safety", re.IGNORECASE)
_THOUGHT = re.compile(r"\A\s*<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a service sent back; the names of its headers are looked up in lower case."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes


def answer_of(reply: Reply) -> Answer:
    """The answer in a reply. AccessError where the key, the account, the address or the model is refused."""
    status, words = reply.status, _excerpt(reply.body)
    if status == 429:
        return Answer(failed="limited", error="the service asks to wait", again=True)
    if status >= 500 or status == 408:
        return Answer(failed=f"status {status}", error=f"the service fails with status {status}: {words}", again=True)
    if status in (400, 403, 422) and _MODERATED.search(reply.body.decode("utf-8", "replace")):
        return Answer(failed="refused", error=f"the service refuses the picture (status {status}): {words}")
    if status in (401, 402, 403):
        raise AccessError(f"{reply.url} refuses the key or the account (status {status}: {words}); check it")
    if status in (404, 405) or 300 <= status < 400:
        raise AccessError(f"{reply.url} does not answer (status {status}: {words}); check the address and the model")
    if status != 200:
        return Answer(failed=f"status {status}", error=f"the service refuses the question (status {status}): {words}")
    try:
        value = json.loads(reply.body)
    except (ValueError, RecursionError):
        return Answer(failed="not json", error=f"the answer is not JSON: {words}", again=True)
    return _spoken(value, words)


def _spoken(value: Any, words: str) -> Answer:
    try:
        choice = value["choices"][0]
        message = choice["message"]
        content, refusal = message["content"], message.get("refusal")
        ended = choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError):
        return Answer(failed="no choices", error=f"the answer has not the shape of a completion: {words}", again=True)
    if isinstance(content, list):  # some services answer in parts
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if refusal or ended == "content_filter":
        return Answer(failed="refused", error=f"the model refuses: {str(refusal or ended)[:200]!r}")
    if content is not None and not isinstance(content, str):
        return Answer(failed="no choices", error=f"the content of the answer is no text: {words}", again=True)
    text = _THOUGHT.sub("", content or "").strip()
    if not text:
        return Answer(failed="empty", error="the answer is empty")
    if ended == "length":
        return Answer(text=whole_sentences(text), notes=("cut at the limit of tokens",))
    return Answer(text=text)


def pause_of(headers: Mapping[str, str]) -> float | None:
    """Seconds from a Retry-After header, which holds a number or a date; None without one."""
    value = headers.get("retry-after", "")
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _excerpt(body: bytes) -> str:
    """A web page's title, or the first words, on one line."""
    text = body[:4000].decode("utf-8", "replace")
    title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
    return repr(" ".join((title.group(1) if title else text).split())[:120])
