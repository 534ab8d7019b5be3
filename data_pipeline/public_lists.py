"""Public face-video lists as work lists, for files that are downloaded already. Their makers' formats are read; nothing is fetched."""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import av

from data_pipeline.folders import with_names_in_utf8
from data_pipeline.upright import pixel_shape, square_size
from data_pipeline.worklist import VIDEO_SUFFIXES, WorkItem, check_items
from infra.addresses import join
from infra.console import say
from infra.errors import UserError
from infra.storage import exists, files_below, list_files, open_read, read_bytes

LICENCES = {
    "celebv_hq": "CelebV-HQ non-commercial",
    "celebv_text": "CelebV-Text non-commercial",
    "hdtf": "CC-BY-4.0",
    "openhumanvid": "OpenHumanVid",
}


class _Clip(NamedTuple):
    """A clip of a list."""

    name: str
    columns: dict[str, Any]
    """Of its work item."""
    cut: tuple[str, ...]
    """Files that hold this clip alone, cropped to its face: names without suffix, or a path as the list gives it."""
    whole: tuple[str, ...] = ()
    """And of the video that it is a part of."""
    span: tuple[float, float] | None = None
    """Seconds in the whole video."""
    crop: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom of its face in the whole video: as shares of the picture, or in pixels."""
    height: float | None = None
    """Of the picture whose pixels these are; None: the video's own."""


def read_public_list(name: str, path: str, videos: str) -> tuple[list[WorkItem], list[str]]:
    """Work items of a list's clips that lie in a folder, and the clips that do not. A clip is its own file where that is there, else its span and its face
    in the whole video. Where several files could be a clip's, none is taken, and it is told. All may lie on disk or in an object store.

    Args:
        name: One of `LICENCES`.
        path: The list's own file (for `hdtf` its folder of tables).
        videos: Folder with the files.

    Raises:
        UserError: The name, file or folder is not there, the file is not of that format, or it names two files alike.
    """
    if name not in LICENCES:
        raise UserError(f"{name!r}: expected one of {', '.join(LICENCES)}")
    files = files_below(videos)
    if not exists(path) or files is None:
        raise UserError(f"{path if not exists(path) else videos}: there is no such file or folder")
    readers = {"celebv_hq": _celebv, "celebv_text": _celebv, "hdtf": _hdtf, "openhumanvid": _openhumanvid}
    files = with_names_in_utf8(videos, [file for file in files if file.lower().endswith(VIDEO_SUFFIXES)])
    items: list[WorkItem] = []
    missing: list[str] = []
    unclear: list[str] = []
    faceless: list[str] = []
    try:
        clips = list(readers[name](path))
        here, several = _find(files, {wanted for clip in clips for wanted in (*clip.cut, *clip.whole)})
        for clip in clips:
            columns = clip.columns | {"source_id": _id(name, clip.name), "kind": "video", "licence": LICENCES[name]}
            cut, whole = (next((join(videos, here[one]) for one in wanted if one in here), None) for wanted in (clip.cut, clip.whole))
            if cut:
                items.append(WorkItem(uri=cut, **columns))
            elif several & {*clip.cut, *clip.whole}:
                unclear.append(clip.name)
            elif whole:
                start, end = clip.span or (None, None)
                box = _box(clip, whole)
                faceless += [] if box else [clip.name]
                items.append(WorkItem(uri=whole, start=start, end=end, box=box, **columns))
            else:
                missing.append(clip.name)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a list of {name}: {type(error).__name__} {error}") from error
    if unclear:
        say(
            f"  warning: of {len(unclear)} clips ({', '.join(unclear[:5])}) it is not clear which file is theirs, and they are left out: files in {videos} "
            "have the same name. Let each lie below the folders that the list names, or take out those that are not meant"
        )
    if faceless:
        say(
            f"  warning: of {len(faceless)} clips ({', '.join(faceless[:5])}) it is not known which face is meant: all in them are looked at"
        )
    return check_items(items, path), missing


