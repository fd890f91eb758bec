"""Why bytes are no picture, in words for the person who looks at the row."""

__all__ = ["why"]

_STARTS = (
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript program, which is not run"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript program, which is not run"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"Rar!", "a RAR archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
)
_BRANDS = ((b"heic", "a HEIC picture"), (b"heix", "a HEIC picture"), (b"mif1", "a HEIF picture"))
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP")


def why(data: bytes, error: BaseException) -> str:
    """A sentence on what the bytes are instead of a picture, or on where the picture breaks."""
    if not data:
        return "the file is empty: it has 0 bytes"
    if known := _known(data):
        return f"this is {known}"
    said = " ".join(str(error).split()).replace("\0", "")
    if _is_picture(data):
        cut = isinstance(error, EOFError) or "truncated" in said or "unpack requires" in said
        what = "the picture is cut short" if cut else "the picture is damaged"
        return f"{what} ({type(error).__name__}: {said[:200]})" if said else f"{what} ({type(error).__name__})"
    if text := _text(data):
        return f"this is text, not a picture: {text!r}"
    if not any(data[:4096]):
        return f"the first {min(len(data), 4096)} bytes are all zero"
    if "cannot identify image file" in said:
        return f"no picture in a format that is read here; it begins with the bytes {data[:8].hex(' ')}"
    return f"the picture is damaged ({type(error).__name__}: {said[:200]})"


def _known(data: bytes) -> str | None:
    head = data[:64].lstrip()
    if data[4:8] == b"ftyp":
        found = [name for brand, name in _BRANDS if brand == data[8:12]]
        if found or data[8:12] not in (b"avif", b"avis"):
            return f"{found[0]}, which needs a reader that is not here" if found else "a video (MP4 or the like)"
    if head[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "a web page (HTML), not a picture"
    return next((name for start, name in _STARTS if data.startswith(start)), None)


def _is_picture(data: bytes) -> bool:
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    return webp or data.startswith(_PICTURES) or (data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis"))


def _text(data: bytes) -> str | None:
    """The beginning of the bytes if they read as text."""
    head = data[:400]
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a letter was cut
            return None
        text = head[: error.start].decode("utf-8")
    words = " ".join(text.split())
    return words[:40] if words and all(letter.isprintable() for letter in words) else None
