"""The texts in a picture's file, without its pixels: PNG chunks, EXIF, XMP and comments, as "where:name" to text.

Files are read as strangers wrote them: what is broken or too long is passed over, and nothing is raised.
"""

import html
import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import TAGS

__all__ = ["fields"]

_MOST = 1 << 20  # characters of a text
_PNG = b"\x89PNG\r\n\x1a\n"
_IFD_EXIF = 0x8769
_NAMES = frozenset({"Software", "ImageDescription", "UserComment", "Artist", "Make", "Model", "XPComment"})
_PACKETS = ((b"<x:xmpmeta", b"</x:xmpmeta>"), (b"<rdf:RDF", b"</rdf:RDF>"))
_XMP = re.compile(
    r"\w+:(DigitalSourceType|CreatorTool|Credit|AIGC|Software)\b[^<>=]{0,200}?"
    r"(?:=\s*([\"'])(.{0,2000}?)\2|>(.{0,2000}?)</\w+:\1\b)",
    re.DOTALL,
)
_UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error, zlib.error)
_UNREADABLE += (EOFError, MemoryError, AssertionError, AttributeError, RuntimeError, UnidentifiedImageError)


def fields(data: bytes) -> dict[str, str]:
    """All texts that can be read; of two with one name, both, a line each."""
    found: dict[str, str] = {}
    for name, text in (*_chunks(data), *_exif(data), *_xmp(data)):
        plain = text[:_MOST].strip("\0 \r\n\t")
        if plain:
            found[name] = f"{found[name]}\n{plain}" if name in found else plain
    return found


def _chunks(data: bytes) -> Iterator[tuple[str, str]]:
    """The text chunks of a PNG, also those behind its pixels."""
    place = len(_PNG)
    while data.startswith(_PNG) and place + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        body = data[place + 8 : place + 8 + length]
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            name, _, rest = body.partition(b"\0")
            yield f"png:{name.decode('latin-1')[:80]}", _text(kind, rest)
        place += length + 12


def _text(kind: bytes, rest: bytes) -> str:
    if kind == b"tEXt":
        try:
            return rest.decode("utf-8")  # many writers do not keep to Latin-1
        except UnicodeDecodeError:
            return rest.decode("latin-1")
    if kind == b"zTXt":
        return _unpacked(rest[1:]).decode("latin-1")
    packed, parts = rest[:1] == b"\1", rest[2:].split(b"\0", 2)
    body = parts[2] if len(parts) == 3 else b""
    return (_unpacked(body) if packed else body).decode("utf-8", errors="replace")


def _unpacked(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _MOST)
    except zlib.error:
        return b""


def _exif(data: bytes) -> Iterator[tuple[str, str]]:
    """Texts of the EXIF block, and the comment of a JPEG or GIF."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                if comment := image.info.get("comment"):
                    yield "file:comment", _decoded(comment)
                exif = image.getexif()
                pairs = [*exif.items(), *exif.get_ifd(_IFD_EXIF).items()]
    except _UNREADABLE:
        return
    for number, value in pairs:
        if (name := TAGS.get(number, "")) in _NAMES:
            wide = name.startswith("XP") and isinstance(value, bytes)
            yield f"exif:{name}", value.decode("utf-16-le", errors="replace") if wide else _decoded(value)


def _decoded(value: object) -> str:
    """A text of EXIF: plain, or with the eight bytes that name its letters, which writers get wrong."""
    if not isinstance(value, bytes):
        return str(value)
    head, body = value[:8].rstrip(b"\0 ").upper(), value[8:]
    if head == b"UNICODE":
        little = sum(body[1::2][:200]) < sum(body[0::2][:200])
        return body.decode("utf-16-le" if little else "utf-16-be", errors="replace")
    return (body if head in (b"ASCII", b"JIS") else value).decode("utf-8", errors="replace")


def _packets(data: bytes) -> list[bytes]:
    """The XMP packets that lie plain in the file, with or without their outer element."""
    for start, end in _PACKETS:
        found: list[bytes] = []
        first = data.find(start)
        while first >= 0 and (last := data.find(end, first)) >= 0:
            found.append(data[first : min(last, first + _MOST)])
            first = data.find(start, last)
        if found:
            return found
    return []


def _xmp(data: bytes) -> Iterator[tuple[str, str]]:
    """The properties of interest in the XMP packets, which lie plain in files of nearly every format."""
    packed = "\n".join(text for name, text in _chunks(data) if name.lower() == "png:xml:com.adobe.xmp")
    for packet in (*_packets(data), packed.encode()):
        for name, _, attribute, inside in _XMP.findall(packet.decode("utf-8", errors="replace")):
            found = re.search(r"resource\s*=\s*[\"'](.*?)[\"']", inside)
            value = attribute or (found.group(1) if found else re.sub(r"<[^>]*>", " ", inside))
            yield f"xmp:{name}", html.unescape(value)
