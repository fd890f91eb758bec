"""Labels of pictures: given ones, or pseudo-labels by a vision-language model, each kept with where it came from.

Whatever goes wrong with one picture is that picture's outcome; the others get theirs.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from PIL import Image

__all__ = ["Label", "Labeller", "LabellerError", "Outcome", "Question", "given", "pseudo_labels", "read", "summary"]

Outcome = Literal["answered", "unsure", "nonsense", "refused", "timeout", "failed"]

_KEPT = 500  # characters of an answer
_YES, _NO, _UNSURE = ("yes", "true"), ("no", "false"), ("unsure", "uncertain", "unclear", "unknown", "maybe")
_REFUSAL = re.compile(
    r"\b(i|we)(\s+am|'m)?\s+(cannot|can't|can not|could not|couldn't|won't|will not|unable|not able)"
    r"|\bas an ai\b|\bi'm sorry\b|\bi am sorry\b|\bsorry, (but )?i\b",
    re.IGNORECASE,
)


class LabellerError(Exception):
    """Why a labeller has no answer for a picture; `outcome` is "timeout" or "failed"."""

    def __init__(self, said: str, outcome: Outcome = "failed") -> None:
        super().__init__(said)
        self.outcome: Outcome = outcome


class Labeller(Protocol):
    """A picture and a prompt to the model's words; `model` names what answers.

    It may raise LabellerError, TimeoutError or OSError.
    """

    @property
    def model(self) -> str: ...

    def __call__(self, image: Image.Image, prompt: str) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What a labeller is asked about each picture; the answer wanted is yes, no or unsure."""

    name: str
    prompt: str

    @property
    def version(self) -> str:
        """A hash of the prompt."""
        return hashlib.sha256(self.prompt.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """One row's label: `target` is None unless the outcome is "answered". `answer` has the model's words."""

    row: str
    target: bool | None
    outcome: Outcome = "answered"
    model: str = "given"
    prompt: str = ""  # version of the question
    answer: str = ""


def given(targets: Mapping[str, bool], source: str = "given") -> list[Label]:
    """Labels that are known, in order of the rows' ids."""
    return [Label(row=row, target=bool(targets[row]), model=source) for row in sorted(targets)]


def pseudo_labels(
    pictures: Iterable[tuple[str, Callable[[], Image.Image]]],
    labeller: Labeller,
    question: Question,
    *,
    at_once: int = 4,
) -> Iterator[Label]:
    """A label for every row, in order, asking `at_once` at a time; `pictures` are ids with a way to get the picture.

    A picture that cannot be opened is the outcome "failed" of its row.
    """
    if at_once < 1:
        raise ValueError(f"at_once {at_once} is below 1; ask for at least one picture at a time")
    rows = iter(pictures)
    with ThreadPoolExecutor(at_once) as pool:
        while batch := [row for row, _ in zip(rows, range(4 * at_once), strict=False)]:
            yield from pool.map(lambda row: _ask(row[0], row[1], labeller, question), batch)


def _ask(row: str, opened: Callable[[], Image.Image], labeller: Labeller, question: Question) -> Label:
    target, outcome, answer = None, "failed", ""
    try:
        answer = labeller(opened(), question.prompt)
        target, outcome = read(answer)
    except TimeoutError as error:
        outcome, answer = "timeout", str(error)
    except LabellerError as error:
        outcome, answer = error.outcome, str(error)
    except (OSError, ValueError, KeyError, SyntaxError) as error:
        answer = f"{type(error).__name__}: {error}"
    return Label(
        row=row,
        target=target,
        outcome=outcome,
        model=labeller.model,
        prompt=question.version,
        answer="".join(letter for letter in str(answer)[:_KEPT] if letter.isprintable() or letter == "\n"),
    )


def read(answer: object) -> tuple[bool | None, Outcome]:
    """What words mean: an answer in JSON ({"answer": "yes"}), or one that begins with yes, no or unsure."""
    if not isinstance(answer, str) or not answer.strip():
        return None, "nonsense"
    word = _in_json(answer)
    if word is None:
        plain = re.sub(r"<think>.*?</think>", " ", answer, flags=re.DOTALL).strip(" \t\r\n*_`\"'#>-").lower()
        word = re.split(r"[^a-z]", plain, maxsplit=1)[0]
    if word in _YES or word in _NO:
        return word in _YES, "answered"
    if word in _UNSURE:
        return None, "unsure"
    return None, "refused" if _REFUSAL.search(answer.replace("\u2019", "'")) else "nonsense"  # a curly apostrophe


def _in_json(answer: str) -> str | None:
    """The word at "answer" in the first JSON object of the text."""
    found = re.search(r"\{.*?\}", answer, re.DOTALL)
    try:
        value: Any = json.loads(found.group()).get("answer") if found else None
    except (ValueError, RecursionError):
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value.strip().lower() if isinstance(value, str) else None


def summary(labels: Sequence[Label], question: Question | None = None) -> dict[str, Any]:
    """Where labels come from and what became of them, for a head's card."""
    found: dict[str, Any] = {
        "models": sorted({label.model for label in labels}),
        "prompts": sorted({label.prompt for label in labels if label.prompt}),
        "outcomes": dict(sorted(Counter(label.outcome for label in labels).items())),
        "yes": sum(label.target is True for label in labels),
        "no": sum(label.target is False for label in labels),
    }
    return found | ({"question": question.name, "prompt": question.prompt} if question else {})
