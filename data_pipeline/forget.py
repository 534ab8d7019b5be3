"""Forget: takes people, sources or licences out of a build and of every version of it, for good.

Order, so that a kill at any moment leaves something a rerun finishes: (1) the removal is committed to `removals.jsonl`, which every later build reads;
(2) shards that held the person are written anew under new names; (3) manifest and candidates under new names; (4) the index, which publishes the
smaller version; (5) what is no longer named is deleted: old shards, observations, crops, generated images, reports. What was made from the samples elsewhere
in the work folder (text states, edits, pages, pictures of runs) is deleted first, while the versions still say whose they are; it is made anew when needed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.attempts import clear_attempts
from data_pipeline.audit import LABELS
from data_pipeline.candidates import read_candidates, read_candidates_table
from data_pipeline.card import write_card
from data_pipeline.extend import MERGES
from data_pipeline.groups import GroupsConfig, backfill, group_digests
from data_pipeline.identities import NAME, Identities
from data_pipeline.image_set import read_image_set
from data_pipeline.observations import part_uri, read_columns
from data_pipeline.pack import (
    beside,
    encode_table,
    licences_of,
    read_index,
    read_manifest,
    read_manifest_table,
    rewrite_shards,
    sources_of,
    sweep,
)
from data_pipeline.removals import FILE, Removals, find_removed, hash_name, read_parts, read_sets
from data_pipeline.sources import drop_staged
from data_pipeline.subset import remake_view
from data_pipeline.worklist import WorkItem, read_worklist, write_worklist
from infra.errors import UserError
from infra.state import DERIVED, INPUT, read_json, read_rows
from infra.storage import (
    commit,
    commit_changed,
    delete,
    delete_folder,
    exists,
    join,
    list_files,
    list_folders,
    read_bytes,
    sha256_bytes,
    sha256_json,
)
from lato.faces import FaceReader
from lato.pairs import decode_image

PENDING = "forgetting.json"
"""Hashes of the source ids that a removal found, while it runs: what told of them may be deleted before the rest."""


@dataclass(frozen=True)
class Forgotten:
    """What a removal did."""

    sources: int
    samples: dict[str, int]
    """Version -> samples taken out."""
    digests: list[str]
    """All that versions and views of this build ever had before something was removed: runs and models trained on these may have held the data."""


def forget(
    work: str, source: str | None = None, identity: str | None = None, licence: str | None = None, sources: Sequence[str] = ()
) -> Forgotten:
    """Removes what matches from observations, crops and all versions; run again, it finishes what was interrupted.

    Args:
        work: The build's folder.
        source: Source id.
        identity: Declared person.
        licence: Licence.
        sources: More source ids.

    Raises:
        UserError: Nothing is named, or there is no build.
    """
    if not exists(join(work, "worklist.parquet")):
        raise UserError(f"{work}: no build here (worklist.parquet is missing)")
    asked: list[tuple[str, str | None]] = [("source", hash_name(name)) for name in sources]
    asked += [("source", source and hash_name(source)), ("identity", identity and hash_name(identity)), ("licence", licence)]
    if not any(value for _, value in asked):
        raise UserError("nothing to forget: give --source, --identity, --licence or --photo")
    Removals.read(work)  # nothing is added to a damaged file
    _record(work, [{"kind": kind, "value": value} for kind, value in asked if value])
    return apply_removals(work)


def apply_removals(work: str) -> Forgotten:
    """Carries out all recorded removals."""
    items = read_worklist(join(work, "worklist.parquet"))
    pending, removals = join(work, PENDING), Removals.read(work)
    known = frozenset(json.loads(read_bytes(pending)) if exists(pending) else [])
    found = find_removed(work, removals, items, _versions(work, views=False))
    lost = Removals(removals.sources | known | {hash_name(name) for name in found}, removals.identities, removals.licences)
    if found:
        commit(pending, json.dumps(sorted(known | {hash_name(name) for name in found})).encode())
    gone = {item.source_id: item for item in items if lost.covers(item.source_id, item.identity, item.licence)}
    _clean_inputs(work, lost)
    samples = {}
    for folder in _versions(work, views=False):
        taken = _shrink(folder, lost)
        if taken:
            samples[folder.rsplit("/", 1)[-1]] = taken
        _sweep(folder, bool(found or known))
    for folder in _versions(work, views=True):
        _remake_view(folder)
    for folder in list_folders(join(work, "versions")):  # of a build that was killed before it published: made anew
        if not exists(join(folder, "index.json")):
            delete_folder(folder)
    for uri in list_files(join(work, "pairs")):  # scores of whole bundles: made anew from the observations that stay
        delete(uri)
    _delete_observations(work, lost)
    _delete_images(work, lost, gone)
    _sweep_crops(work)
    write_worklist([item for item in items if item.source_id not in gone], join(work, "worklist.parquet"))
    digests = {
        digest for views in (False, True) for folder in _versions(work, views) for digest in read_index(folder).get("tombstones", [])
    }
    delete(pending)
    return Forgotten(len(found), samples, sorted(digests))


def sources_like(work: str, photo: str, models: Path, similarity: float = 0.45) -> list[tuple[str, float]]:
    """Sources of a build that show the person in a photo: those with a face whose identity vector is that alike, and how much.

    Raises:
        UserError: The photo cannot be read, or no face is found in it.
    """
    try:
        picture = decode_image(read_bytes(photo), photo)
    except (OSError, ValueError) as error:
        raise UserError(f"{photo}: cannot be read as a picture ({error})") from error
    reading = FaceReader.from_folder(models).read(picture)
    if reading is None:
        raise UserError(f"{photo}: no face is found in it")
    parts = {part: source for part, source, _, _ in read_parts(work)}  # of all work lists and settings there ever were
    config = GroupsConfig(names=(NAME,))  # the recognizer that read the photo, whichever the build used
    digests = group_digests(models, config)
    backfill(list(parts), digests, config, models, work, 0)  # a build computes identity only where a pair needs it
    identities = Identities.open(work, digests, config, models, 0)
    alike: dict[str, float] = {}
    for part, source in parts.items():
        best = max((float(np.dot(vector, reading.embedding)) for vector in identities.read(part).values()), default=-1.0)
        if best >= similarity:
            alike[source] = max(best, alike.get(source, -1.0))
    return sorted(alike.items(), key=lambda entry: -entry[1])


def _clean_inputs(work: str, removals: Removals) -> None:
    """Takes the removed people out of labels and merges, while the versions still say which keys are theirs."""
    keys = {key for folder in _versions(work, views=False) for key in _lost_keys(folder, removals)}
    for name in (LABELS, MERGES):  # of keys, of source ids
        uri = join(work, name)
        lines = read_bytes(uri).decode().splitlines() if exists(uri) else []
        rows = zip(lines, read_rows(uri, (), INPUT), strict=True)
        values = {line: [value for value in row.values() if isinstance(value, str)] for line, row in rows}
        kept = [line for line in lines if not any(value in keys or removals.covers(value, None, None) for value in values[line])]
        if kept != lines:
            commit(uri, "".join(f"{line}\n" for line in kept).encode())
    if keys:
        _clean_derived(work)


def _clean_derived(work: str) -> None:
    """Deletes what stages behind the data made of samples in this folder: they make it anew."""
    pictures = (".png", ".jpg", ".jpeg", ".html")
    stale = [*_files_below(join(work, "text_states")), *_files_below(join(work, "edits"))]
    stale += [uri for uri in _files_below(join(work, "runs")) if uri.endswith(pictures)]
    stale += [uri for uri in list_files(work) if uri.endswith((*pictures, "/scores.parquet"))]
    for uri in stale:
        delete(uri)


def _files_below(folder: str) -> list[str]:
    return list_files(folder) + [uri for inner in list_folders(folder) for uri in _files_below(inner)]


def _read_ledger(work: str) -> list[dict[str, Any]]:
    return read_rows(join(work, "ledger.jsonl"), ("source_id",), DERIVED)


def _record(work: str, rows: list[dict[str, Any]]) -> None:
    uri = join(work, FILE)
    known = read_bytes(uri).decode().splitlines() if exists(uri) else []
    lines = [json.dumps(row, sort_keys=True) for row in rows]
    commit(uri, "".join(f"{line}\n" for line in [*known, *(line for line in lines if line not in known)]).encode())


def _shrink(folder: str, removals: Removals) -> int:
    """Publishes a version without what was removed; returns the number of samples taken out."""
    index, manifest, lost = read_index(folder), read_manifest(folder), _lost_keys(folder, removals)
    keep = [row for row in manifest if row["key"] not in lost]
    revision = index.get("revision", 0) + 1
    if len(keep) == len(manifest):
        if _shrink_candidates(folder, lost, revision):  # refused pairs name people too; samples and digest stay
            fresh = index | {"candidates": f"candidates.r{revision}.parquet", "revision": revision}
            commit(join(folder, "index.json"), json.dumps(fresh, indent=1, sort_keys=True).encode())
        return 0
    left = {row["key"] for row in keep}
    touched = {row["shard"] for row in manifest if row["key"] not in left}
    shards, rows = rewrite_shards(folder, folder, keep, touched, f"r{revision}")
    manifest_name = f"manifest.r{revision}.parquet"
    data = encode_table(sorted(rows, key=lambda row: (row["shard"], row["key"])), read_manifest_table(folder).schema)
    commit(join(folder, manifest_name), data)
    has_candidates = _shrink_candidates(folder, lost, revision)
    changed = {
        "shards": shards,
        "manifest": manifest_name,
        "manifest_sha256": sha256_bytes(data),
        "samples": len(rows),
        "revision": revision,
    }
    if has_candidates:
        changed["candidates"] = f"candidates.r{revision}.parquet"
    fresh = index | changed | {"tombstones": [*index.get("tombstones", []), index["digest"]]}
    fresh["digest"] = sha256_json({"shards": shards, "manifest": fresh["manifest_sha256"]})
    commit(join(folder, "index.json"), json.dumps(fresh, indent=1, sort_keys=True).encode())
    return len(manifest) - len(keep)


def _lost_keys(folder: str, removals: Removals) -> set[str]:
    """Keys of a version's samples and refused pairs of which either end was removed; candidates name the targets that older manifests do not."""
    lost = set()
    for row in [*read_manifest(folder), *read_candidates(folder)]:
        person = row.get("identity") or row.get("person")
        if any(removals.covers(name, person, None) for name in sources_of(row)) or licences_of(row) & removals.licences:
            lost.add(row["key"])
    return lost


