"""Who is one person, as far as faces tell: tracks that are alike, then groups of tracks that are alike on average, until no two groups are.

Only the few nearest of a track are linked, so that a face that is like everybody's ties few; the clips of somebody who has very many fall apart that way, and
come together again as groups. A group's likeness to another is the mean over all pairs of their tracks: it does not grow with their sizes, as that of mean
faces would.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array

from data_pipeline.nearest import Labels, join, most_alike, mutual_nearest, touching

Faces = npt.NDArray[np.float32]
"""Unit vectors of tracks, (N, D)."""
_ENDS = 3
"""Tracks of a group by which it is linked to another: with one alone, that one would be all that holds a person together (`split.Components.bridges`)."""


class Link(NamedTuple):
    """Two tracks that a recognizer takes for one person."""

    similarity: float
    first: str
    second: str


class People(NamedTuple):
    """Tracks (`source/track`) as people."""

    links: list[Link]
    """Between tracks of different sources. Of tracks that link two groups a likeness may be under the threshold; the groups' is not."""
    of_track: dict[str, str]
    """Track -> its person's first track."""
    crowded: frozenset[str]
    """Tracks with more that are like them than are linked."""


def source_of(track: str) -> str:
    """The source of `source/track`."""
    return track.rsplit("/", 1)[0]


def find_people(centroids: dict[str, npt.NDArray[np.float32]], threshold: float, nearest: int) -> People:
    """Ties tracks.

    Time grows with the square of their number, memory with their number.

    Args:
        centroids: Track -> mean face, a unit vector.
        threshold: Least likeness, of two tracks of different sources or of two groups.
        nearest: Only what is among each other's this many nearest is linked at once.
    """
    names = sorted(centroids)
    if len(names) < 2:
        return People([], {name: name for name in names}, frozenset())
    faces = np.stack([centroids[name] for name in names])
    owners = _numbers([source_of(name) for name in names])
    (first, second, similar), crowded = mutual_nearest(faces, owners, threshold, nearest)
    links = [Link(round(float(value), 6), names[a], names[b]) for a, b, value in zip(first, second, similar, strict=True)]
    person = join(np.arange(len(names)), first, second)
    # what may be alike and is not linked: what was joined, what has too many alike, and tracks of one source, which were not compared
    several = np.bincount(owners)[owners] > 1
    open_ = (np.bincount(person)[person] > 1) | crowded | several
    while True:
        order, means = _means(faces, person, open_)
        rows = int(np.isin(order, person[open_]).sum())
        (a, b, _), full = mutual_nearest(means, np.arange(len(order)), threshold, nearest, rows)
        if not len(a):
            return People(links, _first_names(names, person), frozenset(np.array(names)[crowded].tolist()))
        tracks = np.split(np.argsort(person, kind="stable"), np.cumsum(np.bincount(person))[:-1])
        for one, other in zip(order[a].tolist(), order[b].tolist(), strict=True):
            links += _link(names, faces, tracks[one], tracks[other])
        touched = np.isin(person, order[np.unique(np.concatenate([a, b]))]) | np.isin(person, order[full])
        person, open_ = join(person, order[a], order[b]), touched


def find_families(
    centroids: dict[str, npt.NDArray[np.float32]], people: People, of_source: dict[str, str], threshold: float
) -> dict[str, str]:
    """Components that look like each other in single tracks, and are not tied for all that: component -> the first of its family.

    Two people of a likeness, or one who looks like two: nobody knows, and so they are kept on one side.

    Args:
        centroids: Track -> mean face.
        people: What was found of them.
        of_source: Source id -> component.
        threshold: Least likeness of two tracks.
    """
    names = sorted(centroids, key=lambda name: (name not in people.crowded, name))
    components = sorted(set(of_source.values()))
    if not people.crowded:  # whatever is alike was linked
        return {name: name for name in components}
    number = {name: n for n, name in enumerate(components)}
    owners = np.array([number[of_source[source_of(name)]] for name in names])
    rows = sum(name in people.crowded for name in names)
    joined = np.arange(len(components))
    found = touching(np.stack([centroids[name] for name in names]), owners, threshold, rows)
    joined[: len(found)] = found
    firsts: dict[int, str] = {}
    return {name: firsts.setdefault(int(label), name) for name, label in zip(components, joined, strict=True)}


class Likeness(NamedTuple):
    """A held-out track and the train track that is most like it."""

    similarity: float
    held_out: str
    train: str


def nearest_in_train(held_out: dict[str, npt.NDArray[np.float32]], train: dict[str, npt.NDArray[np.float32]]) -> list[Likeness]:
    """Of each held-out track, the most alike first."""
    if not held_out or not train:
        return []
    names, others = sorted(held_out), sorted(train)
    place, similar = most_alike(np.stack([held_out[name] for name in names]), np.stack([train[name] for name in others]))
    found = [Likeness(round(float(value), 4), name, others[n]) for name, n, value in zip(names, place, similar, strict=True)]
    return sorted(found, key=lambda one: (-one.similarity, one.held_out))


def _means(faces: Faces, person: Labels, open_: npt.NDArray[np.bool_]) -> tuple[Labels, Faces]:
    """People, those with open tracks first, and the mean of each one's tracks: products of them are mean products of their tracks."""
    count = int(person.max()) + 1
    sums = coo_array((np.ones(len(person)), (person, np.arange(len(person)))), shape=(count, len(person))).tocsr() @ faces
    means = (sums / np.bincount(person, minlength=count)[:, None]).astype(np.float32)
    first = np.zeros(count, bool)
    first[person[open_]] = True
    order = np.argsort(~first, kind="stable")
    return order, means[order]


def _link(names: list[str], faces: Faces, mine: Labels, others: Labels) -> list[Link]:
    """Links between two groups: of each the tracks that are most like the other group, each with the one it is most like."""
    found = set()
    for some, rest in ((mine, others), (others, mine)):
        ends = some[np.argsort(-(faces[some] @ faces[rest].mean(axis=0)), kind="stable")[:_ENDS]]
        place, similar = most_alike(faces[ends], faces[rest])
        for end, other, value in zip(ends.tolist(), rest[place].tolist(), similar, strict=True):
            first, second = sorted((names[end], names[other]))
            if source_of(first) != source_of(second):
                found.add(Link(round(float(value), 6), first, second))
    return sorted(found)


def _first_names(names: list[str], person: Labels) -> dict[str, str]:
    firsts: dict[int, str] = {}
    return {name: firsts.setdefault(int(label), name) for name, label in zip(names, person, strict=True)}


def _numbers(names: list[str]) -> Labels:
    """Equal names as equal numbers."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names])
