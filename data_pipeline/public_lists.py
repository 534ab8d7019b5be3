"""Public face-video lists as work lists, for files that are downloaded already. Their makers' formats are read; nothing is fetched."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.worklist import VIDEO_SUFFIXES, WorkItem
from infra.errors import UserError

LICENCES = {
    "celebv_hq": "CelebV-HQ non-commercial",
    "celebv_text": "CelebV-Text non-commercial",
    "hdtf": "CC-BY-4.0",
    "openhumanvid": "OpenHumanVid",
}


def read_public_list(name: str, path: str, videos: str) -> tuple[list[WorkItem], list[str]]:
    """Work items of a list's clips that lie in a folder, and the clips that do not.

    Args:
        name: One of `LICENCES`.
        path: The list's own file (for `hdtf` its folder of tables).
        videos: Folder with the files.

    Raises:
        UserError: The name, file or folder is not there, or the file is not of that format.
    """
    if name not in LICENCES:
        raise UserError(f"{name!r}: expected one of {', '.join(LICENCES)}")
    if not Path(path).exists() or not Path(videos).is_dir():
        raise UserError(f"{path if not Path(path).exists() else videos}: there is no such file or folder")
    readers = {"celebv_hq": _celebv, "celebv_text": _celebv, "hdtf": _hdtf, "openhumanvid": _openhumanvid}
    here = {file.stem: str(file) for file in sorted(Path(videos).rglob("*")) if file.suffix.lower() in VIDEO_SUFFIXES}
    items: list[WorkItem] = []
    missing: list[str] = []
    try:
        for stem, columns in readers[name](Path(path)):
            if stem not in here:
                missing += [stem] if stem not in missing[-1:] else []
                continue
            items.append(
                WorkItem(
                    source_id=_id(name, stem) + columns.pop("suffix", ""), uri=here[stem], kind="video", licence=LICENCES[name], **columns
                )
            )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a list of {name}: {type(error).__name__} {error}") from error
    return items, missing


def _id(name: str, stem: str) -> str:
    """A key that no other stem gives: letters of another case or other signs are spelled by their code."""
    return name + "_" + re.sub(r"[^a-z0-9]", lambda sign: "_" if sign.group() in "_-" else f"x{ord(sign.group()):02x}", stem)


def _celebv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """CelebV-HQ and CelebV-Text: JSON of clips with YouTube id, seconds, box and labels. Files are cut to the clip already."""
    for stem, clip in json.loads(path.read_text())["clips"].items():
        attributes = {}
        emotion = clip.get("attributes", {}).get("emotion", {}) if isinstance(clip.get("attributes"), dict) else {}
        if isinstance(emotion.get("labels"), str):
            attributes["emotion"] = emotion["labels"]
        yield stem, {"group": clip["ytb_id"], "url": f"https://www.youtube.com/watch?v={clip['ytb_id']}", "attributes": attributes}


def _hdtf(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """HDTF: tables `*_video_url.txt` (name, url) and `*_annotion_time.txt` (name, then spans like 00:10-01:20). Files are the whole videos,
    of which each span is an item, or one a span."""
    tables = sorted(folder.glob("*_video_url.txt"))
    if not tables:
        raise ValueError("no *_video_url.txt in it")
    for table in tables:
        subset = table.name.removesuffix("_video_url.txt")
        urls = dict(line.split(maxsplit=1) for line in table.read_text().splitlines() if line.strip())
        times = folder / f"{subset}_annotion_time.txt"
        spans = (
            {words[0].removesuffix(".mp4"): words[1:] for line in times.read_text().splitlines() if (words := line.split())}
            if times.is_file()
            else {}
        )
        for name, url in urls.items():
            stem = name.removesuffix(".mp4")
            parts = [tuple(_seconds(part) for part in span.split("-")) for span in spans.get(stem, [])]
            common = {"group": stem, "url": url.strip(), "attributes": {"subset": subset}}
            for number, (start, end) in enumerate(parts):
                yield stem, common | {"start": start, "end": end, "suffix": f"_span{number}" if len(parts) > 1 else ""}
            if not parts:
                yield stem, common
            for number in range(len(parts)):
                yield f"{subset}_{stem}_{number}", common


def _openhumanvid(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """OpenHumanVid: CSV with a row a clip; the file is named by `path` (or `video_path`, `video_id`), other columns become attributes."""
    for row in csv.DictReader(io.StringIO(path.read_text())):
        name = next((row[column] for column in ("path", "video_path", "video_id", "id") if row.get(column)), None)
        if name is None:
            raise ValueError("expected a column path, video_path, video_id or id")
        stem = Path(name).stem
        kept = {key: value for key, value in row.items() if value and len(value) <= 64 and key not in ("path", "video_path")}
        yield stem, {"group": row.get("original_video") or stem.rsplit("_", 1)[0], "attributes": kept}


def _seconds(clock: str) -> float:
    """`01:02:03` or `02:03` -> seconds."""
    total = 0.0
    for part in clock.split(":"):
        total = total * 60 + float(part)
    return total
