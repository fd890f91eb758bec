import pytest
from krea_expander.faithful import claims, faithfulness, missing, quotes, script

KEPT = [
    ("red apple", "A glossy red apple on a wooden table in morning light."),
    ("red apple", "An apple, bright red and glossy, rests on linen."),
    ("red apple", "Two crisp red, freshly washed apples."),
    ("three cats", "Three tabby cats sleep in a basket."),
    ("3 cats", "On the sofa, three small grey cats doze."),
    ("a pair of shoes", "Two worn leather shoes by the door."),
    ("a dozen eggs", "Twelve brown eggs in a carton."),
    ("two men and a dog", "Two elderly men walk with a dog along the shore."),
    ("a red cube on a blue sphere", "A small red cube balances on a large blue sphere against grey."),
    ("a red cube on a blue sphere", "The sphere is deep blue, and on it a red cube stands."),
    ("black and white cat", "A cat with a black back and a white chest, a black cat, a white cat."),
    ("grey wolf", "A gray wolf in snow."),
    ("a street without people", "An empty street at dawn, no people anywhere."),
    ("a street without people", "An empty street at dawn, wet cobblestones."),
    ("a face, no glasses", "A freckled face without glasses in soft light."),
    ("watercolor of a fox", "A loose watercolour of a fox in tall grass."),
    ("photo of a lake", "A photograph of a still lake at dusk."),
    ("pixel art castle", "A castle drawn as pixel art, with a dark moat."),
    ('a sign that says "OPEN 24h"', 'A neon sign in a window says "OPEN 24h" in red letters.'),
    ("a poster with “Café Étoile”", "A poster, its headline reading Café Étoile in blue."),
    ("ein Hund und eine Katze mit dem Ball", "Ein Hund und eine Katze spielen mit dem Ball auf der Wiese."),
    ("قطة حمراء", "قطة حمراء على بساط"),
    ("桜の木", "川辺に立つ満開の桜の木、朝の光。"),
    ("portrait of a 5 year old boy", "A portrait of a boy, five years old, in a straw hat."),
    ("16:9 banner, 35 mm film", "A banner as if on 35 mm film, wide."),
    ("don't stop", "A sign says don't stop beside the road."),
    ("🍎🚀", "A red apple beside a rocket."),
]  # fmt: skip

LOST = [
    ("red apple", "A glossy green apple with a red leaf.", "colour"),
    ("red apple", "An apple on a table beside a red cup.", "colour"),
    ("a red cube on a blue sphere", "A blue cube on a red sphere.", "colour"),
    ("a red cube on a blue sphere", "A red sphere beneath a blue cube.", "colour"),
    ("three cats", "Several cats in a basket.", "count"),
    ("three cats", "Four cats and three dogs.", "count"),
    ("three red cats", "Three red dogs and a cat.", "count"),
    ("7 dwarfs", "Seven trees and some dwarfs.", "count"),
    ("a street without people", "A street where people hurry past.", "negation"),
    ("a face, no glasses", "A face with round glasses.", "negation"),
    ("watercolor of a fox", "A photograph of a fox.", "medium"),
    ("photo of a lake", "An oil painting of a lake.", "medium"),
    ("a cat in flat style", "A cat in Noto style.", "medium"),
    ('a sign that says "OPEN 24h"', 'A sign that says "Open 24h".', "quote"),
    ('"it\'s" and "two"', "it’s and two", "quote"),
    ("a dragon over a village", "A quiet garden with roses.", "subject"),
    ("ein Hund und eine Katze mit dem Ball", "The Hund and the Katze with a Ball in the garden.", "language"),
    ("قطة حمراء", "A red cat on a rug.", "language"),
    ("桜の木", "A cherry tree by the river.", "language"),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "text"), KEPT)
def test_what_is_kept_is_seen(prompt: str, text: str) -> None:
    assert missing(prompt, text) == ()
    assert faithfulness(prompt, text) == 1.0


@pytest.mark.parametrize(("prompt", "text", "kind"), LOST)
def test_what_is_lost_is_seen(prompt: str, text: str, kind: str) -> None:
    assert kind in {claim.kind for claim in missing(prompt, text)}
    assert faithfulness(prompt, text) < 1.0


@pytest.mark.parametrize("prompt", [prompt for prompt, _ in KEPT] + [prompt for prompt, *_ in LOST])
def test_a_prompt_is_faithful_to_itself_and_with_an_addition(prompt: str) -> None:
    assert missing(prompt, prompt) == ()
    if script(prompt) == "LATIN":
        assert missing(prompt, f"{prompt}, soft light") == ()


def test_what_must_not_appear_is_no_claim_that_it_does() -> None:
    kinds = {claim.kind for claim in claims("a street with no red cars")}
    assert kinds == {"language", "negation", "subject"}
    assert missing("a street with no red cars", "A quiet street at noon.") == ()


def test_faithfulness_is_the_share_of_claims_kept() -> None:
    prompt = "three red cats"  # language, count, colour, subject
    assert len(claims(prompt)) == 4
    assert faithfulness(prompt, "three red cats") == 1.0
    assert faithfulness(prompt, "three blue cats") == 0.75
    assert faithfulness(prompt, "red dogs") == 0.25
    assert faithfulness("", "anything") == 1.0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('says "a" and "b c"', ["a", "b c"]),
        ('never "closes', []),
        ('three " marks " here"', [" marks "]),
        ("it's Tom's hat, 'really'", ["really"]),
        ("“one” «two» 「three」 „four“ ‘five’", ["one", "two", "three", "four", "five"]),
        ('""', []),
    ],
)  # fmt: skip
def test_quotes(text: str, found: list[str]) -> None:
    assert quotes(text) == found


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", ""),
        ("123 !?", ""),
        ("🍎", ""),
        ("Café", "LATIN"),
        ("Кот", "CYRILLIC"),
        ("חתול", "HEBREW"),
        ("漢字", "CJK"),
        ("漢字の", "JAPANESE"),
        ("고양이", "HANGUL"),
    ],
)
def test_script(text: str, name: str) -> None:
    assert script(text) == name
