"""Quotas of the whole dataset: the best pairs of each cell of what all else left; counted in the funnel, and on in a version that extends another."""

from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest

from data_pipeline.build import build_dataset
from data_pipeline.cells import cells_of, over_quota_of_cells
from data_pipeline.config import DataConfig
from data_pipeline.extend import read_base
from data_pipeline.publish import Stopped
from data_pipeline.published import read_manifest
from data_pipeline.rules import PairingConfig
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.split import SplitConfig
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig
from tests.data_pipeline.small import read_candidates


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
        shared = {"source_id": "s", "sharpness": float(rng.integers(0, 4)), "step_pitch": 0, "step_roll": 0}
        ends = {"from_part": f"part{number % 7}", "from_row": 2 * number, "to_part": f"part{number % 7}", "to_row": 2 * number + 1}
        back = {"from_part": ends["to_part"], "from_row": ends["to_row"], "to_part": ends["from_part"], "to_row": ends["from_row"]}
        keys = [f"p_{rng.bytes(10).hex()}" for _ in range(2)]
        rows.append(shared | ends | {"key": keys[0], "from_expression": source, "to_expression": target, "step_yaw": step})
        rows.append(shared | back | {"key": keys[1], "from_expression": target, "to_expression": source, "step_yaw": -step})
    return rows


def by_hand(rows, gone, quota, used, kept=(), good=()):
    """Keys that are refused; a pair of which a direction is kept has been counted."""
    pairs = [[row for row in rows[n : n + 2] if row["key"] not in gone] for n in range(0, len(rows), 2)]
    of_cell = defaultdict(list)
    for pair in pairs:
        if pair and not any(row["key"] in kept for row in pair):
            of_cell[cell_by_hand(pair[0])].append(pair)
    lost = set()
    for cell, found in of_cell.items():
        found.sort(key=lambda pair: (all(row["key"] not in good for row in pair), -pair[0]["sharpness"], min(row["key"] for row in pair)))
        lost |= {row["key"] for pair in found[max(0, quota - used.get(cell, 0)) :] for row in pair}
    return lost


def test_the_best_of_each_cell_stay_in_whatever_order_they_come():
    rows, rng = draw_rows(400), np.random.default_rng(1)
    gone, kept, good = ({rows[n]["key"] for n in rng.choice(len(rows), count, replace=False)} for count in (150, 60, 60))
    kept -= gone
    numbers = dict(zip(map(cell_by_hand, rows), cells_of(pa.Table.from_pylist(rows)).tolist(), strict=True))
    assert len(set(numbers.values())) == len(numbers) == 11  # a number a cell, and the same for both directions
    used = dict(zip(numbers, (1, 99, 20), strict=False))
    counted = Counter({numbers[cell]: count for cell, count in used.items()})
    given = [row for row in rows if row["key"] not in gone]
    lost = over_quota_of_cells(given, counted, kept, good, 20)
    assert lost == by_hand(rows, gone, 20, used, kept, good) != by_hand(rows, gone, 20, used, kept) != by_hand(rows, gone, 20, used)
    assert 0 < len(lost) < len(given) and counted == Counter({numbers[cell]: count for cell, count in used.items()})
    assert over_quota_of_cells([given[n] for n in rng.permutation(len(given))], counted, kept, good, 20) == lost
    assert over_quota_of_cells(given, Counter(), (), (), 10_000) == over_quota_of_cells([], Counter(), (), (), 1) == set()


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
    with pytest.raises(Stopped) as paired:
        build_dataset(config(8), str(tmp_path), models, until="pair")
    first = build_dataset(config(8), str(tmp_path), models)
    wanted, found = pairs_by_cell(free), pairs_by_cell(first)
    assert max(wanted.values()) > 2 and found == {cell: min(2, count) for cell, count in wanted.items()}
    counts = {row["name"]: row["count"] for row in first.funnel if row["step"] == "candidate pairs"}
    assert counts["rejected: cell quota"] == 2 * (wanted.total() - found.total())
    told = {row["name"]: row["count"] for row in paired.value.funnel if row["step"] == "candidate pairs"}
    assert told == counts  # pairing alone says so too
    assert counts["in"] == sum(count for name, count in counts.items() if name != "in")
    second = build_dataset(config(12, name="v2", extends="v1"), str(tmp_path), models)
    together = pairs_by_cell(second)
    assert max(together.values()) <= 2 and together.total() > found.total()
    assert {row["key"] for row in read_manifest(first.uri)} <= {row["key"] for row in read_manifest(second.uri)}
    assert read_base(second.uri, str(tmp_path)).usage.dataset.total() == together.total()
