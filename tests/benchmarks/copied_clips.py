"""How well clips that come again are told from other moments of the same person: `python -m tests.benchmarks.copied_clips` (needs `lato assets fetch franck`).

Three tables: how far apart the same moments of a clip and its copy are, and how far other moments; whole copies of three clips; windows of franck in three
copies of it against the same and all other moments. Then the cost. Exits with an error where a whole copy is missed or another moment is taken for one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.analyze import analyze
from data_pipeline.copies import find_copies
from data_pipeline.motion import _BLENDSHAPES, EVIDENCE, LIKENESS, READ, Clock, Track, agreement, compare_tracks, tracks_of
from data_pipeline.observations import read_columns
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.worklist import WorkItem
from infra import assets
from infra.jobs.common import perception_models
from infra.runtime import quieten
from tests.data_pipeline.videos import altered

FPS, CLOCK = 5.0, Clock(5.0)
CLIPS: dict[str, dict[str, Any]] = {"franck": {"start": 20, "seconds": 20}, "single_face": {}, "carphone": {}}
COPIES: dict[str, dict[str, Any]] = {
    "crf23": {"crf": 23},
    "crf28": {"crf": 28},
    "crf33": {"crf": 33},
    "half the size": {"crf": 23, "scale": 0.5},
    "cropped by 6 %": {"crf": 23, "crop": 0.06},
    "begins 0.37 s later": {"crf": 23, "later": 0.37},
    "all of these": {"crf": 26, "scale": 0.8, "crop": 0.06, "later": 0.37},
}
OTHERS: dict[str, dict[str, Any]] = {
    "franck at 60 s": {"start": 60, "seconds": 20},
    "franck at 100 s": {"start": 100, "seconds": 20},
    "franck at 140 s": {"start": 140, "seconds": 20},
    "franck mirrored": {"start": 20, "seconds": 20, "mirror": True},
    "franck, one picture": {"start": 20, "seconds": 20, "still": True},
    "the same picture, crf30": {"start": 20, "seconds": 20, "still": True, "crf": 30},
}
WHOLE: dict[str, dict[str, Any]] = {
    "crf33": {"crf": 33, "start": 1.13},
    "half": {"crf": 26, "scale": 0.5, "start": 0.29},
    "all": {"crf": 28, "scale": 0.75, "crop": 0.08, "start": 0.37},
}


def make(folder: Path) -> dict[str, WorkItem]:
    """All videos: name -> item."""
    items: dict[str, WorkItem] = {}

    def add(name: str, clip: str, how: dict[str, Any]) -> None:
        path = str(assets.path(clip))
        target = altered(path, folder / f"{len(items)}.mp4", **how) if how else path
        items[name] = WorkItem(source_id=f"s{len(items):03d}", uri=target, kind="video", licence="test", group="one")

    for clip, piece in CLIPS.items():
        add(clip, clip, piece)
        for name, how in COPIES.items():
            more = {key: value for key, value in how.items() if key != "later"}
            add(f"{clip}, {name}", clip, piece | more | {"start": piece.get("start", 0) + how.get("later", 0)})
    for name, how in OTHERS.items():
        add(name, "franck", how)
    add("whole", "franck", {})
    for name, how in WHOLE.items():
        add(f"whole, {name}", "franck", how)
    return items


def distances(tables: dict[str, Any]) -> Iterator[str]:
    """Of normalised faces, in units of `motion`: at the same moments, and more than a second apart; at each whole, and as changes within a second."""
    yield "| copy | same moments, as they are | others | same moments, change within 1 s | others |\n|---|---|---|---|---|"
    for clip in CLIPS:
        base = tables[clip]
        for name, how in COPIES.items():
            copy = tables[f"{clip}, {name}"]
            cells = []
            for lag in (0, CLOCK.lag):
                (times, shown), (mine, again) = (_faces(table, lag) for table in (base, copy))
                there = np.abs(mine[:, None] + how.get("later", 0) - times[None]).argmin(axis=1)
                apart = np.linalg.norm(again[:, None] - shown[None], axis=2)
                same = apart[np.arange(len(mine)), there]
                far = apart[np.abs(mine[:, None] + how.get("later", 0) - times[None]) > 1]
                cells += [
                    f"{np.median(same):.3f} (90 %: {np.quantile(same, 0.9):.3f})",
                    f"{np.median(far):.3f} (1 %: {np.quantile(far, 0.01):.3f})",
                ]
            yield f"| {clip}, {name} | {' | '.join(cells)} |"


def _faces(table: Any, lag: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Times, and faces as `motion` compares them, less those of `lag` frames before."""
    points = np.array(table["landmarks"].to_pylist()).reshape(-1, 68, 2)
    points -= points.mean(axis=1, keepdims=True)
    points /= np.sqrt((points**2).sum(axis=(1, 2), keepdims=True))
    shown = np.hstack([points.reshape(-1, 136), np.array(table["blendshapes"].to_pylist()) * _BLENDSHAPES])
    return np.asarray(table["pts"])[lag:], shown[lag:] - shown[:-lag] if lag else shown


