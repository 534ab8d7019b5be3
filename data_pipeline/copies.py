"""Sources that show another's clip once more: compressed again, scaled, cropped, cut. One of them is used, the others give no sample.

Faces are compared by how they move (`motion`), within what declarations or faces tie alone. Which one stays depends on names, and on what a version that
is extended has: not on workers, nor on the order of the work list.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from data_pipeline.motion import READ, Clock, Track, compare_tracks, keep_on_disk, tracks_of
from data_pipeline.observations import read_columns
from data_pipeline.removals import Removals
from data_pipeline.worklist import WorkItem
from infra.addresses import join
from infra.console import each
from infra.scratch import scratch_for
from infra.state import PUBLISHED, read_json, reading
from infra.storage import commit_changed, delete, exists, sha256_bytes

FILE = "copies.json"
"""In a version's folder."""
SHARE = 0.5
"""Of the moments of the shorter of two sources: so many agree at one offset where one shows the other's clip."""
_NEAR = 1
"""Half steps by which tracks of one copy may lie apart."""


class Copy(NamedTuple):
    """What a source that is not used shows."""

    of: str
    """The source that is used in its place."""
    moments: int
    """How many agree."""
    out_of: int
    """Of how many of the shorter of the two."""
    offset: float
    """Seconds that they lie later here."""


def find_copies(
    components: Mapping[str, str],
    items: Mapping[str, WorkItem],
    parts: Mapping[str, list[str]],
    published: Collection[str],
    fps: float,
    work: str,
    compared: list[set[str]],
) -> dict[str, Copy]:
    """Finds videos that show what another shows.

    Args:
        components: Source id -> component; only within one are sources compared.
        items: All sources. Two of people who are both declared, and not as one, are not compared.
        parts: Source id -> its parts, of the sources that may be used; others play no part.
        published: Sources with samples in a version that is extended: they stay.
        fps: Frames a second that were looked at.
        work: The build's folder.
        compared: Sources that were compared with each other before, with what was found: among them is nothing new. Those compared now are added.

    Returns:
        Source id -> the first by name, published ones first, that it is a copy of and that is none itself.
    """
    tied: dict[str, list[str]] = defaultdict(list)
    for name in sorted(parts):
        if name in components and items[name].kind == "video":
            tied[components[name]].append(name)
    found: dict[str, Copy] = {}
    several = [names for _, names in sorted(tied.items()) if len(names) > 1]
    fresh = [names for names in several if not any(known.issuperset(names) for known in compared)]
    for names in each("copies", fresh, "components"):
        compared.append(set(names))
        names.sort(key=lambda name: (name not in published, name))
        found |= _find_in_one(names, items, parts, published, Clock(fps), work)
    return found


def _find_in_one(
    names: list[str],
    items: Mapping[str, WorkItem],
    parts: Mapping[str, list[str]],
    published: Collection[str],
    clock: Clock,
    work: str,
) -> dict[str, Copy]:
    """The same in one component, whose sources are in the order in which they stay."""
    with scratch_for(join(work, FILE)) as path, open(path, "w+b") as out:
        os.unlink(path)  # so that a kill leaves nothing
        tracks = keep_on_disk(
            (
                track
                for number, name in enumerate(each("copies", names, "videos of a component read"))
                for part in parts[name]
                for track in tracks_of(read_columns(work, part, list(READ)), number, clock)
            ),
            out,
        )
        return _compare(names, items, published, clock, tracks)


def _compare(
    names: list[str], items: Mapping[str, WorkItem], published: Collection[str], clock: Clock, tracks: Sequence[Track]
) -> dict[str, Copy]:
    votes: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for first, second, agreed in compare_tracks(tracks):
        a, b = tracks[first].source, tracks[second].source
        votes[min(a, b), max(a, b)][agreed.offset if a < b else -agreed.offset] += agreed.moments
    length = Counter[int]()
    for track in tracks:
        length[track.source] += len(track.changes[0])
    found: dict[str, Copy] = {}
    for (earlier, later), cast in sorted(votes.items()):
        stays, goes = names[earlier], names[later]
        people = {items[name].identity for name in (stays, goes)} - {None}
        if stays in found or goes in found or goes in published or len(people) > 1:
            continue
        gathered = {offset: sum(cast[offset + near] for near in range(-_NEAR, _NEAR + 1)) for offset in cast}
        offset = max(gathered, key=lambda offset: (gathered[offset], -abs(offset), offset))
        out_of = min(length[earlier], length[later])
        if gathered[offset] >= SHARE * out_of:
            found[goes] = Copy(stays, min(gathered[offset], out_of), out_of, round(offset * clock.step / 2, 3))
    return found


def write_copies(copies: Mapping[str, Copy], folder: str) -> None:
    """Writes them beside a version, or takes away what an earlier one left."""
    uri = join(folder, FILE)
    if copies:
        commit_changed(uri, _encode(copies))
    elif exists(uri):
        delete(uri)


def hash_copies(copies: Mapping[str, Copy]) -> dict[str, str]:
    """sha256 by name of what `write_copies` writes; empty where that is nothing."""
    return {FILE: sha256_bytes(_encode(copies))} if copies else {}


def _encode(copies: Mapping[str, Copy]) -> bytes:
    return json.dumps({name: copy._asdict() for name, copy in copies.items()}, indent=1, sort_keys=True).encode()


def read_copies(folder: str) -> dict[str, Copy]:
    """Those of a version."""
    uri = join(folder, FILE)
    rows: dict[str, dict[str, Any]] = read_json(uri, mend=PUBLISHED) if exists(uri) else {}
    with reading(uri, PUBLISHED):
        return {name: Copy(**row) for name, row in rows.items()}


def forget_copies(folder: str, removals: Removals) -> None:
    """Takes what was removed out of a version's."""
    kept = keep_copies(folder, removals)
    if kept != read_copies(folder):
        write_copies(kept, folder)


def keep_copies(folder: str, removals: Removals) -> dict[str, Copy]:
    """Those of a version without what was removed."""
    copies = read_copies(folder)
    return {name: copy for name, copy in copies.items() if not any(removals.covers(one, None, None) for one in (name, copy.of))}


def copies_of(folders: Iterable[str], names: Iterable[str]) -> set[str]:
    """Sources that are copies of some in a version, or of which these are; without these themselves."""
    alike: dict[str, set[str]] = defaultdict(set)
    for folder in folders:
        for name, copy in read_copies(folder).items():
            alike[name].add(copy.of)
            alike[copy.of].add(name)
    found, todo = set(names), list(names)
    while todo:
        fresh = alike[todo.pop()] - found
        found |= fresh
        todo += fresh
    return found - set(names)
