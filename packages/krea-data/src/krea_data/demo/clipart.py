"""The Open Clip Art drawings of Debian's package openclipart-svg: fetched by apt where there is one, read file by file.

Each drawing states title, tags, creator and licence itself, in RDF; a few state a licence that is not free for all.
"""

import contextlib
import html
import re
import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from krea_data.demo import words
from krea_data.demo.cache import staged
from krea_data.demo.emoji import Drawing
from krea_data.demo.manifest import check, digest
from krea_data.demo.packages import SETS

__all__ = ["PACKAGE", "drawings", "install", "metadata", "with_viewbox"]

PACKAGE = "openclipart-svg"
_VERSION = "0.18"
_SPEC = f"{PACKAGE}@{_VERSION}"
_UNITS = {"": 1.0, "px": 1.0, "pt": 1.25, "pc": 15.0, "mm": 3.543307, "cm": 35.43307, "in": 90.0}  # px at 90 dpi
_CC = "{http://web.resource.org/cc/}"
_DC = "{http://purl.org/dc/elements/1.1/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


def _download(folder: Path) -> str | None:
    """Put the drawings into `folder`; returns what went wrong, or None."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return "apt-get and dpkg-deb are not here"
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as scratch:
        for command in (["apt-get", "-q", "download", PACKAGE], ["dpkg-deb", "-x", "*.deb", "tree"]):
            found = [str(path.name) for path in Path(scratch).glob("*.deb")]
            command = [word for part in command for word in (found if part == "*.deb" else [part])]
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
            if done.returncode:
                said = [line for line in done.stderr.splitlines() if line.startswith("E:")]
                return (said or done.stderr.strip().splitlines() or ["no message"])[-1]
        tree = Path(scratch) / "tree" / "usr" / "share" / "openclipart" / "svg"
        for path in sorted(tree.rglob("*.svg")):
            if path.is_symlink() or not path.is_file():
                continue  # the package lists many drawings twice
            target = folder / path.relative_to(tree)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    return None


def install(cache: Path, notice: Callable[[str], None]) -> Path | None:
    """The folder of the drawings, or None after a notice that says why they are left out."""
    target = cache / "packages" / f"{PACKAGE}@{_VERSION}"
    if target.is_dir() and check(_SPEC, digest(target)):
        return target
    wrong: str | None = None
    with contextlib.suppress(_LeftOutError), staged(target) as folder:
        wrong = _download(folder)
        if wrong is None and not check(_SPEC, digest(folder)):
            wrong = "this release has other drawings than Debian 12's"
        if wrong is not None:
            raise _LeftOutError
    if wrong is None:
        return target
    notice(f"clip art left out: {wrong} (on Debian or Ubuntu, after apt-get update, it is fetched by itself)")
    return None


class _LeftOutError(Exception):
    """Ends the staging of a package that is left out."""


def _licence(work: ET.Element) -> str:
    links = " ".join(link.get(f"{_RDF}resource", "") for link in work.iter(f"{_CC}license"))
    stated = links or " ".join(_text(work, f"{_DC}rights"))
    if re.search(r"\b(gpl|gnu)\b", stated, re.I):
        return "GPL-2.0-or-later"
    if re.search(r"public[ _]?domain", stated, re.I):
        return "LicenseRef-PublicDomain"
    return "unknown"


def _text(work: ET.Element, tag: str) -> list[str]:
    """All words below the elements of this tag, in order, without blanks."""
    pieces = (html.unescape(piece) for element in work.iter(tag) for piece in element.itertext())
    return [text for piece in pieces if (text := " ".join(piece.split()))]


def metadata(svg: str) -> dict[str, Any]:
    """Title, tags, creator and licence as the drawing's RDF states them; "unknown" where it does not."""
    stated: dict[str, Any] = {"label": "", "tags": [], "author": "unknown", "licence": "unknown"}
    found = re.search(r"<rdf:RDF.*?</rdf:RDF>", svg, re.S)
    if found is None:
        return stated
    names = "".join(f' xmlns:{key}="{url[1:-1]}"' for key, url in (("cc", _CC), ("dc", _DC), ("rdf", _RDF)))
    body = re.sub(r"^<rdf:RDF[^>]*>", f"<rdf:RDF{names}>", found.group())
    body = re.sub(r'\s(?:xmlns(?::\w+)?|(?!rdf:)\w+:\w+)="[^"]*"', "", body[len("<rdf:RDF" + names) :])
    try:
        work = ET.fromstring(f"<rdf:RDF{names}{body}")
    except ET.ParseError:
        return stated
    creator = [text for text in _text(work, f"{_DC}creator") if "publicdomain" not in text.lower()]
    title = [text for element in work.iter(f"{_CC}Work") for text in _own_title(element)]
    return {
        "label": title[0] if title else "",
        "tags": [tag for tag in _text(work, f"{_DC}subject") if tag],
        "author": creator[0] if creator else "unknown",
        "licence": _licence(work),
    }


def _own_title(work: ET.Element) -> list[str]:
    texts = (html.unescape(one.text or "") for one in work.findall(f"{_DC}title"))
    return [" ".join(text.split()) for text in texts if text.strip()]


def _length(text: str | None) -> float | None:
    found = re.fullmatch(r"\s*([0-9.eE+-]+)\s*([a-z]*)\s*", text or "")
    if not found or found.group(2) not in _UNITS:
        return None
    try:
        return float(found.group(1)) * _UNITS[found.group(2)]
    except ValueError:
        return None


def with_viewbox(svg: str) -> str:
    """The SVG with a view box instead of width and height: old headers state mm or pt, at 90 dpi, and no box."""
    found = re.search(r"<svg\b(?:[^>\"']|\"[^\"]*\"|'[^']*')*>", svg)
    if found is None:
        raise ValueError("there is no <svg> element")
    head = found.group()
    stated = dict(re.findall(r"\s(width|height|viewBox)\s*=\s*[\"']([^\"']*)[\"']", head))
    box = re.split(r"[\s,]+", stated.get("viewBox", "").strip())
    if len(box) != 4:
        width, height = _length(stated.get("width")), _length(stated.get("height"))
        box = ["0", "0", f"{width or 1000:g}", f"{height or width or 1000:g}"]
    head = re.sub(r"\s(width|height|viewBox|preserveAspectRatio)\s*=\s*(\"[^\"]*\"|'[^']*')", "", head)
    head = head.replace("<svg", f'<svg viewBox="{" ".join(box)}"', 1)
    return svg[: found.start()] + head + svg[found.end() :]


def drawings(folder: Path) -> Iterator[Drawing]:
    """Every drawing with what it says of itself; its concept is its title, its group the folder it lies in."""
    one = SETS["clipart"]
    files = sorted(folder.rglob("*.svg"), key=lambda path: path.relative_to(folder).as_posix())
    stated = [metadata(path.read_text("utf-8", errors="replace")) for path in files]
    titles = Counter(meta["label"] for meta in stated)
    for path, meta in zip(files, stated, strict=True):
        name = path.relative_to(folder).with_suffix("").as_posix()
        places = [place.replace("_", "-") for place in name.split("/")[:-1]] or ["unsorted"]
        label = words.label(meta["label"], titles, path.stem, meta["author"])
        found = {"source": one.name, "style": one.style, "concept": label, "label": label}
        found |= {"group": places[0], "subgroup": places[-1], "tags": words.tags(meta["tags"], no=[label])}
        found |= {"licence": meta["licence"], "author": meta["author"], "package": PACKAGE, "version": _VERSION}
        yield Drawing(id=f"{one.name}/{name}", meta=found | {"hexcode": ""}, extent=0.0, path=path)
