"""A corpus of drawn shapes in the layout of the real one: twelve concepts in four styles, no network."""

import io
import json
import random
from pathlib import Path

import pytest
from krea_data import demo
from krea_data.blobs import FolderBlobs
from PIL import Image, ImageDraw

CONCEPTS = (
    "red apple", "pizza", "owl", "rocket", "guitar", "tiger face", "house", "cactus", "sunflower", "banana", "dog face",
    "bicycle",
)  # fmt: skip
SUBGROUPS = ("food-fruit", "food-prepared", "animal-bird", "transport-air", "musical-instrument", "animal-mammal")


def shapes(seed: int) -> bytes:
    """A PNG of 64 px: some coloured ellipses and triangles on white."""
    draw = random.Random(seed)
    image = Image.new("RGB", (64, 64), "white")
    pen = ImageDraw.Draw(image)
    for _ in range(4):
        x, y, r = draw.randint(16, 48), draw.randint(16, 48), draw.randint(6, 14)
        colour = tuple(draw.randint(0, 255) for _ in range(3))
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        pen.polygon([(draw.randint(6, 58), draw.randint(6, 58)) for _ in range(3)], fill=colour[::-1])
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a corpus")
    blobs = FolderBlobs(folder / "blobs")
    with (folder / "rows.jsonl").open("w") as file:
        for s, style in enumerate(demo.STYLES):
            for c, concept in enumerate(CONCEPTS):
                meta = {
                    "source": f"set-{s}", "style": style, "concept": concept, "label": concept,
                    "tags": [concept.split()[0]], "group": "objects", "subgroup": SUBGROUPS[c % len(SUBGROUPS)],
                    "licence": "MIT", "author": "nobody", "package": "none", "version": "1", "order": c, "since": 1.0,
                }  # fmt: skip
                blob = blobs.put(shapes(31 * s + c))
                row = {"id": f"set-{s}/{c:02d}", "blob": blob, "meta": meta}
                file.write(json.dumps(row) + "\n")
    return folder
