"""A tiny stand-in for the packages of the demo corpus: four emoji in four styles, in the layouts of the real ones."""

import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

EMOJI = {
    "1F34E": ("red apple", 4, 42, ["apple", "fruit", "red"]),
    "0023-FE0F-20E3": ("keycap: #", 8, 94, ["keycap"]),
    "2764-FE0F": ("red heart", 0, 14, ["love"]),
    "1F44D": ("thumbs up", 1, 19, ["like"]),
}
BODIES = {
    "red-apple": '<circle cx="16" cy="16" r="12" fill="#c00"/>',
    "keycap-hash": '<rect x="2" y="2" width="28" height="28" fill="#36c"/>',
    "red-heart": '<path d="M16 28 L4 12 L28 12 Z" fill="#e00"/>',
    "thumbs-up": '<rect x="10" y="4" width="8" height="24" fill="#fc0"/>',
    "thumbs-up-dark": '<rect x="10" y="4" width="8" height="24" fill="#530"/>',
}


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


def iconify(folder: Path, chars: dict[str, str]) -> Path:
    icons: dict[str, dict[str, object]] = {name: {"body": body} for name, body in BODIES.items()}
    icons["old-apple"] = {"body": BODIES["red-apple"], "hidden": True}
    write(folder / "icons.json", {"icons": icons, "width": 32, "height": 32})
    write(folder / "chars.json", chars)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """The folders that `fetch` would return, under a path with a space."""
    root = tmp_path / "a cache"
    labels = []
    for order, (hexcode, (label, group, subgroup, tags)) in enumerate(EMOJI.items()):
        one = {"label": label, "hexcode": hexcode, "group": group, "subgroup": subgroup, "tags": tags}
        labels.append(one | {"order": 10 - order, "version": 0.6})
    labels.append({"label": "regional indicator A", "hexcode": "1F1E6", "version": 0})
    labels.append({"label": "red hair", "hexcode": "1F9B0", "group": 2, "subgroup": 33, "order": 99, "version": 11})
    write(root / "labels" / "en" / "data.json", labels)
    german = [dict(one, label="roter Apfel") for one in labels[:1]]
    write(root / "labels" / "de" / "data.json", german)
    groups = {"0": "smileys-emotion", "1": "people-body", "2": "component", "4": "food-drink", "8": "symbols"}
    subgroups = {"42": "food-fruit", "94": "keycap", "14": "heart", "19": "hand-fingers-closed", "33": "hair-style"}
    write(root / "labels" / "meta" / "groups.json", {"groups": groups, "subgroups": subgroups})
    assets = root / "3d" / "assets"
    assets.mkdir(parents=True)
    for name in ("1f34e", "0023-fe0f-20e3", "2764-fe0f", "1f44d", "1f44d-1f3ff"):
        image = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
        ImageDraw.Draw(image).ellipse((12, 12, 52, 52), fill=(200, 30, 30, 255))
        image.save(assets / f"{name}.webp", lossless=True)
    chars = {"1f34e": "red-apple", "23-20e3": "keycap-hash", "2764": "red-heart", "1f44d": "thumbs-up"}
    toned = {"1f44d-1f3ff": "thumbs-up-dark", "1f9b0": "old-apple"}
    return {
        "labels": root / "labels",
        "fluent-3d": root / "3d",
        "fluent-flat": iconify(root / "flat", {"1f34e": "red-apple"}),  # the others by the slug of their label
        "noto": iconify(root / "noto", chars | toned),
        "twemoji": iconify(root / "twemoji", {key: value for key, value in chars.items() if key != "2764"}),
    }
