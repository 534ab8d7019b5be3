"""The work list: what sources there are, under which licence, and which must stay together."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from data_pipeline.image_set import content_sha256
from infra.addresses import folder_uri, is_local, join
from infra.console import say
from infra.errors import UserError
from infra.storage import commit_changed, exists, read_bytes, sha256_bytes

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv"
)  # fmt: skip
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_ID = re.compile(r"[a-z0-9_]+")
_MISTAKES = 50
"""That are shown of one file."""


class WorkItem(BaseModel):
    """One source."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source_id: str
    """`[a-z0-9_]+`, unique."""
    uri: str
    """Absolute, or in a work list relative to its folder. A video; or, for images, one image, or a JSON image set (`data_pipeline.image_set`)."""
    kind: Literal["video", "image", "synthetic"]
    licence: str = "unknown"
    consent: str = "unknown"
    url: str | None = None
    """Where it was published, for attribution and takedown."""
    group: str | None = None
    """Original video, channel or series: never split between train and test."""
    identity: str | None = None
    """The person, where it is declared."""
    split: Literal["train", "val", "test"] | None = None
    """Pins the source to a split."""
    start: float | None = None
    """Seconds: only what is shown from here on is looked at."""
    end: float | None = None
    """Seconds: and only up to here."""
    box: tuple[float, float, float, float] | None = None
    """Which face: left, top, right, bottom as shares of the picture; others in it are passed over."""
    attributes: dict[str, str] = {}
    """Free columns for reports (`attributes.<name>` in a table)."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if not _ID.fullmatch(self.source_id):
            raise ValueError(f"source_id: expected [a-z0-9_]+, given {self.source_id!r}")
        for name, value in [*self, *self.attributes.items()]:
            if not (is_utf8(name) and (not isinstance(value, str) or is_utf8(value))):
                raise ValueError(f"{name!r}: expected text that UTF-8 can hold, given {value!r}")
        if (self.start or 0.0) < 0 or (self.end is not None and self.end <= (self.start or 0.0)):
            raise ValueError(f"start, end: expected 0 <= start < end in seconds, given {self.start} and {self.end}")
        if self.box and not (0 <= self.box[0] < self.box[2] <= 1 and 0 <= self.box[1] < self.box[3] <= 1):
            raise ValueError(f"box: expected left < right and top < bottom as shares of the picture, given {self.box}")


def item_for(uri: str, **columns: Any) -> WorkItem:
    """A work item for one file, its id made from the file's name and its kind from the suffix.

    Raises:
        UserError: The file's kind cannot be told.
    """
    name = uri.rsplit("/", 1)[-1]
    suffix = Path(name).suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        kind = "video"
    elif suffix in IMAGE_SUFFIXES or suffix == ".json":
        kind = "image"
    else:
        known = " ".join(VIDEO_SUFFIXES + IMAGE_SUFFIXES)
        raise UserError(f"{uri}: neither a video nor an image by its name. Known: {known}")
    return WorkItem(**({"source_id": id_of(Path(name).stem), "uri": uri, "kind": kind} | columns))


def id_of(name: str) -> str:
    """A name as a source id. What other alphabets lose in it is made up for by a hash."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return plain if plain and name.isascii() else f"{plain}_{sha256_bytes(name.encode())[:8]}".lstrip("_")


