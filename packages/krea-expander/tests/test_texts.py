import pytest
from krea_expander.texts import section, version


def test_every_part_that_is_used_is_there() -> None:
    for part in ("system", "low", "medium", "high", "polish", "wish", "again", "example 1", "example 3"):
        assert section("expand", part)
    for part in ("system", "plain", "keywords", "request", "caption"):
        assert section("shorten", part)
    assert (version("expand"), version("shorten")) == (1, 1)
    assert "{prompt}" in section("expand", "wish")
    assert "{reasons}" in section("expand", "again")
    with pytest.raises(KeyError):
        section("expand", "none")
