"""What forgetting deletes beside the versions: observations, columns, hashes, generated pictures, crops."""

from __future__ import annotations

import json

import pyarrow.compute as pc

from data_pipeline.attempts import clear_attempts
from data_pipeline.candidates import read_candidate_pieces
from data_pipeline.forget_versions import versions_of
from data_pipeline.groups import delete_columns
from data_pipeline.image_set import read_image_set
from data_pipeline.observations import part_uri, read_columns
from data_pipeline.published import read_manifest
from data_pipeline.removals import Removals, read_parts, read_sets
from data_pipeline.sources import PIECES
from data_pipeline.staging import drop_staged
from data_pipeline.worklist import WorkItem
from infra.addresses import join
from infra.state import DERIVED, read_json, read_rows
from infra.storage import commit, commit_changed, delete, exists, list_files


def sweep_crops(work: str) -> None:
    """Deletes the crops that no version's candidates name any more."""
    named: set[str] = set()
    for folder in versions_of(work, views=False):
        for piece in read_candidate_pieces(folder, ["rendered"]):
            named.update(pc.list_flatten(piece["rendered"]).to_pylist())
    for uri in list_files(join(work, "renders")):
        if uri.rsplit("/", 1)[-1] not in named:
            delete(uri)


def sweep_rewrites(work: str) -> None:
    """Deletes what a model answered for samples that no version has any more: it was shown their sources, and may say who that was."""
    answers = list_files(join(work, "rewrites"))
    named = {row["key"] for folder in versions_of(work, views=False) for row in read_manifest(folder)} if answers else set()
    for uri in answers:
        if uri.rsplit("/", 1)[-1].split(".")[0] not in named:
            delete(uri)


def delete_observations(work: str, lost: Removals) -> None:
    """Deletes parts, those that later settings superseded too, attempts, content hashes and ledger rows of removed sources, and the rows of their
    duplicates, which name them: the next build gives these a verdict of their own."""
    parts = [part for part, source, identity, _ in read_parts(work) if lost.covers(source, identity, None)]
    _delete_hashes(work, parts)
    clear_attempts(work)
    delete_columns(work, set(parts))
    for part in parts:
        delete(part_uri(work, part))
    uri = join(work, "ledger.jsonl")
    rows = read_rows(uri, ("source_id",), DERIVED)
    kept = [row for row in rows if not any(lost.covers(name, None, None) for name in (row["source_id"], row.get("same_as") or ""))]
    commit(uri, "".join(json.dumps(row, sort_keys=True) + "\n" for row in kept).encode())


def _delete_hashes(work: str, parts: list[str]) -> None:
    """Takes the content hashes of removed sources, as far as faces were seen in them, out of the file that keeps them."""
    delete(join(work, PIECES))  # which are by content, and found again
    uri = join(work, "contents.json")
    if not exists(uri):
        return
    contents = {value for part in parts for value in read_columns(work, part, ["source_sha256"])["source_sha256"].to_pylist()}
    commit_changed(uri, json.dumps({k: v for k, v in read_json(uri).items() if v not in contents}, sort_keys=True).encode())


def delete_images(work: str, lost: Removals, gone: dict[str, WorkItem]) -> None:
    """Deletes generated sets of removed sources, whichever settings made them, with records and images, and staged copies; the user's own files stay."""
    theirs = {uri for uri, source in read_sets(work) if lost.covers(source, None, None)}
    for item in gone.values():
        drop_staged(item.uri)
        if item.uri.startswith(join(work, "synthetic", "")):  # made by this build, not the user's own file
            theirs.add(item.uri)
    sets = {uri.rsplit("/", 1)[-1] for uri in theirs}
    for uri in list_files(join(work, "synthetic"), ".json"):  # which set was made of which photo
        made = read_json(uri)
        if isinstance(made, dict) and made.get("set") in sets:
            delete(uri)
    stay = {image.uri for uri, _ in read_sets(work) if uri not in theirs for image in read_image_set(uri).images}
    for uri in sorted(theirs):
        if uri.endswith(".json"):
            for image in read_image_set(uri).images if exists(uri) else []:
                if image.uri not in stay:
                    delete(image.uri)
        delete(uri)
