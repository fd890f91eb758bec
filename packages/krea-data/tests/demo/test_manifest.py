import pytest
from krea_data.demo.manifest import check, digest
from krea_data.demo.packages import LABELS, SETS


def test_the_digest_sees_names_and_contents(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return digest(tmp_path)

    seen = [write("a/b", "1"), write("a/c", "1"), write("a/b", "2")]
    (tmp_path / "a" / "c").rename(tmp_path / "c")
    seen.append(digest(tmp_path))
    assert len(set(seen)) == 4
    assert digest(tmp_path) == seen[-1]


@pytest.mark.parametrize(
    "package", [LABELS, *(one.package for one in SETS.values() if one.package)], ids=lambda p: p.name
)
def test_every_package_has_its_hash(package):
    assert check(package.spec, "0") is False


def test_an_unknown_package_is_refused():
    with pytest.raises(ValueError, match="left-pad@1"):
        check("left-pad@1", "0")
