"""What the model warns of while it works, in sentences of a length that is read."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["hearing", "sentence", "shortened"]

MOST = 120  # characters of a text that is quoted in a sentence


@contextmanager
def hearing(say: Callable[[str], None]) -> Iterator[None]:
    """Inside, `say` gets each warning of the model, such as words that it has no room for, once."""
    log, listener = logging.getLogger("krea_model"), _Listener(say)
    log.addHandler(listener)
    try:
        yield
    finally:
        log.removeHandler(listener)


def sentence(record: logging.LogRecord) -> str:
    """The message of a record, with long texts among its values shortened."""
    if not isinstance(record.args, tuple):
        return record.getMessage()
    return str(record.msg) % tuple(shortened(one) if isinstance(one, str) else one for one in record.args)


def shortened(text: str, most: int = MOST) -> str:
    """The text, or if it has more than `most` characters its beginning and end with its length between them."""
    if len(text) <= most:
        return text
    begin, end, words = text[: most // 2], text[-(most // 2) :], len(text.split())
    size = f"{words} words" if words * 20 > len(text) else f"{len(text)} characters"  # not every script has spaces
    begin = begin.rsplit(maxsplit=1)[0] if " " in begin.strip() else begin
    end = end.split(maxsplit=1)[-1] if " " in end.strip() else end
    return f"{begin} ... ({size}) ... {end}"


class _Listener(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = sentence(record)
        if text not in self._said:
            self._said.add(text)
            self._say(text)
