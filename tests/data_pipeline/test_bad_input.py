"""Forty kinds of input, each with the verdict that a data team expects of it."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from data_pipeline import observe
from data_pipeline.analyze import analyze
from data_pipeline.config import DataConfig
from data_pipeline.decode import sample_frames
from data_pipeline.folders import items_from_folder
from data_pipeline.image_set import content_sha256
from data_pipeline.perceive import watch_video
from data_pipeline.places import warps
from data_pipeline.plan import plan_build
from data_pipeline.segments import AnalyzeConfig, Segment
from data_pipeline.sources import ContentHashes
from data_pipeline.synthetic.sources import SyntheticConfig, edit_photos
from data_pipeline.synthetic.warp import WarpConfig
from data_pipeline.worker import Worker
from data_pipeline.worklist import WorkItem, item_for
from infra.errors import UserError
from tests.data_pipeline.videos import write


@pytest.fixture(scope="module")
def face(clip):
    return Image.open(clip("obama")).convert("RGB")


@pytest.fixture(scope="module")
def worker(models, tmp_path_factory):
    return Worker(models, AnalyzeConfig(licences=("test",), consents=("given",)), {}, str(tmp_path_factory.mktemp("bad")), "run")


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(image):
    """Lying on its side, with the EXIF mark that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)