def _find(files: list[str], wanted: set[str]) -> tuple[dict[str, str], set[str]]:
    """Which files are meant.

    Args:
        files: Paths in their folder.
        wanted: Names without suffix, or paths as a list gives them, which may begin higher or lower than the folder.

    Returns:
        Those for which there is one file, by its path, or by its name where nothing else has it; and those that might be several, or share one.
    """
    there, by_end = set(files), _Ends(files, {len(_parts(one)) for one in wanted})
    by_name: dict[str, list[str]] = {}
    for file in files:
        by_name.setdefault(_parts(file)[-1], []).append(file)
    alike = Counter(_parts(one)[-1] for one in wanted)
    found: dict[str, str] = {}
    unclear: set[str] = set()
    for one in sorted(wanted):
        name = _parts(one)[-1]
        named = by_name.get(name, [])
        by_path = [one] if one in there else by_end.of(one)
        if len(by_path) == 1:
            found[one] = by_path[0]
        elif len(named) == 1 and alike[name] == 1:
            found[one] = named[0]
        elif named:
            unclear.add(one)
    used = Counter(found.values())
    shared = {one for one, file in found.items() if used[file] > 1 and one != file}
    # where all files of that name are others', it is missing
    free = {name for name, named in by_name.items() if any(file not in used for file in named)}
    unclear = {one for one in unclear if _parts(one)[-1] in free}
    return {one: file for one, file in found.items() if one not in shared}, unclear | shared


class _Ends:
    """Files by the ends of their paths, without suffix: each is looked up, however many others have its name."""

    def __init__(self, files: list[str], lengths: set[int]) -> None:
        """`lengths`: how many parts the paths have that will be asked for."""
        self._whole: dict[tuple[str, ...], list[str]] = {}
        self._cut: dict[tuple[str, ...], list[str]] = {}
        for file in files:
            parts = _parts(file)
            self._whole.setdefault(parts, []).append(file)
            for length in lengths:
                if 1 < length < len(parts):
                    self._cut.setdefault(parts[-length:], []).append(file)

    def of(self, wanted: str) -> list[str]:
        """Files whose path ends with the one that is wanted, or is its end, a folder at least."""
        parts = _parts(wanted)
        ends = [parts[start:] for start in range(len(parts) - 1)]
        return [*self._cut.get(parts, ()), *(file for end in ends for file in self._whole.get(end, ()))]


def _parts(path: str) -> tuple[str, ...]:
    """Of a path without suffix; one at least."""
    return PurePosixPath(_without_suffix(path)).parts or ("",)


def _without_suffix(path: str) -> str:
    return path[: -len(PurePosixPath(path).suffix)] if path.lower().endswith(VIDEO_SUFFIXES) else path


def _id(name: str, clip: str) -> str:
    """A key that no other clip's name gives: all but small letters, digits and `_` is spelled by the codes of its bytes, and so is an x that looks like one."""
    plain = re.sub(r"x(?=[0-9a-f]{2})", "x78", clip)
    return name + "_" + re.sub(r"[^a-z0-9_]", lambda sign: "".join(f"x{byte:02x}" for byte in sign.group().encode()), plain)


def _celebv(path: str) -> Iterator[_Clip]:
    """CelebV-HQ and CelebV-Text: JSON of clips with YouTube id, seconds, box and labels. Their scripts save `raw/<YouTube id>` and cut `processed/<clip>`."""
    data = json.loads(read_bytes(path))
    clips = data.get("clips", data)  # CelebV-Text's script reads them at the top
    if not clips:
        raise ValueError("no clips in it")
    names = [name.lower() for name in data.get("meta_info", {}).get("appearance_mapping", [])]
    for stem, clip in clips.items():
        video, duration, box = clip["ytb_id"], clip["duration"], clip["bbox"]
        unit = "sec" if "start_sec" in duration else "frame"  # so CelebV-Text's page calls some of its seconds
        columns = {
            "group": video,
            "url": f"https://www.youtube.com/watch?v={video}",
            "attributes": _labels(clip.get("attributes", {}), names),
        }
        span = (float(duration[f"start_{unit}"]), float(duration[f"end_{unit}"]))
        yield _Clip(stem, columns, (stem,), (video,), span, (box["left"], box["top"], box["right"], box["bottom"]))


def _labels(given: dict[str, Any], names: list[str]) -> dict[str, str]:
    """CelebV-HQ's emotion (several, in their order, where it changes in the clip) and appearance, a column an attribute. They are of the whole clip: it is not
    cut where its emotion changes, for a pair spans that change."""
    labels, emotion = {}, given.get("emotion")
    if emotion:
        parts = [part["emotion"] for part in emotion["labels"]] if emotion["sep_flag"] else [emotion["labels"]]
        labels["emotion"] = ", ".join(dict.fromkeys(parts))
    appearance = given.get("appearance", [])
    if len(appearance) not in (0, len(names)):
        raise ValueError(f"{len(appearance)} appearance attributes, of which meta_info.appearance_mapping names {len(names)}")
    return labels | {name: "yes" if value else "no" for name, value in zip(names, appearance, strict=False)}


