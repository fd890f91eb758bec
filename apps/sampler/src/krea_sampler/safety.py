"""A place for a safety classifier: it sees every prompt before drawing and every picture before it is written.

Whoever serves the released weights must have one. None is built in.
"""

import importlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from krea_sampler.heard import shortened

__all__ = ["Refused", "Safety", "check_pictures", "check_prompts", "find"]


class Safety(Protocol):
    """A classifier; None says yes, a few words say why not."""

    def check_prompt(self, prompt: str) -> str | None: ...

    def check_image(self, image: Image.Image) -> str | None: ...


class Refused(Exception):  # noqa: N818 (a decision, not a fault)
    """The classifier said no, in one sentence."""


def find(name: str) -> Safety:
    """The classifier of `module:name`: an object with both methods, or a function or class that makes one.

    Modules beside the caller are found as well as installed ones. ValueError if there is none.
    """
    module, _, inside = name.partition(":")
    if not module or not inside:
        raise ValueError(f"{name!r} names no safety classifier; write module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), inside)
    except ModuleNotFoundError as error:
        raise ValueError(f"there is no module {error.name} for the safety classifier {name}") from error
    except AttributeError as error:
        raise ValueError(f"the module {module} has no {inside} for the safety classifier") from error
    made = found() if isinstance(found, type) or not _is_safety(found) else found
    if not _is_safety(made):
        raise ValueError(f"{name} gives no safety classifier: it needs check_prompt and check_image")
    return made


def check_prompts(safety: Safety | None, prompts: Iterable[str]) -> None:
    """Raise Refused for the first prompt that may not be drawn."""
    for prompt in dict.fromkeys(prompts) if safety else ():
        reason = _answer(safety.check_prompt, prompt) if safety and prompt else None
        if reason is not None:
            raise Refused(f"the prompt {shortened(prompt)!r} was refused: {reason}")


def check_pictures(safety: Safety | None, images: Iterable[Image.Image], what: str) -> None:
    """Raise Refused for the first picture that may not be used or shown."""
    for image in images if safety else ():
        reason = _answer(safety.check_image, image) if safety else None
        if reason is not None:
            raise Refused(f"{what} was refused: {reason}")


def _answer(ask: Callable[[Any], str | None], what: object) -> str | None:
    """What the classifier says; RuntimeError if it fails, for then nothing may be drawn."""
    try:
        return ask(what)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise RuntimeError(
            f"the safety classifier failed ({type(error).__name__}: {error}); nothing is drawn"
        ) from error


def _is_safety(found: object) -> bool:
    return all(callable(getattr(found, name, None)) for name in ("check_prompt", "check_image"))
