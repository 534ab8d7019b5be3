"""Forget: takes people, sources or licences out of a build and of every version of it, for good.

Order, so that a kill at any moment leaves something a rerun finishes: (1) the removal is committed to `removals.jsonl`, which every later build reads;
(2) shards that held the person are written anew under new names; (3) manifest and candidates under new names; (4) the index, which publishes the
smaller version; (5) what is no longer named is deleted: old shards, observations, crops, generated images, reports. What was made from the samples elsewhere
in the work folder (text states, edits, pages, pictures of runs) is deleted first, while the versions still say whose they are; it is made anew when needed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.audit import LABELS
from data_pipeline.copies import copies_of
from data_pipeline.duplicates import duplicates_of
from data_pipeline.forget_files import delete_images, delete_observations, sweep_crops, sweep_rewrites
from data_pipeline.forget_labels import keys_that_stay, labelled_keys, labelled_pairs
from data_pipeline.forget_versions import drop_unpublished, read_tombstones, refresh_view, shrink, tidy, versions_of
from data_pipeline.groups import GroupsConfig, backfill, group_digests
from data_pipeline.identities import NAME, AskedGroup
from data_pipeline.published import is_published
from data_pipeline.removals import FILE, Removals, find_removed, hash_name, read_parts
from data_pipeline.replay import drop_replays
from data_pipeline.taken_out import merges_without, read_merges, write_merges
from data_pipeline.versions import drop_empty
from data_pipeline.worklist import read_worklist, write_worklist
from infra.addresses import join
from infra.errors import UserError
from infra.scratch import sweep_scratch
from infra.state import INPUT, read_json, read_rows, reading
from infra.storage import commit, delete, exists, list_files, list_folders, read_bytes, sweep_temporaries
from lato.faces import FaceReader
from lato.faces.identity import RECOGNIZER, SAME_PERSON_THRESHOLD
from lato.pairs import decode_image

PENDING = "forgetting.json"
"""Hashes of the source ids that a removal found, while it runs: what told of them may be deleted before the rest."""
_UNFINISHED = (
    "It names what a removal that was stopped has still to take out: restore it from a copy; or delete it, and forget each of those sources again by "
    "its name (--source)."
)


@dataclass(frozen=True)
class Forgotten:
    """What a removal did."""

    sources: int
    """Of which anything was left, with those of this removal before it was interrupted."""
    samples: dict[str, int]
    """Version -> samples taken out."""
    digests: list[str]
    """All that versions and views of this build ever had before something was removed, now or earlier: runs and models trained on these may have held it."""
    repeated: bool = False
    """Whether all that was asked for had been removed before."""


def forget(
    work: str, source: str | None = None, identity: str | None = None, licence: str | None = None, sources: Sequence[str] = ()
) -> Forgotten:
    """Removes what matches from observations, crops and all versions; run again, it finishes what was interrupted.

    Args:
        work: The build's folder.
        source: Source id; what has the same content, or shows the same clip, goes with whatever is removed.
        identity: Declared person.
        licence: Licence.
        sources: More source ids.

    Raises:
        UserError: Nothing is named, or there is no build.
    """
    if not exists(join(work, "worklist.parquet")):
        raise UserError(f"{work}: no build here (worklist.parquet is missing)")
    names = {*sources, *([source] if source else [])}
    asked: list[tuple[str, str | None]] = [("identity", identity and hash_name(identity)), ("licence", licence)]
    if not names and not any(value for _, value in asked):
        raise UserError("nothing to forget: give --source, --identity, --licence or --photo")
    Removals.read(work)  # nothing is added to a damaged file
    asked += [("source", hash_name(name)) for name in sorted(names | _shown_by_others(work, names, identity, licence))]
    repeated = not _record(work, [{"kind": kind, "value": value} for kind, value in asked if value])
    return replace(apply_removals(work), repeated=repeated)


def _shown_by_others(work: str, names: set[str], identity: str | None, licence: str | None) -> set[str]:
    """Sources with the content of what is to be removed, or that show its clip: they would come in its place."""
    declared = Removals(frozenset(), frozenset({hash_name(identity)} if identity else ()), frozenset({licence} if licence else ()))
    given = set(names)
    if identity or licence:
        given |= find_removed(work, declared, read_worklist(join(work, "worklist.parquet")), versions_of(work, views=False))
    found, folders = set(given), list_folders(join(work, "versions"))
    while more := (duplicates_of(work, found) | copies_of(folders, found)) - found:
        found |= more
    return found - given


def apply_removals(work: str) -> Forgotten:
    """Carries out all recorded removals."""
    sweep_temporaries(work)  # what killed builds and removals left half-written may hold anybody
    sweep_scratch()
    items = read_worklist(join(work, "worklist.parquet"))
    pending, removals = join(work, PENDING), Removals.read(work)
    known = _read_pending(pending)
    found = find_removed(work, removals, items, versions_of(work, views=False))
    lost = Removals(removals.sources | known | {hash_name(name) for name in found}, removals.identities, removals.licences)
    if found:
        commit(pending, json.dumps(sorted(known | {hash_name(name) for name in found})).encode())
    gone = {item.source_id: item for item in items if lost.covers(item.source_id, item.identity, item.licence)}
    _clean_inputs(work, lost, bool(found or known))
    samples = {}
    for folder in versions_of(work, views=False):
        taken = shrink(folder, lost, bool(found or known))
        if taken:
            samples[folder.rsplit("/", 1)[-1]] = taken
        tidy(folder, lost, bool(found or known))
    for folder in versions_of(work, views=True):
        refresh_view(folder, bool(found or known))
    for folder in list_folders(join(work, "versions")):
        if not is_published(folder):
            drop_unpublished(folder, bool(found or known), labelled_pairs(folder, labelled_keys(work)))
    for uri in list_files(join(work, "pairs")):  # scores of whole bundles: made anew from the observations that stay
        delete(uri)
    drop_empty(work)
    delete_observations(work, lost)
    delete_images(work, lost, gone)
    drop_replays(work)
    sweep_crops(work)
    sweep_rewrites(work)
    write_worklist([item for item in items if item.source_id not in gone], join(work, "worklist.parquet"))
    delete(pending)
    return Forgotten(len(known | {hash_name(name) for name in found}), samples, sorted(read_tombstones(work)))


def _read_pending(uri: str) -> frozenset[str]:
    found = read_json(uri, mend=_UNFINISHED) if exists(uri) else []
    with reading(uri, _UNFINISHED):
        if not isinstance(found, list) or not all(isinstance(digest, str) for digest in found):
            raise ValueError("not a list of hashes")
    return frozenset(found)


def sources_like(work: str, photo: str, models: Path) -> list[tuple[str, float]]:
    """Sources of a build that show the person in a photo: those with a face like theirs from where two count as one person, and how much.

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
    identities = AskedGroup.open(NAME, work, digests, config, models, 0)
    alike: dict[str, float] = {}
    for part, source in parts.items():
        best = max((float(np.dot(vector, reading.embedding)) for vector in identities.read(part).values()), default=-1.0)
        if best >= SAME_PERSON_THRESHOLD[RECOGNIZER]:
            alike[source] = max(best, alike.get(source, -1.0))
    return sorted(alike.items(), key=lambda entry: -entry[1])


