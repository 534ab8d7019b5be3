"""The data report: one self-contained page about a version, for the person who answers for the data."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jinja2
import matplotlib
import numpy as np
import numpy.typing as npt

from data_pipeline.audit import summarize, wilson
from data_pipeline.candidates import read_candidates
from data_pipeline.decode import DecodeError
from data_pipeline.divide import COMPONENTS
from data_pipeline.judge import LIMITS, PASSED, PairingConfig
from data_pipeline.pack import read_index, read_manifest
from data_pipeline.pairing import SCORES
from data_pipeline.sheet import draw_candidate, draw_sheet, read_samples
from data_pipeline.why import pairing_config
from data_pipeline.worklist import read_worklist
from infra.storage import commit, exists, join, read_bytes
from lato.edits import Expression
from lato.pairs import decode_image

matplotlib.use("Agg")
_SHEET = 12
_REJECTED = 4
_COVERAGE_GOAL = 50
"""Samples that a cell of the coverage table should have."""

_GROUPS: dict[str, Callable[[dict[str, Any]], str]] = {
    "kind of source": lambda row: row["kind"],
    "skin tone (ITA)": lambda row: _skin(row["from_skin_ita"]),
    "face size": lambda row: _size(min(row["from_face_px"], row["to_face_px"])),
    "resolution": lambda row: _resolution(row["from_width"]),
    "edit": lambda row: str(row["edit_kind"]),
}


def write_data_report(work: str, version: str = "v1") -> str:
    """Writes `report.html` beside a version's shards.

    Args:
        work: The build's folder.
        version: Name of the version.

    Returns:
        Its URI.

    Raises:
        UserError: There is no such version.
    """
    folder = join(work, "versions", version)
    index = read_index(folder)
    candidates, manifest = read_candidates(folder), read_manifest(folder)
    ledger = [json.loads(line) for line in read_bytes(join(work, "ledger.jsonl")).splitlines()]
    config = pairing_config(work)
    picked = sorted(manifest, key=lambda row: str(row["key"]))[:: max(1, len(manifest) // _SHEET)][:_SHEET]
    template = jinja2.Template((Path(__file__).parent / "templates/report.html.jinja").read_text(), autoescape=True)
    page = template.render(
        name=version,
        digest=index["digest"],
        samples=Counter(str(row["split"]) for row in manifest),
        funnel=json.loads(read_bytes(join(folder, "funnel.json"))),
        filters=[(verdict, *_filter(candidates, verdict, config)) for verdict in LIMITS],
        correlation=_picture(_plot_correlation(candidates)),
        coverage=_coverage(manifest),
        goal=_COVERAGE_GOAL,
        groups=[(name, _rates(candidates, of)) for name, of in (_GROUPS | _attribute_groups(work)).items()],
        accepted=_picture(draw_sheet(read_samples(folder, picked), columns=3)),
        rejected=[(verdict, _picture(sheet)) for verdict, sheet in _rejected_sheets(candidates, work)],
        failures=Counter(f"{row['status']}: {row['reason']}" for row in ledger if row.get("reason")).most_common(),
        failed=[row for row in ledger if row["status"] == "failed"][:20],
        people=Counter(Counter(str(row["identity"]) for row in manifest).values()),
        licences=Counter(str(row["licence"]) for row in manifest).most_common(),
        audit=summarize(work),
        components=json.loads(read_bytes(join(folder, COMPONENTS)))["sizes"] if exists(join(folder, COMPONENTS)) else [],
    )
    uri = join(folder, "report.html")
    commit(uri, page.encode())
    return uri


def _rates(candidates: list[dict[str, Any]], of: Callable[[dict[str, Any]], str]) -> list[tuple[str, int, int, float, float, float]]:
    """Group -> candidates with an edit, accepted (or over a quota only), rate and interval."""
    total: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    for row in candidates:
        if row["verdict"] != "no edit of ours":
            total[of(row)] += 1
            passed[of(row)] += row["verdict"] in PASSED
    return [(name, total[name], passed[name], passed[name] / total[name], *wilson(passed[name], total[name])) for name in sorted(total)]


def _attribute_groups(work: str) -> dict[str, Callable[[dict[str, Any]], str]]:
    """A group for each of the work list's own attributes."""
    attributes = {item.source_id: item.attributes for item in read_worklist(join(work, "worklist.parquet"))}
    names = sorted({name for found in attributes.values() for name in found})

    def of(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: attributes.get(row["source_id"], {}).get(name, "(none)")

    return {f"attribute {name}": of(name) for name in names if name != "made_from"}


def _resolution(width: int) -> str:
    return next((name for limit, name in ((640, "1 under 640 px wide"), (1280, "2 640-1279 px")) if width < limit), "3 1280 px and more")


def _skin(angle: float) -> str:
    bounds = (
        (55, "1 very light (> 55)"),
        (41, "2 light (41-55)"),
        (28, "3 intermediate (28-41)"),
        (10, "4 tan (10-28)"),
        (-30, "5 brown (-30-10)"),
    )
    return next((name for limit, name in bounds if angle > limit), "6 dark (< -30)")


def _size(pixels: float) -> str:
    return next(
        (name for limit, name in ((96, "1 under 96 px"), (192, "2 96-192 px"), (384, "3 192-384 px")) if pixels < limit),
        "4 384 px and more",
    )


def _coverage(manifest: list[dict[str, Any]]) -> tuple[list[str], list[tuple[str, list[int]]]]:
    """Expression change x pose step -> samples."""
    poses = sorted({_pose(row) for row in manifest})
    counts = Counter((str(row["expression"] or "same expression"), _pose(row)) for row in manifest)
    rows = [*(expression.value for expression in Expression), "same expression"]
    return poses, [(name, [counts[name, pose] for pose in poses]) for name in rows]


def _pose(row: dict[str, Any]) -> str:
    return " ".join(f"{axis} {int(row[axis]):+d}" for axis in ("yaw", "pitch", "roll") if row[axis]) or "same pose"


def _filter(candidates: list[dict[str, Any]], verdict: str, config: PairingConfig) -> tuple[int, str]:
    """How many a filter refuses, and the distribution of its score before and after with its threshold."""
    from matplotlib import pyplot

    score, name, _ = LIMITS[verdict]
    judged = [row for row in candidates if row["verdict"] != "no edit of ours"]
    before = np.array([row[score] for row in judged])
    after = np.array([row[score] for row in judged if row["verdict"] in PASSED])
    figure, axes = pyplot.subplots(figsize=(3.6, 2.0))
    if len(before):
        low, high = np.percentile(before, [0.5, 99.5])
        limit = float(getattr(config, name))
        edges = np.linspace(min(low, limit), max(high, limit) + 1e-9, 40).tolist()
        axes.hist(np.clip(before, edges[0], edges[-1]), edges, color="#c9ced6", label="judged")
        axes.hist(np.clip(after, edges[0], edges[-1]), edges, color="#3b6fb6", label="passed")
        axes.axvline(limit, color="#c0392b", linewidth=1.2)
        axes.set_yscale("symlog")
    axes.set_title(f"{score} (threshold {getattr(config, name):g})", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=6, frameon=False)
    return sum(row["verdict"] == verdict for row in candidates), _figure(figure)


def _plot_correlation(candidates: list[dict[str, Any]]) -> npt.NDArray[np.uint8]:
    from matplotlib import pyplot

    values = np.array([[row[name] for name in SCORES] for row in candidates], np.float64)
    figure, axes = pyplot.subplots(figsize=(4.6, 4.0))
    spread = values.std(0) > 0
    matrix = np.full((len(SCORES), len(SCORES)), np.nan)
    if spread.any() and len(values) > 2:
        matrix[np.ix_(spread, spread)] = np.atleast_2d(np.corrcoef(values[:, spread].T))
    axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
    axes.set_xticks(range(len(SCORES)), SCORES, rotation=60, fontsize=7, ha="right")
    axes.set_yticks(range(len(SCORES)), SCORES, fontsize=7)
    for (i, j), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=6)
    return decode_image(base64.b64decode(_figure(figure)), "correlation")


def _rejected_sheets(candidates: list[dict[str, Any]], work: str) -> list[tuple[str, npt.NDArray[np.uint8]]]:
    """Filter -> the pairs that missed it by least, drawn from the sources."""
    uris = {item.source_id: item.uri for item in read_worklist(join(work, "worklist.parquet"))}
    sheets = []
    for verdict, (score, _, sign) in LIMITS.items():
        rows = sorted((row for row in candidates if row["verdict"] == verdict), key=lambda row: -row[score] * sign)
        strips: list[npt.NDArray[np.uint8]] = []
        for row in rows[:: 2 if len(rows) > _REJECTED else 1]:  # a pair and its reverse lie side by side
            strip = _draw_rejected(row, uris, work, f"{score} {row[score]:.3g}")
            strips += [] if strip is None else [strip]
            if len(strips) == _REJECTED:
                break
        if strips:
            sheets.append((verdict, np.hstack(strips)))
    return sheets


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
