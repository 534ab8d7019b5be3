"""An evaluation: scores that stand are those of what is asked now; a picture is a picture, with landmarks or without."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from evaluation import run
from evaluation.editors import LaToEditor
from evaluation.report import _grid_row
from evaluation.run import EvalConfig, evaluate
from infra.jobs.demo import EvalSettings
from lato.edits import Edit
from lato.faces import MODEL_FILES
from lato.guidance import Guidance
from lato.landmarks import draw_landmarks
from lato.pairs import FacePair, FaceState, PairMeta, Provenance

STATE = FaceState(yaw=0, pitch=0, roll=0, expression="neutral", expression_intensity=0, frame=0, pts=0)
POINTS = np.random.default_rng(0).uniform(150, 350, (2, 68, 2)).astype(np.float32)


def _jpg(brightness):
    return cv2.imencode(".jpg", np.full((512, 512, 3), brightness, np.uint8))[1].tobytes()


def _pair(number, instruction="smile"):
    provenance = Provenance(
        source_id="s", source_sha256="0", kind="synthetic", identity=f"p{number}", licence="x", scope="same_track", models={}
    )
    meta = PairMeta(
        instruction=instruction, template="x", edit=Edit(yaw=30), source=STATE, target=STATE, identity_similarity=1.0, quality={},
        crop=(0, 0, 512), split="test", provenance=provenance,
    )  # fmt: skip
    return FacePair(f"p_{number}", _jpg(60), _jpg(90), POINTS, meta)


class _Pipeline:
    """Draws a picture whose brightness is the guidance; counts how often."""

    def __init__(self, conditioning="tokens"):
        self.transformer, self.calls = SimpleNamespace(config={"conditioning": conditioning}), 0

    def set_progress_bar_config(self, **options):
        pass

    def __call__(self, image, landmarks, guidance, **options):
        self.calls += 1
        known = [None] * len(image) if landmarks is None else list(landmarks)
        drawable = self.transformer.config["conditioning"] == "none"
        pictures = [
            np.full((32, 32, 3), 100 + 10 * guidance.scale, np.uint8) if drawable or points is not None else None for points in known
        ]
        return SimpleNamespace(images=pictures, landmarks=known, reasoning=[""] * len(image), problems=[("none predicted",)] * len(image))


def _read(picture):
    """A face in every picture that is not black; turned by its brightness."""
    if picture.mean() < 10:
        return None
    mesh = SimpleNamespace(landmarks68=POINTS[1], yaw=float(picture.mean()), pitch=0.0, roll=0.0)
    return SimpleNamespace(mesh=mesh, embedding=np.eye(1, 512, dtype=np.float32)[0])


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """`bench.go(guidance)` evaluates; its samples, pipeline and files can be changed."""
    made = SimpleNamespace(samples=[_pair(0), _pair(1)], pipeline=_Pipeline(), folder=tmp_path / "pipeline", models=tmp_path / "models")
    for folder, names in (
        (made.folder, ("model_index.json", "transformer/model.safetensors", "faces/manifest.json")),
        (made.models, MODEL_FILES.values()),
    ):
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("first")
    monkeypatch.setattr(run, "choose_samples", lambda dataset, count: made.samples)
    monkeypatch.setattr(run.FaceReader, "from_folder", lambda folder: SimpleNamespace(read=_read))
    monkeypatch.setattr(run.LaToPipeline, "from_pretrained", lambda folder: made.pipeline)

    def go(guidance=1.0):
        before = made.pipeline.calls
        result = evaluate(EvalConfig(guidance=guidance), "dataset", made.folder, made.models, str(tmp_path / "work"))
        return result, made.pipeline.calls == before

    made.go, made.work = go, tmp_path / "work"
    return made


def _rows(result):
    return pq.read_table(result.scores).to_pylist()


def test_scores_that_stand_are_taken_as_long_as_nothing_is_changed(bench):
    first, reused = bench.go()
    assert not reused
    second, reused = bench.go()
    assert reused and second.summary == first.summary
    (bench.folder / "faces/manifest.json").write_text("second")  # the evaluation reads faces with its own
    assert bench.go()[1]


@pytest.mark.parametrize("what", ["pipeline/model_index.json", "models/face_landmarker.task", "the version"])
def test_scores_of_something_else_are_not(bench, tmp_path, what):
    bench.go()
    if what == "the version":  # built anew: keys are as they were, what lies under them is not
        bench.samples = [_pair(0), _pair(1, "look to the left")]
    else:
        (tmp_path / what).write_text("second")
    assert not bench.go()[1]


@pytest.mark.parametrize("where", ["edits/lato_true/p_0.jpg", "scores.parquet", "fingerprint.json"])
def test_what_was_stopped_on_the_way_does_not_pass_for_what_was_there(bench, monkeypatch, where):
    first, _ = bench.go(1.0)
    shown = (bench.work / "edits/lato_true/p_1.jpg").read_bytes()
    commit = run.commit

    def stopped(uri, data):
        if uri.endswith(where):
            raise KeyboardInterrupt
        return commit(uri, data)

    monkeypatch.setattr(run, "commit", stopped)
    with pytest.raises(KeyboardInterrupt):
        bench.go(3.0)
    monkeypatch.setattr(run, "commit", commit)
    again, reused = bench.go(1.0)
    assert not reused
    assert [row["rectified_identity"] for row in _rows(again)] == [row["rectified_identity"] for row in _rows(first)]
    assert (bench.work / "edits/lato_true/p_1.jpg").read_bytes() == shown
    assert json.loads((bench.work / "edits/fingerprint.json").read_bytes())


def test_a_picture_drawn_without_landmarks_is_scored_and_shown(bench):
    bench.pipeline = _Pipeline("none")
    result, _ = bench.go()
    rows = {(row["editor"], row["key"]): row for row in _rows(result)}
    for editor in ("lato_true", "lato_predicted"):
        row = rows[editor, "p_0"]
        assert (row["state"], row["picture"], row["landmarks"], row["plan_error"]) == ("ok", True, None, None)
        assert result.summary[editor]["detection"]["value"] == 1
    cells = _grid_row(bench.samples[0], list(result.summary), _rows(result), str(bench.work / "edits"))["cells"]
    assert all(cell["image"] and not cell["state"] for cell in cells)


def test_without_a_plan_there_is_no_picture_and_the_grid_says_why(bench):
    result, _ = bench.go()
    row = next(row for row in _rows(result) if row["editor"] == "lato_predicted")
    assert (row["state"], row["picture"]) == ("no_landmarks: none predicted", False)
    assert result.summary["lato_predicted"]["detection"]["value"] == 0
    cells = _grid_row(bench.samples[0], list(result.summary), _rows(result), str(bench.work / "edits"))["cells"]
    assert [bool(cell["image"]) for cell in cells] == [True, True, True, False]
    (result,) = LaToEditor(bench.pipeline, False, 2, Guidance("joint", 1.0)).edit(bench.samples[:1])
    assert np.array_equal(result.landmarks, POINTS[1]) and draw_landmarks(result.landmarks, result.image).shape == (512, 512, 3)


def test_a_sample_that_shows_no_face_is_no_editors_fault(bench):
    bench.samples[1] = FacePair("p_1", _jpg(0), _jpg(90), POINTS, bench.samples[1].meta)
    result, _ = bench.go()
    for editor in ("copy", "lato_true", "lato_predicted"):
        assert result.summary[editor]["states"]["no_face_in_sample"] == 1, "also where there is no picture"
        assert result.summary[editor]["detection"]["count"] == 1


@pytest.mark.parametrize("config", [EvalConfig, EvalSettings])
@pytest.mark.parametrize("value", [{"samples": 0}, {"samples": -1}, {"steps": 0}, {"guidance": -3}])
def test_numbers_out_of_bounds_are_refused(config, value):
    with pytest.raises(ValidationError):
        config(**value)
