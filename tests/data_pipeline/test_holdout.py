"""What evaluation uses is told from its near-duplicates: the same picture smaller, brighter and compressed again. (Looks and names: test_manage.py.)"""

import cv2
import numpy as np

from data_pipeline.decode import sample_frames
from data_pipeline.holdout import Holdout, HoldoutConfig


def row(reading):
    return {"identity": None, "source_sha256": "x", "phash": reading.quality.phash}


def test_a_near_duplicate_is_told_whoever_it_shows(reader, models, clip, tmp_path):
    pictures = [next(iter(sample_frames(clip(name), 5.0))).image for name in ("single_face", "carphone")]
    cv2.imwrite(str(tmp_path / "evaluation.png"), cv2.cvtColor(pictures[0], cv2.COLOR_RGB2BGR))
    holdout = Holdout.read(HoldoutConfig(folder=str(tmp_path)), models)
    smaller = cv2.resize(pictures[0], None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA)
    brighter = np.clip(smaller.astype(np.int16) + 25, 0, 255).astype(np.uint8)
    again = cv2.imdecode(cv2.imencode(".jpg", brighter, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR)
    assert holdout.mark(row(reader.read(again)))["held_out"]
    assert not holdout.mark(row(reader.read(pictures[1])))["held_out"]
    strict = Holdout.read(HoldoutConfig(folder=str(tmp_path), bits=0), models)
    assert not strict.mark(row(reader.read(again)))["held_out"]  # it was told by its distance, not by being the same
    assert strict.digest != holdout.digest
