"""Metadata as generators leave it, in files that are written here."""

import io
import json
import struct
import tracemalloc
import zlib

import pytest
from krea_data.classify.evidence import RULES, judged
from krea_data.classify.metadata import fields
from PIL import Image
from PIL.PngImagePlugin import PngInfo

A1111 = "a fox\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512"
COMFY = json.dumps({"3": {"class_type": "KSampler", "inputs": {"seed": 1}}})
FLOW = json.dumps({"last_node_id": 9, "nodes": [{"id": 1, "type": "KSampler"}]})
NOVEL = json.dumps({"prompt": "x", "steps": 28, "sampler": "k_euler", "seed": 4})
URL = "http://cv.iptc.org/newscodes/digitalsourcetype/"


def png(**texts: str) -> bytes:
    chunks = PngInfo()
    for name, text in texts.items():
        chunks.add_itxt(name.replace("__", "-"), text)
    return saved("PNG", pnginfo=chunks)


def saved(form: str, **more: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 24), "red").save(file, form, **more)
    return file.getvalue()


def exif(number: int, value: object, *, inner: bool = False) -> Image.Exif:
    found = Image.Exif()
    if inner:
        found.get_ifd(0x8769)[number] = value
    else:
        found[number] = value
    return found


def packet(inside: str = "", attributes: str = "") -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" {attributes}>{inside}'
        "</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()


TRAINED = packet(f"<Iptc4xmpExt:DigitalSourceType>{URL}trainedAlgorithmicMedia</Iptc4xmpExt:DigitalSourceType>")
COMMENT = b"UNICODE\0" + A1111.encode("utf-16-be")


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (png(parameters=A1111), "a1111"),
        (saved("JPEG", exif=exif(0x9286, COMMENT, inner=True)), "a1111"),
        (saved("WEBP", exif=exif(0x9286, b"UNICODE\0" + A1111.encode("utf-16-le"), inner=True)), "a1111"),
        (saved("JPEG", exif=exif(0x9286, b"ASCII\0\0\0" + A1111.encode(), inner=True)), "a1111"),
        (saved("JPEG", comment=A1111.encode()), "a1111"),
        (png(parameters='{"prompt": "x", "metadata_scheme": "fooocus"}'), "fooocus"),
        (png(parameters='{"sui_image_params": {"prompt": "x"}}'), "swarmui"),
        (png(prompt=COMFY), "comfyui"),
        (png(workflow=FLOW), "comfyui"),
        (saved("WEBP", exif=exif(0x010F, f"workflow:{FLOW}")), "comfyui"),
        (png(Comment=NOVEL), "novelai"),
        (png(Source="Stable Diffusion F1022D28"), "novelai"),
        (png(invokeai_metadata='{"app_version": "4"}'), "invokeai"),
        (png(sd__metadata='{"model": "stable diffusion"}'), "invokeai"),
        (png(Dream='"a fox" -s 50 -S 12345 -W 512'), "invokeai"),
        (png(Description="a fox --v 6 Job ID: 01234567-89ab-cdef-0123-456789abcdef"), "midjourney"),
        (png(krea='{"format": "krea/1", "prompt": "a fox"}'), "krea"),
        (png(AIGC='{"Label": "1", "ContentProducer": "x"}'), "aigc"),
        (png(Software="NovelAI"), "software"),
        (png(Author="DALL\u00b7E 3"), "software"),
        (saved("JPEG", exif=exif(0x0131, "Adobe Firefly 2.0")), "software"),
        (saved("TIFF", tiffinfo={0x0131: "Midjourney"}), "software"),
        (saved("JPEG", xmp=packet(attributes='photoshop:Credit="Made with Google AI"')), "software"),
        (saved("JPEG", xmp=TRAINED), "iptc"),
        (saved("PNG", pnginfo=None) + TRAINED, "iptc"),
        (saved("WEBP", xmp=TRAINED), "iptc"),
        (saved("JPEG", xmp=packet(attributes=f"Iptc4xmpExt:DigitalSourceType='{URL}trainedAlgorithmicMedia'")), "iptc"),
        (
            saved("JPEG", xmp=packet(f'<Iptc4xmpExt:DigitalSourceType rdf:resource="{URL}trainedAlgorithmicMedia"/>')),
            "iptc",
        ),
    ],
)
def test_generators_are_found(data: bytes, rule: str) -> None:
    found = judged(fields(data))
    assert found is not None
    assert (found.rule, found.answer) == (rule, "yes")
    assert found.detail


def test_every_rule_has_an_example() -> None:
    mark = next(mark for mark in test_generators_are_found.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    assert {rule.name for rule in RULES} == {rule for _, rule in mark.args[1]}


@pytest.mark.parametrize(
    "data",
    [
        png(Software="Adobe Photoshop 25.0"),
        png(Software="GIMP", Comment="Created with GIMP"),
        png(Comment="Steps: two. Then the sampler of teas was opened."),
        png(prompt="what a prompt person", workflow="draw, then ink"),
        png(Description="Imagen de un zorro"),
        saved("JPEG", exif=exif(0x013B, "Anna Dalle Molle")),
        saved("JPEG", exif=exif(0x0131, "Lightroom")),
        saved("JPEG", xmp=packet(attributes=f'Iptc4xmpExt:DigitalSourceType="{URL}digitalCapture"')),
        saved("JPEG", xmp=packet(attributes=f'Iptc4xmpExt:DigitalSourceType="{URL}algorithmicMedia"')),
        saved("PNG"),
    ],
)
def test_other_files_are_let_be(data: bytes) -> None:
    assert judged(fields(data)) is None


def test_a_part_that_was_generated_is_unsure_unless_something_says_more() -> None:
    partly = saved(
        "JPEG", xmp=packet(attributes=f'Iptc4xmpExt:DigitalSourceType="{URL}compositeWithTrainedAlgorithmicMedia"')
    )
    found = judged(fields(partly))
    assert found is not None
    assert (found.rule, found.answer) == ("iptc", "unsure")
    both = judged({**fields(partly), "png:parameters": A1111})
    assert both is not None
    assert (both.rule, both.answer) == ("a1111", "yes")


def test_packed_chunks_and_those_behind_the_pixels_are_read() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    whole = saved("PNG")
    end = whole[-12:]
    packed = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(A1111.encode("latin-1")))
    late = fields(whole[:-12] + packed + end)
    assert late["png:parameters"] == A1111
    hidden = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(TRAINED))
    found = judged(fields(whole[:-12] + hidden + end))
    assert found is not None
    assert found.rule == "iptc"


def test_broken_files_are_read_as_far_as_they_go() -> None:
    whole = png(parameters=A1111, workflow=FLOW)
    for length in range(0, len(whole), 7):
        fields(whole[:length])
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 1 << 31) + b"zTXtx\0\0" + zlib.compress(b"a" * 30_000_000)
    tracemalloc.start()
    assert len(fields(bomb).get("png:x", "")) <= 1 << 20
    assert tracemalloc.get_traced_memory()[1] < 16_000_000, "30 MB of text from 30 kB"
    tracemalloc.stop()
    assert fields(b"") == fields(b"text") == fields(b"<x:xmpmeta" * 20_000) == {}
    jpeg = saved("JPEG", exif=exif(0x0131, "Midjourney"))
    for place in range(20, 60):
        fields(jpeg[:place] + b"\xff" + jpeg[place + 1 :])
