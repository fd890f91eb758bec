"""What the text encoders share: checked prompts, batches of similar length, and a name that tells encoders apart."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["by_length", "identity", "prompt_list"]

VERSION = 1  # raise it when an encoder's states change for the same weights and settings
SAMPLES = 32  # values of each parameter that go into a name
VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation_autoset")
PROBE = "Two  red foxes'\n\n 123 caf\u00e9 \u72d0<|im_end|></s>"


def prompt_list(prompts: Sequence[str]) -> list[str]:
    """Prompts as a list; ValueError for a bare string, for what is no text and for none at all."""
    if isinstance(prompts, str) or not prompts or not all(isinstance(one, str) for one in prompts):
        raise ValueError(
            f"prompts are {prompts!r}; give a list that holds at least one string, and nothing but strings"
        )
    return list(prompts)


def by_length(tokens: Sequence[Sequence[int]], batch: int) -> Iterator[list[int]]:
    """Indices of `tokens`, at most `batch` at a time, neighbours in length together so that little is padded."""
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    for start in range(0, len(order), batch):
        yield order[start : start + batch]


def identity(kind: str, model: nn.Module, tokenizer: Any, settings: Mapping[str, object]) -> str:
    """A name such as `qwen3vl-0f3a...` that is another one for other weights, vocabulary, config or settings.

    Reads 32 values of every parameter, not all of them: milliseconds for a model of gigabytes, and no fine-tuning of
    any layer leaves them all alone. Folder, device and batch size do not matter.
    """
    config: Any = model.config
    facts = {
        "version": VERSION,
        "config": _lasting(config.to_dict()),
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "probe": tokenizer(PROBE).input_ids,
        "settings": dict(settings),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(_sampled(parameter.detach()).numpy().tobytes())
    return f"{kind}-{digest.hexdigest()[:24]}"


def _lasting(config: Any) -> Any:
    """A config without what changes by saving or moving it."""
    if isinstance(config, dict):
        return {str(key): _lasting(value) for key, value in config.items() if key not in VOLATILE}
    return config


def _sampled(parameter: Tensor) -> Tensor:
    flat = parameter.reshape(-1)
    step = flat.numel() // SAMPLES | 1  # odd: a power of two would stay in one column
    return flat[::step].to("cpu", torch.float32)
