"""Which split each accepted pair goes to: new builds by components, extended ones without moving anything that was published."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx
import numpy as np
import numpy.typing as npt

from data_pipeline.conflicts import Conflicts, find_conflicts
from data_pipeline.copies import Copy
from data_pipeline.extend import COMPONENTS, Base
from data_pipeline.people import nearest_in_train, source_of
from data_pipeline.split import Components, SplitConfig, assign, check_sizes, find_components
from data_pipeline.worklist import WorkItem
from infra.addresses import join
from infra.console import say
from infra.errors import UserError
from infra.storage import commit_changed, delete, exists, sha256_bytes
from lato.pairs import Split

CONFLICTS, SHEET = "conflicts.json", "conflicts.jpg"
_LISTED = 10
"""Held-out tracks that are listed by name, those most like one in train first; more where more are over the threshold."""
Faces = dict[str, npt.NDArray[np.float32]]
"""Track (`source/track`) -> mean face."""
_RANK: tuple[Split | None, ...] = ("test", "val", "train", None)
"""Which of the pins of people who turn out to be one holds: an evaluation set stays what it was."""


def tracks_of(row: dict[str, Any]) -> list[str]:
    """The tracks of a scored pair's two faces."""
    return [f"{row['source_id']}/{row['from_track']}", f"{row['target_id']}/{row['to_track']}"]


@dataclass(frozen=True)
class Tied:
    """Which sources belong together, and what may not go on."""

    components: Components
    conflicts: Conflicts
    merges: Sequence[tuple[str, str]]
    """Pairs of sources that a person said show one person."""

    def verdict(self, row: dict[str, Any]) -> str | None:
        """Why an accepted pair may not go on, whatever the sides; None if it may."""
        if row["source_id"] in self.conflicts.sources or row["target_id"] in self.conflicts.sources:
            return "split conflict"
        tracks = set(tracks_of(row))
        if tracks & self.conflicts.tracks.keys():
            return "split conflict"
        return "bridge" if tracks & self.components.bridges else None


@dataclass(frozen=True)
class Division:
    """Splits of sources, and what ties them."""

    split_of: dict[str, Split]
    """Source id -> split."""
    tied: Tied

    def verdict(self, row: dict[str, Any]) -> str | None:
        """Why an accepted pair may not go on; None if it may."""
        if found := self.tied.verdict(row):
            return found
        apart = self.split_of[row["source_id"]] != self.split_of[row["target_id"]]  # both were published, as two people
        return "split conflict" if apart else None

    def write(self, samples: Iterable[dict[str, Any]], centroids: Faces, threshold: float, folder: str, work: str) -> dict[str, str]:
        """Writes what ties sources, what held-out faces of the samples are most like in train, and the conflicts with their contact sheet, beside the version.

        Args:
            samples: Score rows of all samples.
            centroids: Track -> mean face.
            threshold: Likeness from which two tracks count as one person.
            folder: The version's.
            work: The build's.

        Returns:
            sha256 of each file by its name.
        """
        components, conflicts = self.tied.components, self.tied.conflicts
        families = Counter(components.families.values())
        found: dict[str, Any] = {
            "components": components.of_source,
            "sizes": Counter(components.of_source.values()).most_common(20),
            "bridges": sorted(components.bridges),
            "links": [link._asdict() for link in components.links],
            "families": {name: family for name, family in components.families.items() if families[family] > 1},
            "held_out": self._compare(samples, centroids, threshold),
        }
        written = {COMPONENTS: json.dumps(found, indent=1, sort_keys=True).encode()}
        if conflicts.sources or conflicts.tracks:
            from data_pipeline.sheet import draw_conflicts

            listed = conflicts._asdict()
            shown = {source_of(track): others for track, others in conflicts.tracks.items()} | conflicts.sources
            written[CONFLICTS] = json.dumps(listed, indent=1, sort_keys=True).encode()
            written[SHEET] = draw_conflicts(shown, self.split_of, work)
        else:
            for uri in (join(folder, CONFLICTS), join(folder, SHEET)):
                if exists(uri):
                    delete(uri)
        for name, data in written.items():
            commit_changed(join(folder, name), data)
        return {name: sha256_bytes(data) for name, data in written.items()}

    def _compare(self, samples: Iterable[dict[str, Any]], centroids: Faces, threshold: float) -> dict[str, Any]:
        """What tells whether somebody is held out and trained on: of the tracks outside train, how like the nearest in train is."""
        sides: dict[bool, Faces] = {True: {}, False: {}}
        for row in samples:
            for track in tracks_of(row):
                if track in centroids:  # drawn people have none: they are declared
                    sides[self.split_of[source_of(track)] == "train"][track] = centroids[track]
        found = nearest_in_train(sides[False], sides[True])
        over = sum(one.similarity >= threshold for one in found)
        listed = [one._asdict() for one in found[: max(_LISTED, over)]]
        return {"tracks": len(sides[False]), "over": over, "threshold": threshold, "most_alike": listed}


