"""A page of measured figures: sections of rows, each of which can be measured anew while the others stay."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

Row = tuple[str, str]
"""What was measured, and the result."""
_LOAD = "load of the machine when this section began"


def measure(page: Path, head: str, sections: Mapping[str, tuple[str, Callable[[], Iterable[Row]]]], only: Sequence[str]) -> None:
    """Measures sections and writes the page after every row: some of them take long.

    Args:
        page: A Markdown file.
        head: What stands above the sections.
        sections: Title -> what its figures mean, and the work that gives its rows; a title is one word.
        only: Titles to measure; none of them stands for all.

    Raises:
        SystemExit: A title is unknown.
    """
    if unknown := set(only) - sections.keys():
        raise SystemExit(f"no section {', '.join(sorted(unknown))}; there are {', '.join(sections)}")
    rows = _read(page)
    for title in only or sections:
        rows[title] = [(_LOAD, f"{os.getloadavg()[0]:.1f}")]
        for row in sections[title][1]():
            print(": ".join(row), flush=True)
            rows[title].insert(-1, row)
            page.write_text(head + "".join(_section(name, note, rows[name]) for name, (note, _) in sections.items() if name in rows))


def _section(title: str, note: str, rows: Sequence[Row]) -> str:
    table = "".join(f"| {name} | {value} |\n" for name, value in rows)
    return f"\n## {title}\n\n" + (f"{note}\n\n" if note else "") + "| what | result |\n|---|---|\n" + table


def _read(page: Path) -> dict[str, list[Row]]:
    """Title -> rows of the page as it is."""
    found: dict[str, list[Row]] = {}
    for block in page.read_text().split("\n## ")[1:] if page.exists() else []:
        title, *lines = block.splitlines()
        cells = [line.strip("| ").split(" | ", 1) for line in lines if line.startswith("| ") and line != "| what | result |"]
        found[title] = [(name, value) for name, value in cells]
    return found