def whole_copies(tracks: dict[str, list[Track]], items: dict[str, WorkItem], parts: dict[str, list[str]], work: str) -> Iterator[str]:
    """Each copy against its clip, and what is found among all sources at once, as one component.

    Raises:
        SystemExit: Something is missed or taken for what it is not.
    """
    yield "| clip and copy | r | evidence | moments that agree |\n|---|---|---|---|"
    for clip in CLIPS:
        for name in [f"{clip}, {name}" for name in COPIES] + ([*OTHERS] if clip == "franck" else []):
            found = agreement(tracks[clip][0], tracks[name][0])
            out_of = min(len(track[0].changes[0]) for track in (tracks[clip], tracks[name]))
            yield f"| {clip} and {name} | {found.like:.2f} | {found.evidence:.1f} | {found.moments} of {out_of} |"
    shown = {name: item for name, item in items.items() if not name.startswith("whole")}
    names = {item.source_id: name for name, item in shown.items()}
    found_all = find_copies(dict.fromkeys(names, "one"), {item.source_id: item for item in shown.values()}, parts, (), FPS, work, [])
    said = {names[copy]: names[of.of] for copy, of in found_all.items()}
    right = {f"{clip}, {name}": clip for clip in CLIPS for name in COPIES}
    wrong = {name: of for name, of in said.items() if right.get(name) != of}
    missed = sorted(right.keys() - said.keys())
    yield f"\nAmong all {len(shown)} as one component: {len(said) - len(wrong)} of {len(right)} copies are found"
    yield f"missed: {', '.join(missed) or 'none'}; wrong: {wrong or 'none'}"
    if wrong:
        raise SystemExit(f"not copies: {wrong}")


def windows(tracks: dict[str, list[Track]], step: float) -> Iterator[str]:
    """Windows of franck against the same of a copy, and against all others that share no second with them.

    Raises:
        SystemExit: Other moments are taken for a copy.
    """
    yield "| window | same moments: found | r (5 %, median) | evidence (5 %, median) | other moments: pairs | taken for a copy | largest evidence | r (largest) |"
    yield "|---|---|---|---|---|---|---|---|"
    taken_all = 0
    for seconds in (2, 3, 4, 6, 8, 12, 16):
        starts = np.arange(3, 190 - seconds, step)
        base = {start: _cut(tracks["whole"][0], start, seconds) for start in starts}
        same, other = [], []
        for name, how in WHOLE.items():
            copies = {start: _cut(tracks[f"whole, {name}"][0], start - how["start"], seconds) for start in starts}
            for start in starts:
                same.append(agreement(base[start], copies[start]))
                other += [agreement(base[start], copies[later]) for later in starts[abs(starts - start) > seconds + 1]]
        found = np.mean([one.evidence >= EVIDENCE and one.like >= LIKENESS for one in same])
        taken = sum(one.evidence >= EVIDENCE and one.like >= LIKENESS for one in other)
        taken_all += taken
        like, sure = (np.quantile([getattr(one, key) for one in same], [0.05, 0.5]) for key in ("like", "evidence"))
        most, unlike = (max(getattr(one, key) for one in other) for key in ("evidence", "like"))
        yield (
            f"| {seconds} s | {found:.0%} of {len(same)} | {like[0]:.2f}, {like[1]:.2f} | {sure[0]:.1f}, {sure[1]:.1f} "
            f"| {len(other)} | {taken} | {most:.1f} | {unlike:.2f} |"
        )
    if taken_all:
        raise SystemExit(f"{taken_all} windows are taken for copies of other moments")


def _cut(track: Track, start: float, seconds: float) -> Track:
    """The moments of a track in a window."""
    first = round(start / CLOCK.step) - track.start[0]
    return Track(track.source, (0, 0), tuple(moves[first : first + round(seconds / CLOCK.step) - CLOCK.lag] for moves in track.changes))


def cost(track: Track, counts: tuple[int, ...]) -> Iterator[str]:
    """Seconds to compare clips of 50 frames of one person with each other: none a copy (noise as large as the movement), and every tenth one."""
    yield "| clips of 50 frames | no copies | every tenth is one | pairs that were computed exactly |\n|---|---|---|---|"
    drawn = np.random.default_rng(0)
    whole = track.changes[0].astype(np.float32)
    for count in counts:
        clips = []
        for number in range(count):
            mine = drawn.permutation(len(whole))[:45]
            clips.append(Track(number, (0, 0), (whole[mine].astype(np.float16),) * 2))
        again = [clips[0]._replace(source=n) if n % 10 == 0 else one for n, one in enumerate(clips)]
        spent, pairs = [], 0
        for given in (clips, again):
            begun = time.perf_counter()
            pairs = sum(1 for _ in compare_tracks(given))
            spent.append(time.perf_counter() - begun)
        yield f"| {count:,} | {spent[0]:.1f} s | {spent[1]:.1f} s | {pairs:,} |"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", type=float, default=4.0, help="seconds between windows")
    parser.add_argument("--counts", type=int, nargs="*", default=[250, 500, 1000], help="clips of the cost")
    options = parser.parse_args()
    quieten()
    folder = Path(tempfile.mkdtemp(prefix="lato_copies_"))
    items = make(folder)
    work = str(folder / "work")
    ledger = analyze(list(items.values()), AnalyzeConfig(workers=0, fps=FPS), perception_models(), work)
    parts = {row["source_id"]: row["parts"] for row in ledger.rows}
    tables = {name: read_columns(work, parts[item.source_id][0], list(READ)) for name, item in items.items()}
    tracks = {name: tracks_of(table, number, CLOCK) for number, (name, table) in enumerate(tables.items())}
    for title, rows in (
        ("Distances", distances(tables)),
        ("Whole copies", whole_copies(tracks, items, parts, work)),
        ("Windows", windows(tracks, options.step)),
        ("Cost", cost(tracks["whole"][0], tuple(options.counts))),
    ):
        print(f"\n## {title}\n", flush=True)
        for row in rows:
            print(row, flush=True)


if __name__ == "__main__":
    main()
