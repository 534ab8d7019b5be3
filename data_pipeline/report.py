"""The data report: one self-contained page about a version, for the person who answers for the data. Reads the candidates as columns: ten million fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.audit import summarize
from data_pipeline.candidates import read_candidates_table
from data_pipeline.cells import COLUMNS
from data_pipeline.copies import read_copies
from data_pipeline.extend import read_components
from data_pipeline.intervals import wilson
from data_pipeline.ledger import Ledger, read_ledger
from data_pipeline.pairing import SCORES
from data_pipeline.published import consents_of, licence_text, read_index, read_manifest
from data_pipeline.report_coverage import find_coverage
from data_pipeline.report_pairs import accepted_pairs, rejected_pairs
from data_pipeline.report_plots import plot_correlation, show_filter, show_repeats
from data_pipeline.report_repeats import Sampled
from data_pipeline.rules import EDITS, LIMITS, PASSED, VERIFIERS
from data_pipeline.second_opinion import NAMES, second_opinion
from data_pipeline.sheet import Sources
from data_pipeline.tables import end_numbers
from data_pipeline.versions import showing, whole_version
from data_pipeline.why import pairing_config
from data_pipeline.words import VERDICTS_SAID
from data_pipeline.worklist import WorkItem
from infra.addresses import join
from infra.state import PUBLISHED, read_json
from infra.storage import commit

_MOST = 20
"""Rows of a list that may be of any length; how many more there are is told."""
_SHOWN = LIMITS | {"pose discriminator": VERIFIERS["pose discriminator"]}
"""Filters with a score to plot."""
_NEEDED = (
    "key",
    "from_part",
    "from_row",
    "to_part",
    "to_row",
    "verdict",
    "kind",
    "source_id",
    "edit_kind",
    "from_skin_ita",
    "from_face_px",
    "to_face_px",
    "from_width",
    *COLUMNS,
    *SCORES,
)
Names = npt.NDArray[np.str_]


def write_data_report(work: str, version: str = "v1") -> str:
    """Writes `report.html` beside a version's shards.

    Args:
        work: The build's folder.
        version: Name of the version.

    Returns:
        Its URI.

    Raises:
        UserError: There is no such version, or it is a view.
    """
    folder = whole_version(work, version)
    index = read_index(folder)
    candidates, manifest = read_candidates_table(folder, list(_NEEDED)), read_manifest(folder)
    judged = candidates.filter(pc.not_equal(candidates["verdict"], "no edit of ours"))
    passed_all, passed = (np.asarray(pc.is_in(table["verdict"], value_set=pa.array(PASSED))) for table in (candidates, judged))
    ledger, copies = read_ledger(work), read_copies(folder)
    funnel = read_json(join(folder, "funnel.json"), mend=PUBLISHED)
    config = pairing_config(folder)
    drawn = Sources(work)
    template = jinja2.Template((Path(__file__).parent / "templates/report.html.jinja").read_text(), autoescape=True)
    sampled = candidates.filter(pc.is_in(candidates["key"], value_set=pa.array([row["key"] for row in manifest], pa.string())))
    coverage = find_coverage(sampled.take(one_of_twins(sampled, np.ones(len(sampled), bool))), config.cell_quota)
    pairs = one_of_twins(judged, passed)
    judged_once, passed_once = judged.take(pairs), passed[pairs]
    people = Counter(str(row["identity"]) for row in manifest)
    failed = [row for row in ledger if row["status"] == "failed"]
    accepted, (rejected, undrawn) = accepted_pairs(folder, manifest), rejected_pairs(folder, drawn, config)
    near, refused = Sampled(folder, work), int(pc.sum(pc.equal(judged["verdict"], "near-duplicate")).as_py() or 0)
    if repeated := near.draw(drawn, config, undrawn):
        rejected.append(("near-duplicate", repeated))
    shown = {name for row in manifest for name in (row["source_id"], row["target_id"])}
    page = template.render(
        name=version,
        index=index,
        samples=Counter(str(row["split"]) for row in manifest),
        people=Counter(people.values()),
        largest=max(people.values(), default=0),
        sources=(len(shown), _looked_at(funnel)),
        most=_MOST,
        funnel=_funnel(funnel),
        filters=[
            *(show_filter(candidates, passed_all, name, config) for name in EDITS),
            *(show_filter(judged, passed, verdict, config) for verdict in _SHOWN),
            *([show_repeats(near.bits, near.accepted, refused, config)] if config.near_duplicate_bits >= 0 else []),
        ],
        candidates=len(candidates),
        sampled=len(near.bits),
        judged=len(judged),
        correlation=plot_correlation(judged),
        coverage=coverage,
        quota=config.cell_quota,
        groups=[(name, *_rates(names, order, judged_once, passed_once)) for name, names, order in _groups(judged_once, drawn.items)],
        accepted=accepted,
        rejected=rejected,
        undrawn=undrawn.most_common(),
        said=VERDICTS_SAID,
        copies=sorted(copies.items()),
        other_build=_is_of_another(funnel, shown, Ledger(ledger), copies),
        failures=Counter(f"{row['status']}: {row['reason']}" for row in ledger if row.get("reason")).most_common(),
        failed=failed,
        warned=[row for row in ledger if row.get("warnings")],
        licences=Counter((licence_text(row), _consents(row, drawn.items)) for row in manifest).most_common(),
        audit=summarize(work),
        opinion=second_opinion(ledger, work),
        expressions=NAMES,
        components=_components(folder, manifest),
    )
    uri = join(folder, "report.html")
    with showing(folder, index, "lato data report"):
        commit(uri, page.encode())
    return uri


def _funnel(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The funnel with what each row means, and its share of what went into its step."""
    most = Counter[str]()
    for row in rows:
        whole = row["step"] in ("samples", "instructions")  # whose rows have no sum among them
        most[row["step"]] = most[row["step"]] + row["count"] if whole else max(most[row["step"]], row["count"])
    return [
        {**row, "said": VERDICTS_SAID.get(row["name"].removeprefix("rejected: "), ""), "share": row["count"] / max(1, most[row["step"]])}
        for row in rows
    ]


