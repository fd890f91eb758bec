"""A vision-language model in this process, through transformers, from a folder on disk: nothing is fetched."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from krea_data.captions.asking import Answer, Question
from krea_data.captions.clean import whole_sentences
from krea_data.captions.data_urls import shrunk

try:
    import transformers
except ImportError as error:
    raise ImportError("a local model needs transformers and torch; install krea-data[vlm]") from error

__all__ = ["LocalChat"]


class LocalChat:
    """A folder with a model and its processor (Qwen-VL, LLaVA and the like), loaded at the first question.

    It answers one question after the other, greedily, so the same question has the same answer. Qwen's processors also
    need torchvision.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_tokens: int = 512,
        longest_px: int = 1024,
        device: str = "cpu",
        dtype: str = "auto",
        answer_s: float = 600.0,
    ) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"there is no folder {folder} with a model; save one there with save_pretrained")
        self.model = self.folder.name
        self.max_tokens, self.longest_px, self.answer_s = max_tokens, longest_px, answer_s
        self.device, self.dtype = device, dtype
        self._loaded: tuple[Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    def patience_s(self, questions: int) -> float:
        """How long so many questions may take at worst."""
        return questions * self.answer_s

    def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer each, in order."""
        return [self._answer(question) for question in questions]

    def _load(self) -> tuple[Any, Any]:
        # transformers is typed for its own registry of classes, hence Any
        processor: Any = transformers.AutoProcessor.from_pretrained(self.folder, local_files_only=True)
        model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
            self.folder, local_files_only=True, dtype=self.dtype
        )
        return processor, model.to(self.device).eval()

    def _answer(self, question: Question) -> Answer:
        self._loaded = self._loaded or self._load()
        processor, model = self._loaded
        content: list[dict[str, Any]] = [{"type": "text", "text": question.text}]
        if question.image is not None:
            content.insert(0, {"type": "image", "image": shrunk(question.image, self.longest_px)})
        system = [{"type": "text", "text": question.system}]
        messages = [{"role": "system", "content": system}, {"role": "user", "content": content}]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(model.device)
        out = model.generate(**inputs, max_new_tokens=self.max_tokens, do_sample=False)
        fresh = out[:, inputs["input_ids"].shape[1] :]
        text = str(processor.batch_decode(fresh, skip_special_tokens=True)[0]).strip()
        if not text:
            return Answer(failed="empty", error="the answer is empty")
        if fresh.shape[1] >= self.max_tokens:
            return Answer(text=whole_sentences(text), notes=("cut at the limit of tokens",))
        return Answer(text=text)
