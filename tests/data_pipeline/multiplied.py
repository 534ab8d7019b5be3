"""A finished build of drawn people, multiplied: other people and sources, of the same pictures, so that what follows looking at them has much to do."""

import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.accept import Plan
from data_pipeline.ledger import Ledger
from data_pipeline.observe import observe


def multiply(config, work, models, times, target):
    """The plan of a version in the folder `target` of so many times the people of the build in `work`; their crops are cut already."""
    observed = observe(config, str(work), models)
    items, rows = {}, []
    (target / "parts").mkdir(parents=True)
    (target / "renders").symlink_to(Path(work) / "renders")
    for row in observed.ledger.usable():
        item = observed.items[row["source_id"]]
        for number in range(times):
            name = f"{item.source_id}_{number}"
            items[name] = item.model_copy(
                update={"source_id": name, "identity": f"{item.identity}_{number}", "uri": f"{item.uri}.{number}", "attributes": {}}
            )
            parts = [_copy_part(Path(work), part, number, items[name], target) for part in row["parts"]]
            rows.append(row | {"source_id": name, "parts": parts, "content": name})
    asked = [replace(group, work=str(target)) if group else None for group in (observed.identities, observed.writing)]
    for group in asked:
        if group:
            group._list()
    many = replace(observed, items=items, ledger=Ledger(rows), identities=asked[0], writing=asked[1])
    return Plan(config, many, None, {}, frozenset(), [], [], str(target), str(target / "versions/v1"), "x")


def _copy_part(work, part, number, item, target):
    copy = f"{part[:56]}{number:08d}"
    table = pq.read_table(work / f"parts/{part}.parquet")
    for column, value in (("source_id", item.source_id), ("identity", item.identity)):
        place = table.schema.get_field_index(column)
        table = table.set_column(place, table.schema.field(place), pa.array([value] * len(table), pa.string()))
    pq.write_table(table, target / f"parts/{copy}.parquet")
    for file in (work / "columns").glob(f"*/{part}*"):
        to = target / "columns" / file.parent.name / file.name.replace(part, copy)
        to.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, to)
    return copy
