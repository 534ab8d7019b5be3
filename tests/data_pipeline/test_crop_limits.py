"""What a crop may be at most: enlarged to 512 px, outside its frame, of a tilted head. Faces of known size and place, and the limits that nobody set."""

import numpy as np
import pytest

from data_pipeline.judge import judge
from data_pipeline.pairing import Person, score_person
from data_pipeline.rules import VERDICTS, PairingConfig, Rules
from data_pipeline.score import write_scores
from tests.benchmarks.accepted_cells import Known
from tests.data_pipeline.test_real_expressions import face, fer

EYES = (36, 45)
"""Outer corners."""


def of_size(width, height, at):
    """68 points that fill a rectangle, whose upper left corner is at `at`."""
    points = np.random.default_rng(0).uniform(0, 1, (68, 2))
    points = (points - points.min(axis=0)) / np.ptp(points, axis=0)
    return (points * (width, height) + at).reshape(-1).tolist()


def with_eyes(apart, middle):
    """68 points of which the outer corners of the eyes are so far apart, about `middle`."""
    points = np.tile(np.array(middle, np.float64), (68, 1))
    points[EYES, 0] += -apart / 2, apart / 2
    return points.reshape(-1).tolist()


def about(upscale, padding=0.0, tilt=0.0):
    return pytest.approx({"upscale": upscale, "padding": padding, "tilt": tilt}, abs=1e-4)


@pytest.fixture
def told(tmp_path):
    """Scores and verdict by the default limits, of a face at rest and the same one happy."""

    def of(first, second, scope="same_track"):
        sources = ("s", "s") if scope == "same_track" else ("s", "t")
        rows = [
            face(*shown, sharpness=99.0, phash=bytes([n * 255]) * 32, **{"frame": n, "row": n, "source_id": source} | given)
            for n, (shown, source, given) in enumerate(
                zip([("neutral", 0.0, fer(neutral=1)), ("happy", 0.9, fer(happy=1))], sources, (first, second), strict=True)
            )
        ]
        person = Person("p", scope, rows)
        scored = score_person(person, PairingConfig().margin)
        write_scores([person], PairingConfig().margin, uri := str(tmp_path / "pairs.parquet"))
        (judged,) = judge([uri], Rules(PairingConfig()), Known([{"embedding": np.ones(4) / 2}] * 2))
        (verdict,) = {VERDICTS[code] for code in judged.codes}  # a pair and its reverse
        return {name: float(scored[name][0]) for name in ("upscale", "padding", "tilt")}, verdict

    return of


@pytest.mark.parametrize(("extent", "verdict"), [(165, "accepted"), (163, "accepted"), (162, "too small"), (80, "too small")])
def test_a_crop_is_enlarged_to_512_px_at_most_one_and_a_half_times(told, extent, verdict):
    """Its side is 2.1 times the larger extent of the landmarks, so that 163 px are the least; the larger of two sizes counts."""
    large = {"width": 1280, "height": 720, "landmarks": of_size(0.8 * extent, extent, (600, 300))}
    small = large | {"landmarks": of_size(0.7 * extent, 0.9 * extent, (610, 310))}
    scores, found = told(large, small)
    assert (scores, found) == (about(512 / (2.1 * extent)), verdict)


@pytest.mark.parametrize(("apart", "verdict"), [(82, "accepted"), (81, "too small")])
def test_of_two_photos_the_smaller_face_says_how_much_is_enlarged(told, apart, verdict):
    """Each is cut at 4.2 times the distance of its own eyes."""
    ends = [{"width": 900, "height": 900, "landmarks": with_eyes(wide, (450, 400))} for wide in (apart, 120)]
    scores, found = told(*ends, scope="same_person")
    assert (scores, found) == (about(512 / (4.2 * apart)), verdict)


@pytest.mark.parametrize(("outside", "verdict"), [(0, "accepted"), (8, "accepted"), (9, "cut off"), (105, "cut off")])
@pytest.mark.parametrize("side", ["left", "right", "above", "below"])
def test_a_crop_lies_outside_its_frame_by_two_hundredths_at_most(told, outside, verdict, side):
    """Of a square of 420 px that are 8 columns or rows."""
    middle = {"left": (210, 450), "right": (690, 450), "above": (450, 172.2), "below": (450, 652.2)}[side]  # it touches the border
    step = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}[side]
    ends = [
        {"width": 900, "height": 900, "landmarks": with_eyes(100, np.add(middle, np.multiply(step, beyond)))} for beyond in (outside, 0)
    ]
    scores, found = told(*ends, scope="same_person")
    assert (scores, found) == (about(512 / 420, outside / 420), verdict)


@pytest.mark.parametrize(("height", "verdict"), [(489, "accepted"), (491, "cut off")])
def test_a_face_that_is_larger_than_its_frame_is_cut_off(told, height, verdict):
    """A shared crop is shifted into the frame; it stands out where the landmarks do."""
    end = {"width": 640, "height": 480, "landmarks": of_size(300, height, (150, -5))}
    scores, found = told(end, end)
    assert (scores, found) == (about(512 / height, 1 - 480 / height), verdict)


@pytest.mark.parametrize(
    ("rolls", "tilt", "verdict"),
    [
        *(((44, 44), 44, "accepted"), ((45, 45), 45, "accepted"), ((46, 46), 46, "tilted"), ((-46, -46), 46, "tilted")),
        *(((20, 50), 50, "tilted"), ((-50, -20), 50, "tilted"), ((-15, 15), 15, "accepted")),
    ],
)
def test_the_head_that_is_tilted_more_may_be_so_by_45_degrees(told, rolls, tilt, verdict):
    ends = [{"width": 1280, "height": 720, "landmarks": of_size(200, 200, (500, 300)), "roll": float(roll)} for roll in rolls]
    scores, found = told(*ends)
    assert (scores, found) == (about(512 / 420, tilt=tilt), verdict)
