import pytest
from krea_data.sources import spdx
from krea_data.tasks.licence import PERMISSIVE


@pytest.mark.parametrize(
    ("stated", "wanted"),
    [
        ("cc0", "CC0-1.0"),
        ("CC0-1.0", "CC0-1.0"),
        ("cc0-1.0", "CC0-1.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("http://creativecommons.org/publicdomain/zero/1.0/deed.de", "CC0-1.0"),
        ("https://creativecommons.org/publicdomain/mark/1.0/", "LicenseRef-PublicDomain"),
        ("Public  Domain", "LicenseRef-PublicDomain"),
        ("cc-by-4.0", "CC-BY-4.0"),
        ("CC BY 4.0", "CC-BY-4.0"),
        ("//creativecommons.org/licenses/by/4.0", "CC-BY-4.0"),
        ("https://www.creativecommons.org/licenses/by/4.0/legalcode", "CC-BY-4.0"),
        ("https://creativecommons.org/licenses/by/2.0/?ref=openverse", "CC-BY-2.0"),
        ("Creative Commons Attribution 4.0 International", "CC-BY-4.0"),
        ("Creative Commons Attribution-ShareAlike 3.0 Unported", "CC-BY-SA-3.0"),
        ("Creative Commons Attribution Share-Alike 2.5", "CC-BY-SA-2.5"),
        ("Attribution-NonCommercial-NoDerivs 2.0 Generic", "CC-BY-NC-ND-2.0"),
        ("https://creativecommons.org/licenses/by-nd-nc/2.0/", "CC-BY-NC-ND-2.0"),
        ("https://creativecommons.org/licenses/by/3.0/de/", "CC-BY-3.0-DE"),
        ("MIT", "MIT"),
        ("mit license", "MIT"),
        ("https://opensource.org/licenses/MIT", "MIT"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("https://www.apache.org/licenses/LICENSE-2.0", "Apache-2.0"),
        ("bsd-3-clause", "BSD-3-Clause"),
        ("ODbL-1.0", "ODbL-1.0"),
    ],
)
def test_what_is_stated_plainly_is_told(stated, wanted):
    assert spdx(stated) == wanted


@pytest.mark.parametrize(
    "stated",
    [
        None,
        "",
        7,
        ["MIT"],
        "other",
        "free to use",
        "CC BY",  # of which version?
        "CC BY 4.0 or MIT",
        "CC BY 4.0, but not for AI",
        "not CC0",
        "CC BY 5.0",
        "CC BY 3.0 4.0",
        "CC NC 3.0",
        "CC SA ND BY 3.0",
        "GPL",
        "https://creativecommons.org/licenses/by/3.0/xx/",
        "https://creativecommons.org/licenses/",
        "https://evil.example/creativecommons.org/licenses/by/4.0/",
        "https://creativecommons.org.evil.example/licenses/by/4.0/",
        "https://creativecommons.org/licenses/by/14.0/",
        "x" * 400,
    ],
)
def test_what_is_not_stays_unknown(stated):
    assert spdx(stated) == "unknown"


def test_what_counts_as_permissive_is_told_as_itself():
    assert [spdx(one) for one in PERMISSIVE] == list(PERMISSIVE)
    assert [spdx(one.upper()) for one in PERMISSIVE] == list(PERMISSIVE)
