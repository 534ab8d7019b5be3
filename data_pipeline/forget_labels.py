"""Labels after a removal: those of the removed go, and those of pairs of which nothing says any more whose they were.

A version whose replacement was killed still says so: a table of candidates lies there, the one before or the new one, which goes with the next removal. Until the
build is run again, its withdrawn index keeps the ends of the pairs that have labels.
"""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.audit import LABELS
from data_pipeline.candidates import named_keys
from data_pipeline.forget_versions import lost_keys, versions_of
from data_pipeline.published import CANDIDATES, read_manifest
from data_pipeline.removals import Removals, hash_name
from data_pipeline.succession import read_labelled
from data_pipeline.tables import read_pieces
from infra.addresses import join
from infra.state import INPUT, PUBLISHED, read_rows
from infra.storage import list_files, list_folders

_ENDS = ("source_id", "target_id")


def labelled_keys(work: str) -> set[str]:
    """Keys of all pairs that have a label."""
    return {row["key"] for row in read_rows(join(work, LABELS), ("key",), INPUT)}


def keys_that_stay(work: str, removals: Removals) -> set[str]:
    """Those of them that stay when somebody is removed."""
    labelled = labelled_keys(work)
    named, lost = set[str](), set[str]()
    for folder in versions_of(work, views=False):
        named |= named_keys(folder, labelled) | {row["key"] for row in read_manifest(folder)}
        lost |= lost_keys(folder, removals)
    for folder in list_folders(join(work, "versions")):
        for key, ends in labelled_pairs(folder, labelled).items():
            (lost if removals.sources.intersection(ends) else named).add(key)
    return (labelled & named) - lost


def labelled_pairs(folder: str, labelled: Collection[str]) -> dict[str, list[str]]:
    """Key -> hashes of the source ids of both ends, of the labelled pairs that a version is known to have had that is being replaced."""
    found = {key: ends for key, ends in read_labelled(folder).items() if key in labelled}
    wanted = pa.array(sorted(labelled), pa.string())
    for uri in list_files(folder, ".parquet") if labelled else ():
        if uri.rsplit("/", 1)[-1].split(".")[0] == CANDIDATES.split(".")[0]:  # a removal numbers its own
            for piece in read_pieces(uri, ["key", *_ENDS], PUBLISHED):
                for row in piece.filter(pc.is_in(piece["key"], wanted)).to_pylist():
                    found[row["key"]] = sorted({hash_name(row[end]) for end in _ENDS})
    return found
