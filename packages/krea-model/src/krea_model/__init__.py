"""The Krea 2 diffusion transformer: load, sample, adapt."""

from krea_model.configs import Config, base, k2, small, tiny
from krea_model.interfaces import Autoencoder, Conditioning, Grids, TextEncoder, Velocity
from krea_model.loading import load
from krea_model.mmdit import MMDiT
from krea_model.pipeline import Pipeline
from krea_model.sampling import noise, sample

__all__ = [
    "Autoencoder",
    "Conditioning",
    "Config",
    "Grids",
    "MMDiT",
    "Pipeline",
    "TextEncoder",
    "Velocity",
    "base",
    "k2",
    "load",
    "noise",
    "sample",
    "small",
    "tiny",
]
