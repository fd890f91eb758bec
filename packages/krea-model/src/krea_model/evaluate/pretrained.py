"""Pretrained encoders of transformers (DINOv2, CLIP, SigLIP) as embedders, from local folders."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from krea_model.damage import damage_named
from krea_model.devices import place
from krea_model.evaluate.encoders import ModuleEmbedder, preparation
from krea_model.inputs import check_dtype

try:
    from transformers import AutoModel, AutoTokenizer
except ImportError as error:
    raise ImportError('pretrained encoders need transformers; install "krea-model[text]"') from error

__all__ = ["JointEncoder", "joint", "vision"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JointEncoder:
    """Both halves of a CLIP or SigLIP model in their common space; an `interfaces.Joint`."""

    model: Any
    tokenizer: Any
    images: ModuleEmbedder
    batch: int = 32

    @torch.no_grad()
    def texts(self, prompts: Sequence[str], /) -> Tensor:
        """`b e`; what is longer than the encoder's window (77 tokens for CLIP, 64 for SigLIP) is cut, and logged."""
        parts = [self._texts(prompts[i : i + self.batch]) for i in range(0, len(prompts), self.batch)]
        return torch.cat(parts).float().cpu()

    def _texts(self, prompts: Sequence[str]) -> Tensor:
        window = self.model.config.text_config.max_position_embeddings
        cut = sum(len(ids) > window for ids in self.tokenizer(list(prompts)).input_ids)
        if cut:
            log.warning(
                "%d of %d prompts are longer than the encoder's %d tokens and are cut", cut, len(prompts), window
            )
        siglip = self.model.config.model_type.startswith("siglip")  # trained on full windows without a mask
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length" if siglip else True,
            truncation=True,
            max_length=window,
            return_tensors="pt",
        ).to(self.model.device)
        mask = {} if siglip else {"attention_mask": tokens.attention_mask}
        return _pooled(self.model.get_text_features(input_ids=tokens.input_ids, **mask))


def vision(
    path: str | Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32, batch: int = 32
) -> ModuleEmbedder:
    """An embedder from the folder of a vision model such as DINOv2: its pooled output, `b f`.

    For Frechet distances DINOv2 agrees better with people than the usual Inception (arXiv 2306.04675).
    """
    model = _model(path, device, dtype)
    model = getattr(model, "vision_model", model)
    prepare = preparation(Path(path) / "preprocessor_config.json")
    return ModuleEmbedder(lambda x: _pooled(model(pixel_values=x.to(dtype))), prepare, device, batch)


def joint(
    path: str | Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32, batch: int = 32
) -> JointEncoder:
    """Pictures and prompts in one space, from the folder of a CLIP or SigLIP model."""
    model = _model(path, device, dtype)
    if not hasattr(model, "get_text_features"):
        raise ValueError(f"{path} is a {model.config.model_type} model, which reads no text; give CLIP or SigLIP")
    prepare = preparation(Path(path) / "preprocessor_config.json")
    images = ModuleEmbedder(
        lambda x: _pooled(model.get_image_features(pixel_values=x.to(dtype))), prepare, device, batch
    )
    return JointEncoder(model, AutoTokenizer.from_pretrained(path), images, batch)


def _model(path: str | Path, device: str, dtype: torch.dtype) -> Any:
    for name in ("config.json", "preprocessor_config.json"):
        if not Path(path, name).is_file():
            raise ValueError(f"{path} has no {name}; give the folder of a transformers vision model")
    check_dtype(dtype)
    found = place(device)
    with damage_named(Path(path), "encoder"):
        model = AutoModel.from_pretrained(path, dtype=dtype, use_safetensors=True)
    return model.to(found).eval()


def _pooled(out: Any) -> Tensor:
    """transformers 4 gives the tensor itself, transformers 5 an output around it."""
    return out if isinstance(out, Tensor) else out.pooler_output
