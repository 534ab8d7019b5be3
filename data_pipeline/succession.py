"""What an index keeps of the versions of its name that came before it: their digests, so that runs that were trained on them can still be named."""

from __future__ import annotations

from typing import Any

from infra.addresses import join
from infra.state import read_json, reading
from infra.storage import exists

WITHDRAWN = "index.withdrawn.json"
"""Index of a version that is being replaced; of it the next one takes over the tombstones."""
LABELLED = "labelled"
"""In it, once a removal took away what the version had: key -> hashes of the source ids of both ends, of its pairs that have labels."""
_MEND = "It holds the digests of versions that were replaced: restore it from a copy; or delete it, and runs that were trained on these can no longer be named."


def succeed(earlier: dict[str, Any], digest: str | None) -> dict[str, Any]:
    """What an index takes over from one of the same name that it replaces, so that runs that were trained on that can still be named: digests of versions of
    which something was forgotten (`tombstones`), and of those that were replaced whole (`replaced`); what these held nobody can say any more.

    Args:
        earlier: The index before, or what is left of it; may be empty.
        digest: Of the new one; None where there is none.
    """
    replaced = [*earlier.get("replaced", []), *([earlier["digest"]] if "digest" in earlier else [])]
    kept = {"tombstones": earlier.get("tombstones", []), "replaced": [known for known in dict.fromkeys(replaced) if known != digest]}
    return {name: digests for name, digests in kept.items() if digests}


def read_withdrawn(folder: str) -> dict[str, Any]:
    """What the withdrawn index of a version's folder hands on (`succeed`); nothing where there is none.

    Raises:
        UserError: It is damaged.
    """
    uri = join(folder, WITHDRAWN)
    found = read_json(uri, mend=_MEND) if exists(uri) else {}
    with reading(uri, _MEND):
        return succeed(found, None)


def read_labelled(folder: str) -> dict[str, list[str]]:
    """What the withdrawn index of a version's folder says of labelled pairs; nothing where there is none.

    Raises:
        UserError: It is damaged.
    """
    uri = join(folder, WITHDRAWN)
    found = read_json(uri, mend=_MEND) if exists(uri) else {}
    with reading(uri, _MEND):
        return dict(found.get(LABELLED, {}))


def entomb(index: dict[str, Any]) -> dict[str, Any]:
    """An index after something was forgotten: the versions that it replaced may have held it, and are tombstones from now on."""
    tombstones = list(dict.fromkeys([*index.get("tombstones", []), *index.get("replaced", [])]))
    rest = {name: value for name, value in index.items() if name not in ("tombstones", "replaced")}
    return rest | ({"tombstones": tombstones} if tombstones else {})
