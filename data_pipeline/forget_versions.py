"""What forgetting does to published versions: shards, manifest, candidates and index without what was removed; digests that stay as tombstones."""

from __future__ import annotations

import json
import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import copies
from data_pipeline.candidates import read_candidate_pieces, shrink_candidates
from data_pipeline.card import card_hashes, write_card
from data_pipeline.divide import CONFLICTS, SHEET
from data_pipeline.extend import COMPONENTS
from data_pipeline.pack import rewrite_shards, sweep
from data_pipeline.published import (
    beside,
    digest_of,
    encode_table,
    is_published,
    licences_of,
    read_index,
    read_manifest,
    read_manifest_table,
    sources_of,
    write_index,
)
from data_pipeline.removals import Removals, hash_name
from data_pipeline.subset import remake_view
from data_pipeline.succession import LABELLED, WITHDRAWN, entomb, read_withdrawn, succeed
from data_pipeline.taken_out import TAKEN_OUT
from data_pipeline.versions import published_in
from infra.addresses import join
from infra.storage import commit, commit_changed, delete, delete_folder, exists, list_files, list_folders, sha256_bytes, sha256_json

_PAGES = ("report.html", CONFLICTS, SHEET, COMPONENTS)
"""Beside a version's shards; they may name whom it showed."""


def shrink(folder: str, removals: Removals, removed: bool) -> int:
    """Publishes a version without what was removed; returns the number of samples taken out. `removed`: whether there was anything of it in the build."""
    index, manifest, lost = read_index(folder), read_manifest(folder), lost_keys(folder, removals)
    stays = {TAKEN_OUT: _keep_taken_out(index, removals)} if TAKEN_OUT in index else {}
    keep = [row for row in manifest if row["key"] not in lost]
    revision = _next_revision(index)
    candidates = f"candidates.r{revision}.parquet"
    if len(keep) == len(manifest):
        fresh = (entomb(index) if removed else index) | stays
        smaller = shrink_candidates(folder, lost, candidates)
        if smaller:  # refused pairs name people too; samples and digest stay
            fresh = fresh | {"candidates": candidates, "revision": revision}
        fresh = _with_files(fresh, index, folder, smaller, removals, removed)
        if fresh != index:
            write_index(folder, fresh)
        return 0
    left = {row["key"] for row in keep}
    touched = {row["shard"] for row in manifest if row["key"] not in left}
    shards, rows = rewrite_shards(folder, folder, keep, touched, f"r{revision}")
    manifest_name = f"manifest.r{revision}.parquet"
    data = encode_table(sorted(rows, key=lambda row: (row["shard"], row["key"])), read_manifest_table(folder).schema)
    commit(join(folder, manifest_name), data)
    smaller = shrink_candidates(folder, lost, candidates)
    changed = {
        "shards": shards,
        "manifest": manifest_name,
        "manifest_sha256": sha256_bytes(data),
        "samples": len(rows),
        "revision": revision,
    }
    if smaller:
        changed["candidates"] = candidates
    fresh = {name: value for name, value in index.items() if name != "replaced"} | changed | stays | entomb(succeed(index, None))
    fresh["digest"] = digest_of(fresh)
    fresh = _with_files(fresh, index, folder, smaller, removals, removed)
    if "files" in fresh:
        fresh["files"] |= card_hashes(fresh, data, None)  # what tied its sources goes too
    write_index(folder, fresh)
    return len(manifest) - len(keep)


def _keep_taken_out(index: dict[str, Any], removals: Removals) -> dict[str, Any]:
    """What an index remembers of samples that an extension took out, without whom was removed: where another source stays of one, that it lost samples."""
    left: dict[str, Any] = {}
    for key, (verdict, split, names) in index[TAKEN_OUT].items():
        stay = [name for name in names if not removals.covers(name, None, None)]
        if stay == list(names):
            left[key] = [verdict, split, names]
        elif stay:
            left[f"rest_{sha256_json([verdict, split, stay])[:20]}"] = [
                verdict,
                split,
                stay,
            ]  # the pair's own key would tell of whom was removed
    return left