def is_utf8(name: str) -> bool:
    """Whether a text can be held: a name on disk may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:  # Python holds bytes that are none as signs of their own
        return False
    return True


def read_worklist(uri: str) -> list[WorkItem]:
    """Reads a work list from Parquet, CSV or JSONL. A relative uri in it starts at the list's own folder, wherever the command runs; it comes back absolute.

    Raises:
        UserError: It is missing or unreadable, or rows are wrong: a line for each.
    """
    if not exists(uri):
        raise UserError(f"{uri}: there is no such work list")
    items, mistakes = [], []
    home = folder_uri(uri).rsplit("/", 1)[0]
    for number, row in enumerate(_read_rows(uri), start=1):
        try:
            item = WorkItem(**_nest(row))
            items.append(item.model_copy(update={"uri": _placed(item.uri, home)}))
        except ValidationError as error:
            mistakes += [f"row {number}: {_describe(entry)}" for entry in error.errors()]
        except ValueError as error:
            mistakes.append(f"row {number}: {error}")
    if mistakes:
        first = " (row 1 is the one below the names of the columns)" if uri.endswith(".csv") else ""
        more = [f"and {len(mistakes) - _MISTAKES} more"] if len(mistakes) > _MISTAKES else []
        raise UserError(f"{len(mistakes)} mistakes in {uri}{first}:\n" + "\n".join(f"  {m}" for m in [*mistakes[:_MISTAKES], *more]))
    return check_items(items, uri)


def _placed(uri: str, home: str) -> str:
    """A uri of a work list in the folder `home`, as it is meant from anywhere."""
    if "://" in uri or uri.startswith("/"):
        return uri
    found = join(home, uri)
    if is_local(found) and not exists(found) and exists(uri):
        raise ValueError(
            f"uri: {uri!r} starts at the work list's folder, and {found} is not there; {folder_uri(uri)} is. Write it so, or move the list"
        )
    return found


def _read_rows(uri: str) -> list[dict[str, Any]]:
    data = read_bytes(uri)
    if uri.endswith(".parquet"):
        try:
            return pq.read_table(io.BytesIO(data)).to_pylist()
        except pa.ArrowException as error:
            raise UserError(f"{uri}: not a Parquet file, or a broken one: {error}") from error
    if not uri.endswith((".csv", ".jsonl")):
        raise UserError(f"{uri}: expected a work list as .parquet, .csv or .jsonl")
    try:
        text = data.decode("utf-8-sig")  # spreadsheets begin their files with a byte order mark
    except UnicodeDecodeError as error:
        place = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{uri}: not UTF-8 text in line {place}. Save it as UTF-8.") from error
    if uri.endswith(".csv"):
        try:
            return list(csv.DictReader(io.StringIO(text, newline="")))
        except csv.Error as error:
            raise UserError(f"{uri}: not a CSV table: {error}") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{uri}: line {number}: not JSON: {error}") from error
            if not isinstance(rows[-1], dict):
                raise UserError(f"{uri}: line {number}: expected an object with the columns of a source, given {line.strip()[:40]}")
    return rows


def check_items(items: list[WorkItem], where: str) -> list[WorkItem]:
    """Merges equal rows, and those that are equal but for the place of a file with the same content, and says so of both; refuses what else shares an id.

    Raises:
        UserError: All ids that stand for more than one source, or for one with other columns, a line each.
    """
    unique: dict[str, WorkItem] = {}
    equal, merged, mistakes = [], [], []
    for item in items:
        if item.source_id not in unique:
            unique[item.source_id] = item
            continue
        first = unique[item.source_id]
        if first == item:
            equal.append(item.source_id)
        elif first.uri == item.uri:
            mistakes.append(f"  {_describe_difference(first, item)}")
        elif first == item.model_copy(update={"uri": first.uri}) and _same_content(first.uri, item.uri):
            merged.append(item.source_id)
        else:
            mistakes.append(f"  source_id {item.source_id!r} names two sources: {first.uri} and {item.uri}. Rename one")
    if mistakes:
        raise UserError(f"{where}: an id stands for one source:\n" + "\n".join(mistakes))
    for what, ids in (("rows are equal to earlier ones", equal), ("files are there twice with the same content", merged)):
        if ids:
            say(f"  {where}: {len(ids)} {what} and count once ({', '.join(ids[:5])})")
    return list(unique.values())


def _describe_difference(first: WorkItem, other: WorkItem) -> str:
    """What two rows of one file say differently, and what to do."""
    one, two = _columns(first), _columns(other)
    names = [name for name in sorted(one.keys() | two.keys()) if one.get(name) != two.get(name)]
    apart = ", ".join(f"{name} ({one.get(name)!r} and {two.get(name)!r})" for name in names)
    what = "Leave out the one that is wrong; where both are meant, rename one"
    return f"source_id {first.source_id!r} has two rows of {first.uri} that differ in {apart}. {what}"


def _columns(item: WorkItem) -> dict[str, Any]:
    """A row as a table has it: an attribute is a column."""
    return item.model_dump(exclude={"attributes"}) | {f"attributes.{name}": value for name, value in item.attributes.items()}


def _same_content(first: str, second: str) -> bool:
    """Whether two files are equal; image sets with all their pictures."""
    if not (exists(first) and exists(second)):
        return False
    try:
        return content_sha256(first) == content_sha256(second)
    except (FileNotFoundError, ValueError):  # a set that is none, or lacks a picture: then the two rows are told
        return False


def check_is_parquet(uri: str) -> None:
    """Refuses a work list to write whose name says that it is something else: it could not be read again.

    Raises:
        UserError: So it is.
    """
    if not uri.endswith(".parquet"):
        raise UserError(f"{uri}: a work list is written as Parquet. Give a name that ends in .parquet")


def write_worklist(items: list[WorkItem], uri: str) -> None:
    """Writes a work list as Parquet.

    Raises:
        UserError: Its name says that it is something else.
    """
    check_is_parquet(uri)
    buffer = io.BytesIO()
    types = {"start": pa.float64(), "end": pa.float64(), "box": pa.list_(pa.float64())}
    columns = {name: [getattr(item, name) for item in items] for name in WorkItem.model_fields if name != "attributes"}
    table = {name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()}
    for attribute in sorted({name for item in items for name in item.attributes}):
        table[f"attributes.{attribute}"] = pa.array([item.attributes.get(attribute) for item in items], pa.string())
    pq.write_table(pa.table(table), buffer)
    commit_changed(uri, buffer.getvalue())


def _nest(row: dict[str, Any]) -> dict[str, Any]:
    """A table's row as a work item's fields: empty cells left out, `attributes.<name>` gathered, a box written as four numbers split; `bbox` is the box and
    `span` both start and end."""
    if None in row:
        raise ValueError(f"more cells than columns: {', '.join(row[None])}")  # type: ignore[index]
    given = {key: value for key, value in row.items() if value not in (None, "")}
    attributes = given.pop("attributes", {})
    if not isinstance(attributes, dict):
        raise ValueError(f"attributes: expected an object of texts, given {attributes!r}")
    attributes = dict(attributes)
    for key in [key for key in given if key.startswith("attributes.")]:
        attributes[key.removeprefix("attributes.")] = str(given.pop(key))
    for name, ours in (("bbox", ("box",)), ("span", ("start", "end"))):
        if name in given and (twice := [column for column in ours if column in given]):
            raise ValueError(f"{name}: given beside {', '.join(twice)}, which says the same; leave one out")
    if "bbox" in given:
        given["box"] = given.pop("bbox")
    if isinstance(given.get("box"), str):
        given["box"] = _numbers(given["box"], r"[ ,;]+", 4, "box: expected four numbers (left, top, right, bottom)")
    if "span" in given:
        span = given.pop("span")
        text = " ".join(str(second) for second in span) if isinstance(span, list) else str(span)
        given["start"], given["end"] = _numbers(
            text, r"[ ,;]+|(?<=[\d.])-", 2, "span: expected its start and end in seconds, as 1.5-4 or [1.5, 4]"
        )
    return given | {"attributes": attributes}


def _numbers(text: str, between: str, count: int, expected: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in re.split(between, text.strip("[]() ")))
    except ValueError as error:
        raise ValueError(f"{expected}, given {text!r}") from error
    if len(found) != count:
        raise ValueError(f"{expected}, given {text!r}")
    return found


def _describe(entry: Any) -> str:
    name = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, WorkItem.model_fields, n=1)
        return f"{name}: unknown column" + (f"; did you mean {near[0]!r}?" if near else "")
    given = "" if entry["type"] == "missing" else f", given {entry['input']!r}"
    return f"{name}: {entry['msg'][0].lower()}{entry['msg'][1:]}{given}"
