"""The text encoder of Krea 2: hidden states of twelve layers of Qwen3-VL, behind `interfaces.TextEncoder`.

The released model was trained on prompts padded in the middle, `[prefix | prompt | padding | suffix]`, with positions
that skip the padding and a mask over it. That equals the prompt without padding, which is what is computed here: the
decoder is causal, so prompts of one batch may be padded at the end without any mask.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from krea_model.damage import damage_named, read_object
from krea_model.devices import place
from krea_model.encoding import by_length, identity, prompt_list
from krea_model.inputs import check_dtype
from krea_model.interfaces import Conditioning
from krea_model.plain import is_whole

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

    taps: layers; the very last one is given after the final norm, all others before it, as transformers does.
    max_tokens: what the model gets of a prompt, its 5 suffix tokens included; longer ones are cut, and that is logged.
    batch: prompts per forward pass.
    """

    def __init__(
        self, model: Qwen3VLModel, tokenizer: Any, *, taps: Sequence[int] = TAPS, max_tokens: int = 512, batch: int = 8
    ) -> None:
        layers = len(model.language_model.layers)
        listed = isinstance(taps, Sequence) and bool(taps)
        if not listed or not all(is_whole(tap, 0) and tap <= layers for tap in taps):
            shown = tuple(taps) if listed else taps
            raise ValueError(f"taps {shown} of an encoder with {layers} layers; each must lie between 0 and that")
        self.model, self.tokenizer, self.taps, self.batch = model, tokenizer, tuple(taps), batch
        self.max_tokens = max_tokens
        self._suffix: list[int] = tokenizer(SUFFIX).input_ids
        self._drop = len(tokenizer(PREFIX).input_ids)
        self._limit = self._drop + max_tokens - len(self._suffix)
        if self._limit <= self._drop:
            raise ValueError(
                f"max_tokens {max_tokens} leaves no room for a prompt; the suffix takes {len(self._suffix)}"
            )

    @property
    def device(self) -> torch.device:
        """Where the weights are, and so the states."""
        return self.model.device

    @property
    def name(self) -> str:
        """Which weights, vocabulary, taps, window and number format: the key of a cache. Computed when asked for."""
        settings = {"taps": self.taps, "max_tokens": self.max_tokens, "template": [PREFIX, SUFFIX]}
        return identity("qwen3vl", self.model, self.tokenizer, settings)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move or convert the weights in place."""
        nn.Module.to(self.model, device=device, dtype=dtype)
        return self

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts of any lengths; the states of one do not depend on the others."""
        tokens = [self.tokens(prompt) for prompt in prompt_list(prompts)]
        states: dict[int, torch.Tensor] = {}
        for chosen in by_length(tokens, self.batch):
            states |= zip(chosen, self._encode([tokens[i] for i in chosen]), strict=True)
        return Conditioning(
            torch.cat([states[i] for i in range(len(tokens))]), tuple(len(ids) - self._drop for ids in tokens)
        )

    def tokens(self, prompt: str) -> list[int]:
        """Ids of prefix, prompt and suffix; prefix and prompt are tokenised together, as in training."""
        ids, cut = self._split(prompt)
        if cut:
            log.warning("the prompt is %d tokens too long; not encoded: %r", len(cut), self.tokenizer.decode(cut))
        return [*ids, *self._suffix]

    def cut(self, prompt: str) -> str:
        """The end of a prompt that does not fit into the window and is not encoded; empty if all of it fits."""
        return self.tokenizer.decode(self._split(prompt)[1])

    def _split(self, prompt: str) -> tuple[list[int], list[int]]:
        ids = self.tokenizer(PREFIX + prompt).input_ids
        return ids[: self._limit], ids[self._limit :]

    def _encode(self, tokens: list[list[int]]) -> list[torch.Tensor]:
        longest = max(map(len, tokens))
        ids = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in tokens], device=self.model.device)
        positions = torch.arange(longest, device=ids.device).expand(3, len(tokens), -1)
        hidden = self.model(
            input_ids=ids, position_ids=positions, output_hidden_states=True, use_cache=False
        ).hidden_states
        states = torch.stack([hidden[i] for i in self.taps], 2)
        return [row[self._drop : len(ids)] for row, ids in zip(states, tokens, strict=True)]


def load(
    path: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    *,
    taps: Sequence[int] | None = None,
) -> Qwen3VLEncoder:
    """The encoder of a Qwen3-VL folder, or of a pipeline folder (`text_encoder`, `tokenizer`, taps in its index).

    taps: None takes those of the index, without one the released ones.
    ValueError if the folder holds none, another model, or only a part of it.
    """
    check_dtype(dtype)
    folder, found = Path(path), place(device)
    inner, words, index = folder / "text_encoder", folder / "tokenizer", folder / "model_index.json"
    inner, words = (one if one.is_dir() else folder for one in (inner, words))
    if not (inner / "config.json").is_file() or not any(inner.glob("*.safetensors")):
        raise ValueError(f"{path} holds no text encoder (config.json and safetensors); give a transformers folder")
    stated = read_object(inner / "config.json")
    if (kind := stated.get("model_type")) != "qwen3_vl":
        raise ValueError(f"{inner} is a model of type {kind!r}; Krea 2 reads Qwen3-VL, type 'qwen3_vl'")
    if not isinstance(stated.get("text_config"), dict):  # else transformers takes the sizes of its largest model
        raise ValueError(f"{inner} states no sizes (text_config in config.json); download it again")
    if not any(words.glob("tokenizer*.json")):
        raise ValueError(f"{words} holds no tokenizer (tokenizer.json); copy it from the Qwen3-VL repository")
    if taps is None and index.is_file():
        taps = read_object(index).get("text_encoder_select_layers")
    read: Any = Qwen3VLModel.from_pretrained  # its annotation leaves out the pair
    with damage_named(inner, "text encoder"):
        model, info = read(inner, dtype=dtype, use_safetensors=True, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"{inner} lacks weights, first {min(info['missing_keys'])}; the download is incomplete")
    with damage_named(words, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(words)
    return Qwen3VLEncoder(model.eval(), tokenizer, taps=taps or TAPS).to(found)