def _shrink_candidates(folder: str, lost: set[str], revision: int) -> bool:
    """Writes the candidates without what was removed, where they hold any of it; whether they do."""
    table = read_candidates_table(folder)
    kept = [row for row in table.to_pylist() if row["key"] not in lost]
    if len(kept) == len(table):
        return False
    commit(join(folder, f"candidates.r{revision}.parquet"), encode_table(kept, table.schema))
    return True


def _sweep(folder: str, removed: bool) -> None:
    """Deletes what a version's index no longer names, and pages and lists that may name whom it showed."""
    index = read_index(folder)
    if not (index.get("revision") or removed):
        return
    sweep(folder)
    stale = [uri for uri in list_files(folder, ".parquet") if uri.rsplit("/", 1)[-1] not in (index["manifest"], index["candidates"])]
    for uri in [*stale, *(join(folder, name) for name in ("report.html", "conflicts.json", "conflicts.jpg", "components.json"))]:
        delete(uri)
    write_card(folder)


def _versions(work: str, views: bool) -> list[str]:
    """Folders of published versions, or of views."""
    published = [folder for folder in list_folders(join(work, "versions")) if exists(join(folder, "index.json"))]
    return [folder for folder in published if ("view_of" in read_index(folder)) == views]


def _remake_view(folder: str) -> None:
    """A view of a version that shrank is made again; one of which nothing is left stays as a tombstone without samples."""
    index = read_index(folder)
    version = beside(folder, index["view_of"])
    there = exists(join(version, "index.json"))
    if (there and index["parent"] != read_index(version)["digest"]) or (not there and index["samples"]):
        remake_view(folder)


