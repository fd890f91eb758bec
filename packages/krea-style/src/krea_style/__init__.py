"""Style references for a Krea 2 model."""

from krea_style.encoder import ImageStyleEncoder, StyleConfig
from krea_style.features import scattering
from krea_style.interfaces import StyleEncoder
from krea_style.leakage import Measure, measure
from krea_style.moodboard import moodboard
from krea_style.objective import StyleObjective, Views
from krea_style.reference import Reference, Style, batch, mix, path, style
from krea_style.styled import StyledMMDiT, load, save

__all__ = [
    "ImageStyleEncoder",
    "Measure",
    "Reference",
    "Style",
    "StyleConfig",
    "StyleEncoder",
    "StyleObjective",
    "StyledMMDiT",
    "Views",
    "batch",
    "load",
    "measure",
    "mix",
    "moodboard",
    "path",
    "save",
    "scattering",
    "style",
]