def _clean_inputs(work: str, removals: Removals, removed: bool) -> None:
    """Takes the removed people out of labels and merges, while the versions still say which keys are theirs, and, where there was anything of them in the
    build (`removed`), what was made of samples."""
    if removed:
        _keep_labels(join(work, LABELS), keys_that_stay(work, removals))
        _clean_derived(work)
    merges = read_merges(work)
    left = merges_without(merges, lambda source: removals.covers(source, None, None))
    if left != merges:
        write_merges(work, left)


def _keep_labels(uri: str, stay: Collection[str]) -> None:
    """Takes the labels of all but some keys out of their file."""
    lines = read_bytes(uri).decode().splitlines() if exists(uri) else []
    rows = read_rows(uri, ("key",), INPUT)
    kept = [line for line, row in zip(lines, rows, strict=True) if row["key"] in stay]
    if kept != lines:
        commit(uri, "".join(f"{line}\n" for line in kept).encode())


def _clean_derived(work: str) -> None:
    """Deletes what stages behind the data made of samples in this folder: they make it anew."""
    pictures = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".html")
    stale = [*_files_below(join(work, "text_states")), *_files_below(join(work, "edits"))]
    stale += [uri for uri in _files_below(join(work, "runs")) if uri.endswith(pictures) or "/failures/" in uri]  # those name samples
    stale += [uri for uri in list_files(work) if uri.endswith((*pictures, "/scores.parquet"))]
    for uri in stale:
        delete(uri)


def _files_below(folder: str) -> list[str]:
    return list_files(folder) + [uri for inner in list_folders(folder) for uri in _files_below(inner)]


def _record(work: str, rows: list[dict[str, Any]]) -> bool:
    """Adds removals to those that there are; whether any is new."""
    uri = join(work, FILE)
    known = read_bytes(uri).decode().splitlines() if exists(uri) else []
    fresh = [line for row in rows if (line := json.dumps(row, sort_keys=True)) not in known]
    if fresh:
        commit(uri, "".join(f"{line}\n" for line in [*known, *fresh]).encode())
    return bool(fresh)
