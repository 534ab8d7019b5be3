"""docs/architecture.md against the files it speaks of."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_module_of_the_builder_is_named_where_a_datum_is_followed():
    page = (ROOT / "docs" / "architecture.md").read_text()
    section = page.split("## From sources to a version")[1].split("\n## ")[0]
    named = {path.rsplit("/", 1)[-1] for path in re.findall(r"`([a-z0-9_/]+)`", section)}
    modules = {file.stem for file in (ROOT / "data_pipeline").rglob("*.py")} - {"__init__"}
    assert sorted(modules - named) == []


def test_files_that_are_states_of_a_build_are_named():
    from data_pipeline import copies, divide, forget, published, removals, rules, succession, taken_out, versions

    page = (ROOT / "docs" / "architecture.md").read_text()
    files = (copies.FILE, divide.CONFLICTS, taken_out.MERGES, forget.PENDING, published.MANIFEST, published.CANDIDATES)
    files += (removals.FILE, rules.SETTINGS, succession.WITHDRAWN, versions._EMPTY)
    assert [file for file in files if file not in page] == []
    assert "attempts/<run>-<hex>.json" in page