def _sweep_crops(work: str) -> None:
    """Deletes the crops that no version's candidates name any more."""
    named: set[str] = set()
    for folder in _versions(work, views=False):
        named.update(name for row in read_candidates(folder) for name in row["rendered"])
    for uri in list_files(join(work, "renders")):
        if uri.rsplit("/", 1)[-1] not in named:
            delete(uri)


def _delete_observations(work: str, lost: Removals) -> None:
    """Deletes parts, those that later settings superseded too, attempts, content hashes and ledger rows of removed sources."""
    parts = [part for part, source, identity, _ in read_parts(work) if lost.covers(source, identity, None)]
    _delete_hashes(work, parts)
    clear_attempts(work)
    gone = set(parts)
    for columns in list_folders(join(work, "columns")):
        for uri in list_files(columns):
            if uri.rsplit("/", 1)[-1].split("-")[0] in gone:  # `column_uri`: the part's fingerprint comes first
                delete(uri)
    for part in parts:
        delete(part_uri(work, part))
    uri = join(work, "ledger.jsonl")
    kept = [row for row in _read_ledger(work) if not lost.covers(row["source_id"], None, None)]
    commit(uri, "".join(json.dumps(row, sort_keys=True) + "\n" for row in kept).encode())


def _delete_hashes(work: str, parts: list[str]) -> None:
    """Takes the content hashes of removed sources, as far as faces were seen in them, out of the file that keeps them."""
    uri = join(work, "contents.json")
    if not exists(uri):
        return
    contents = {value for part in parts for value in read_columns(work, part, ["source_sha256"])["source_sha256"].to_pylist()}
    commit_changed(uri, json.dumps({k: v for k, v in read_json(uri).items() if v not in contents}, sort_keys=True).encode())


def _delete_images(work: str, lost: Removals, gone: dict[str, WorkItem]) -> None:
    """Deletes generated sets of removed sources, whichever settings made them, with records and images, and staged copies; the user's own files stay."""
    theirs = {uri for uri, source in read_sets(work) if lost.covers(source, None, None)}
    for item in gone.values():
        drop_staged(item.uri)
        if item.uri.startswith(join(work, "synthetic", "")):  # made by this build, not the user's own file
            theirs.add(item.uri)
    sets = {uri.rsplit("/", 1)[-1] for uri in theirs}
    for uri in list_files(join(work, "synthetic"), ".json"):  # which set was made of which photo
        made = json.loads(read_bytes(uri))
        if isinstance(made, dict) and made.get("set") in sets:
            delete(uri)
    stay = {image.uri for uri, _ in read_sets(work) if uri not in theirs for image in read_image_set(uri).images}
    for uri in sorted(theirs):
        if uri.endswith(".json"):
            for image in read_image_set(uri).images if exists(uri) else []:
                if image.uri not in stay:
                    delete(image.uri)
        delete(uri)
