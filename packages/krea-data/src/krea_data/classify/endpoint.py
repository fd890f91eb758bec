"""A labeller behind any OpenAI-compatible endpoint that takes pictures: vLLM, llama.cpp, or a hosted service."""

import base64
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

from PIL import Image

from krea_data.classify.labels import LabellerError

__all__ = ["Endpoint"]

_MOST = 1 << 20  # bytes of a response
_PART = 1 << 16
_AGAIN = (429, 500, 502, 503, 504)


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """Asks `<url>/chat/completions`; `url` usually ends in /v1. Pictures go as PNG, at most `side_px` long.

    timeout_s: for one whole answer; retries: how often a busy or failing service is asked again, after 1, 2, 4 ...
    times `pause_s`; settings: sent along with every request.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 60.0
    retries: int = 2
    pause_s: float = 1.0
    side_px: int = 768
    settings: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": 64})

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"endpoint {self.url!r} is no web address; write one such as http://127.0.0.1:8000/v1")

    def __call__(self, image: Image.Image, prompt: str) -> str:
        """The model's words; LabellerError if there are none."""
        body = json.dumps(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": [_picture(image, self.side_px), _text(prompt)]}],
                **self.settings,
            }
        ).encode()
        for attempt in range(self.retries + 1):
            try:
                return _words(self._posted(body))
            except urllib.error.HTTPError as error:
                with error:
                    said = f"the service answers with status {error.code}: {error.read(200).decode(errors='replace')}"
                if error.code not in _AGAIN or attempt == self.retries:
                    raise LabellerError(said) from error
            time.sleep(self.pause_s * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _posted(self, body: bytes) -> bytes:
        """The response's body, read against the clock: a service may also send a byte a minute."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", body, headers)
        end, parts = time.monotonic() + self.timeout_s, bytearray()
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                while part := response.read1(_PART):
                    parts += part
                    if time.monotonic() > end:
                        raise TimeoutError
                    if len(parts) > _MOST:
                        raise LabellerError(f"the answer has more than {_MOST} bytes")
        except urllib.error.HTTPError:
            raise
        except TimeoutError as error:
            raise LabellerError(f"no answer within {self.timeout_s:g} s", "timeout") from error
        except (OSError, HTTPException) as error:
            if isinstance(getattr(error, "reason", None), TimeoutError):
                raise LabellerError(f"no answer within {self.timeout_s:g} s", "timeout") from error
            raise LabellerError(f"{self.url} cannot be reached ({error})") from error
        return bytes(parts)


def _text(prompt: str) -> dict[str, Any]:
    return {"type": "text", "text": prompt}


def _picture(image: Image.Image, side_px: int) -> dict[str, Any]:
    small = image.convert("RGB")
    small.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"},
    }


def _words(data: bytes) -> str:
    try:
        words = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise LabellerError(f"this is no chat completion: {data[:120].decode(errors='replace')!r}") from error
    return words if isinstance(words, str) else ""
