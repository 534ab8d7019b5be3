"""Quotas of the whole dataset: the best pairs of each cell, however the tables are cut; counted in the funnel, and on in a version that extends another."""

from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline import cells
from data_pipeline.build import build_dataset
from data_pipeline.candidates import read_candidates
from data_pipeline.cells import cells_of, over_quota
from data_pipeline.config import DataConfig
from data_pipeline.extend import read_base
from data_pipeline.published import read_manifest
from data_pipeline.rules import PairingConfig
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.split import SplitConfig
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig


def cell_by_hand(row):
    """The change of expression, whichever way, and the step that goes with it."""
    way = (row["from_expression"], row["to_expression"]) if row["from_expression"] != row["to_expression"] else ("", "")
    step = tuple(row[f"step_{axis}"] for axis in ("yaw", "pitch", "roll"))
    return min((*way, step), (way[1], way[0], tuple(-value for value in step)))


def draw_rows(count):
    """Pairs of faces and their reverses; many are equally sharp."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        source, target = rng.choice(["neutral", "happy", "sad"], 2)
        step = int(rng.choice([-30, 0, 30]))
        shared = {"sharpness": float(rng.integers(0, 4)), "step_pitch": 0, "step_roll": 0}
        ends = {"from_part": f"part{number % 7}", "from_row": 2 * number, "to_part": f"part{number % 7}", "to_row": 2 * number + 1}
        back = {"from_part": ends["to_part"], "from_row": ends["to_row"], "to_part": ends["from_part"], "to_row": ends["from_row"]}
        keys = [f"p_{rng.bytes(10).hex()}" for _ in range(2)]
        rows.append(shared | ends | {"key": keys[0], "from_expression": source, "to_expression": target, "step_yaw": step})
        rows.append(shared | back | {"key": keys[1], "from_expression": target, "to_expression": source, "step_yaw": -step})
    return rows


def write(rows, folder, tables, row_group):
    """A pair and its reverse lie in one row group of one table, as a person's pairs do."""
    folder.mkdir()
    order = np.random.default_rng(tables).permutation(len(rows) // 2)
    uris = []
    for number in range(tables):
        mine = [rows[2 * n + side] for n in order[number::tables] for side in (0, 1)]
        pq.write_table(pa.Table.from_pylist(mine), folder / f"{number}.parquet", row_group_size=row_group)
        uris.append((str(folder / f"{number}.parquet"), mine))
    return uris


def beyond(uris, refused, quota, used):
    """Keys that a quota refuses; `refused` keys are not accepted to begin with."""
    wanted = [(uri, np.array([row["key"] not in refused for row in mine])) for uri, mine in uris]
    found = zip(uris, over_quota(wanted, quota, used), strict=True)
    return {mine[n]["key"] for (_, mine), numbers in found for n in numbers}


def by_hand(rows, refused, quota, used):
    pairs = [[row for row in rows[n : n + 2] if row["key"] not in refused] for n in range(0, len(rows), 2)]
    of_cell = defaultdict(list)
    for pair in filter(None, pairs):
        of_cell[cell_by_hand(pair[0])].append(pair)
    lost = set()
    for cell, found in of_cell.items():
        found.sort(key=lambda pair: (-pair[0]["sharpness"], min(row["key"] for row in pair)))
        lost |= {row["key"] for pair in found[max(0, quota - used.get(cell, 0)) :] for row in pair}
    return lost


@pytest.mark.parametrize("few", [10, 10_000])
@pytest.mark.parametrize(("tables", "row_group"), [(1, 10_000), (5, 30)])
def test_the_best_of_each_cell_stay_however_the_tables_are_cut(tmp_path, monkeypatch, few, tables, row_group):
    monkeypatch.setattr(cells, "_FEW", few)
    rows = draw_rows(400)
    refused = {rows[n]["key"] for n in np.random.default_rng(1).choice(len(rows), 150, replace=False)}
    numbers = dict(zip(map(cell_by_hand, rows), cells_of(pa.Table.from_pylist(rows)).tolist(), strict=True))
    assert len(set(numbers.values())) == len(numbers) == 11  # a number a cell, and the same for both directions
    frozen = dict(zip(numbers, (1, 99, 20), strict=False))
    uris = write(rows, tmp_path / "t", tables, row_group)
    lost = beyond(uris, refused, 20, Counter({numbers[cell]: count for cell, count in frozen.items()}))
    assert lost == by_hand(rows, refused, 20, frozen)
    assert 0 < len(lost) < len(rows) - len(refused)
    assert beyond(uris, refused, 10_000, Counter()) == set()


def config(people, **changes):
    base = DataConfig(
        synthetic=SyntheticConfig(anny=AnnyConfig(people=people, images=4, workers=0)),
        analyze=AnalyzeConfig(workers=0),
        pairing=PairingConfig(cell_quota=2),
        split=SplitConfig(val=0.2, test=0.2),
    )
    return base.model_copy(update=changes)


def pairs_by_cell(version):
    """Cell -> pairs that are samples, both directions once."""
    taken = {row["key"] for row in read_manifest(version.uri)}
    pairs = {frozenset([(row["from_part"], row["from_row"]), (row["to_part"], row["to_row"])]): cell_by_hand(row)
             for row in read_candidates(version.uri) if row["key"] in taken}  # fmt: skip
    return Counter(pairs.values())


def test_a_build_keeps_to_its_cells_and_an_extension_counts_on(models, tmp_path):
    free = build_dataset(config(8, name="free", pairing=PairingConfig()), str(tmp_path), models)
    first = build_dataset(config(8), str(tmp_path), models)
    wanted, found = pairs_by_cell(free), pairs_by_cell(first)
    assert max(wanted.values()) > 2 and found == {cell: min(2, count) for cell, count in wanted.items()}
    counts = {row["name"]: row["count"] for row in first.funnel if row["step"] == "candidate pairs"}
    assert counts["rejected: cell quota"] == 2 * (wanted.total() - found.total())
    assert counts["in"] == sum(count for name, count in counts.items() if name != "in")
    second = build_dataset(config(12, name="v2", extends="v1"), str(tmp_path), models)
    together = pairs_by_cell(second)
    assert max(together.values()) <= 2 and together.total() > found.total()
    assert {row["key"] for row in read_manifest(first.uri)} <= {row["key"] for row in read_manifest(second.uri)}
    assert read_base(second.uri, str(tmp_path)).usage.dataset.total() == together.total()