def _looked_at(funnel: list[dict[str, Any]]) -> int:
    return next((int(row["count"]) for row in funnel if (row["step"], row["name"]) == ("sources", "in")), 0)


def _is_of_another(funnel: list[dict[str, Any]], shown: set[str], ledger: Ledger, copies: Mapping[str, object]) -> bool:
    """Whether the ledger tells of other sources than the version's funnel, or lacks one of its samples: there was another build since, or somebody was forgotten."""
    counts = {row["name"]: row["count"] for row in funnel if row["step"] == "sources"}
    return not shown <= {row["source_id"] for row in ledger.rows} or counts != {"in": len(ledger.rows), **ledger.counts(copies)}


def _consents(row: dict[str, Any], items: dict[str, WorkItem]) -> str:
    """Of source and target, as the version has it; an older one does not tell, and then it is what the last work list says."""
    if row["kind"] == "synthetic":
        return "not needed: drawn"
    if "consent" in row:
        return " and ".join(sorted({consent or "unknown" for consent in consents_of(row)}))
    return " and ".join(sorted({items[name].consent if name in items else "unknown" for name in (row["source_id"], row["target_id"])}))


def one_of_twins(judged: pa.Table, passed: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Numbers of the rows that stand for a pair and its reverse, which are one observation: the direction that passed, else the first by key."""
    if not len(judged):
        return np.zeros(0, np.int64)
    ends = np.sort(end_numbers(judged), axis=0)
    order = np.lexsort((np.array(judged["key"].to_pylist(), "S"), ~passed))
    first = np.unique(ends[:, order], axis=1, return_index=True)[1]
    return np.sort(order[first])


def _rates(names: Names, order: tuple[str, ...], judged: pa.Table, passed: npt.NDArray[np.bool_]) -> tuple[list[dict[str, Any]], bool, int]:
    """A row a group: candidates with an edit, their sources, those that passed, and of the real ones that were asked those of one person, with intervals;
    whether any was asked; how many groups are left out, the smallest."""
    asked = np.isfinite(np.asarray(judged["similarity"], np.float64)) & np.asarray(pc.not_equal(judged["kind"], "synthetic"))
    alike = asked & np.asarray(pc.not_equal(judged["verdict"], "identity"))
    sources = np.unique(np.asarray(judged["source_id"]).astype(str), return_inverse=True)[1]
    groups, place = np.unique(names, return_inverse=True)

    def count(of: npt.NDArray[np.bool_]) -> list[int]:
        return np.bincount(place, weights=of, minlength=len(groups)).astype(int).tolist()

    several = np.bincount(np.unique(np.stack([place, sources]), axis=1)[0], minlength=len(groups)).tolist()
    counts = zip(groups.tolist(), several, count(np.ones(len(names), bool)), count(passed), count(asked), count(alike), strict=True)
    rows = [
        {"group": g, "sources": s, "pairs": n, "passed": k, "interval": wilson(k, n), "asked": a, "one": o, "alike": wilson(o, a)}
        for g, s, n, k, a, o in counts
    ]
    kept = sorted(sorted(rows, key=lambda row: -row["pairs"])[:_MOST], key=lambda row: row["group"])
    return sorted(kept, key=lambda row: order.index(row["group"]) if order else 0), bool(asked.any()), len(rows) - len(kept)


def _groups(judged: pa.Table, items: dict[str, WorkItem]) -> Iterator[tuple[str, Names, tuple[str, ...]]]:
    """Every way of grouping pairs: its name, each pair's group, and the order of groups that have one."""
    sizes = np.minimum(np.asarray(judged["from_face_px"]), np.asarray(judged["to_face_px"]))
    yield "kind of source", np.asarray(judged["kind"]).astype(str), ()
    yield (
        "skin tone (individual typology angle, degrees)",
        _banded(judged["from_skin_ita"], (-30, 10, 28, 41, 55), _SKIN),
        (*_SKIN[::-1], _UNKNOWN),
    )
    yield "face size", _banded(sizes, (96, 192, 384), _FACES), _FACES
    yield "resolution", _banded(judged["from_width"], (640, 1280), _WIDTHS), _WIDTHS
    yield "edit", np.asarray(judged["edit_kind"]).astype(str), ()
    sources, place = np.unique(np.asarray(judged["source_id"]).astype(str), return_inverse=True)
    attributes = {name: items[name].attributes for name in sources.tolist() if name in items}
    for name in sorted({name for found in attributes.values() for name in found} - {"made_from"}):
        of = [attributes.get(source, {}).get(name, "(none)") for source in sources.tolist()]
        yield f"{name} (of the work list)", np.array(of, str)[place] if of else np.zeros(0, str), ()


_SKIN = ("dark (under -30)", "brown (-30 to 10)", "tan (10 to 28)", "intermediate (28 to 41)", "light (41 to 55)", "very light (over 55)")
_UNKNOWN = "not measured"
_FACES = ("under 96 px", "96 to 191 px", "192 to 383 px", "384 px and more")
_WIDTHS = ("under 640 px wide", "640 to 1279 px", "1280 px and more")


def _banded(values: Any, bounds: tuple[float, ...], names: tuple[str, ...]) -> Names:
    found = np.asarray(values, np.float64)
    return np.where(np.isnan(found), _UNKNOWN, np.array(names)[np.digitize(found, bounds)])


def _components(folder: str, manifest: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What is never split: the largest components by samples with their sources, how many there are of each size, and tracks left out; None for a view."""
    found = read_components(folder)
    if found is None:
        return None
    of_source: dict[str, str] = found["components"]
    samples = Counter(of_source.get(row["source_id"], row["source_id"]) for row in manifest)
    sources, total = Counter(of_source.values()), max(1, len(manifest))
    largest = [(name.removeprefix("source:"), sources[name], count, count / total) for name, count in samples.most_common(10)]
    sizes = sorted(Counter(sources[name] for name in samples).items())
    families = Counter(found.get("families", {}).values())
    return {
        "largest": largest,
        "count": len(samples),
        "sizes": sizes,
        "links": len(found["links"]),
        "bridges": found["bridges"],
        "families": (families.total(), len(families)),
        "held_out": found.get("held_out"),
    }
