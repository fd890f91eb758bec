from html.parser import HTMLParser

from krea_data.sae.names import Feature
from krea_data.sae.page import page
from PIL import Image


class Reader(HTMLParser):
    """Notes the elements and their attributes, and that they are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def feature(latent: int, name: str, *top: int) -> Feature:
    return Feature(latent=latent, name=name, share=0.1 * latent, strongest=2.0, top=top, words={"cat": (0.9, 7.0)})


def test_every_feature_is_shown_with_its_pictures() -> None:
    some = [feature(1, "cat", 5, 6, 7), feature(2, "", 8)]
    text = page(some, lambda row: Image.new("RGB", (200, 100), (row, 0, 0)), lambda row: f"row {row}", pictures=2)
    reader = Reader()
    reader.feed(text)
    articles = [attrs for tag, attrs in reader.found if tag == "article"]
    assert [attrs["data-name"] for attrs in articles] == ["cat", ""]
    images = [attrs for tag, attrs in reader.found if tag == "img"]
    assert [attrs["alt"] for attrs in images] == ["row 5", "row 6", "row 8"]
    assert "90%, 7 times" in text
    assert "http" not in text, "it is whole by itself"


def test_names_cannot_write_html() -> None:
    evil = '<script>alert("x")</script>'
    one = Feature(latent=0, name=evil, share=1, strongest=1, top=(0,), words={evil: (1.0, 2.0)})
    text = page([one], lambda _: Image.new("RGB", (4, 4)), lambda _: evil + '" onload="x', title=evil)
    assert evil not in text
    reader = Reader()
    reader.feed(text)
    assert [tag for tag, _ in reader.found].count("script") == 1
    assert all("onload" not in attrs for _, attrs in reader.found)
