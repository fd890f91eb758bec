import pytest
from krea_data.rows import Row
from krea_data.tasks.licence import Licence


@pytest.mark.parametrize("licence", ["MIT", "CC-BY-4.0", "LicenseRef-PublicDomain"])
def test_permissive_rows_stay(licence):
    (result,) = Licence()([Row(id="a/1", blob="", meta={"licence": licence})])
    assert result.drop is None


@pytest.mark.parametrize("meta", [{"licence": "GPL-2.0-or-later"}, {"licence": "unknown"}, {"licence": None}, {}])
def test_everything_else_goes_and_says_so(meta):
    (result,) = Licence()([Row(id="a/1", blob="", meta=meta)])
    assert result.drop == "licence"
    assert result.value["licence"] == (meta.get("licence") or "unknown")


def test_the_list_can_be_chosen():
    row = Row(id="a/1", blob="", meta={"licence": "CC-BY-SA-4.0"})
    assert Licence(allowed=("CC-BY-SA-4.0",))([row])[0].drop is None


def test_rows_without_a_picture_go_on():
    (result,) = Licence()([Row(id="a/1", blob="", meta={"problem": "the server said 404"})])
    assert result.drop is None
