"""The data report: one self-contained page about a version, for the person who answers for the data. Reads the candidates as columns: ten million fit."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import jinja2
import matplotlib
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.audit import summarize, wilson
from data_pipeline.candidates import read_candidates_table
from data_pipeline.decoder import DecodeError
from data_pipeline.extend import COMPONENTS
from data_pipeline.ledger import read_ledger
from data_pipeline.pack import licence_text, read_index, read_manifest
from data_pipeline.pairing import AXES, SCORES
from data_pipeline.rules import LIMITS, PASSED, VERIFIERS, PairingConfig
from data_pipeline.second_opinion import NAMES, second_opinion
from data_pipeline.sheet import draw_candidate, draw_sheet, read_samples
from data_pipeline.versions import whole_version
from data_pipeline.why import pairing_config
from data_pipeline.worklist import read_worklist
from infra.state import PUBLISHED, read_json
from infra.storage import commit, exists, join
from lato.edits import POSE_STEP, Expression

matplotlib.use("Agg")
_SHEET = 12
_REJECTED = 4
_NEAREST = 400
"""Of a filter's refused pairs those nearest to its threshold, among which pairs of different sources are looked for."""
_COVERAGE_GOAL = 50
"""Samples that a cell of the coverage table should have."""
_POSES = ("same pose", *(f"{axis} {step:+d}" for axis in AXES for step in (POSE_STEP, -POSE_STEP)))
"""Columns that the coverage table always has."""
_SHOWN = LIMITS | {"pose discriminator": VERIFIERS["pose discriminator"]}
"""Filters with a score, so that there is a nearest miss."""
_NEEDED = ("verdict", "kind", "source_id", "edit_kind", "from_skin_ita", "from_face_px", "to_face_px", "from_width", *SCORES)
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
    passed = np.asarray(pc.is_in(judged["verdict"], value_set=pa.array(PASSED)))
    asked = np.isfinite(np.asarray(judged["similarity"], np.float64)) & np.asarray(pc.not_equal(judged["kind"], "synthetic"))
    alike = np.asarray(pc.not_equal(judged["verdict"], "identity"))
    ledger = read_ledger(work)
    config = pairing_config(folder)
    picked = sorted(manifest, key=lambda row: str(row["key"]))[:: max(1, len(manifest) // _SHEET)][:_SHEET]
    template = jinja2.Template((Path(__file__).parent / "templates/report.html.jinja").read_text(), autoescape=True)
    coverage = _coverage(manifest)
    short = [goal for _, cells in coverage[1] for _, goal in cells if goal]
    page = template.render(
        name=version,
        digest=index["digest"],
        samples=Counter(str(row["split"]) for row in manifest),
        funnel=read_json(join(folder, "funnel.json"), mend=PUBLISHED),
        filters=[(verdict, *_filter(judged, passed, verdict, config)) for verdict in _SHOWN],
        correlation=_plot_correlation(judged),
        coverage=coverage,
        short=(len(short), sum(short)),
        goal=_COVERAGE_GOAL,
        groups=[(name, _rates(names, passed), _rates(names[asked], alike[asked])) for name, names in _groups(judged, work)],
        accepted=_picture(draw_sheet(read_samples(folder, picked), columns=3)) if picked else None,
        rejected=[(verdict, _picture(sheet)) for verdict, sheet in _rejected_sheets(folder, work)],
        failures=Counter(f"{row['status']}: {row['reason']}" for row in ledger if row.get("reason")).most_common(),
        failed=[row for row in ledger if row["status"] == "failed"][:20],
        warned=[row for row in ledger if row.get("warnings")],
        people=Counter(Counter(str(row["identity"]) for row in manifest).values()),
        licences=Counter(map(licence_text, manifest)).most_common(),
        audit=summarize(work),
        opinion=second_opinion(ledger, work),
        expressions=NAMES,
        components=_components(folder, manifest),
    )
    uri = join(folder, "report.html")
    commit(uri, page.encode())
    return uri


def _rates(names: Names, passed: npt.NDArray[np.bool_]) -> list[tuple[str, int, int, float, float, float]]:
    """Group -> candidates with an edit, accepted (or over a quota only), rate and interval."""
    groups, place = np.unique(names, return_inverse=True)
    total = np.bincount(place, minlength=len(groups)).tolist()
    good = np.bincount(place, weights=passed, minlength=len(groups)).astype(int).tolist()
    return [(str(g), n, k, k / n, *wilson(k, n)) for g, n, k in zip(groups, total, good, strict=True)]


def _groups(judged: pa.Table, work: str) -> Iterator[tuple[str, Names]]:
    """Every way of grouping pairs: its name, and each pair's group."""
    sizes = np.minimum(np.asarray(judged["from_face_px"]), np.asarray(judged["to_face_px"]))
    yield "kind of source", np.asarray(judged["kind"]).astype(str)
    yield "skin tone (ITA)", _banded(judged["from_skin_ita"], (-30, 10, 28, 41, 55), _SKIN)
    yield "face size", _banded(sizes, (96, 192, 384), ("1 under 96 px", "2 96-192 px", "3 192-384 px", "4 384 px and more"))
    yield "resolution", _banded(judged["from_width"], (640, 1280), ("1 under 640 px wide", "2 640-1279 px", "3 1280 px and more"))
    yield "edit", np.asarray(judged["edit_kind"]).astype(str)
    attributes = {item.source_id: item.attributes for item in read_worklist(join(work, "worklist.parquet"))}
    sources, place = np.unique(np.asarray(judged["source_id"]).astype(str), return_inverse=True)
    for name in sorted({name for found in attributes.values() for name in found} - {"made_from"}):
        of = [attributes.get(source, {}).get(name, "(none)") for source in sources]
        yield f"attribute {name}", np.array(of, str)[place] if of else np.zeros(0, str)


_SKIN = (
    "6 dark (< -30)",
    "5 brown (-30 to 10)",
    "4 tan (10 to 28)",
    "3 intermediate (28 to 41)",
    "2 light (41 to 55)",
    "1 very light (> 55)",
)


def _banded(values: Any, bounds: tuple[float, ...], names: tuple[str, ...]) -> Names:
    return np.array(names)[np.digitize(np.asarray(values, np.float64), bounds)]


def _coverage(manifest: list[dict[str, Any]]) -> tuple[list[str], list[tuple[str, list[tuple[int, int]]]]]:
    """Expression that an edit leads to x pose step -> samples, and how many the cell lacks. What no edit can be, and steps of two axes, lack nothing."""
    poses = [*_POSES, *sorted({_pose(row) for row in manifest} - set(_POSES))]
    counts = Counter((str(row["expression"] or "same expression"), _pose(row)) for row in manifest)
    rows = [*(expression.value for expression in Expression), "same expression"]

    def lacks(name: str, pose: str) -> int:
        wanted = pose in _POSES and (name, pose) != ("same expression", "same pose")
        return max(0, _COVERAGE_GOAL - counts[name, pose]) if wanted else 0

    return poses, [(name, [(counts[name, pose], lacks(name, pose)) for pose in poses]) for name in rows]


def _pose(row: dict[str, Any]) -> str:
    return " ".join(f"{axis} {int(row[axis]):+d}" for axis in AXES if row[axis]) or "same pose"


def _components(folder: str, manifest: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What is never split: the largest components by samples with their sources, how many there are, and tracks left out; None for a view."""
    if not exists(join(folder, COMPONENTS)):
        return None
    found = read_json(join(folder, COMPONENTS), ("components", "links", "bridges"), PUBLISHED)
    of_source: dict[str, str] = found["components"]
    samples = Counter(of_source.get(row["source_id"], row["source_id"]) for row in manifest)
    sources, total = Counter(of_source.values()), max(1, len(manifest))
    largest = [(name.removeprefix("source:"), sources[name], count, count / total) for name, count in samples.most_common(10)]
    return {"largest": largest, "count": len(samples), "links": len(found["links"]), "bridges": found["bridges"]}


def _filter(judged: pa.Table, passed: npt.NDArray[np.bool_], verdict: str, config: PairingConfig) -> tuple[int, str, str]:
    """How many a filter refuses, what is lacking, and the distribution of its score before and after with its threshold."""
    from matplotlib import pyplot, ticker

    score, name, _ = _SHOWN[verdict]
    before = np.asarray(judged[score], np.float64)
    passed, before = passed[np.isfinite(before)], before[np.isfinite(before)]  # a score that was not asked for
    limit = float(getattr(config, name))
    known = "" if len(before) or not len(judged) else f"{score} (not computed)"
    figure, axes = pyplot.subplots(figsize=(3.6, 2.0))
    if len(before):
        low, high = np.percentile(before, [0.5, 99.5])
        edges = np.linspace(min(low, limit), max(high, limit) + 1e-9, 40).tolist()
        axes.hist(np.clip(before, edges[0], edges[-1]), edges, color="#c9ced6", label="judged")
        axes.hist(np.clip(before[passed], edges[0], edges[-1]), edges, color="#3b6fb6", label="passed all")
        axes.axvline(limit, color="#c0392b", linewidth=1.2)
        axes.set_yscale("symlog")
        axes.legend(fontsize=6, frameon=False)
    axes.set_title(f"{score} (threshold {limit:g})", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
    return pc.sum(pc.equal(judged["verdict"], verdict)).as_py() or 0, known, _figure(figure)


def _plot_correlation(judged: pa.Table) -> str:
    from matplotlib import pyplot

    values = np.stack([np.asarray(judged[name], np.float64) for name in SCORES], axis=1)
    matrix = _correlate(values)
    figure, axes = pyplot.subplots(figsize=(7.2, 6.2))
    axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
    axes.set_xticks(range(len(SCORES)), SCORES, rotation=45, fontsize=8, ha="right")
    axes.set_yticks(range(len(SCORES)), SCORES, fontsize=8)
    for (i, j), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=7, color="white" if abs(value) > 0.6 else "black")
    return _figure(figure)


def _correlate(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Correlation of each two columns over the rows where both are known; NaN where one does not vary there. Identity, asked of the good pairs only, so
    takes no rows from the others."""
    width = values.shape[1]
    matrix = np.full((width, width), np.nan)
    known = np.isfinite(values)
    for i in range(width):
        for j in range(i, width):
            both = values[known[:, i] & known[:, j]][:, [i, j]]
            if len(both) > 2 and (np.ptp(both, axis=0) > 0).all():
                matrix[i, j] = matrix[j, i] = np.asarray(np.corrcoef(both.T))[0, 1]
    return matrix


def _rejected_sheets(folder: str, work: str) -> list[tuple[str, npt.NDArray[np.uint8]]]:
    """Filter -> the pairs that missed it by least, of different sources as far as there are, drawn from the sources."""
    uris = {item.source_id: item.uri for item in read_worklist(join(work, "worklist.parquet"))}
    table = read_candidates_table(folder)
    sheets = []
    for verdict in ("expression verifier", *_SHOWN):
        score, _, sign = (VERIFIERS | _SHOWN)[verdict]
        refused = table.filter(pc.equal(table["verdict"], verdict))
        order = np.argsort(-np.asarray(refused[score], np.float64) * sign, kind="stable")[:_NEAREST]
        strips: list[npt.NDArray[np.uint8]] = []
        for row in _of_different_sources(refused.take(order).to_pylist()):
            said = f"reads as {row['to_expression']}" if verdict == "expression verifier" else f"{score} {row[score]:.3g}"
            strip = _draw_rejected(row, uris, work, said)
            strips += [] if strip is None else [strip]
            if len(strips) == _REJECTED:
                break
        if strips:
            sheets.append((verdict, np.hstack(strips)))
    return sheets


def _of_different_sources(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first pair of each source, then the second of each and so on; of a pair and its reverse only one."""
    seen: Counter[str] = Counter()
    ends: set[frozenset[tuple[str, int]]] = set()
    ordered = []
    for number, row in enumerate(rows):
        both = frozenset({(row["from_part"], row["from_row"]), (row["to_part"], row["to_row"])})
        if both not in ends:
            ends.add(both)
            ordered.append((seen[row["source_id"]], number, row))
            seen[row["source_id"]] += 1
    return [row for _, _, row in sorted(ordered, key=lambda entry: entry[:2])]


def _draw_rejected(row: dict[str, Any], uris: dict[str, str], work: str, caption: str) -> npt.NDArray[np.uint8] | None:
    """Source and target of a rejected pair with landmarks; None where the source can no longer be read."""
    try:
        strip = draw_candidate(row, uris, work, side=150)
    except (DecodeError, FileNotFoundError, ValueError):
        return None
    bar = np.full((22, strip.shape[1], 3), 255, np.uint8)
    cv2.putText(bar, caption, (3, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (20, 20, 20), 1, cv2.LINE_AA)
    return cv2.copyMakeBorder(np.vstack([strip, bar]), 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=(255, 255, 255))  # type: ignore[return-value]


def _picture(image: npt.NDArray[np.uint8]) -> str:
    return base64.b64encode(
        cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
    ).decode()


def _figure(figure: Any) -> str:
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, dpi=110)
    pyplot.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()
