import re

import pytest
from krea_expander.interfaces import UnavailableError
from krea_expander.pairs import PERSONAS, Persona, pairs, shorten, shorten_with
from krea_expander.testing import ScriptedModel

CAPTIONS = [
    "a drawing of a red apple in flat style, food and drink, fruit, diet; with green on white",
    "A weathered lighthouse stands on a rocky cliff at dusk, its beam sweeping over dark waves, painted in muted oils.",
    "This image shows an old man wearing a blue coat, holding a lantern; fog behind him.",
    "The photograph of a harbour with three boats under a pale sky.",
]


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


@pytest.mark.parametrize("caption", CAPTIONS)
@pytest.mark.parametrize("persona", PERSONAS)
def test_every_word_is_kept_or_recorded(caption: str, persona: Persona) -> None:
    for seed in range(6):
        pair = shorten(caption, persona=persona, seed=seed)
        recorded = words(pair.short) | words(" ".join(pair.omitted))
        lost = words(caption) - recorded
        assert lost <= {"a", "an", "the", "with", "in", "on", "at"}  # articles and joints that keywords drop
        added = words(pair.short) - words(caption)
        assert added <= {"draw", "me", "can", "you", "make", "i", "want", "please"}
        assert len(pair.short) < len(caption)
        assert pair.omitted


def test_shortening_is_drawn_by_the_seed_alone() -> None:
    shorts = [[shorten(c, seed=seed).short for c in CAPTIONS] for seed in (0, 0, 1, 2, 3)]
    assert shorts[0] == shorts[1]
    assert len({tuple(row) for row in shorts}) > 2
    assert shorten(CAPTIONS[0], seed=0).short.startswith("red apple")


def test_an_empty_caption_is_refused() -> None:
    with pytest.raises(ValueError, match="empty caption"):
        shorten(" ")


def test_pairs_have_no_repetitions_and_omit_something() -> None:
    found = list(pairs([*CAPTIONS, CAPTIONS[0], "", "a cat", "an apple", "an apple on a plate"], seed=1))
    assert len({pair.short.lower() for pair in found}) == len(found)
    assert all(pair.omitted for pair in found)
    assert "a cat" not in {pair.caption for pair in found}
    assert {pair.persona for pair in pairs([f"{c} number {i}" for i in range(9) for c in CAPTIONS])} == set(PERSONAS)


def test_a_model_is_kept_to_the_caption() -> None:
    caption = CAPTIONS[2]
    lines = [
        "<think>short</think>old man with a lantern",
        "Old man with a LANTERN.",
        "a young wizard casting spells in a dungeon",
        "Sure! old man with lantern",
        caption,
        "",
    ]
    model = ScriptedModel(lines)
    (pair,) = shorten_with(model, caption, n=6, persona="request")
    assert pair.short == "old man with a lantern"
    assert pair.source == "model"
    assert "wearing a blue coat" in pair.omitted
    assert "holding a lantern" not in pair.omitted
    system, user = model.calls[0][0]
    assert "request" in system["content"]
    assert caption in user["content"]
    with pytest.raises(UnavailableError):
        shorten_with(ScriptedModel([UnavailableError("gone")]), caption)
