"""Commands on a version with many candidates: `python -m tests.data_pipeline.many_candidates WORK ROWS` prints how many MB each took at most (on
Linux).

All columns of these rows take 4 to 5 KB each as Python values, so that a command that reads them so is seen at once.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.audit import _Page, choose
from data_pipeline.candidates import SCHEMA
from data_pipeline.extend import read_base
from data_pipeline.forget import forget
from data_pipeline.report_pairs import rejected_pairs
from data_pipeline.report_repeats import Sampled
from data_pipeline.rules import LIMITS, PairingConfig
from data_pipeline.sheet import Sources
from data_pipeline.why import why
from data_pipeline.worklist import item_for, write_worklist
from tests.training.versions import publish

SAMPLES = 6
_GROUP = 2_000
_VERDICTS = ["accepted", "no edit of ours", "near-duplicate", *LIMITS]


def write_version(work: Path, rows: int) -> str:
    """A version of `SAMPLES` samples, of the sources s0, s1, ..., and of `rows` candidates, 50 a source, of which the first became these samples."""
    folder = work / "versions/v1"
    publish(str(folder), {"train": SAMPLES}, per_shard=3)
    with pq.ParquetWriter(folder / "candidates.parquet", SCHEMA, compression="zstd") as writer:
        for start in range(0, rows, _GROUP):
            writer.write_table(_candidates(np.arange(start, min(start + _GROUP, rows))), row_group_size=_GROUP)
    items = []
    for name in ("s0", "s1", "s1000"):
        (work / f"{name}.jpg").write_bytes(b"")
        items.append(item_for(str(work / f"{name}.jpg"), licence="test"))
    write_worklist(items, str(work / "worklist.parquet"))
    (work / "ledger.jsonl").write_text(
        "".join(json.dumps({"source_id": item.source_id, "status": "ok", "parts": []}) + "\n" for item in items)
    )
    return str(folder)


def _candidates(numbers: np.ndarray) -> pa.Table:
    samples = numbers < SAMPLES
    sources = np.where(samples, [f"s{n}" for n in numbers], [f"s{n // 50 + 1000}" for n in numbers]).tolist()
    given = {
        "key": np.where(samples, [f"k{n:04d}" for n in numbers], [f"p_{n:020d}" for n in numbers]).tolist(),
        "source_id": sources,
        "target_id": sources,
        "person": [f"{name}/0" for name in sources],
        "verdict": np.where(samples, "accepted", [_VERDICTS[n % len(_VERDICTS)] for n in numbers]).tolist(),
        "edit": ["happy"] * len(numbers),
        "split": [*np.where(samples, "train", None)],
        "licence": ["test"] * len(numbers),
        "kind": ["video"] * len(numbers),
        **{f"{side}_expression": [word] * len(numbers) for side, word in (("from", "neutral"), ("to", "happy"))},
        "rendered": [[f"{n}.jpg"] if n < SAMPLES else [] for n in numbers],
        **{name: [0] * len(numbers) for name in SCHEMA.names if name.startswith("step_")},
    }
    columns = []
    for column in SCHEMA:
        if column.name in given:
            columns.append(pa.array(given[column.name], column.type))
        elif pa.types.is_list(column.type):
            columns.append(pa.array([[1.0, 2.0, 3.0]] * len(numbers), column.type))
        elif pa.types.is_string(column.type):
            columns.append(pa.array([f"{column.name} {n}" for n in numbers]))
        else:
            columns.append(pa.array(numbers % 2 if pa.types.is_boolean(column.type) else numbers % 90).cast(column.type))
    return pa.table(columns, SCHEMA)


def main() -> None:
    """Runs the commands, one after another."""
    work, rows = Path(sys.argv[1]), int(sys.argv[2])
    folder = write_version(work, rows)
    steps = {
        "report": lambda: (rejected_pairs(folder, Sources(str(work)), PairingConfig()), Sampled(folder, str(work))),
        "why": lambda: (why(f"p_{rows - 1:020d}", str(work)), why("s1000", str(work))),
        "audit": lambda: _Page(str(work), "v1", {}, choose(str(work), "v1", 5, 0), 0),
        "extend": lambda: read_base(folder, str(work)),
        "forget somebody refused": lambda: forget(str(work), source="s1000"),
        "forget somebody with a sample": lambda: forget(str(work), source="s1"),
    }
    print(json.dumps({name: _took(step) for name, step in steps.items()}))


def _took(step: Callable[[], object]) -> int:
    pa.default_memory_pool().release_unused()
    Path("/proc/self/clear_refs").write_text("5")  # the most that was held is counted anew from here (Linux)
    before = _held("VmRSS")
    step()
    return _held("VmHWM") - before


def _held(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) // 1024


if __name__ == "__main__":
    main()
