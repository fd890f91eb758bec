from pathlib import Path

import pytest
from krea_data.captions.forms import REWRITTEN
from krea_data.captions.prompts import Template, packaged

VERSIONS = {"describe": "describe/1-6d9a94fe", "rewrite": "rewrite/1-8679942d"}


@pytest.mark.parametrize("name", sorted(VERSIONS))
def test_other_words_have_another_number(name: str) -> None:
    """Whoever changes a prompt raises the number in its first line, and writes the new version here."""
    assert packaged(name).version == VERSIONS[name]


def test_every_form_is_asked_for() -> None:
    assert all(packaged("rewrite").sections[form] for form in REWRITTEN)


def test_values_are_filled_in_once_and_not_read_again() -> None:
    template = Template.parse("mine", "version 3\n[system]\nBe exact.\n[user]\n{text} and {other}")
    assert template.filled("user", text="{other}", other="{text} [user]") == "{other} and {text} [user]"
    assert template.version.startswith("mine/3-")
    with pytest.raises(ValueError, match=r"asks for \{other\}, which is not known here: text"):
        template.filled("user", text="x")


def test_a_prompt_of_ones_own_is_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text("version 2\n[system]\nBe brief.\n[user]\nWhat is it?\n", "utf-8")
    assert Template.read(file).sections == {"system": "Be brief.", "user": "What is it?"}
    with pytest.raises(ValueError, match="begin it with a line such as 'version 1'"):
        Template.parse("own", "[system]\nx")
    with pytest.raises(ValueError, match=r"no section \[user\]"):
        Template.parse("own", "version 1\n[system]\nx")