def png_of(width, height, bits, colours, rows):
    """A PNG that says of itself what it likes; `rows` is its content, not yet compressed."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def half(image, share):
    return image.crop((0, 0, int(image.width * share), image.height))


def crowd(image, count):
    small = image.resize((240, 240))
    sheet = Image.new("RGB", (1200, 240 * (count // 5)))
    for number in range(count):
        sheet.paste(small, (240 * (number % 5), 240 * (number // 5)))
    return sheet


def cartoon(size=300):
    """A face as a child draws it: a disc, two eyes, a mouth."""
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((40, 40, 260, 260), fill=(255, 220, 120), outline="black", width=4)
    for left in (100, 170):
        draw.ellipse((left, 110, left + 30, 150), fill="black")
    draw.arc((90, 120, 210, 220), 20, 160, fill="black", width=6)
    return image


OK, NO_FACE, FAILED = "ok", "rejected: no face", "failed: decode"
IMAGES = {
    "jpeg": ("a.jpg", lambda f: encoded(f, "JPEG"), OK),
    "progressive jpeg": ("a.jpg", lambda f: encoded(f, "JPEG", progressive=True), OK),
    "grey jpeg": ("a.jpg", lambda f: encoded(f.convert("L"), "JPEG"), OK),
    "cmyk jpeg": ("a.jpg", lambda f: encoded(f.convert("CMYK"), "JPEG"), OK),
    "turned by exif": ("a.jpg", turned, OK),
    "hardly compressed to nothing": ("a.jpg", lambda f: encoded(f, "JPEG", quality=12), OK),
    "png": ("a.png", lambda f: encoded(f, "PNG"), OK),
    "png with alpha": ("a.png", lambda f: encoded(f.convert("RGBA"), "PNG"), OK),
    "png with a palette": ("a.png", lambda f: encoded(f.convert("P"), "PNG"), OK),
    "png of 16 bits": ("a.png", lambda f: encoded(Image.fromarray(np.asarray(f.convert("L")).astype(np.uint16) * 257), "PNG"), OK),
    "webp": ("a.webp", lambda f: encoded(f, "WEBP"), OK),
    "png named jpg": ("a.jpg", lambda f: encoded(f, "PNG"), OK),
    "bitmap named png": ("a.png", lambda f: encoded(f, "BMP"), OK),
    "unicode name": ("ａ-Гесь-面.jpg", lambda f: encoded(f, "JPEG"), OK),
    "dotted name": ("a.b.c..d.jpg", lambda f: encoded(f, "JPEG"), OK),
    "name in capitals": ("A.JPG", lambda f: encoded(f, "JPEG"), OK),
    "name with spaces and quotes": ("a 'b' \"c\".jpg", lambda f: encoded(f, "JPEG"), OK),
    "ten faces": ("a.jpg", lambda f: encoded(crowd(f, 10), "JPEG"), OK),
    "twenty faces": ("a.jpg", lambda f: encoded(crowd(f, 20), "JPEG"), OK),
    "cut in mid-face": ("a.png", lambda f: encoded(half(f, 0.5), "PNG"), NO_FACE),
    "a drawn face": ("a.png", lambda f: encoded(cartoon(), "PNG"), NO_FACE),
    "very wide": ("a.jpg", lambda f: encoded(crowd(f, 5), "JPEG"), OK),
    "large": ("a.jpg", lambda f: encoded(f.resize((4000, 4000)), "JPEG"), OK),
    "dark": ("a.jpg", lambda f: encoded(f.point(lambda v: v // 4), "JPEG"), OK),
    "empty": ("a.jpg", lambda f: b"", FAILED),
    "empty video": ("a.mp4", lambda f: b"", FAILED),
    "text": ("a.jpg", lambda f: b"hello", FAILED),
    "cut to a few bytes": ("a.jpg", lambda f: encoded(f, "JPEG")[:40], FAILED),
    "png cut in half": ("a.png", lambda f: encoded(f, "PNG")[:200], FAILED),
    "pdf named jpg": ("a.jpg", lambda f: b"%PDF-1.7" + b"0" * 500, FAILED),
    "zip named png": ("a.png", lambda f: b"PK\x03\x04" + b"0" * 500, FAILED),
    "sixty thousand pixels a side": ("a.png", lambda f: png_of(60000, 60000, 8, 2, b"0"), FAILED),
    "one pixel": ("a.png", lambda f: encoded(Image.new("RGB", (1, 1)), "PNG"), NO_FACE),
    "a line": ("a.png", lambda f: encoded(Image.new("RGB", (900, 1)), "PNG"), NO_FACE),
    "black": ("a.png", lambda f: encoded(Image.new("RGB", (300, 300)), "PNG"), NO_FACE),
    "noise": (
        "a.png",
        lambda f: encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)), "PNG"),
        NO_FACE,
    ),
    "a face of 12 px": ("a.png", lambda f: encoded(f.resize((24, 24)), "PNG"), NO_FACE),
    "an ear only": ("a.png", lambda f: encoded(half(f, 0.15), "PNG"), NO_FACE),
    "set outside its folder": ("a.json", lambda f: b'{"images": [{"uri": "../x.jpg"}]}', FAILED),
    "set that is no set": ("a.json", lambda f: b'{"pictures": []}', FAILED),
    "set with a pose that is no number": (
        "a.json",
        lambda f: (
            b'{"images": [{"uri": "x.jpg", "declared": {"expression": "happy", "intensity": "plain", "yaw": NaN, "pitch": 0, "roll": 0, '
            b'"landmarks": []}}]}'
        ),
        FAILED,
    ),
    "set that is no json": ("a.json", lambda f: b"{", FAILED),
}


def test_a_box_says_whose_face_of_a_photo_is_meant(worker, face, clip, tmp_path):
    both = Image.new("RGB", (1200, 600))
    both.paste(face.resize((600, 600)), (0, 0))
    both.paste(Image.open(clip("biden")).convert("RGB").resize((600, 600)), (600, 0))
    path = tmp_path / "both.png"
    both.save(path)
    content, seen = content_sha256(str(path)), {}
    for name, box in {"left": (0.0, 0.0, 0.5, 1.0), "right": (0.5, 0.0, 1.0, 1.0), "nobody": (0.0, 0.0, 0.1, 0.1)}.items():
        item = item_for(str(path), source_id=name, licence="test", consent="given", box=box)
        rows, outcome = worker._observe(Segment(item, 0.0, None, content, name))
        seen[name] = [np.mean(row["landmarks"][::2]) for row in rows] or outcome["reason"]
    assert seen["nobody"] == "no face"
    (left,), (right,) = seen["left"], seen["right"]
    assert left < 600 < right


@pytest.mark.parametrize("kind", IMAGES)
def test_images(worker, face, tmp_path, kind):
    name, make, expected = IMAGES[kind]
    path = tmp_path / name
    path.write_bytes(make(face))
    item = item_for(str(path), source_id="x", licence="test", consent="given")
    content = "" if name.endswith(".json") else content_sha256(item.uri)
    rows, outcome = worker._observe(Segment(item, 0.0, None, content, "x"))
    assert outcome["status"] + (f": {outcome['reason']}" if outcome["reason"] else "") == expected, outcome
    assert bool(rows) == (expected == OK)
    assert outcome["status"] == "ok" or outcome["message"]
    assert kind != "sixty thousand pixels a side" or "it claims more pixels than are ever decoded" in outcome["message"]


BOMB = """
import io, resource, struct, sys
from PIL import Image
from lato.pairs import decode_image

