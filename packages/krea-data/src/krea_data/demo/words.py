"""Words for pictures that were not named for this: labels and tags of clip art, cleaned by rule."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

__all__ = ["file_label", "label", "tags"]

_NOISE = frozenset(
    ["hash", "unsorted", "clip", "art", "clipart", "svg", "externalsource", "magick", "geometry", "simple"]
)
_SHARED = 3  # a title of more drawings than this names a collection, not a thing


def file_label(stem: str, author: str) -> str:
    """A name from a file name: "wooden_barrel_petri_lumm_01" by Petri Lummemaki is "wooden barrel"."""
    names = [name for name in re.findall(r"[a-z]+", author.lower()) if len(name) > 1]
    words = [word for word in re.split(r"[^A-Za-z0-9]+", stem.lower()) if word and not re.search(r"\d", word)]
    kept = [word for word in words if not any(name.startswith(word) for name in names)]
    return " ".join(kept or words or [stem.lower()])


def label(title: str, shared: Counter[str], stem: str, author: str) -> str:
    """The drawing's title in lower case, or its file name where the title names a collection or nobody's thing."""
    plain = " ".join(title.replace("_", " ").split()).strip(" .").lower()
    usable = plain and shared[title] <= _SHARED and len(plain) <= 40 and re.fullmatch(r"[^\d@#:/<>()]*", plain)
    return plain if usable and not re.search(r"clip ?art|collection|untitled", plain) else file_label(stem, author)


def tags(stated: Iterable[str], no: Sequence[str] = ()) -> list[str]:
    """The tags that are words, once each, in lower case and in their order, without those in `no`."""
    plain = (" ".join(tag.replace("_", " ").lower().split()) for tag in stated)
    kept = dict.fromkeys(tag for tag in plain if re.fullmatch(r"[^\W\d_](?:[^\W\d_]|[' -])*[^\W\d_]", tag))
    return [tag for tag in kept if tag not in _NOISE and tag not in no and not tag.endswith("theme icon")]
