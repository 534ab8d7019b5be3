"""What may not come back to a build, and all sources that it still knows: of its work list, of older versions, of parts, of edited sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from data_pipeline.candidates import read_candidate_pieces
from data_pipeline.image_set import GENERATED, read_image_set
from data_pipeline.observations import committed_fingerprints, read_columns, read_ledger_row
from data_pipeline.published import read_manifest
from data_pipeline.worklist import WorkItem
from infra.addresses import join
from infra.state import INPUT, read_json, read_rows, reading
from infra.storage import list_files, sha256_bytes

FILE = "removals.jsonl"


@dataclass(frozen=True)
class Removals:
    """What may not come back: hashes of source ids and identities, and licences. Names are not kept."""

    sources: frozenset[str]
    identities: frozenset[str]
    licences: frozenset[str]

    @classmethod
    def read(cls, work: str) -> Removals:
        """The removals of a build; none where there is no file."""
        rows = read_rows(join(work, FILE), ("kind", "value"), INPUT)

        def of(kind: str) -> frozenset[str]:
            return frozenset(row["value"] for row in rows if row["kind"] == kind)

        return cls(of("source"), of("identity"), of("licence"))

    def covers(self, source_id: str, identity: str | None, licence: str | None) -> bool:
        """Whether a source was removed."""
        return (
            hash_name(source_id) in self.sources
            or (identity is not None and hash_name(identity) in self.identities)
            or (licence is not None and licence in self.licences)
        )

    def keep(self, items: list[WorkItem]) -> list[WorkItem]:
        """The sources that were not removed, nor made from one that was."""
        gone = {item.source_id for item in items if self.covers(item.source_id, item.identity, item.licence)}
        origins = {item.source_id: item.attributes.get("made_from") for item in items}
        gone |= {name for name, origin in origins.items() if origin and (origin in gone or self.covers(origin, None, None))}
        return [item for item in items if item.source_id not in gone]


def hash_name(name: str) -> str:
    """How a source id or a person is kept in removals."""
    return sha256_bytes(name.encode())


def find_removed(work: str, removals: Removals, items: list[WorkItem], versions: list[str]) -> set[str]:
    """Ids of all sources that were removed, of which anything is left; of one in the work list, that list says whose it is and its licence.

    Args:
        work: The build's folder.
        removals: What was removed.
        items: The work list.
        versions: Folders of published versions.
    """
    listed = {item.source_id for item in items}
    facts: list[tuple[str, str | None, str | None]] = [(item.source_id, item.identity, item.licence) for item in items]
    older = [(part[1], part[2], part[3]) for part in read_parts(work)]
    older += [fact for folder in versions for fact in _facts_of(folder)]
    facts += [fact if fact[0] not in listed else (fact[0], None, None) for fact in older]
    found = {source for source, identity, licence in facts if removals.covers(source, identity, licence)}
    made = [(item.source_id, item.attributes.get("made_from")) for item in items]
    made += [(source, origin) for uri, source in read_sets(work) if (origin := _origin(uri))]
    return found | {name for name, origin in made if origin and (origin in found or removals.covers(origin, None, None))}


def read_parts(work: str) -> list[tuple[str, str, str | None, str | None]]:
    """Every part there is: its fingerprint, source id, declared person, licence."""
    rows = []
    for part in sorted(committed_fingerprints(work)):
        ledger = read_ledger_row(work, part)
        people = read_columns(work, part, ["identity"])["identity"].unique().to_pylist()
        rows.append((part, ledger["source_id"], people[0] if people else None, ledger.get("licence")))
    return rows


def read_sets(work: str) -> list[tuple[str, str]]:
    """Every generated set there is: its uri, and the id of the source that it is.

    Raises:
        UserError: A file there is damaged, so that nobody can say whose pictures it names.
    """
    found = []
    for uri in list_files(join(work, "synthetic"), ".json"):
        made = read_json(uri, mend=GENERATED)
        with reading(uri, GENERATED):
            if isinstance(made, list) or "set" in made:  # a list of people, or what became of a photo
                continue
            generator = read_image_set(uri).generator or {}
            if "of" in generator:
                found.append((uri, f"{generator['of']}_{generator['name']}"))
            elif "person" in generator:
                found.append((uri, f"anny_{generator['seed']}_{generator['person']:05d}"))
    return found


def _origin(uri: str) -> str | None:
    return (read_image_set(uri).generator or {}).get("of")


def _facts_of(folder: str) -> Iterator[tuple[str, str | None, str | None]]:
    """Source id, person and licence of all ends that a version names."""
    for row in read_manifest(folder):
        yield row["source_id"], row["identity"], row["licence"]
        yield row.get("target_id") or row["source_id"], row["identity"], row.get("target_licence") or row["licence"]
    names = ["source_id", "target_id", "person", "licence"]
    for piece in read_candidate_pieces(folder, names):
        for row in piece.group_by(names).aggregate([]).to_pylist():
            yield row["source_id"], row["person"], row["licence"]
            yield row["target_id"], row["person"], None