kind, place, packed = sys.argv[1:]
buffer = io.BytesIO()
Image.new("P" if kind == "GIF" else "RGB", (16, 16)).save(buffer, kind)
data = bytearray(buffer.getvalue())
at = data.index(bytes.fromhex(place.split("+")[0])) + int(place.split("+")[1])
data[at : at + struct.calcsize(packed)] = struct.pack(packed, 60000, 60000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode_image(bytes(data), "bomb")
except ValueError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, "MB")
"""


@pytest.mark.parametrize(("kind", "place", "packed"), [("JPEG", "ffc0+5", ">HH"), ("GIF", "474946+6", "<HH"), ("BMP", "424d+18", "<ii")])
def test_a_picture_that_claims_60_000_pixels_a_side_takes_no_memory(kind, place, packed):
    """PNG: `test_images`. Its header is a lie; the limit is OpenCV's, as Pillow decodes no picture of a source."""
    found = subprocess.run(
        [sys.executable, "-c", BOMB, kind, place, packed], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "it claims more pixels than are ever decoded" in found[0]
    assert int(found[1].split()[0]) < 100


def _turned(content):
    at = content.index(b"tkhd") + 44
    for place, value in zip((0, 4, 12, 16), (-1, 0, 0, -1), strict=True):
        content[at + place : at + place + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    return content


def _without_rate(content):
    """A container whose frames all last no time: its rate cannot be told."""
    at = content.index(b"stts") + 12
    content[at + 4 : at + 8] = bytes(4)
    return content


VIDEOS = {
    "upside down, and its header says so": (True, _turned, "ok"),
    "torn": (False, lambda content: content[: len(content) * 2 // 3], "failed: truncated"),
    "without a rate": (False, _without_rate, "failed: truncated"),  # its frames do not fill the two seconds that it states
}


@pytest.mark.parametrize("kind", VIDEOS)
def test_videos(worker, face, tmp_path, kind):
    flip, change, expected = VIDEOS[kind]
    small = np.asarray(face.resize((320, 320)))
    step = -1 if flip else 1

    def still(number, height, width):
        return np.ascontiguousarray(np.roll(small, number % 3, axis=1)[::step, ::step])

    path = tmp_path / "x.mp4"
    write(path, size=(320, 320), make=still, faststart=True, options={"g": "5"})
    path.write_bytes(change(bytearray(path.read_bytes())))
    item = item_for(str(path), source_id="x", licence="test", consent="given")
    rows, outcome = worker._observe(Segment(item, 0.0, None, content_sha256(item.uri), "x"))
    assert outcome["status"] + (f": {outcome['reason']}" if outcome["reason"] else "") == expected, outcome
    assert rows


@pytest.mark.parametrize(
    ("columns", "reason"),
    [({"licence": "other"}, "licence"), ({"licence": "unknown"}, "licence"), ({"licence": "test", "consent": "unknown"}, "consent")],
)
def test_the_policy_applies_before_any_pixel(models, tmp_path, monkeypatch, columns, reason):
    """It is no source's fault that nobody looked whether it is there; nor is one of the same content refused for it, or a photo edited."""
    monkeypatch.setattr("data_pipeline.sources.content_sha256", lambda uri: pytest.fail(f"{uri} is read"))
    (tmp_path / "there.jpg").write_bytes(b"x")
    items = [
        WorkItem(**({"source_id": name, "uri": str(tmp_path / f"{name}.jpg"), "kind": "image", "consent": "given"} | columns))
        for name in ("there", "gone")
    ]
    policy = AnalyzeConfig(workers=0, licences=("test",), consents=("given",))
    for row in analyze(items, policy, models, str(tmp_path / "w")).rows:
        assert (row["status"], row["reason"], row["parts"]) == ("rejected", reason, [])
        assert f"{reason} {columns[reason]!r} is not among" in row["message"]
    config = DataConfig(analyze=policy, synthetic=SyntheticConfig(warp=WarpConfig(workers=0)))
    observe._sources(config, str(tmp_path / "w"), models, items, None)
    assert not (tmp_path / "w/synthetic").exists()


def test_files_that_cannot_be_read(tmp_path):
    """They have no content to make a fingerprint of: the ledger says missing."""
    loop = tmp_path / "loop.jpg"
    loop.symlink_to(loop)
    folder = tmp_path / "folder.jpg"
    folder.mkdir()
    for path in (loop, folder, tmp_path / "gone.jpg"):
        assert ContentHashes(str(tmp_path)).of(item_for(str(path))) is None, path


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["a pipe", "a device"])
@pytest.mark.parametrize("name", ["pipe.mp4", "pipe.jpg", "pipe.json"])
def test_what_is_no_regular_file_is_missing_and_is_not_waited_for(models, tmp_path, make, name):
    """Opening a pipe ends when somebody writes to it: never."""
    folder = tmp_path / "given"
    folder.mkdir()
    make(folder / name)
    items = [item_for(str(folder / name))]
    assert name.endswith(".json") or items_from_folder(str(folder)) == items
    assert plan_build(items, DataConfig(), models).probe.seconds_per_frame == 0  # --dry-run does not wait either
    (row,) = analyze(items, AnalyzeConfig(workers=0), models, str(tmp_path / "w")).rows
    assert (row["status"], row["reason"]) == ("failed", "missing")
    assert edit_photos("warp", WarpConfig(workers=0), lambda: pytest.fail("nothing to edit"), items, str(tmp_path), 0, warps()) == []


def test_a_set_that_names_a_pipe_is_missing_too(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "a.json").write_text('{"images": [{"uri": "pipe.jpg"}]}')
    assert ContentHashes(str(tmp_path)).of(item_for(str(tmp_path / "a.json"))) is None


COPIES = {
    "a photo": ("jpg", lambda f: encoded(f, "JPEG"), {}, ["ok", "rejected: duplicate"]),
    "text for a photo": ("jpg", lambda f: b"403 forbidden", {}, ["failed: decode", "rejected: duplicate"]),
    "an empty file": ("jpg", lambda f: b"", {}, ["failed: decode", "failed: decode"]),
    "a photo, of which another face is meant": ("jpg", lambda f: encoded(f, "JPEG"), {"box": (0.0, 0.0, 1.0, 1.0)}, ["ok", "ok"]),
    "a video cut short": ("mp4", lambda f: b"\0" * 99, {}, ["failed: decode", "rejected: duplicate"]),
    "a set": ("json", lambda f: b'{"images": []}', {}, ["rejected: no face", "rejected: duplicate"]),
}


@pytest.mark.parametrize("kind", COPIES)
def test_one_content_under_two_names(models, face, tmp_path, kind):
    suffix, make, columns, expected = COPIES[kind]
    paths = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for path in paths:
        path.write_bytes(make(face))
    ledger = analyze([item_for(str(paths[0])), item_for(str(paths[1]), **columns)], AnalyzeConfig(workers=0), models, str(tmp_path / "w"))
    found = [row["status"] + (f": {row['reason']}" if row["reason"] else "") for row in ledger.rows]
    assert found == expected
    assert all(row["message"] == "same content as a" for row in ledger.rows if row["reason"] == "duplicate")


def test_two_files_that_would_share_an_id(tmp_path, face):
    (tmp_path / "a b.jpg").write_bytes(encoded(face, "JPEG"))
    (tmp_path / "a-b.jpg").write_bytes(encoded(face, "JPEG"))
    assert len(items_from_folder(str(tmp_path))) == 1  # one content: merged
    (tmp_path / "a-b.jpg").write_bytes(encoded(face, "PNG"))
    with pytest.raises(UserError, match="names two sources"):
        items_from_folder(str(tmp_path))


def test_no_track_goes_over_a_cut(reader, clip, face, tmp_path):
    """Two people one after the other, in the same place of the picture: the cut parts them, and a box chooses one side."""
    first, second = (np.asarray(Image.open(clip(name)).convert("RGB").resize((320, 320))) for name in ("obama", "biden"))

    def scene(number, height, width):
        moved = np.roll(first if number < 20 else second, number % 3, axis=1)
        return np.ascontiguousarray(moved)

    path = write(tmp_path / "two.mp4", size=(320, 320), make=scene)
    frames = list(sample_frames(path, 5.0))
    shots = {frame.number: frame.shot for frame in frames}
    rows, _ = watch_video(frames, reader)
    tracks = {shot: {row["track"] for row in rows if shots[row["frame"]] == shot} for shot in (0, 1)}
    assert all(tracks.values())
    assert not tracks[0] & tracks[1]
    assert watch_video(sample_frames(path, 5.0), reader, (0.0, 0.0, 0.1, 0.1))[0] == []
