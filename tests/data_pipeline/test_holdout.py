"""What evaluation uses is told from its near-duplicates: the same picture smaller, brighter and compressed again. (Looks and names: test_outcomes.py.)"""

import shutil

import cv2
import numpy as np
import pytest

from data_pipeline.config import DataConfig, with_own_thresholds
from data_pipeline.decode import sample_frames
from data_pipeline.groups import GROUPS, GroupsConfig
from data_pipeline.holdout import Holdout, HoldoutConfig
from data_pipeline.rules import PairingConfig
from infra.errors import UserError


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


def test_an_evaluation_video_bars_its_person(models, clip, tmp_path):
    """Held-out faces and the build's go through the same recognizer, on chips."""
    shutil.copyfile(clip("single_face"), tmp_path / "evaluation.mp4")
    holdout = Holdout.read(HoldoutConfig(folder=str(tmp_path)), models, GroupsConfig())
    assert holdout.embeddings.shape == (len(holdout.hashes), 128) and len(holdout.hashes) >= 2
    assert holdout.bars(holdout.embeddings[0])
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"holdout.folder: .*broken.mp4 cannot be read"):
        Holdout.read(HoldoutConfig(folder=str(tmp_path)), models, GroupsConfig())


def test_evaluation_faces_are_read_with_the_recognizer_of_the_build(models, clip, tmp_path, monkeypatch):
    """Of another pack the vectors have another length; here the pack's recognizer is stood in for, as its weights are not free to embed."""
    picture = next(iter(sample_frames(clip("single_face"), 5.0))).image
    cv2.imwrite(str(tmp_path / "evaluation.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    vector = np.full(512, 512**-0.5, np.float32)

    def make(_, config):
        assert config.pack == "/pack"
        return lambda faces: [{"embedding": vector.tolist()} for _ in faces]

    monkeypatch.setitem(GROUPS, "identity", type(GROUPS["identity"])(1, {}, GROUPS["identity"].models, make))
    holdout = Holdout.read(HoldoutConfig(folder=str(tmp_path)), models, GroupsConfig(pack="/pack"))
    assert holdout.bars(vector) and not holdout.bars(-vector)


def test_thresholds_are_the_recognizers_own_where_none_is_given(models, tmp_path):
    for name in ("det_10g.onnx", "w600k_r50.onnx"):
        (tmp_path / name).write_bytes(b"")
    plain = DataConfig(pairing=PairingConfig(min_similarity=0.3))
    packed = plain.model_copy(update={"analyze": plain.analyze.model_copy(update={"groups": GroupsConfig(pack=str(tmp_path))})})
    for config, own in ((plain, 0.45), (packed, 0.5)):
        found = with_own_thresholds(config, models)
        assert (found.pairing.min_similarity, found.split.link_similarity, found.holdout.similarity) == (0.3, own, own)