def _next_revision(index: dict[str, Any]) -> int:
    """The number in the names of what is written anew: higher than all that the index names, so that no file is written over that it still needs.

    An index without a revision may name revised shards: those of a version that it extends.
    """
    names = [*(shard["name"] for shard in index["shards"]), index["manifest"], index.get("candidates") or ""]
    return 1 + max(index.get("revision", 0), *(int(number) for name in names for number in re.findall(r"\.r(\d+)\.", name)), 0)


def lost_keys(folder: str, removals: Removals) -> set[str]:
    """Keys of a version's samples and refused pairs of which either end was removed; candidates name the targets that older manifests do not."""
    lost = {
        row["key"]
        for row in read_manifest(folder)
        if any(removals.covers(name, row["identity"], None) for name in sources_of(row)) or licences_of(row) & removals.licences
    }
    for piece in read_candidate_pieces(folder, ["key", "source_id", "target_id", "person", "licence"]):
        gone = pc.is_in(piece["licence"], pa.array(sorted(removals.licences), pa.string()))
        for name in ("source_id", "target_id", "person"):
            hashes = removals.identities if name == "person" else removals.sources
            theirs = [value for value in piece[name].unique().to_pylist() if value is not None and hash_name(value) in hashes]
            gone = pc.or_(gone, pc.is_in(piece[name], pa.array(theirs, pa.string())))
        lost.update(piece["key"].filter(gone).to_pylist())
    return lost


def _with_files(
    fresh: dict[str, Any], index: dict[str, Any], folder: str, smaller: str | None, removals: Removals, removed: bool
) -> dict[str, Any]:
    """An index whose list of files is that of what will lie there: smaller candidates in place of those before, and what `tidy` leaves."""
    if "files" not in index:  # an earlier LaTo did not list them
        return fresh
    gone = {copies.FILE} | ({index["candidates"]} if smaller else set())
    gone |= set(_PAGES) if removed or fresh.get("revision") else set()
    files = {name: digest for name, digest in index["files"].items() if name not in gone}
    files |= copies.hash_copies(copies.keep_copies(folder, removals))
    return fresh | {"files": files | ({fresh["candidates"]: smaller} if smaller else {})}


def tidy(folder: str, removals: Removals, removed: bool) -> None:
    """Deletes what a version's index no longer names, and pages and lists that may name whom it showed."""
    copies.forget_copies(folder, removals)
    index = read_index(folder)
    if not (index.get("revision") or removed):
        return
    sweep(folder)
    stale = [uri for uri in list_files(folder, ".parquet") if uri.rsplit("/", 1)[-1] not in (index["manifest"], index.get("candidates"))]
    for uri in [*stale, *(join(folder, name) for name in _PAGES)]:
        delete(uri)
    write_card(folder)


def versions_of(work: str, views: bool) -> list[str]:
    """Folders of published versions, or of views."""
    return [folder for folder in published_in(work) if ("view_of" in read_index(folder)) == views]


def drop_unpublished(folder: str, removed: bool, labelled: dict[str, list[str]]) -> None:
    """Deletes what a build left that was killed before it published: it is made anew. Of a version that it was replacing the digests stay, and whose its labelled
    pairs are (`forget_labels.labelled_pairs`)."""
    withdrawn = join(folder, WITHDRAWN)
    if not exists(withdrawn):
        delete_folder(folder)
        return
    kept = read_withdrawn(folder)
    kept = (entomb(kept) if removed else kept) | ({LABELLED: labelled} if labelled else {})
    commit_changed(withdrawn, json.dumps(kept, sort_keys=True).encode())
    for inner in list_folders(folder):
        delete_folder(inner)
    for uri in list_files(folder):
        if uri != withdrawn:
            delete(uri)


def read_tombstones(work: str) -> set[str]:
    """Of all versions and views, those that are being replaced too."""
    indexes = [*map(read_index, published_in(work)), *map(read_withdrawn, list_folders(join(work, "versions")))]
    return {digest for index in indexes for digest in index.get("tombstones", [])}


def refresh_view(folder: str, removed: bool) -> None:
    """A view of a version that shrank is made again; one of which nothing is left stays as a tombstone without samples."""
    index = read_index(folder)
    version = beside(folder, index["view_of"])
    there = is_published(version)
    if (there and index["parent"] != read_index(version)["digest"]) or (not there and index["samples"]):
        remake_view(folder)
    elif removed and "replaced" in index:
        write_index(folder, entomb(index))