def tie(
    accepted: list[dict[str, Any]],
    items: dict[str, WorkItem],
    centroids: Faces,
    base: Base | None,
    config: SplitConfig,
    copies: Mapping[str, Copy],
    contents: Mapping[str, str],
    merges: Sequence[tuple[str, str]],
) -> Tied:
    """Ties sources by what is declared of them, by files, by faces, and copies to what they are copies of.

    Args:
        accepted: New pairs.
        items: All sources.
        centroids: Track -> mean face.
        base: The version that is extended.
        config: Thresholds.
        copies: Sources that are not used: what is declared of them still counts.
        contents: Source id -> digest of its content, of sources that may be used.
        merges: Pairs of sources that a person said show one person.
    """
    ties = _find_ties(items, base, copies, contents, merges)
    known = base.sides(items, merges) if base else {}
    counts = Counter(row["source_id"] for row in [*accepted, *(base.rows if base else ())])
    conflicts = Conflicts({}, {})
    while True:  # without a track or source in conflict others are nearest to each other
        free = [name for name in dict.fromkeys([*items, *known]) if name not in conflicts.sources]
        left = {
            track: face for track, face in centroids.items() if track not in conflicts.tracks and source_of(track) not in conflicts.sources
        }
        shared = {name: names for name, names in ties.items() if name not in conflicts.sources}
        components = find_components(free, shared, left, config, Counter({name: counts[name] for name in free}))
        published = base.tracks if base else frozenset[str]()
        found = find_conflicts(components.of_source, components.links, shared, left, known, published, config.link_similarity)
        if not (found.sources or found.tracks):
            return Tied(components, conflicts, merges)
        conflicts = Conflicts(conflicts.sources | found.sources, conflicts.tracks | found.tracks)


def divide(accepted: list[dict[str, Any]], items: dict[str, WorkItem], tied: Tied, base: Base | None, config: SplitConfig) -> Division:
    """Splits for the sources of accepted pairs.

    Args:
        accepted: New pairs.
        items: All sources.
        tied: What belongs together.
        base: The version that is extended.
        config: Shares, seed, thresholds.

    Raises:
        UserError: Pins contradict each other and no merge is the reason, or one component is too large.
    """
    components = tied.components
    known = base.sides(items, tied.merges) if base else {}
    of = components.of_source
    pins: dict[str, Split] = {}
    merged = {of[one]: pair for pair in tied.merges for one in pair if one in of}
    for name, side in known.items():
        pins.setdefault(of[name], side)
    pin_of = {name: items[name].split if name in items else None for name in of}
    for name in sorted(of, key=lambda name: _RANK.index(pin_of[name]) if of[name] in merged else 0):
        pin = pin_of[name]
        if pin and known.get(name, pin) != pin:
            say(f"  source {name} is pinned to {pin}, but the version that is extended has it in {known[name]}, where it stays")
        if not pin or pins.setdefault(of[name], pin) == pin or name in known:
            continue
        told = f"source {name} is pinned to {pin}, but it is tied to a source that is in {pins[of[name]]} ({of[name]})"
        if of[name] not in merged:
            raise UserError(f"{told}. Take one of the pins away, or give both sources the same")
        say(f"  {told}: the merge of {' and '.join(merged[of[name]])} counts, not the pin")
    division = assign(count_samples(accepted, tied, config), pins, config, components.families)
    split_of = {name: division[component] for name, component in of.items() if component in division} | known
    return Division(split_of, tied)


def count_samples(accepted: Iterable[dict[str, Any]], tied: Tied, config: SplitConfig) -> Counter[str]:
    """Component -> its new pairs.

    Raises:
        UserError: One has too many of them.
    """
    of = tied.components.of_source
    counted = Counter(of[row["source_id"]] for row in accepted if row["source_id"] in of)  # of others, in conflict, none goes on
    check_sizes(counted, tied.components, config)
    return counted


def _find_ties(
    items: dict[str, WorkItem],
    base: Base | None,
    copies: Mapping[str, Copy],
    contents: Mapping[str, str],
    merges: Sequence[tuple[str, str]],
) -> dict[str, list[str]]:
    """Source id -> what it shares with others: declared identity or group, a file, a photo that it was made from, a clip, a merge, a component of the version
    that is extended.

    Who was one person then stays so, in particular those who lost their samples to a merge; what was published on two sides although alike ties nobody.
    """
    ties: dict[str, list[str]] = defaultdict(list)
    for item in items.values():
        for kind, name in (("identity", item.identity), ("group", item.group)):
            if name:
                ties[item.source_id].append(f"{kind}:{name}")
    known = base.sides(items, merges) if base else {}
    for shared, names in _find_files(items, contents).items():
        if len(names) > 1 and len({known[name] for name in names if name in known}) < 2:
            for name in names:
                ties[name].append(shared)
    for name, copy in copies.items():
        for one in (name, copy.of):
            ties[one].append(f"clip:{copy.of}")
    for person in networkx.connected_components(networkx.Graph(list(merges))):
        for name in sorted(person & (items.keys() | known.keys())):  # of others, of another build, nothing is asked
            ties[name].append(f"merge:{min(person)}")
    if base:
        sides: dict[str, set[Split]] = defaultdict(set)
        for name, component in base.components.items():
            sides[component] |= {known[name]} if name in known else set()
        for name, component in base.components.items():
            if len(sides[component]) < 2:
                ties[name].append(f"component:{component}")
    return ties


def _find_files(items: dict[str, WorkItem], contents: Mapping[str, str]) -> dict[str, list[str]]:
    """Files, by address and by content, and photos of which others were made -> the sources that show them: two spans, or two people, of one file have one
    room behind them."""
    found: dict[str, list[str]] = defaultdict(list)
    for item in items.values():
        name = item.source_id
        found[f"file:{item.uri}"].append(name)
        if name in contents:
            found[f"content:{contents[name]}"].append(name)
        for photo in dict.fromkeys((name, item.attributes.get("made_from", name))):
            found[f"photo:{photo}"].append(name)
    return found
