"""`lato edit` shows a model what training showed it, reads what it wrote, and says what it wrote only when it did."""

import json
import resource
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from data_pipeline.crops import shared_crops
from data_pipeline.render import crop_landmarks, cut
from data_pipeline.rules import PairingConfig
from infra.cli import app
from infra.errors import UserError
from infra.jobs.edit import SUFFIXES, _crop_face, edit_file
from lato.pairs import decode_image
from lato.pipeline import LaToPipeline

FRAME = (1280, 720)
POINTS = np.random.default_rng(0).uniform(100, 400, (68, 2)).astype(np.float32)
LIST = POINTS.tolist()


class _Pipeline:
    """Draws noise, and to the landmarks it is given; counts how often."""

    transformer = SimpleNamespace(config={"conditioning": "tokens"})
    faces = SimpleNamespace(read=lambda picture: SimpleNamespace(mesh=SimpleNamespace(landmarks68=POINTS)))

    def __init__(self):
        self.given = []

    def set_progress_bar_config(self, **options):
        pass

    def __call__(self, image, instruction, landmarks, source_landmarks, **options):
        self.given.append(landmarks)
        picture = np.random.default_rng(1).integers(0, 255, (512, 512, 3)).astype(np.uint8)
        found = None if self.transformer.config["conditioning"] == "none" else POINTS
        target = found if landmarks is None else landmarks[0]
        return SimpleNamespace(images=[picture], landmarks=[target], reasoning=["so"], problems=[()])


@pytest.fixture
def pipeline(monkeypatch):
    made = _Pipeline()
    monkeypatch.setattr(LaToPipeline, "from_pretrained", lambda folder: made)
    return made


@pytest.fixture
def edit(pipeline, tmp_path):
    """`edit(out, landmarks)` -> what was written in the test's folder."""
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), np.full((600, 600, 3), 90, np.uint8))

    def run(out, landmarks=None):
        return edit_file(str(photo), "smile", "pipeline", tmp_path / out, landmarks and str(tmp_path / landmarks), 2, 1.0, 0)

    return run


@pytest.mark.parametrize("middle", [(640, 360), (140, 360), (640, 160), (1170, 600)], ids=["middle", "left", "top", "corner"])
def test_a_photo_is_cut_as_a_pair_of_that_face_is(middle):
    noise = np.random.default_rng(1)
    picture = noise.integers(0, 255, (FRAME[1], FRAME[0], 3)).astype(np.uint8)
    points = (np.array(middle) + noise.uniform(-100, 100, (68, 2))).astype(np.float32)
    pair = np.stack([points, points]).astype(np.float64)
    crops, _ = shared_crops(pair, np.array([FRAME, FRAME], np.float64), np.array([0]), np.array([1]), PairingConfig().margin)
    crop = tuple(crops[0].tolist())
    face, placed = _crop_face(picture, points)
    assert np.array_equal(placed, crop_landmarks({"landmarks": points}, crop))
    assert np.array_equal(face, decode_image(cut(picture, crop), "crop"))
    assert crop[0] >= 0 and crop[1] >= 0, "shifted into the frame, as a builder's crop is"


def test_an_edit_draws_to_what_another_wrote_beside_its_picture(edit, pipeline, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(LIST))
    edit("first.png", "mine.json")
    edit("second.png", "first.json")
    mine, first = pipeline.given
    assert mine.shape == first.shape == (1, 68, 2)
    assert np.abs(mine - POINTS).max() == 0
    assert np.abs(first - mine).max() <= 0.0051  # it is written with two digits


