"""Which packages hold the pictures, and where each one comes from: name, version, licence, author."""

from dataclasses import dataclass

__all__ = ["DEFAULT_SETS", "LABELS", "LOCALES", "SETS", "Package", "PictureSet"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """An npm package at a pinned version, and the files of it that are kept (shell patterns)."""

    name: str
    version: str
    files: tuple[str, ...]
    megabytes: float  # of the download, for progress

    @property
    def spec(self) -> str:
        """What npm calls it, such as "openmoji@17.0.0"."""
        return f"{self.name}@{self.version}"

    @property
    def folder(self) -> str:
        """A name for it that every file system takes."""
        return self.spec.removeprefix("@").replace("/", "+")


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureSet:
    """One source of pictures in one style; `package` is None for sets that do not come from npm."""

    name: str
    style: str  # as it stands in captions
    layout: str  # how the pictures lie in the package: "iconify", "webp", "openmoji" or "clipart"
    package: Package | None
    licence: str  # SPDX
    author: str
    extent: float = 1.0  # longer side of a usual drawing of this set, as a share of its own canvas


def _iconify(name: str, version: str, megabytes: float) -> Package:
    files = ("icons.json", "chars.json", "package.json")
    return Package(name=f"@iconify-json/{name}", version=version, files=files, megabytes=megabytes)


LABELS = Package(
    name="emojibase-data",
    version="17.0.0",
    files=("*/data.json", "meta/groups.json", "package.json"),
    megabytes=6.6,
)

LOCALES = tuple(
    "bn da de en en-gb es es-mx et fi fr hi hu it ja ko lt ms nb nl pl pt ru sv th uk vi zh zh-hant".split()  # noqa: SIM905 - a list of words
)

_SETS = (
    PictureSet(
        name="fluent-3d",
        style="3D style",
        layout="webp",
        package=Package(
            name="@lobehub/fluent-emoji-3d", version="1.1.0", files=("assets/*.webp", "package.json"), megabytes=15.4
        ),
        licence="MIT",
        author="Microsoft Corporation",
        extent=0.875,
    ),
    PictureSet(
        name="fluent-flat",
        style="flat style",
        layout="iconify",
        package=_iconify("fluent-emoji-flat", "1.2.6", 1.1),
        licence="MIT",
        author="Microsoft Corporation",
        extent=0.875,
    ),
    PictureSet(
        name="noto",
        style="Noto style",
        layout="iconify",
        package=_iconify("noto", "1.2.9", 3.0),
        licence="Apache-2.0",
        author="Google Inc.",
        extent=0.94,
    ),
    PictureSet(
        name="twemoji",
        style="Twemoji style",
        layout="iconify",
        package=_iconify("twemoji", "1.2.5", 1.5),
        licence="CC-BY-4.0",
        author="Twitter, Inc. and other contributors",
    ),
    PictureSet(
        name="openmoji",
        style="OpenMoji style",
        layout="openmoji",
        package=Package(
            name="openmoji",
            version="17.0.0",
            files=("color/svg/*.svg", "data/openmoji.json", "package.json"),
            megabytes=4.2,
        ),
        licence="CC-BY-SA-4.0",
        author="OpenMoji contributors",
        extent=0.8,
    ),
    PictureSet(
        name="clipart",
        style="clip art style",
        layout="clipart",
        package=None,
        licence="unknown",  # stated in each file
        author="unknown",
    ),
)

SETS = {one.name: one for one in _SETS}
DEFAULT_SETS = ("fluent-3d", "fluent-flat", "noto", "twemoji")
