"""Licences as SPDX ids, where a statement leaves no doubt; everything else is "unknown".

Nothing is guessed: "CC BY" without a version, "free to use" and a choice between two licences stay unknown.
"""

import re

__all__ = ["UNKNOWN", "spdx"]

UNKNOWN = "unknown"
PUBLIC_DOMAIN = "LicenseRef-PublicDomain"


def _words(text: str) -> list[str]:
    return text.split()


_IDS = _words("""
MIT MIT-0 ISC 0BSD BSD-2-Clause BSD-3-Clause Apache-2.0 Unlicense Zlib WTFPL MPL-2.0 EPL-2.0 BSL-1.0
GPL-2.0-only GPL-2.0-or-later GPL-3.0-only GPL-3.0-or-later LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0-only
LGPL-3.0-or-later AGPL-3.0-only AGPL-3.0-or-later OFL-1.1 ODbL-1.0 ODC-By-1.0 PDDL-1.0 GFDL-1.2-only GFDL-1.3-only
GFDL-1.2-or-later GFDL-1.3-or-later Artistic-2.0 FAL-1.3 CDLA-Permissive-2.0 CDLA-Sharing-1.0 CC0-1.0 etalab-2.0
OGL-UK-3.0 LicenseRef-PublicDomain
""")
_CC_KINDS = ("BY", "BY-SA", "BY-NC", "BY-ND", "BY-NC-SA", "BY-NC-ND")
_CC_VERSIONS = ("1.0", "2.0", "2.5", "3.0", "4.0")
# Licences of single countries that SPDX has an id for.
_CC_PORTED = _words("""
CC-BY-2.5-AU CC-BY-3.0-AT CC-BY-3.0-AU CC-BY-3.0-DE CC-BY-3.0-IGO CC-BY-3.0-NL CC-BY-3.0-US CC-BY-NC-3.0-DE
CC-BY-NC-ND-3.0-DE CC-BY-NC-ND-3.0-IGO CC-BY-NC-SA-2.0-DE CC-BY-NC-SA-2.0-FR CC-BY-NC-SA-2.0-UK CC-BY-NC-SA-3.0-DE
CC-BY-NC-SA-3.0-IGO CC-BY-ND-3.0-DE CC-BY-SA-2.0-UK CC-BY-SA-2.1-JP CC-BY-SA-3.0-AT CC-BY-SA-3.0-DE CC-BY-SA-3.0-IGO
""")
_CC = [f"CC-{kind}-{version}" for kind in _CC_KINDS for version in _CC_VERSIONS]
_KNOWN = {name.lower(): name for name in (*_IDS, *_CC, *_CC_PORTED)}
_NAMES = {
    "mit license": "MIT",
    "the mit license": "MIT",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0",
    "cc0": "CC0-1.0",
    "cc-zero": "CC0-1.0",
    "cc0 1.0": "CC0-1.0",
    "cc0 1.0 universal": "CC0-1.0",
    "creative commons zero": "CC0-1.0",
    "creative commons cc0": "CC0-1.0",
    "creative commons cc0 1.0 universal": "CC0-1.0",
    "public domain": PUBLIC_DOMAIN,
    "publicdomain": PUBLIC_DOMAIN,
    "public domain mark": PUBLIC_DOMAIN,
    "public domain mark 1.0": PUBLIC_DOMAIN,
    "cc-pdm-1.0": PUBLIC_DOMAIN,
    "pdm 1.0": PUBLIC_DOMAIN,
    "pdm": PUBLIC_DOMAIN,
}
_HOSTS = {
    "opensource.org/licenses/mit": "MIT",
    "opensource.org/license/mit": "MIT",
    "mit-license.org": "MIT",
    "apache.org/licenses/license-2.0": "Apache-2.0",
    "apache.org/licenses/license-2.0.txt": "Apache-2.0",
    "apache.org/licenses/license-2.0.html": "Apache-2.0",
    "unlicense.org": "Unlicense",
    "web.resource.org/cc/publicdomain": PUBLIC_DOMAIN,
    "creativecommons.org/ns#publicdomain": PUBLIC_DOMAIN,
    "creativecommons.org/licenses/publicdomain": PUBLIC_DOMAIN,
}
_CC_URL = re.compile(
    r"(?:licenses/(?P<kind>by(?:-nc)?(?:-sa|-nd)?|by-nd-nc|by-sa-nc)/(?P<version>\d\.\d)(?:/(?P<place>[a-z]{2,3}))?"
    r"|publicdomain/(?P<domain>zero|mark)/1\.0)(?:/(?:deed(?:\.[\w-]+)?|legalcode(?:\.[\w-]+)?|rdf)?)?"
)
_VERSION = re.compile(r"(?<![\d.])v?([1-4]\.[05])(?![\d.])")
_WORDS = {"attribution": "by", "sharealike": "sa", "noncommercial": "nc", "noderivatives": "nd", "noderivs": "nd"}
_FILLER = frozenset(("creative", "commons", "cc", "international", "unported", "generic", "license", "licence", "the"))
_SAME_KIND = {"BY-ND-NC": "BY-NC-ND", "BY-SA-NC": "BY-NC-SA"}


def spdx(stated: object) -> str:
    """The SPDX id that an id, a name or an address states, or "unknown"."""
    text = " ".join(stated.split()) if isinstance(stated, str) else ""
    if not text or len(text) > 300:
        return UNKNOWN
    plain = text.lower()
    if found := _KNOWN.get(plain) or _NAMES.get(plain):
        return found
    if "/" in plain and "." in plain:
        return _by_address(plain)
    return _by_name(plain)


def _by_address(text: str) -> str:
    address = re.sub(r"^(https?:)?//(www\.)?", "", text).split("?")[0].rstrip("/")
    if found := _HOSTS.get(address):
        return found
    host, _, path = address.partition("/")
    match = _CC_URL.fullmatch(path)
    if host != "creativecommons.org" or match is None:
        return UNKNOWN
    if domain := match["domain"]:
        return "CC0-1.0" if domain == "zero" else PUBLIC_DOMAIN
    kind = match["kind"].upper()
    place = "" if match["place"] is None else f"-{match['place']}"
    return _KNOWN.get(f"cc-{_SAME_KIND.get(kind, kind)}-{match['version']}{place}".lower(), UNKNOWN)


def _by_name(text: str) -> str:
    """Names of Creative Commons licences, such as "CC BY-SA 3.0 Unported"; every word has to make sense."""
    versions = _VERSION.findall(text)
    text = _VERSION.sub(" ", text)
    for word in ("share alike", "non commercial", "no derivatives", "no derivs"):
        text = re.sub(word.replace(" ", "[ -]"), word.replace(" ", ""), text)
    words = [word for word in re.split(r"[\s,()_/-]+", text) if word and word not in _FILLER]
    said = [_WORDS.get(word, word) for word in words]
    if len(versions) != 1 or len(set(said)) != len(said) or not set(said) <= {"by", "sa", "nc", "nd"}:
        return UNKNOWN
    kind = "-".join(part for part in ("by", "nc", "sa", "nd") if part in said)
    return _KNOWN.get(f"cc-{kind}-{versions[0]}", UNKNOWN)
