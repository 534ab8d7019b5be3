"""Replay: looks anew at sources that a build has observations of, and says where what is read now is not what is stored. Changes nothing in the build.

It answers whether a change of code, of a library or of the machine changes observations. What a part was made of (content, settings, models) and with
(processor, libraries) stands in the part; column groups are computed anew from the stored chips, so that a difference is laid to the one that made it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from data_pipeline import observations
from data_pipeline.analyze import analyze
from data_pipeline.groups import GROUPS, GroupsConfig, column_uri, compute_rows, group_digests
from data_pipeline.ledger import read_ledger
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.worker import LIBRARIES
from data_pipeline.worklist import WorkItem, read_worklist
from infra.addresses import join
from infra.environment import describe_machine
from infra.errors import UserError
from infra.scratch import not_writable, scratch_folder
from infra.state import read_table
from infra.storage import commit, exists, list_files, read_bytes, sha256_bytes
from lato.pairs import decode_image


class Difference(NamedTuple):
    """Rows that are in both and not equal in a column, or in one alone (`only stored`, `only now`)."""

    where: str
    """`observations`, or a column group."""
    column: str
    rows: int
    largest: float | None
    """Largest difference of two numbers; of chips, of two grey levels; None for what is no number."""


@dataclass
class Replayed:
    """What was found of a source: equal where there are no differences and it was not changed."""

    source_id: str
    rows: int = 0
    """Faces compared."""
    groups: dict[str, int] = field(default_factory=dict)
    """Column group -> rows compared."""
    differences: list[Difference] = field(default_factory=list)
    changed: str | None = None
    """Why there is nothing to compare: another content, other pieces."""
    notes: list[str] = field(default_factory=list)
    """What is not as it was when the part was made, and what could not be compared for it."""

    @property
    def equal(self) -> bool:
        """Whether every bit is as stored."""
        return not self.differences and self.changed is None


def replay(work: str, models: Path, names: Sequence[str] = (), sample: int = 0, groups: GroupsConfig | None = None) -> list[Replayed]:
    """Looks anew at some sources in a temporary place, one after another in this process.

    Args:
        work: The build's folder.
        models: Folder of the perception models.
        names: Source ids.
        sample: Instead, so many sources: the same ones for the same build.
        groups: With what column groups are computed; None for the embedded models.

    Raises:
        UserError: No build is here, a source is unknown, or nothing is stored of it.
    """
    ledger = {row["source_id"]: row for row in read_ledger(work)}
    items = {item.source_id: item for item in read_worklist(join(work, "worklist.parquet"))}
    stored = {name: row["parts"] for name, row in ledger.items() if row["status"] != "pending" and row["parts"] and name in items}
    chosen = list(names) or sorted(stored, key=lambda name: sha256_bytes(name.encode()))[:sample]
    for name in chosen:
        if name not in stored:
            what = (
                ledger[name]["status"] + f" ({ledger[name]['reason']})"
                if name in ledger
                else f"no source of this build has that name ({len(ledger)} have others)"
            )
            raise UserError(f"{name}: nothing is stored of it; {what}")
        gone = [part for part in stored[name] if not exists(observations.part_uri(work, part))]
        if gone:
            raise UserError(f"{name}: its part {gone[0]} is not there (lato data retry takes them away). Run lato data build again.")
    groups = groups or GroupsConfig()
    group_digests(models, groups)  # a model that is missing is told before anything is looked at
    columns = {group: list_files(join(work, "columns", group), ".parquet") for group in GROUPS}
    return [_replay_source(items[name], ledger[name], work, models, columns, groups) for name in sorted(set(chosen))]


def _place(work: str) -> tempfile.TemporaryDirectory[str]:
    """A temporary folder that tells whose it is."""
    place = scratch_folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=_prefix(work), dir=place)
    except OSError as error:
        raise not_writable(error, place) from error


def _prefix(work: str) -> str:
    return f"lato_replay_{sha256_bytes(work.encode())[:16]}_"


def drop_replays(work: str) -> None:
    """Deletes what replays of a build that were killed have left on this machine: observations, with faces."""
    for place in {scratch_folder(), Path(tempfile.gettempdir())}:  # `LATO_SCRATCH` may have been set since
        for left in place.glob(f"{_prefix(work)}*"):
            shutil.rmtree(left)


def _replay_source(
    item: WorkItem, ledger: dict[str, Any], work: str, models: Path, columns: dict[str, list[str]], groups: GroupsConfig
) -> Replayed:
    parts, found = ledger["parts"], Replayed(item.source_id)
    made = [observations.read_made(work, part) for part in parts]
    of = made[0]["of"]
    read = of["config"] | ({} if of["config"]["fps"] else {"fps": AnalyzeConfig().fps})
    config = AnalyzeConfig(workers=0, **{name: read[name] for name in ("fps", "licences", "consents")})
    whole = {"start": item.start, "end": item.end}  # of a part, they are those of a piece
    asked = WorkItem.model_validate(item.model_dump() | of["item"] | whole)
    with _place(work) as place:
        now = analyze([asked], config, models, place).rows[0]
        if not now["parts"]:
            found.changed = str(now["message"])
            return found
        _tell_what_differs(found, made, observations.read_made(place, now["parts"][0]))
        if found.changed is None and len(now["parts"]) != len(parts):
            found.changed = f"it was looked at in {len(parts)} pieces, now in {len(now['parts'])}"
        if found.changed is None:
            told = [
                name for name in sorted(ledger.keys() | now.keys()) if name not in ("parts", "models") and ledger.get(name) != now.get(name)
            ]
            found.differences += [Difference("ledger", f"{name}: {ledger.get(name)} -> {now.get(name)}", 1, None) for name in told]
            for old, new in zip(parts, now["parts"], strict=True):
                before, after = observations.read_part(work, old), observations.read_part(place, new)
                found.rows += len(before)
                _add(found, compare("observations", before, after, ("frame", "track")))
    for part in parts:
        _replay_groups(found, part, work, models, columns, groups)
    return found


def _tell_what_differs(found: Replayed, made: list[dict[str, Any]], now: dict[str, Any]) -> None:
    """Notes of everything that parts depend on and that is not as it was; another content is no note, but the end of comparing."""
    of, new = made[0]["of"], now["of"]
    if of["content"] != new["content"]:
        found.changed = f"its content has changed since it was looked at (sha256 {of['content'][:16]} then, {new['content'][:16]} now)"
    for what in ("version", "config"):
        if of[what] != new[what]:
            found.notes.append(f"another {what} of the analysis: {of[what]} then, {new[what]} now")
    for name in sorted(of["models"].keys() | new["models"].keys()):
        then, here = (str(side["models"].get(name, "none"))[:16] for side in (of, new))
        if then != here:
            found.notes.append(f"another model, {name}: sha256 {then} then, {here} now")
    for name, value in describe_machine(LIBRARIES).items():
        others = sorted({part["with"].get(name, "not told") for part in made} - {value})
        if others:
            found.notes.append(f"{name}: {', '.join(others)} then, {value} now")


def _replay_groups(found: Replayed, part: str, work: str, models: Path, columns: dict[str, list[str]], groups: GroupsConfig) -> None:
    """Computes what is stored of each column group for a part anew, from the chips that are stored."""
    with _place(work) as place:
        commit(observations.part_uri(place, part), read_bytes(observations.part_uri(work, part)))
        for name, uris in columns.items():
            settings = groups.model_copy(update={"names": (name,)})
            for uri in uris:
                of, digest, *_ = uri.rsplit("/", 1)[-1].removesuffix(".parquet").split("-")
                if of != part:
                    continue
                own = group_digests(models, settings)[name]
                if own[:16] != digest:
                    found.notes.append(
                        f"{name}: stored columns were computed by other models or code ({digest}, here {own[:16]}); not compared"
                    )
                    continue
                before = read_table(uri)
                numbers = sorted(before["row"].to_pylist())
                compute_rows(name, {part: set(numbers)}, own, settings, models, place, 0)
                after = read_table(column_uri(place, name, part, own, numbers))
                found.groups[name] = found.groups.get(name, 0) + len(before)
                _add(found, compare(name, before, after, ("row",)))


def _add(found: Replayed, differences: list[Difference]) -> None:
    """Takes in what was found in one more part."""
    known = {(one.where, one.column): one for one in found.differences}
    for one in differences:
        before = known.get((one.where, one.column))
        if before is not None:
            largest = [value for value in (before.largest, one.largest) if value is not None]
            one = one._replace(rows=before.rows + one.rows, largest=max(largest) if largest else None)
        known[one.where, one.column] = one
    found.differences = list(known.values())


def compare(where: str, stored: pa.Table, now: pa.Table, keys: tuple[str, ...]) -> list[Difference]:
    """Two tables, column by column; rows belong together by their `keys`. Equal is equal in every bit.

    Args:
        where: What the tables are of.
        stored: The one that is there.
        now: The other one.
        keys: Columns that tell a row from all others of its table.
    """
    places = [
        {key: number for number, key in enumerate(zip(*(table[name].to_pylist() for name in keys), strict=True))} for table in (stored, now)
    ]
    shared = [key for key in places[0] if key in places[1]]
    found = [
        Difference(where, f"(rows only {name})", len(mine.keys() - other.keys()), None)
        for name, mine, other in (("stored", places[0], places[1]), ("now", places[1], places[0]))
        if mine.keys() - other.keys()
    ]
    for column in dict.fromkeys([*stored.column_names, *now.column_names]):
        if column not in stored.column_names or column not in now.column_names:
            found.append(
                Difference(
                    where, f"{column} (the column is only {'stored' if column in stored.column_names else 'now'})", len(shared), None
                )
            )
            continue
        before, after = (
            table[column].take(pa.array([places[side][key] for key in shared], pa.int64())).to_pylist()
            for side, table in enumerate((stored, now))
        )
        unequal = [
            (a, b) for a, b in zip(before, after, strict=True) if repr(a) != repr(b)
        ]  # a float's text is all of its bits, NaN equals NaN
        if unequal:
            measure = _apart_in_pixels if column == "chip" else _apart
            found.append(Difference(where, column, len(unequal), _largest(measure, unequal)))
    return found


def _largest(measure: Callable[[Any, Any], float | None], unequal: list[tuple[Any, Any]]) -> float | None:
    apart = [value for value in (measure(a, b) for a, b in unequal) if value is not None]
    return max(apart) if apart else None


def _apart(a: Any, b: Any) -> float | None:
    """Largest difference of two numbers, or of two lists of them; infinite where one is no number. None for what has no difference: texts, bytes, nothing."""
    if isinstance(a, str | bytes | bool) or isinstance(b, str | bytes | bool) or a is None or b is None:
        return None
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape:
        return None
    apart = np.abs(first - second)
    return float(np.where(np.isnan(apart), np.inf, apart).max(initial=0.0))


def _apart_in_pixels(a: bytes | None, b: bytes | None) -> float | None:
    """Largest difference of two JPEGs in grey levels; infinite where one is none."""
    if a is None or b is None:
        return None
    try:
        return _apart(decode_image(a, "stored chip"), decode_image(b, "chip"))
    except ValueError:
        return float("inf")