def test_a_pipeline_that_draws_to_no_landmarks_edits_all_the_same(edit, pipeline, tmp_path):
    pipeline.transformer = SimpleNamespace(config={"conditioning": "none"})
    out, strip, text = edit("edited.png")
    assert decode_image(out.read_bytes(), "picture").shape == (512, 512, 3)
    assert np.array_equal(decode_image(strip.read_bytes(), "strip")[:, 512:], decode_image(out.read_bytes(), "picture"))
    assert json.loads(text.read_bytes())["landmarks"] is None
    (tmp_path / "mine.json").write_text(json.dumps(LIST))
    with pytest.raises(UserError, match="draws to none"):
        edit("edited.png", "mine.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no JSON", "expected JSON"),
        ("\xff\xfe\xfd", "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        ('"text"', "a list of 68"),
        ("null", "a list of 68"),
        ("{}", 'under "landmarks"'),
        ('{"landmarks": {"x": 1}}', "a list of 68"),
        ("[[1, 2], [3]]", "a list of 68"),
        (f"[[1{'0' * 400}, 2]]", "a list of 68"),
        (json.dumps(LIST[:67]), r"given shape \(67, 2\)"),
        (json.dumps([LIST]), r"given shape \(1, 68, 2\)"),
        (json.dumps([[x / 512, y / 512] for x, y in LIST]), "multiply by the size"),
        (json.dumps([[x, None] for x, _ in LIST]), "given NaN"),
        (None, "Is a directory"),
    ],
)
def test_other_landmarks_are_told_before_the_edit(edit, pipeline, tmp_path, content, message):
    if content is None:
        (tmp_path / "mine.json").mkdir()
    else:
        (tmp_path / "mine.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=f"mine.json: .*{message}"):
        edit("edited.png", "mine.json")
    assert not pipeline.given


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".PNG"])
def test_what_is_said_to_be_written_is(edit, suffix):
    out, strip, text = edit(f"new/folder/edited{suffix}")
    assert [path.name for path in (out, strip, text)] == [f"edited{suffix}", "edited_landmarks.png", "edited.json"]
    assert decode_image(out.read_bytes(), "picture").shape == (512, 512, 3)
    assert decode_image(strip.read_bytes(), "strip").shape == (512, 3 * 512, 3)
    said = json.loads(text.read_bytes())
    assert said | {"landmarks": 0} == {"instruction": "smile", "landmarks": 0, "reasoning": "so", "problems": []}


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("edited", r"ends in one of \.png, \.jpg"),
        ("edited.json", "ends in one of"),
        ("folder.png", "folder.png, which is a folder"),
        ("strip.png", "strip_landmarks.png, which is a folder"),
        ("text.png", "text.json, which is a folder"),
        ("photo.png/edited.png", "photo.png is no folder"),
        ("dangling/edited.png", "dangling is no folder"),
    ],
)
def test_a_name_that_cannot_be_written_is_told_before_the_edit(edit, pipeline, tmp_path, out, message):
    for name in ("folder.png", "strip_landmarks.png", "text.json"):
        (tmp_path / name).mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        edit(out)
    assert not pipeline.given
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_may_not_be_written_to_is_told_before_the_edit(edit, pipeline, monkeypatch):
    monkeypatch.setattr("os.access", lambda folder, mode: False)  # whoever runs this may be root, who may write anywhere
    with pytest.raises(UserError, match="Choose a folder that you may write to"):
        edit("edited.png")
    assert not pipeline.given


@pytest.fixture
def little_room():
    """No file can grow beyond 100 kB, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("little_room")
def test_a_picture_there_is_no_room_for_is_told_and_leaves_the_one_before(edit, tmp_path):
    (tmp_path / "edited.png").write_bytes(b"before")
    with pytest.raises(UserError, match="Make room"):
        edit("edited.png")
    assert (tmp_path / "edited.png").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edited.png", "photo.png"]


def test_a_name_too_long_for_the_disk_is_told(edit):
    with pytest.raises(UserError, match="File name too long"):
        edit("x" * 300 + ".png")


@pytest.mark.parametrize(("option", "value"), [("--steps", "0"), ("--guidance", "-1"), ("--seed", str(2**63)), ("--seed", "-1")])
def test_a_number_out_of_bounds_is_refused_at_the_command_line(option, value):
    done = CliRunner().invoke(app, ["edit", "gone.jpg", "smile", option, value])
    assert done.exit_code == 2
    assert f"Invalid value for '{option}'" in done.output
