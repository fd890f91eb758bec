"""How good are the pictures of a checkpoint: distances to a reference set, ranks of prompts, diversity."""

from krea_model.evaluate.bootstrap import Estimate, bootstrap
from krea_model.evaluate.distances import frechet, frechet_limit, kernel_distance, kernel_estimate, precision_recall
from krea_model.evaluate.encoders import ModuleEmbedder, Preparation
from krea_model.evaluate.features import Features, Moments, embed, gather, load, save
from krea_model.evaluate.interfaces import Embedder, Joint, TextEmbedder
from krea_model.evaluate.prompts import Places, diversity, retrieval_rank, vendi
from krea_model.evaluate.report import Encoders, Report, evaluate

__all__ = [
    "Embedder",
    "Encoders",
    "Estimate",
    "Features",
    "Joint",
    "ModuleEmbedder",
    "Moments",
    "Places",
    "Preparation",
    "Report",
    "TextEmbedder",
    "bootstrap",
    "diversity",
    "embed",
    "evaluate",
    "frechet",
    "frechet_limit",
    "gather",
    "kernel_distance",
    "kernel_estimate",
    "load",
    "precision_recall",
    "retrieval_rank",
    "save",
    "vendi",
]
