"""A prompt to n expansions: ask, parse, check, ask again, and in the end fall back to the prompt itself and say so.

Whatever happens the caller gets n texts to draw, each with its source and with notes for the user. The model's thinking
never leaves this module.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from krea_expander.faithful import Claim, missing
from krea_expander.gates import check, unsafe
from krea_expander.interfaces import LanguageModel, LanguageModelError, Message
from krea_expander.texts import section

__all__ = ["LEVELS", "Expansion", "Level", "clean", "expand", "messages", "parse"]

Level = Literal["raw", "low", "medium", "high"]
LEVELS: tuple[Level, ...] = ("raw", "low", "medium", "high")
"""How much may be added; raw asks no model at all."""

_POLISH_WORDS = 60
"""From here on a prompt is detailed already and only polished (Krea 2 technical report, on the expander)."""
_EXAMPLES = 3
_MOST_CHARS = 3000
"""Longer prompts are drawn as they are: an expansion could only lose something."""

Source = Literal["model", "rules", "prompt", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """A text to draw for a prompt.

    source: who wrote the text; "prompt" is the user's own, "refused" comes with an empty text;
    notes: one sentence each, for the user.
    """

    prompt: str
    text: str
    source: Source
    notes: tuple[str, ...] = ()


def expand(
    prompt: str,
    model: LanguageModel,
    n: int = 1,
    *,
    level: Level = "medium",
    seed: int = 0,
    retries: int = 2,
    shots: int = 0,
) -> list[Expansion]:
    """`n` expansions of the prompt; asks the model at most `1 + retries` times and never raises for what it answers.

    shots: worked examples before the wish, up to 3; the packaged SmolLM2-135M needs them.
    """
    if n < 1 or retries < 0 or level not in LEVELS or not 0 <= shots <= _EXAMPLES:
        rule = f"n from 1, retries from 0, shots from 0 to {_EXAMPLES}, level one of {LEVELS}"
        raise ValueError(f"n {n}, retries {retries}, shots {shots}, level {level!r} do not fit: {rule}")
    wish = clean(prompt)
    if breaches := unsafe(wish):
        return [Expansion(prompt=prompt, text="", source="refused", notes=(f"refused: {breaches[0].says}",))] * n
    if reason := _no_need(wish, level):
        return [Expansion(prompt=prompt, text=wish, source="prompt", notes=(reason,) if level != "raw" else ())] * n
    done: list[Expansion] = []
    reasons: tuple[str, ...] = ()
    for attempt in range(1 + retries):
        try:
            answers = model(messages(wish, level, reasons, shots), n - len(done), _derive(seed, attempt))
        except LanguageModelError as error:
            reasons = (f"the language model failed: {error}",)
            break
        judged = [_judge(wish, answer) for answer in answers[: n - len(done)]]
        done += [Expansion(prompt=prompt, text=text, source="model") for text, trouble in judged if not trouble]
        if len(done) >= n:
            return done
        reasons = next((trouble for _, trouble in judged if trouble), ("the model gave too few answers",))
    note = f"drawn from your own words, since {'; '.join(reasons)}"
    return done + [Expansion(prompt=prompt, text=wish, source="prompt", notes=(note,))] * (n - len(done))


def messages(prompt: str, level: Level, reasons: Sequence[str] = (), shots: int = 0) -> list[Message]:
    """The conversation that asks for one expansion; `reasons` say what was wrong with the last one."""
    how = section("expand", "polish" if len(prompt.split()) >= _POLISH_WORDS else level)
    asked: list[Message] = [{"role": "system", "content": f"{section('expand', 'system')}\n\n{how}"}]
    for i in range(shots):
        wish, _, caption = section("expand", f"example {i + 1}").partition("\n=>\n")
        asked.append({"role": "user", "content": _wrapped(wish)})
        asked.append({"role": "assistant", "content": caption})
    again = section("expand", "again").replace("{reasons}", "; ".join(reasons)) if reasons else ""
    asked.append({"role": "user", "content": f"{_wrapped(prompt)}\n\n{again}".rstrip()})
    return asked


def parse(answer: str) -> str | None:
    """The caption in an answer, on one line and without thinking or wrapping; None if the thinking never ends."""
    text = re.sub(r"<(think|thinking)>.*?</\1>", "", answer, flags=re.DOTALL | re.IGNORECASE)
    text = re.split(r"</think(?:ing)?>", text, flags=re.IGNORECASE)[-1]  # templates may open it in the question
    if re.search(r"<think(?:ing)?>", text, flags=re.IGNORECASE):
        return None
    text = re.sub(r"\A\s*```\w*\n(.*)\n```\s*\Z", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"\A\s*(?:(?:expanded|final|image)\s+)?(?:prompt|caption)\s*:\s*", "", text, flags=re.IGNORECASE)
    text = re.sub(r"\A\s*<(wish[-\w]*|caption)>(.*)</\1>\s*\Z", r"\2", text, flags=re.DOTALL).strip()
    if re.fullmatch(r'"[^"]*"|\u201c[^\u201d]*\u201d', text, flags=re.DOTALL):
        text = text[1:-1].strip()
    paragraph = re.search(r"^\s*(?:[-*\u2022#]|\d{1,2}[.)])\s", text, flags=re.MULTILINE) is None
    return " ".join(text.split()) if paragraph else text


def clean(prompt: str) -> str:
    """The prompt without control characters and with single spaces; every letter, mark and emoji stays."""
    kept = "".join(" " if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in prompt)
    return " ".join(kept.split())


def _wrapped(prompt: str) -> str:
    """The wish between marks that it cannot close itself."""
    tags = ("wish", *(f"wish-{_derive(i, *prompt.encode()):x}" for i in range(8)))
    tag = next(tag for tag in tags if f"{tag}>" not in prompt.lower())
    return section("expand", "wish").replace("{tag}", tag).replace("{prompt}", prompt)


def _judge(wish: str, answer: str) -> tuple[str, tuple[str, ...]]:
    """The caption of an answer, and what keeps it from being used."""
    text = parse(answer)
    if text is None:
        return "", ("its thinking never ended",)
    return text, (*(breach.says for breach in check(text, wish)), *map(_says, missing(wish, text)))


def _no_need(wish: str, level: Level) -> str:
    if not wish:
        return "the prompt is empty: the model draws what it likes"
    if level == "raw":
        return "raw"
    if len(wish) > _MOST_CHARS:
        return f"drawn as it is: a prompt of {len(wish)} characters (more than {_MOST_CHARS}) needs no expansion"
    return ""


def _says(claim: Claim) -> str:
    if claim.kind == "language":
        return "it is in another language"
    if claim.kind == "quote":
        return f'it loses the text "{claim.says}"'
    return f"it does not keep the {claim.kind} {claim.says!r}"


def _derive(*numbers: int) -> int:
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest()
    return int.from_bytes(digest) >> 1
