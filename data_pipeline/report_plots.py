"""Plots of the data report: each filter's score before it, after it and after all of them, and how scores go together. PNG in base64."""

from __future__ import annotations

import base64
import io
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.pairing import SCORES
from data_pipeline.rules import EDITS, LIMITS, VERIFIERS, PairingConfig, passes
from data_pipeline.words import SCORES_SAID, VERDICTS_SAID, limit_said

matplotlib.use("Agg")


def show_filter(judged: pa.Table, passed: npt.NDArray[np.bool_], verdict: str, config: PairingConfig) -> dict[str, Any]:
    """What a filter asks, how many it refuses and how many are beyond its threshold at all, what is lacking, and its plot.

    Args:
        judged: Candidates.
        passed: Which of them passed every filter, (N,).
        verdict: The filter's, or what an edit asks (`EDITS`).
        config: Thresholds.
    """
    score, name, sign = (LIMITS | VERIFIERS | EDITS)[verdict]
    before = np.asarray(judged[score], np.float64)
    asked = np.isfinite(before)  # a score that was not asked for is none
    if verdict == "identity":
        asked &= np.asarray(pc.not_equal(judged["kind"], "synthetic"))  # theirs is declared, and not held against the threshold
    limit = float(getattr(config, name))
    reached = passes(before, limit, sign)
    refused = np.asarray(pc.equal(judged["verdict"], "no edit of ours" if verdict in EDITS else verdict))
    if verdict in EDITS:
        refused = refused & ~reached  # who misses one, misses the edit, as others do for other reasons
    lacking = "" if asked.any() or not len(judged) else f"{score} (not computed)"
    if lacking and verdict == "identity":
        lacking = "asked of no pair"
    return {
        "verdict": verdict,
        "said": VERDICTS_SAID[verdict],
        "needs": f"{SCORES_SAID[score]} {limit_said(verdict, config)}",
        "refused": int(refused.sum()),
        "lacking": lacking,
        **_show(before[asked], reached[asked], passed[asked], limit, SCORES_SAID[score]),
    }


def show_repeats(bits: npt.NDArray[np.float64], accepted: npt.NDArray[np.bool_], refused: int, config: PairingConfig) -> dict[str, Any]:
    """The same of near-duplicates, of a sample of them and of accepted pairs.

    Args:
        bits: By which each differs from the nearest accepted pair that it is compared with, (N,); NaN where there is none.
        accepted: Which of them are, (N,).
        refused: Near-duplicates of the version.
        config: Thresholds.
    """
    known, limit = np.isfinite(bits), config.near_duplicate_bits
    return {
        "verdict": "near-duplicate",
        "said": VERDICTS_SAID["near-duplicate"],
        "needs": f"{_BITS} more than {limit}",
        "refused": refused,
        "lacking": "" if known.any() or not len(bits) else "there is no accepted pair to compare with",
        **_show(bits[known], bits[known] > limit, accepted[known], limit, _BITS),
    }


_BITS = "hash bits to the nearest accepted pair (of 256)"


def _show(
    before: npt.NDArray[np.float64], reached: npt.NDArray[np.bool_], passed: npt.NDArray[np.bool_], limit: float, said: str
) -> dict[str, Any]:
    """How many are beyond a threshold, of how many, and the plot: scores before a filter, after it, and after all of them."""
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(3.6, 2.2))
    if len(before):
        low, high = np.percentile(before, [0.5, 99.5])
        edges = np.linspace(min(low, limit), max(high, limit) + 1e-9, 40).tolist()
        axes.hist(np.clip(before, edges[0], edges[-1]), edges, color="#b9c0ca", label="before")
        axes.hist(np.clip(before[reached], edges[0], edges[-1]), edges, color="#8fb4dd", label="after this filter")
        axes.hist(np.clip(before[passed], edges[0], edges[-1]), edges, color="#3b6fb6", label="after all filters")
        axes.axvline(limit, color="#c0392b", linewidth=1.4, label=f"threshold {limit:g}")
        axes.set_yscale("symlog")
        axes.set_ylim(0, axes.get_ylim()[1] * 30)  # room above for the legend
        axes.yaxis.set_major_locator(ticker.SymmetricalLogLocator(base=10, linthresh=1))
        axes.legend(fontsize=6.5, framealpha=1, edgecolor="none", loc="upper center", ncols=2, columnspacing=1, handlelength=1.2)
    axes.set_xlabel(said, fontsize=7.5)
    axes.set_ylabel("pairs", fontsize=7.5)
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
    return {"beyond": int((~reached).sum()), "known": len(before), "plot": _encode(figure)}


def plot_correlation(judged: pa.Table) -> str:
    """The matrix of all scores."""
    from matplotlib import pyplot

    values = np.stack([np.asarray(judged[name], np.float64) for name in SCORES], axis=1)
    matrix, names = correlate(values), [SCORES_SAID[name].partition(" (")[0] for name in SCORES]
    figure, axes = pyplot.subplots(figsize=(9, 7.6))
    picture = axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
    figure.colorbar(picture, ax=axes, shrink=0.6, label="correlation")
    axes.set_facecolor("#e6e9ee")
    axes.set_xticks(range(len(SCORES)), names, rotation=45, fontsize=8, ha="right")
    axes.set_yticks(range(len(SCORES)), names, fontsize=8)
    for (i, j), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            axes.text(
                j, i, f"{round(value, 1) + 0:.1f}", ha="center", va="center", fontsize=7, color="white" if abs(value) > 0.6 else "black"
            )
    return _encode(figure)


def correlate(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
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


def _encode(figure: Any) -> str:
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, dpi=110)
    pyplot.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()
