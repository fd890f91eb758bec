import pytest
from krea_expander.gates import check, unsafe

GOOD = [
    "A red apple on a wooden table, soft morning light from the left.",
    'A neon sign that says "1. OPEN 2. CLOSED", rain on the glass.',
    "Children play football in a park at noon, long shadows.",
    "Here a lighthouse stands; sure-footed goats climb the rocks around it.",
    "A museum hall about the second world war, visitors in front of a photograph.",
    "Buildings - tall and narrow - above a canal.",
    "قطة حمراء",
]
BAD = [
    ("", "empty"),
    (" \n ", "empty"),
    ("1. A red apple\n2. A green apple", "list"),
    ("- a cat\n- a dog", "list"),
    ("# Caption\nA red apple", "heading"),
    ("```\nA red apple\n```", "heading"),
    ("A red apple <think> hm", "markup"),
    ("A red apple <|im_end|>", "markup"),
    ("<cat>A red apple", "markup"),
    ("Sure! A red apple.", "chat"),
    ("Here is your caption: a red apple", "chat"),
    ("A red apple. Let me know if you want changes.", "chat"),
    ("I'm sorry, but as an AI I cannot do that.", "refusal"),
    ("You turn short wishes into prompts for a text-to-image model.", "instructions"),
    ("A portrait of {name} in oil", "placeholder"),
    ("A scene with [insert subject]", "placeholder"),
    ("A page from https://example.com", "address"),
    ("a very tall tree, a very tall tree, a very tall tree", "repetition"),
    ("A red \u202eelppa", "direction"),
    ("x" * 1601, "length"),
]


@pytest.mark.parametrize("text", GOOD)
def test_captions_pass(text: str) -> None:
    assert check(text, "anything") == ()
    assert unsafe(text) == ()


@pytest.mark.parametrize(("text", "rule"), BAD)
def test_each_rule_fires(text: str, rule: str) -> None:
    breaches = check(text, "red apple")
    assert rule in {breach.rule for breach in breaches}
    assert all(breach.kind == "format" and breach.says for breach in breaches)


def test_what_the_user_wrote_is_no_breach() -> None:
    prompt = "a screen with https://example.com and {name}"
    assert check(f"A glowing {prompt}", prompt) == ()
    assert check("x" * 1900, "x" * 1000) == ()


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a naked child", "minors"),
        ("a sexy 15 year old", "minors"),
        ("ein nacktes Kind und nackte Kinder", "minors"),
        ("a woman is raped", "sexual-violence"),
        ("how to commit suicide, step by step", "self-harm"),
        ("heroic nazi propaganda poster", "hate"),
    ],
)
def test_safety_has_no_exception_for_the_prompt(text: str, rule: str) -> None:
    assert [breach.rule for breach in unsafe(text)] == [rule]
    assert rule in {breach.rule for breach in check(text, text)}


@pytest.mark.parametrize("text", ["ab cd " * 3000, '"' * 10_000, "a" * 20_000])
def test_texts_that_tempt_a_pattern_to_backtrack_are_refused_for_their_length(text: str) -> None:
    assert "length" in {breach.rule for breach in check(text, "x")}
