"""The text encoder of Krea 2: hidden states of twelve layers of Qwen3-VL, behind `interfaces.TextEncoder`.

The released model was trained on prompts padded in the middle, `[prefix | prompt | padding | suffix]`, with positions
that skip the padding and a mask over it. That equals the prompt without padding, which is what is computed here: the
decoder is causal, so prompts of one batch may be padded at the end without any mask.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from krea_model.interfaces import Conditioning

try:
    from transformers import AutoTokenizer, Qwen3VLModel
except ImportError as error:
    raise ImportError('the Qwen3-VL text encoder needs transformers; install "krea-model[text]"') from error

__all__ = ["PREFIX", "SUFFIX", "TAPS", "Qwen3VLEncoder", "load"]

PREFIX = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
TAPS = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)
"""Layers whose outputs the released model reads: 0 is the embedding, n the output of decoder layer n - 1."""

log = logging.getLogger(__name__)


class Qwen3VLEncoder:
    """Prompts -> states of the prompt and the template's suffix, `t k f`, at their natural lengths.

    max_tokens: what the model gets of a prompt, its 5 suffix tokens included; longer ones are cut, and that is logged.
    batch: prompts per forward pass.
    """

    def __init__(
        self, model: Qwen3VLModel, tokenizer: Any, *, taps: Sequence[int] = TAPS, max_tokens: int = 512, batch: int = 8
    ) -> None:
        layers = len(model.language_model.layers)
        if not taps or not 0 <= min(taps) <= max(taps) <= layers:
            raise ValueError(f"taps {tuple(taps)} of an encoder with {layers} layers; each must lie between 0 and that")
        self.model, self.tokenizer, self.taps, self.batch = model, tokenizer, tuple(taps), batch
        self._suffix: list[int] = tokenizer(SUFFIX).input_ids
        self._drop = len(tokenizer(PREFIX).input_ids)
        self._limit = self._drop + max_tokens - len(self._suffix)
        if self._limit <= self._drop:
            raise ValueError(
                f"max_tokens {max_tokens} leaves no room for a prompt; the suffix takes {len(self._suffix)}"
            )

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts of any lengths; the states of one do not depend on the others."""
        tokens = [self.tokens(prompt) for prompt in prompts]
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        states: dict[int, torch.Tensor] = {}
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            states |= zip(chosen, self._encode([tokens[i] for i in chosen]), strict=True)
        return Conditioning(
            torch.cat([states[i] for i in range(len(tokens))]), tuple(len(ids) - self._drop for ids in tokens)
        )

    def tokens(self, prompt: str) -> list[int]:
        """Ids of prefix, prompt and suffix; prefix and prompt are tokenised together, as in training."""
        ids = self.tokenizer(PREFIX + prompt).input_ids
        if len(ids) > self._limit:
            cut = self.tokenizer.decode(ids[self._limit :])
            log.warning("the prompt is %d tokens too long; not encoded: %r", len(ids) - self._limit, cut)
        return [*ids[: self._limit], *self._suffix]

    def _encode(self, tokens: list[list[int]]) -> list[torch.Tensor]:
        longest = max(map(len, tokens))
        ids = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in tokens], device=self.model.device)
        positions = torch.arange(longest, device=ids.device).expand(3, len(tokens), -1)
        hidden = self.model(
            input_ids=ids, position_ids=positions, output_hidden_states=True, use_cache=False
        ).hidden_states
        states = torch.stack([hidden[i] for i in self.taps], 2)
        return [row[self._drop : len(ids)] for row, ids in zip(states, tokens, strict=True)]


def load(path: str | Path, dtype: torch.dtype = torch.bfloat16, device: str = "cpu") -> Qwen3VLEncoder:
    """The encoder of a Qwen3-VL folder, or of a pipeline folder (`text_encoder`, `tokenizer`, taps in its index)."""
    folder = Path(path)
    inner, words, index = folder / "text_encoder", folder / "tokenizer", folder / "model_index.json"
    if not (inner if inner.is_dir() else folder).joinpath("config.json").is_file():
        raise ValueError(f"{path} holds no text encoder (config.json and safetensors); give a transformers folder")
    taps = json.loads(index.read_text()).get("text_encoder_select_layers") if index.is_file() else None
    model = Qwen3VLModel.from_pretrained(inner if inner.is_dir() else folder, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(words if words.is_dir() else folder)
    return Qwen3VLEncoder(model.to(device).eval(), tokenizer, taps=taps or TAPS)  # pyright: ignore[reportArgumentType]
