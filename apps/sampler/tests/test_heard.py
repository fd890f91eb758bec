"""Warnings of the model: heard once, long texts in them shortened."""

import logging

from krea_sampler.heard import hearing, shortened


def test_a_long_text_keeps_both_ends_and_its_length() -> None:
    text = "first words " + "and so on " * 200 + "last words"
    found = shortened(text)
    assert found.startswith("first words and so on")
    assert found.endswith("so on last words")
    assert f"({len(text.split())} words)" in found
    assert len(found) < 150
    assert shortened("a red fox") == "a red fox"


def test_a_text_without_spaces_is_counted_in_characters() -> None:
    found = shortened("狐" * 500)
    assert "(500 characters)" in found
    assert (found[:3], found[-3:]) == ("狐狐狐", "狐狐狐")
    assert len(found) < 150


def test_a_warning_is_heard_once_and_only_inside() -> None:
    said: list[str] = []
    log = logging.getLogger("krea_model.text")
    with hearing(said.append):
        for _ in range(2):
            log.warning("%d tokens too long; not encoded: %r", 664, "word " * 664)
        log.info("all is well")
    log.warning("nobody listens")
    (sentence,) = said
    assert sentence.startswith("664 tokens too long; not encoded: 'word word")
    assert "(664 words)" in sentence
    assert len(sentence) < 200
