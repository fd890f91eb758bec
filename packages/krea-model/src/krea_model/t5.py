"""T5 as a text encoder (arXiv 1910.10683): what Krea 2's choice of Qwen3-VL was weighed against.

Prompts are masked, so that padding has no effect; FLUX.1 and Stable Diffusion 3 instead attend to it.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from krea_model.encoding import by_length, identity, prompt_list
from krea_model.interfaces import Conditioning

try:
    from transformers import AutoTokenizer, MT5EncoderModel, T5EncoderModel, UMT5EncoderModel
except ImportError as error:
    raise ImportError('the T5 text encoder needs transformers; install "krea-model[text]"') from error

__all__ = ["T5Encoder", "load"]

KINDS = {"t5": T5EncoderModel, "mt5": MT5EncoderModel, "umt5": UMT5EncoderModel}  # by model_type

log = logging.getLogger(__name__)


class T5Encoder:
    """Prompts -> states `t k f` of each prompt and the end-of-text token, at their natural lengths.

    taps: layers, 0 is the embedding; by default the last one alone, which is given after the final norm.
    max_tokens: the window, the end-of-text token included; longer prompts are cut, and that is logged.
    batch: prompts per forward pass.
    """

    def __init__(
        self,
        model: T5EncoderModel | MT5EncoderModel | UMT5EncoderModel,
        tokenizer: Any,
        *,
        taps: Sequence[int] | None = None,
        max_tokens: int = 512,
        batch: int = 8,
    ) -> None:
        layers: int = model.config.num_layers
        taps = (layers,) if taps is None else tuple(taps)
        if not taps or not 0 <= min(taps) <= max(taps) <= layers:
            raise ValueError(f"taps {taps} of an encoder with {layers} layers; each must lie between 0 and that")
        if max_tokens < 2:
            raise ValueError(f"max_tokens {max_tokens} leaves no room for a prompt; the end-of-text token takes 1")
        self.model, self.tokenizer, self.taps = model, tokenizer, taps
        self.max_tokens, self.batch = max_tokens, batch

    @property
    def device(self) -> torch.device:
        """Where the weights are, and so the states."""
        return self.model.device

    @property
    def name(self) -> str:
        """Which weights, vocabulary, taps, window and number format: the key of a cache. Computed when asked for."""
        return identity("t5", self.model, self.tokenizer, {"taps": self.taps, "max_tokens": self.max_tokens})

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
        return Conditioning(torch.cat([states[i] for i in range(len(tokens))]), tuple(map(len, tokens)))

    def tokens(self, prompt: str) -> list[int]:
        """Ids of the prompt and the end-of-text token."""
        ids, cut = self._split(prompt)
        if cut:
            log.warning("the prompt is %d tokens too long; not encoded: %r", len(cut), self.tokenizer.decode(cut))
        return ids

    def cut(self, prompt: str) -> str:
        """The end of a prompt that does not fit into the window and is not encoded; empty if all of it fits."""
        return self.tokenizer.decode(self._split(prompt)[1])

    def _split(self, prompt: str) -> tuple[list[int], list[int]]:
        ids = self.tokenizer(prompt, verbose=False).input_ids  # verbose: its own words on length, without the rest
        if len(ids) <= self.max_tokens:
            return ids, []
        room = self.max_tokens - 1
        return [*ids[:room], ids[-1]], ids[room:-1]

    def _encode(self, tokens: list[list[int]]) -> list[torch.Tensor]:
        lengths = torch.tensor([len(row) for row in tokens], device=self.model.device)
        places = torch.arange(max(map(len, tokens)), device=lengths.device)
        ids = torch.tensor([[*row, *[row[-1]] * (len(places) - len(row))] for row in tokens], device=lengths.device)
        mask = (places < lengths[:, None]).long()
        hidden: Any = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        states = torch.stack([hidden[i] for i in self.taps], 2)
        return [row[: len(ids)] for row, ids in zip(states, tokens, strict=True)]


def load(path: str | Path, dtype: torch.dtype = torch.bfloat16, device: str = "cpu") -> T5Encoder:
    """The encoder of a T5, mT5 or UMT5 folder, or the one among the text encoders of a pipeline folder.

    ValueError if there is none, or only a part of it.
    """
    folder = Path(path)
    places = [(folder / f"text_encoder{n}", folder / f"tokenizer{n}") for n in ("", "_2", "_3")]
    for inner, words in [(folder, folder), *places]:
        kind = KINDS.get(_model_type(inner))
        if kind is None or not any(inner.glob("*.safetensors")):
            continue
        words = words if words.is_dir() else inner
        if not any(words.glob("tokenizer*.json")) and not any(words.glob("*.model")):
            raise ValueError(f"{words} holds no tokenizer (tokenizer.json or spiece.model); copy it beside the weights")
        read: Any = kind.from_pretrained  # its annotation leaves out the pair
        model, info = read(inner, dtype=dtype, use_safetensors=True, output_loading_info=True)
        if info["missing_keys"]:
            raise ValueError(f"{inner} lacks weights, first {min(info['missing_keys'])}; the download is incomplete")
        return T5Encoder(model.eval(), AutoTokenizer.from_pretrained(words)).to(device)
    raise ValueError(f"{path} holds no T5 (config.json of type {', '.join(KINDS)}, and safetensors)")


def _model_type(folder: Path) -> str:
    config = folder / "config.json"
    return json.loads(config.read_text()).get("model_type", "") if config.is_file() else ""
