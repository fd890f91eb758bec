"""SVG as pixels, drawn by resvg: nothing outside the file is read, and nothing is drawn a million times."""

import gzip
import io
import re
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable

from PIL import Image

__all__ = ["SvgError", "draw", "is_svg"]

_ROOT = re.compile(r"<(?:[\w.-]+:)?svg[\s/>]")
_BEFORE = (("<?", "?>"), ("<!--", "-->"), ("<!DOCTYPE", ">"))  # what may stand before the first element
_TEXT_LIMIT = 32 << 20
_DRAWN_LIMIT = 200_000  # elements, with those that <use> repeats
_HEAD = 65536
_LOCAL = re.compile(r"^\s*(#|data:|$)")
_STYLE_URL = re.compile(r"url\(\s*['\"]?(?!\s*['\"]?(?:#|data:))|@import", re.I)


class SvgError(ValueError):
    """The drawing cannot be drawn; the text says why."""


def is_svg(data: bytes) -> bool:
    """Whether these bytes are an SVG, by their beginning; compressed ones (.svgz) too."""
    head = data[:64]
    if head.startswith(b"\x1f\x8b"):
        try:
            data = zlib.decompressobj(31).decompress(data[:_HEAD], _HEAD)
        except zlib.error:
            return False
    elif head.strip(b" \t\r\n") and not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(
        (b"<", b"\xff\xfe", b"\xfe\xff")
    ):
        return False
    head = data[:_HEAD]
    return _ROOT.match(_from_root(_decoded(head))) is not None


def _from_root(text: str) -> str:
    """The text from its first element on, or nothing."""
    text = text.lstrip()
    while found := next((pair for pair in _BEFORE if text.startswith(pair[0])), None):
        start, end, rest = text.partition(found[1])
        if found[0] == "<!DOCTYPE" and "[" in start:
            rest = text.partition("]")[2].partition(">")[2]
        text = rest.lstrip() if end else ""
    return text


def draw(data: bytes, side_px: int, odd: Callable[[str], None]) -> Image.Image:
    """The drawing as RGBA with its longer side at `side_px`; `odd` is told what was left out of it.

    Raises SvgError with the reason in words, ImportError if resvg is not installed.
    """
    text = _text(data)
    text = _checked(text, odd)
    try:
        import resvg_py
    except ImportError as error:
        raise ImportError("drawing SVG needs resvg-py; install krea-data[sources]") from error
    try:
        png = _rendered(resvg_py.svg_to_bytes, text, side_px)
        image = Image.open(io.BytesIO(png)).convert("RGBA")
    except (ValueError, TypeError, OSError) as error:
        raise SvgError(f"the SVG cannot be drawn ({' '.join(str(error).split())[:200]})") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what Rust code raises where it has a mistake
            raise
        raise SvgError("the SVG cannot be drawn (resvg gave up on it)") from error
    if image.getchannel("A").getbbox() is None:
        odd("nothing visible was drawn")
    return image


def _rendered(render: Callable[..., bytes], text: str, side_px: int) -> bytes:
    try:
        return render(svg_string=text, width=side_px, height=side_px, skip_system_fonts=True)
    except ValueError as error:
        if "invalid size" not in str(error):
            raise
        from krea_data.demo.clipart import with_viewbox  # old headers state mm or pt, and no view box

        return render(svg_string=with_viewbox(text), width=side_px, height=side_px, skip_system_fonts=True)


def _decoded(data: bytes) -> str:
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    return data.decode("utf-16" if wide else "utf-8-sig", errors="replace")


def _text(data: bytes) -> str:
    if data.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(_TEXT_LIMIT + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise SvgError(f"the compressed SVG is cut short or damaged ({error})") from error
    if len(data) > _TEXT_LIMIT:
        raise SvgError(f"the SVG has more than {_TEXT_LIMIT >> 20} MiB of text")
    return _decoded(data)


def _checked(text: str, odd: Callable[[str], None]) -> str:
    """The text without what points out of the file; SvgError if it is no XML or repeats too much."""
    try:
        root = ET.fromstring(re.sub(r"^\s*<\?xml.*?\?>", "", text, flags=re.S))
    except (ET.ParseError, ValueError, RecursionError) as error:
        raise SvgError(f"the SVG is no whole XML ({error})") from error
    if _elements(root) > _DRAWN_LIMIT:
        raise SvgError(f"the SVG repeats its parts until there are more than {_DRAWN_LIMIT} of them")
    outside = _cut_links(root)
    if any(_local(element) in ("text", "textPath") for element in root.iter()):
        odd("it has text, which is drawn without fonts: not at all")
    if not outside:
        return text
    odd("it shows files outside of it, which are left out")
    return ET.tostring(root, encoding="unicode")


def _local(element: ET.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _cut_links(root: ET.Element) -> bool:
    """Take away references to anything outside the text, except where a link leads a reader elsewhere."""
    found = False
    for element in root.iter():
        if _local(element) == "style" and element.text and _STYLE_URL.search(element.text):
            element.text, found = "", True
        for name, value in list(element.attrib.items()):
            link = name.rpartition("}")[2] == "href" and _local(element) != "a" and not _LOCAL.match(value)
            if link or _STYLE_URL.search(value):
                del element.attrib[name]
                found = True
    return found


def _elements(root: ET.Element) -> int:
    """How many elements are drawn with every <use> taken for what it shows; stops counting beyond the limit."""
    named = {element.get("id"): element for element in root.iter() if element.get("id")}
    sizes: dict[ET.Element, int] = {}

    def shown(element: ET.Element) -> ET.Element | None:
        link = next((value for name, value in element.attrib.items() if name.rpartition("}")[2] == "href"), "")
        return named.get(link.strip().removeprefix("#")) if _local(element) == "use" else None

    open_: set[ET.Element] = set()
    todo = [root]
    while todo:
        element = todo[-1]
        if element in sizes:
            todo.pop()
            continue
        parts = [*element, *([target] if (target := shown(element)) is not None else [])]
        missing = [part for part in parts if part not in sizes and part not in open_]
        if missing:
            open_.add(element)
            todo += missing
            continue
        open_.discard(element)
        sizes[element] = min(1 + sum(sizes.get(part, 0) for part in parts), 10 * _DRAWN_LIMIT)
        todo.pop()
    return sizes[root]
