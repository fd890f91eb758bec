"""Captions: read text, a description by a vision-language model, rewritten forms, and whether they agree."""

from krea_data.captions.agreement import Encoder, Scorer
from krea_data.captions.asking import AccessError, Answer, Chat, Question
from krea_data.captions.calibration import Calibration, calibrate
from krea_data.captions.forms import FORMS, Form
from krea_data.captions.overlap import Weights
from krea_data.captions.prompts import Template, packaged
from krea_data.captions.reading import RapidReader, Reader, Text
from krea_data.captions.records import CaptionRow, caption_rows

__all__ = [
    "FORMS",
    "AccessError",
    "Answer",
    "Calibration",
    "CaptionRow",
    "Chat",
    "Encoder",
    "Form",
    "Question",
    "RapidReader",
    "Reader",
    "Scorer",
    "Template",
    "Text",
    "Weights",
    "calibrate",
    "caption_rows",
    "packaged",
]