def _hdtf(folder: str) -> Iterator[_Clip]:
    """HDTF: tables `*_video_url.txt` (name, url), `*_annotion_time.txt` (name, then spans like 00:10-01:20), `*_crop_wh.txt` (clip, then left, width, top,
    height in pixels) of a picture as high as `*_resolution.txt` says. Clips are called `<name>_<number>`, or by the script of universome/HDTF
    `<subset>_<name>_<three digits>`, numbered among those with a crop; its whole videos are `<subset>_<name>`.
    """
    tables = list_files(folder, "_video_url.txt")
    if not tables:
        raise ValueError("no *_video_url.txt in it")
    for table in tables:
        subset = table.rsplit("/", 1)[-1].removesuffix("_video_url.txt")
        spans, crops, heights = (_table(join(folder, f"{subset}_{what}.txt")) for what in ("annotion_time", "crop_wh", "resolution"))
        for name, (url, *_) in _table(table).items():
            columns = {"group": name, "url": url, "attributes": {"subset": subset}}
            whole = (name, f"{subset}_{name}")
            if name not in spans:
                yield _Clip(name, columns, (), whole)
            height, numbered = float(heights.get(name, ["0"])[0]), 0
            for number, span in enumerate(spans.get(name, [])):
                clip, cut, crop = f"{name}_{number}", [f"{name}_{number}"], None
                start, end = (_seconds(part) for part in span.split("-"))
                if clip in crops:
                    left, width, top, tall = (float(cell) for cell in crops[clip])
                    crop = (left, top, left + width, top + tall) if height else None
                    cut.append(f"{subset}_{name}_{numbered:03d}")
                    numbered += 1
                yield _Clip(clip, columns, tuple(cut), whole, (start, end), crop, height)


def _table(uri: str) -> dict[str, list[str]]:
    """A table of HDTF: the first word of each line, without `.mp4`, and the others; empty where there is no such table."""
    if not exists(uri):
        return {}
    lines = [line.split() for line in read_bytes(uri).decode("utf-8-sig").splitlines()]
    return {words[0].removesuffix(".mp4"): words[1:] for words in lines if words}


def _openhumanvid(path: str) -> Iterator[_Clip]:
    """OpenHumanVid: CSV with a row a clip; the file is named by `path` (or `video_path`, `video_id`), other columns become attributes."""
    for row in csv.DictReader(io.StringIO(read_bytes(path).decode("utf-8-sig"), newline="")):
        name = next((row[column] for column in ("path", "video_path", "video_id", "id") if row.get(column)), None)
        if name is None:
            raise ValueError("expected a column path, video_path, video_id or id")
        clip = _without_suffix(name)
        kept = {key: value for key, value in row.items() if value and len(value) <= 64 and key not in ("path", "video_path")}
        yield _Clip(clip, {"group": row.get("original_video") or _film(clip), "attributes": kept}, (name,))


def _film(clip: str) -> str:
    """What the clips of one film share of their paths: `<hash of the film>_<first frame>_<last frame>`, as the makers' page names them, in whatever folder
    they lie; else `<film>_<number>` or `<film>/<number>`. Other names say nothing of a film: each is its own."""
    path = PurePosixPath(clip)
    if frames := re.fullmatch(r"([0-9a-f]{32,})_\d+_\d+", path.name):
        return frames.group(1)
    if numbered := re.fullmatch(r"(.+)_\d+", path.name):
        return str(path.with_name(numbered.group(1)))
    return str(path.parent) if path.name.isdigit() and len(path.parts) > 1 else str(path)


def _box(clip: _Clip, video: str) -> tuple[float, float, float, float] | None:
    """Where a clip's face is, in shares of the whole video's picture; None where it is not known."""
    if clip.crop is None or max(clip.crop) <= 1:
        return clip.crop
    width, height = _shape(video)
    if not height:
        return None
    tall = clip.height or height
    left, top, right, bottom = (
        min(1.0, max(0.0, value / side)) for value, side in zip(clip.crop, (tall * width / height, tall) * 2, strict=True)
    )
    return (left, top, right, bottom) if left < right and top < bottom else None


@functools.lru_cache(maxsize=100_000)
def _shape(video: str) -> tuple[int, int]:
    """Width and height of a video by its header, with square pixels; zeros where it cannot be read, which is the build's to say."""
    try:
        with open_read(video) as file, av.open(file) as container:
            stream = container.streams.video[0]
            return square_size(stream.width, stream.height, pixel_shape(stream))
    except (OSError, ValueError, IndexError, av.error.FFmpegError):
        return 0, 0


def _seconds(clock: str) -> float:
    """`01:02:03` or `02:03` -> seconds."""
    total = 0.0
    for part in clock.split(":"):
        total = total * 60 + float(part)
    return total
