import subprocess
from pathlib import Path

import pytest
from krea_data.demo import clipart
from krea_data.demo.clipart import metadata, with_viewbox

RDF = """<rdf:RDF xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work rdf:about=""><dc:title>{title}</dc:title>
<dc:subject><rdf:Bag><rdf:li>fruit</rdf:li><rdf:li>hash(0x8a)</rdf:li><rdf:li>red_thing</rdf:li></rdf:Bag></dc:subject>
<dc:creator><cc:Agent><dc:title>{author}</dc:title></cc:Agent></dc:creator>
<dc:rights><cc:Agent><dc:title>{author}</dc:title></cc:Agent></dc:rights>
<cc:license rdf:resource="{licence}"/></cc:Work></rdf:RDF>"""
PUBLIC = "http://web.resource.org/cc/PublicDomain"


def svg(title="Apple", author="Magnus Gnu", licence=PUBLIC, head='width="10" height="10"'):
    return f"<svg {head}><metadata>{RDF.format(title=title, author=author, licence=licence)}</metadata></svg>"


def test_a_drawing_states_its_origin():
    assert metadata(svg()) == {
        "label": "Apple",
        "tags": ["fruit", "hash(0x8a)", "red_thing"],
        "author": "Magnus Gnu",
        "licence": "LicenseRef-PublicDomain",
    }


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        (PUBLIC, "LicenseRef-PublicDomain"),
        ("http://creativecommons.org/licenses/GPL/2.0/", "GPL-2.0-or-later"),
        ("", "unknown"),
        ("http://example.org/ask-me", "unknown"),
    ],
)
def test_licences_are_told_apart(licence, expected):
    assert metadata(svg(author="Anna", licence=licence))["licence"] == expected


def test_entities_that_were_escaped_twice_are_read():
    assert metadata(svg(title="W&amp;uuml;rfel"))["label"] == "W\u00fcrfel"


@pytest.mark.parametrize("text", ["", "<svg/>", "<svg><rdf:RDF><unclosed></rdf:RDF></svg>"])
def test_what_states_nothing_is_unknown(text):
    found = metadata(text)
    assert (found["author"], found["licence"], found["tags"]) == ("unknown", "unknown", [])


@pytest.mark.parametrize(
    ("head", "box"),
    [
        ('width="100mm" height="50mm"', "0 0 354.331 177.165"),
        ('width="72pt" height="36pt"', "0 0 90 45"),
        ("width='20' height='30px'", "0 0 20 30"),
        ('viewBox="1 2 3 4" width="9in" height="9in"', "1 2 3 4"),
        ('viewBox="1,2,3,4"', "1 2 3 4"),
        ('width="100%" height="100%"', "0 0 1000 1000"),
    ],
)
def test_headers_become_view_boxes(head, box):
    found = with_viewbox(f'<?xml version="1.0"?><svg a="x>y" {head} id="b"><rect width="5" height="5"/></svg>')
    assert f'<svg viewBox="{box}"' in found
    assert found.endswith(' id="b"><rect width="5" height="5"/></svg>')
    assert " width=" not in found.split(">", 3)[2]


def test_drawings_are_named_by_title_or_file(tmp_path):
    for name, title in (("food/ripe_apple_01", "Apple"), ("food/pear_magnus_01", "Big Collection"), ("star_5pt", "")):
        path = tmp_path / f"{name}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(svg(title=title))
    found = {one.id: one.meta for one in clipart.drawings(tmp_path)}
    assert {key: meta["label"] for key, meta in found.items()} == {
        "clipart/food/ripe_apple_01": "apple",
        "clipart/food/pear_magnus_01": "pear",
        "clipart/star_5pt": "star",
    }
    assert found["clipart/food/ripe_apple_01"]["tags"] == ["fruit", "red thing"]
    assert found["clipart/food/ripe_apple_01"]["group"] == "food"


def test_without_apt_clip_art_is_left_out_with_a_notice(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    notices = []
    assert clipart.install(tmp_path, notices.append) is None
    assert "apt-get and dpkg-deb are not here" in notices[0]
    assert list((tmp_path / "packages").iterdir()) == []


def test_when_apt_fails_its_own_words_are_passed_on(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 100, "", "W: noise\nE: Unable to locate package openclipart-svg\n")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("subprocess.run", lambda *args, **named: failed)
    notices = []
    assert clipart.install(tmp_path, notices.append) is None
    assert "Unable to locate package" in notices[0]


def test_another_release_is_left_out(tmp_path, monkeypatch):
    def download(folder: Path):
        (folder / "other.svg").write_text(svg())

    monkeypatch.setattr(clipart, "_download", download)
    notices = []
    assert clipart.install(tmp_path, notices.append) is None
    assert "other drawings" in notices[0]
