"""Which licences an export for commercial use takes, however they are spelled."""

import pytest

from data_pipeline.licences import normal, why_not_commercial
from data_pipeline.published import read_manifest
from tests.data_pipeline.commands import lato, relicence, told

ALLOWED = [
    "public-domain", "Public Domain", "public domain mark", "Public Domain Mark 1.0", "PDM 1.0", "CC-PDDC", "PDDL-1.0", "US government work, public domain",
    "CC0", "cc0-1.0", "CC0 1.0 Universal", "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication", "Creative Commons Zero v1.0 Universal", "Creative Commons CC0",
    "http://creativecommons.org/publicdomain/zero/1.0/", "https://creativecommons.org/publicdomain/mark/1.0/",
    "CC-BY-4.0", "cc by 4.0", "CC_BY_2.5", "CC BY", "CC-BY-3.0-DE", "Creative Commons Attribution 4.0 International", "Attribution 4.0 International (CC BY 4.0)",
    "CC-BY-SA-4.0", "cc by-sa 2.0", "Attribution-ShareAlike 3.0 Unported", "https://creativecommons.org/licenses/by-sa/4.0/deed.en",
    "MIT", "The MIT License", "Apache License, Version 2.0", "BSD 3-Clause", "ODbL-1.0", "CDLA-Permissive-2.0", " Unlicense ",
]  # fmt: skip
REFUSED = {
    "forbids commercial use": [
        "CC-BY-NC-4.0", "cc by nc sa 3.0", "CC-BY-NC-ND-4.0", "Creative Commons Attribution-NonCommercial 4.0", "https://creativecommons.org/licenses/by-nc/4.0/",
        "CelebV-HQ non-commercial", "MIT (non-commercial)", "Attribution 4.0 International (CC BY-NC 4.0)", "research only",
    ],
    "derivatives": ["CC-BY-ND-4.0", "cc by nd", "Attribution-NoDerivs 2.0 Generic", "Attribution-NoDerivatives 4.0 International"],
    "nobody has said": ["unknown", "", "  ", "N/A"],
    "several licences": ["CC-BY-4.0 OR CC-BY-NC-4.0", "MIT and ours"],
    "not among those known": ["all rights reserved", "CC-BY-9.9", "CC-BY-4.0-ours", "by", "CC-SA-1.0", "no known copyright", "CC BY 4.0 (for tests)", "mitigated"],
}  # fmt: skip


@pytest.mark.parametrize("licence", ALLOWED)
def test_allowed(licence):
    assert why_not_commercial(licence) is None


@pytest.mark.parametrize(("licence", "why"), [(licence, why) for why, licences in REFUSED.items() for licence in licences])
def test_refused_and_why(licence, why):
    assert why in why_not_commercial(licence)


def test_spellings_of_one_licence_are_one():
    assert (
        len(
            {normal(text) for text in ("CC-BY-SA-4.0", "cc by sa 4.0", "https://creativecommons.org/licenses/by-sa/4.0/", " CC_BY-SA  4.0")}
        )
        == 1
    )
    assert len({normal(text) for text in ("CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-ND-4.0", "CC-BY-3.0", "CC0")}) == 6


def test_an_export_says_what_it_left_out_and_why(work, tmp_path):
    version = work / "versions/v1"
    rows = read_manifest(str(version))
    given = ["public-domain", "cc by-sa 4.0", "CC-BY-NC-4.0", "CC-BY-ND-4.0", "unknown"]
    relicence(version, given)
    count = {licence: len(rows[number :: len(given)]) for number, licence in enumerate(given)}
    said = lato("export", version, tmp_path / "free", "--licence", "commercial")
    assert f"exported: {count['cc by-sa 4.0']} cc by-sa 4.0; {count['public-domain']} public-domain" in said
    assert (
        f"left out: {count['CC-BY-NC-4.0']} CC-BY-NC-4.0 (forbids commercial use); {count['CC-BY-ND-4.0']} CC-BY-ND-4.0 "
        f"(forbids handing on derivatives, and a crop is one); {count['unknown']} unknown (nobody has said what it allows)"
    ) in said
    assert {row["licence"] for row in read_manifest(str(tmp_path / "free"))} == {"public-domain", "cc by-sa 4.0"}
    named = lato("export", version, tmp_path / "named", "--licence", "CC-BY-SA-4.0", "--licence", "Public Domain")
    assert "warning" not in named and "unknown (was not asked for)" in named
    assert len(read_manifest(str(tmp_path / "named"))) == len(read_manifest(str(tmp_path / "free")))
    relicence(version, given[2:])
    assert "CC-BY-NC-4.0 (forbids commercial use)" in told("export", version, tmp_path / "none", "--licence", "commercial")
