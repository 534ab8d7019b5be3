"""Which licences allow commercial use of what is made of a picture, as people spell them; and of all others, why not."""

from __future__ import annotations

import re

_FREE = frozenset({
    "0bsd", "apache-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "mit", "mit-0", "unlicense", "zlib",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "lal-1.2", "lal-1.3", "odbl-1.0", "odc-by-1.0", "ogl-uk-1.0", "ogl-uk-2.0", "ogl-uk-3.0",
    "cc0", "cc0-1.0", "cc0-public-domain-dedication", "cc0-1.0-public-domain-dedication", "cc-pddc", "cc-pdm", "cc-pdm-1.0",
    "cc-public-domain", "cc-public-domain-mark-1.0", "pd", "pdm", "pdm-1.0", "pddl", "pddl-1.0",
    "public-domain", "public-domain-mark", "public-domain-mark-1.0", "public-domain-dedication", "us-government-work", "us-government-work-public-domain",
})  # fmt: skip
"""In their normal form: permissive ones, those that ask for the same licence again, and what is in the public domain."""
_ATTRIBUTION = re.compile(
    r"cc-by(-sa)?(-(1\.0|2\.0|2\.1|2\.5|3\.0|4\.0))?(-(at|au|de|igo|jp|nl|uk|us|international|unported|generic))?",
)
"""CC-BY and CC-BY-SA of any version, also as ported to a country: both allow commercial use and derivatives."""
_SPELLED = (
    (r"https?://(www\.)?creativecommons\.org/publicdomain/zero/", "cc0-"),
    (r"https?://(www\.)?creativecommons\.org/publicdomain/mark/", "public domain mark "),
    (r"https?://(www\.)?creativecommons\.org/licen[sc]es/", "cc-"),
    (r"(/legalcode|/deed)(\.\w+)?/?$", ""),
    (r"\((cc[ -]by([ -]sa)?|cc0)[ -]*[\d.]*\)", ""),  # after the same in words
    (r"creative[ -]?commons", "cc"),
    (r"\battribution\b", "cc-by"),
    (r"\bshare[ -]?alike\b", "sa"),
    (r"\bnon[ -]?commercial\b", "nc"),
    (r"\bno[ -]?deriv\w*( works)?\b", "nd"),
    (r"\buniversal\b|\bthe\b|\blicen[sc]e\b|\bversion\b|\bv(?=\d)", " "),
    (r"[^a-z0-9.]+", "-"),
    (r"\bcc-(cc-?0|cc-by|zero|0)\b", lambda found: "cc-by" if "by" in found[1] else "cc0"),
    (r"(?<=-(by|sa)-)([1-4])(?=-|$)", r"\2.0"),
)
"""What is put for what, in this order."""


def normal(licence: str) -> str:
    """A licence's text in one spelling: case, spaces, dashes, words written out and addresses of Creative Commons make no difference."""
    text = " ".join(licence.lower().replace("_", " ").split())
    for spelled, short in _SPELLED:
        text = re.sub(spelled, short, text)
    return text.strip("-.")


def why_not_commercial(licence: str) -> str | None:
    """Why a picture under a licence, or a crop of it, may not be used commercially; None where it may.

    What is not known to allow it does not: a text that adds to a licence, or names several, is another licence.
    """
    text = normal(licence)
    words = set(text.split("-"))
    if text in ("", "unknown", "none", "n-a", "not-stated", "unspecified"):
        return "nobody has said what it allows"
    if words & {"and", "or"}:
        return "names several licences, and not which of them holds"
    if words & {"nc", "noncommercial", "research", "academic", "educational", "personal"}:
        return "forbids commercial use"
    if "nd" in words:
        return "forbids handing on derivatives, and a crop is one"
    if text in _FREE or _ATTRIBUTION.fullmatch(text):
        return None
    return "is not among those known to allow commercial use"
