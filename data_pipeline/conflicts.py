"""What may not go into an extended version: tracks that link people of different splits, and sources that would tie them all the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.people import Link, source_of
from lato.pairs import Split

Reach = dict[Split, str]
"""Splits that something is tied to, each with a published source that is in it."""


class Conflicts(NamedTuple):
    """Each with published sources that it would tie, at least one of each split."""

    sources: dict[str, list[str]]
    tracks: dict[str, list[str]]


def find_conflicts(
    sources: Iterable[str],
    links: list[Link],
    ties: dict[str, list[str]],
    faces: dict[str, npt.NDArray[np.float32]],
    known: dict[str, Split],
    published: frozenset[str],
    threshold: float,
) -> Conflicts:
    """Adds new tracks and sources one after another, in order, to what was published: each unless it ties two splits, over others too.

    Args:
        sources: All.
        links: Between tracks.
        ties: Source id -> names it shares with others.
        faces: Track -> mean face.
        known: Published source -> its split.
        published: Tracks with samples; none where that is not known, and then all of a published source are.
        threshold: Cosine from which tracks of one source count as one person: they are left out together.
    """
    tracks: dict[str, list[str]] = defaultdict(list)
    for track in sorted(faces):
        tracks[source_of(track)].append(track)
    linked: dict[str, list[str]] = defaultdict(list)
    for _, a, b in links:
        linked[a].append(b)
        linked[b].append(a)
    people = _People(known)
    present = {track for name in known for track in tracks[name] if not published or track in published}
    for name in sorted(known):
        people.join([name, *ties.get(name, []), *(source_of(b) for a in tracks[name] if a in present for b in linked[a] if b in present)])
    found = Conflicts({}, {})
    for name in [*sorted(known), *sorted(set(sources) - known.keys())]:
        fresh = [track for track in tracks[name] if track not in present]
        own: Reach = {known[name]: name} if name in known else people.reach(ties.get(name, []))
        touched = {track: [source_of(other) for other in linked[track] if other in present] for track in fresh}
        reached = {track: people.reach(touched[track]) for track in fresh}
        linking = {track for track in fresh if len(own | reached[track]) > 1}
        out = {track: other for track in fresh if (other := _first_alike(track, linking, faces, threshold))}
        rest = [track for track in fresh if track not in out]
        others = [other for track in rest for other in touched[track]]
        if len(own | people.reach(others)) > 1:
            found.sources[name] = sorted({*own.values(), *people.reach(others).values(), *(other for other in others if other in known)})
            continue
        for track, other in out.items():
            found.tracks[track] = sorted({*own.values(), *reached[other].values(), *(n for n in touched[other] if n in known)})
        people.join([name, *ties.get(name, []), *others])
        present.update(rest)
    return found


def _first_alike(track: str, linking: set[str], faces: dict[str, npt.NDArray[np.float32]], threshold: float) -> str | None:
    """The track itself if it is among those that link, or the first of them that it is like."""
    if track in linking:
        return track
    return next((other for other in sorted(linking) if float(faces[track] @ faces[other]) >= threshold), None)


class _People:
    """Sources and what they share, joined; each knows the splits it is tied to. Two where published sources turn out to be alike: they stay."""

    def __init__(self, known: dict[str, Split]) -> None:
        self._parent: dict[str, str] = {}
        self._reach: dict[str, Reach] = {name: {split: name} for name, split in known.items()}

    def join(self, names: list[str]) -> None:
        """From now on they are one."""
        first, *others = sorted({self._root(name) for name in names})
        for other in others:
            self._parent[other] = first
            self._reach[first] = self._reach.pop(other, {}) | self._reach.get(first, {})

    def reach(self, names: Iterable[str]) -> Reach:
        """The splits that one of them is tied to."""
        found: Reach = {}
        for name in names:
            found = self._reach.get(self._root(name), {}) | found
        return found

    def _root(self, name: str) -> str:
        while self._parent.setdefault(name, name) != name:
            self._parent[name] = self._parent[self._parent[name]]
            name = self._parent[name]
        return name
