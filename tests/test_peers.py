"""docs/peers.md names files, commands and tests as evidence: each of them exists, and no yes stands without a test."""

import ast
import re
from pathlib import Path

import click
import pytest
import typer

from infra.cli import app

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/peers.md").read_text()
SECTIONS = {name: PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0] for name in ("Building datasets", "Training")}
COUNTS = {"Building datasets": 41, "Training": 33}


def rows_of(section):
    """Number -> cells, of the section's first and second table."""
    lines = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in section.splitlines() if re.match(r"\| \d+ \|", line)]
    return {int(row[0]): row for row in lines[: len(lines) // 2]}, {int(row[0]): row for row in lines[len(lines) // 2 :]}


@pytest.mark.parametrize("name", SECTIONS)
def test_both_tables_have_every_row_and_the_same_verdicts(name):
    peers, ours = rows_of(SECTIONS[name])
    assert list(peers) == list(ours) == list(range(1, COUNTS[name] + 1))
    assert len({len(row) for row in peers.values()}) == 1
    verdicts = {number: row[1] for number, row in ours.items()}
    assert verdicts == {number: row[-1] for number, row in peers.items()}
    assert set(verdicts.values()) <= {"Y", "Y/Y", "P", "N"}
    told = {"P": re.search(r"Of ours: partly ([\d, ]+)", SECTIONS[name]), "N": re.search(r"Of ours: .*\bnot ([\d, ]+)", SECTIONS[name])}
    for verdict, found in told.items():
        numbers = [int(number) for number in re.findall(r"\d+", found[1])] if found else []
        assert numbers == [number for number, given in verdicts.items() if given == verdict]
    assert all("::test_" in ours[number][3] for number, verdict in verdicts.items() if verdict.startswith("Y"))


def test_every_test_and_file_that_is_named_exists():
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE))
    assert len(named) > 60
    for path in {path for path, _ in named}:
        there = {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}
        assert {test for file, test in named if file == path} <= there, path
    files = re.findall(r"`((?:[\w-]+/)+[\w-]+\.(?:py|md|yaml))`", PAGE)
    assert len(files) > 40
    assert [path for path in files if not (ROOT / path).is_file()] == []


def test_every_command_and_option_that_is_named_exists():
    context = click.Context(typer.main.get_command(app))
    named = re.findall(r"`lato ([a-z -]+?)(?: [\w.=]+\.yaml)?`", PAGE)
    assert len(named) > 10
    for words in named:
        command = context.command
        for word in words.split():
            if word.startswith("--"):
                assert word in {option for parameter in command.params for option in parameter.opts}, words
            else:
                command = command.get_command(context, word)
                assert command is not None, words
