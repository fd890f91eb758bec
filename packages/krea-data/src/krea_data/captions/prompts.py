"""Prompts as data: numbered templates in files beside this one, or in a file of your own.

A template's version, such as "describe/1-5f0c2a91", holds its number and the hash of its words, so two captions with
the same version were asked for in the same words.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

__all__ = ["Template", "packaged"]

_FIELD = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """Named sections of text, of which `system` and `user` become messages."""

    name: str
    version: str
    sections: Mapping[str, str]

    @classmethod
    def parse(cls, name: str, text: str) -> "Template":
        """A template from the text of its file; ValueError unless it states a version and has both messages."""
        head, *blocks = text.replace("\r\n", "\n").split("\n[")
        number = re.fullmatch(r"version (\d+)", head.strip())
        if number is None:
            raise ValueError(f"the prompt {name} begins with {head[:40]!r}; begin it with a line such as 'version 1'")
        cut = [block.partition("]\n") for block in blocks]
        sections = {part: body.strip() for part, _, body in cut}
        if missing := [part for part in ("system", "user") if not sections.get(part)]:
            raise ValueError(f"the prompt {name} has no section [{missing[0]}]; add it")
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return cls(name=name, version=f"{name}/{number.group(1)}-{digest}", sections=sections)

    @classmethod
    def read(cls, path: Path) -> "Template":
        """A template from a file of your own; its name is the file's."""
        return cls.parse(Path(path).stem, Path(path).read_text("utf-8"))

    def filled(self, part: str, **values: str) -> str:
        """A section with every `{name}` replaced once; braces inside the values stay. ValueError for a missing one."""

        def value(match: re.Match[str]) -> str:
            if match.group(1) not in values:
                known = ", ".join(sorted(values)) or "none"
                raise ValueError(
                    f"the prompt {self.version} asks for {match.group(0)}, which is not known here: {known}"
                )
            return values[match.group(1)]

        return _FIELD.sub(value, self.sections[part])


def packaged(name: str) -> Template:
    """The template `prompts/<name>.txt` of this package."""
    return Template.parse(name, (resources.files("krea_data.captions") / "prompts" / f"{name}.txt").read_text("utf-8"))
