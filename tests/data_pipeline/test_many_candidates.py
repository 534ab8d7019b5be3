"""What reads the candidates of a version holds few of them: there may be ten millions."""

import json
import subprocess
import sys
import tracemalloc
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.candidates import find_candidates, shrink_candidates
from data_pipeline.diff import _reasons
from data_pipeline.forget_versions import lost_keys
from data_pipeline.removals import Removals, hash_name
from data_pipeline.tables import read_pieces, take_rows
from infra.errors import UserError
from tests.alone import alone
from tests.data_pipeline.many_candidates import write_version

ROWS, MOST = 80_000, 30
"""MB: as Python values, all columns of these rows take 320, and those that an extension reads 60."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what was held")
def test_no_command_holds_all_candidates_at_once(tmp_path):
    command = [sys.executable, "-m", "tests.data_pipeline.many_candidates", str(tmp_path), str(ROWS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    took = json.loads(done.stdout.splitlines()[-1])
    assert {name: most for name, most in took.items() if most > MOST} == {}


def reasons_and_memory(folder, keys):
    _reasons(folder, keys)  # loads libraries, which are not counted
    tracemalloc.start()
    return _reasons(folder, keys), tracemalloc.get_traced_memory()[1]


def test_the_reasons_of_a_diff_are_looked_up_a_piece_at_a_time(tmp_path):
    folder = write_version(tmp_path, 10_000)
    found, most = alone(reasons_and_memory, folder, ["k0000", f"p_{6:020d}", f"p_{9_999:020d}", "unknown"])
    rows = find_candidates(folder, ["key"], lambda piece: np.isin(piece["key"], [f"p_{6:020d}", f"p_{9_999:020d}"]))
    assert found == Counter(["accepted", *(row["verdict"] for row in rows), "no longer a candidate"]) and len(rows) == 2
    assert most < 1_000_000  # all keys and verdicts as Python values take 3.6 MB


def test_rows_are_taken_by_number_from_any_row_group(tmp_path):
    uri = str(tmp_path / "t.parquet")
    pq.write_table(pa.table({"a": range(10), "b": [str(n) for n in range(10)]}), uri, row_group_size=3)
    for wanted in ([], [9, 0, 4, 3], [5], [2, 2, 0]):
        assert take_rows(uri, np.array(wanted, np.int64)).to_pylist() == [{"a": n, "b": str(n)} for n in wanted]
    with pytest.raises(UserError, match=r"t\.parquet is damaged .*no_such"):
        list(read_pieces(uri, ["a", "no_such"]))


def test_whoever_is_removed_is_found_by_either_end_person_and_licence(tmp_path):
    folder = write_version(tmp_path, 300)
    nobody = Removals(frozenset(), frozenset(), frozenset())
    everybody = {row["key"] for row in find_candidates(folder, ["key"], lambda piece: np.ones(len(piece), np.bool_))}
    theirs = {f"p_{n:020d}" for n in range(50, 100)}
    assert len(everybody) == 300 and theirs < everybody
    assert lost_keys(folder, nobody) == set()
    assert lost_keys(folder, Removals(frozenset({hash_name("s1001")}), frozenset(), frozenset())) == theirs
    assert lost_keys(folder, Removals(frozenset(), frozenset({hash_name("s1001/0")}), frozenset())) == theirs
    assert lost_keys(folder, Removals(frozenset(), frozenset({hash_name("p2")}), frozenset())) == {"k0002"}  # whom the manifest names
    assert lost_keys(folder, Removals(frozenset(), frozenset(), frozenset({"test"}))) == everybody
    assert shrink_candidates(folder, {"nobody"}, "fewer.parquet") is None and not (tmp_path / "versions/v1/fewer.parquet").exists()
    assert shrink_candidates(folder, theirs, "fewer.parquet")
    before, after = (pq.read_table(f"{folder}/{name}.parquet") for name in ("candidates", "fewer"))
    assert after.schema == before.schema
    assert after.to_pylist() == [row for row in before.to_pylist() if row["key"] not in theirs]
    shrink_candidates(folder, everybody, "none.parquet")
    assert pq.read_table(f"{folder}/none.parquet").schema == before.schema and pq.read_metadata(f"{folder}/none.parquet").num_rows == 0
