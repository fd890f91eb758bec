"""What a signed C2PA manifest says about the origin of a picture, by c2pa-python where it is installed.

Without it only the mention of a source type inside the manifest is found, which may be that of an ingredient: "unsure".
Whether a signature is valid and trusted is told and does not matter here: nobody gains by calling a photograph
generated, and generators' certificates are not in everybody's trust list.
"""

import io
import json
import re
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from krea_data.classify.evidence import Evidence

__all__ = ["c2pa_evidence"]

_GENERATED, _PARTLY = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
_TYPES = re.compile(rb"digitalsourcetype/(\w+)")
_STARTS = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"GIF8", "image/gif"), (b"II*\0", "image/tiff"))
_STARTS += ((b"MM\0*", "image/tiff"), (b"RIFF", "image/webp"))
_OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}


def c2pa_evidence(data: bytes) -> Evidence | None:
    """Evidence from a manifest inside the file; None without one. It never asks a network."""
    if b"jumb" not in data or b"c2pa" not in data:
        return None
    store = _store(data) if find_spec("c2pa") is not None else None
    if store is None:
        found = {name.decode() for name in _TYPES.findall(data)} & {_GENERATED, _PARTLY}
        return Evidence(rule="c2pa", answer="unsure", detail=f"not read: {', '.join(sorted(found))}") if found else None
    state = store.get("validation_state", "not validated")
    answer, maker = _followed(store, str(store.get("active_manifest")), 8)
    if answer is None:
        return None
    return Evidence(rule="c2pa", answer=answer, detail=f"{maker}, {state}")


def _store(data: bytes) -> dict[str, Any] | None:
    """The manifests as c2pa-python reads them, or None if it cannot."""
    c2pa = import_module("c2pa")  # here: it may be missing, and loads a library of 16 MB
    kind = next((name for start, name in _STARTS if data.startswith(start)), None)
    kind = "image/avif" if kind is None and data[4:8] == b"ftyp" else kind
    try:
        context = c2pa.Context(c2pa.Settings.from_dict(_OFFLINE))
        with c2pa.Reader(kind, io.BytesIO(data), None, context) as reader:
            return json.loads(reader.json())
    except (c2pa.C2paError, ValueError):
        return None


def _followed(store: Mapping[str, Any], label: str, depth: int) -> tuple[Any, str]:
    """The answer of a manifest, or of the picture that it edited, and who made the claim."""
    manifest = store.get("manifests", {}).get(label, {})
    types = [_type(action) for assertion in manifest.get("assertions", []) for action in _actions(assertion)]
    maker = str(manifest.get("claim_generator") or _named(manifest))
    if _GENERATED in types:
        return "yes", maker
    partly = ("unsure", maker) if _PARTLY in types else (None, maker)
    for ingredient in manifest.get("ingredients", []) if depth else []:
        answer, inner = _followed(store, str(ingredient.get("active_manifest")), depth - 1)
        if answer == "yes" and ingredient.get("relationship") == "parentOf":
            return "yes", inner
        partly = ("unsure", inner) if answer else partly
    return partly


def _actions(assertion: Mapping[str, Any]) -> list[Any]:
    data = assertion.get("data")
    wanted = str(assertion.get("label", "")).startswith("c2pa.actions") and isinstance(data, dict)
    return list(data.get("actions", [])) if wanted and isinstance(data, dict) else []


def _type(action: Any) -> str:
    return str(action.get("digitalSourceType", "")).rpartition("/")[2] if isinstance(action, dict) else ""


def _named(manifest: Mapping[str, Any]) -> str:
    return ", ".join(str(one.get("name", "")) for one in manifest.get("claim_generator_info") or [])
