"""What a file says about how its picture was made: rules over its metadata, in a table.

A generator that names itself is believed. That nothing is said means nothing: metadata is lost on the way.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["RULES", "Evidence", "Rule", "judged"]

_DETAIL = 200  # characters of what was found
_FLAGS = re.DOTALL | re.IGNORECASE


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What decided: the rule's name and what it found. "unsure" is evidence that a part was generated."""

    rule: str
    answer: Literal["yes", "unsure"]
    detail: str


@dataclass(frozen=True, slots=True)
class Rule:
    """Fields whose name matches `field` and whose text has `pattern` in it."""

    name: str
    field: str
    pattern: str
    answer: Literal["yes", "unsure"] = "yes"


_TEXTS = r"png:(parameters|comment|description|usercomment)|exif:(usercomment|imagedescription)|file:comment"
_MAKERS = (
    r"\b(novelai|midjourney|adobe firefly|dall(-|\xc2?\xb7|\.)e\b|stable[- ]?diffusion|comfyui|invokeai|automatic1111"
    r"|fooocus|swarmui|draw things|dreamstudio|ideogram[ .]?ai|leonardo\.ai|bing image creator|made with google ai"
    r"|chatgpt|gpt-4o)"
)

# fmt: off
RULES: tuple[Rule, ...] = (
    Rule("iptc", r"xmp:digitalsourcetype", r"\btrainedAlgorithmicMedia\b"),
    Rule("iptc", r"xmp:digitalsourcetype", r"\bcompositeWithTrainedAlgorithmicMedia\b", "unsure"),
    Rule("aigc", r"(xmp|png|exif):(aigc|usercomment)", r'"Label"\s*:\s*"?1\b'),
    Rule("aigc", r"(xmp|png|exif):(aigc|usercomment)", r'"Label"\s*:\s*"?[23]\b', "unsure"),
    Rule("a1111", _TEXTS, r"\bSteps: \d+, .{0,2000}?\b(Sampler|CFG scale|Seed): "),
    Rule("fooocus", _TEXTS, r'"(metadata|fooocus)_scheme"\s*:'),
    Rule("swarmui", _TEXTS, r'"sui_image_params"\s*:'),
    Rule("comfyui", r"png:prompt", r'"class_type"\s*:'),
    Rule("comfyui", r"png:workflow", r'"nodes"\s*:'),
    Rule("comfyui", r"exif:(make|model|imagedescription)", r"^(prompt|workflow):\s*\{"),
    Rule("novelai", r"png:source", r"\b(NovelAI|Stable Diffusion [0-9A-F]{8})\b"),
    Rule("novelai", r"png:comment", r'^\{(?=.*"sampler"\s*:)(?=.*"steps"\s*:)(?=.*"seed"\s*:)'),
    Rule("invokeai", r"png:(invokeai_metadata|invokeai_graph|sd-metadata)", r"\{"),
    Rule("invokeai", r"png:dream", r"\s-(s|S)\s?\d+"),
    Rule("midjourney", r"(png|exif):(description|imagedescription)|file:comment", r"\bJob ID: [0-9a-f]{8}-[0-9a-f-]+"),
    Rule("krea", r"png:krea", r'"(prompt|model|format)"\s*:'),
    Rule("software", r"(png|exif|xmp):(software|creatortool|credit|make|model|artist|author)", _MAKERS),
)
# fmt: on


def judged(fields: Mapping[str, str], rules: tuple[Rule, ...] = RULES) -> Evidence | None:
    """The first rule that says "yes" of these fields (see `metadata.fields`), else the first that is unsure."""
    found = [
        Evidence(rule=rule.name, answer=rule.answer, detail=_shortened(f"{name}: {text}"))
        for rule in rules
        for name, text in fields.items()
        if re.fullmatch(rule.field, name, _FLAGS) and re.search(rule.pattern, text, _FLAGS)
    ]
    return next((one for one in found if one.answer == "yes"), found[0] if found else None)


def _shortened(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:_DETAIL]
