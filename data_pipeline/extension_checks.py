"""What an extension asks of its work list, before anything is looked at, and of the pairs that are found in it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from data_pipeline.extend import Base
from data_pipeline.worklist import WorkItem
from infra.errors import UserError
from lato.pairs import Split


def check_worklist(base: Base, items: Mapping[str, WorkItem], merges: Sequence[tuple[str, str]]) -> None:
    """Whether what is published still agrees with what the work list says of its sources.

    Args:
        base: The version that is extended.
        items: All sources by id.
        merges: Pairs of sources that a person said show one person.

    Raises:
        UserError: Sources are lacking, a declared person or group would be on two sides, or licences were corrected; all at once.
    """
    told = [*_find_unlisted(base, items), *_find_apart(base, items, merges), *_find_other_rights(base, items)]
    if told:
        raise UserError("\n".join(told))


def _find_unlisted(base: Base, listed: Collection[str]) -> list[str]:
    """A new source is tied to people of the version through its sources: those with samples, and those that tie others."""
    sizes = Counter(base.components.values())
    tying = {name for name, component in base.components.items() if sizes[component] > 1}
    lacking = sorted((set(base.split_of_source) | tying) - set(listed))
    return lacking and [
        f"version {base.index['name']}, which is extended, has {len(lacking)} sources that are not in the work list ({_some(lacking)}): "
        "a person of theirs in a new source could get into another split. Add them to the work list (or to what `folder` and "
        "`synthetic` give); they are not looked at again. What is not to be used any more goes with lato data forget."
    ]


def _find_apart(base: Base, items: Mapping[str, WorkItem], merges: Sequence[tuple[str, str]]) -> list[str]:
    """People and groups of whom the work list says now that sources on two sides are theirs: new samples would go to both."""
    known = base.sides(items, merges)
    sides: dict[tuple[str, str], dict[Split, str]] = defaultdict(dict)
    for name, item in sorted(items.items()):
        for kind, declared in (("identity", item.identity), ("group", item.group)):
            if declared and name in known:
                sides[kind, declared].setdefault(known[name], name)
    told = []
    for (kind, declared), of in sorted(sides.items()):
        if len(of) > 1:
            where = ", ".join(f"{name} in {side}" for side, name in of.items())
            told.append(
                f"{kind} {declared} is declared of sources that version {base.index['name']}, which is extended, has on different sides ({where}). "
                f"What is published moves to no other side: lato data merge {base.index['name']} {' '.join([*of.values()][:2])} takes out what is in the lower one, "
                "or declare it of one side's sources only."
            )
    return told


def _find_other_rights(base: Base, items: Mapping[str, WorkItem]) -> list[str]:
    """Sources of which the work list states other rights than their samples, which would go on under those."""
    changed: dict[str, dict[str, None]] = defaultdict(dict)
    for row in base.rows:
        for name, licence, consent in (
            (row["source_id"], row.get("licence"), row.get("consent")),
            (row.get("target_id"), row.get("target_licence"), row.get("target_consent")),
        ):
            item = items.get(name) if name else None
            for before, now in ((licence, item.licence), (consent, item.consent)) if item else ():
                if before is not None and before != now:  # a version of an earlier LaTo states none
                    changed[str(name)][f"{before} -> {now}"] = None
    told = [f"{name}: {'; '.join(ways)}" for name, ways in sorted(changed.items())]
    return told and [
        f"{len(told)} sources have another licence or consent in the work list than their samples in version {base.index['name']}, which is "
        f"extended ({_some(told)}): these would go on under what was said before. Take them out with lato data forget "
        "--source, or build a version that extends none."
    ]


def check_found(base: Base, keys: Collection[str]) -> None:
    """The faces of published people are compared with new ones, and count in quotas, where their samples are among this build's pairs.

    Args:
        base: The version that is extended.
        keys: Of the pairs of this build that were accepted.

    Raises:
        UserError: Some are not.
    """
    there = set(keys)
    lost = [row for row in base.rows if row["key"] not in there]
    if lost:
        names = sorted({_whose(row["source_id"], row["identity"]) for row in lost})
        raise UserError(
            f"{len(lost)} samples of {len(names)} people of version {base.index['name']}, which is extended, are not found any more "
            f"({_some(names)}): a new source with one of them could get into another split. Their sources are missing or have changed (see "
            "ledger.jsonl), or they are looked at otherwise: give them back, and keep `analyze` and `pairing.same_person` as they were."
        )


def _whose(source: str, person: str) -> str:
    return person if person.startswith(source) else f"{person} in {source}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
