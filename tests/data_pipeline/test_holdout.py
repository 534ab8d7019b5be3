"""What evaluation uses is told from its near-duplicates: the same picture smaller, brighter and compressed again. (Looks and names: test_outcomes.py.)"""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_pipeline.config import DataConfig, with_own_thresholds
from data_pipeline.decode import sample_frames
from data_pipeline.groups import GROUPS, GroupsConfig
from data_pipeline.holdout import Holdout, HoldoutConfig
from data_pipeline.image_set import commit_set
from data_pipeline.rules import PairingConfig
from data_pipeline.worklist import item_for
from infra.errors import UserError
from infra.storage import commit, sha256_bytes


def row(reading):
    return {"identity": None, "source_id": "x", "kind": "video", "phash": reading.quality.phash}


def test_a_near_duplicate_is_told_whoever_it_shows(reader, models, clip, tmp_path):
    pictures = [next(iter(sample_frames(clip(name), 5.0))).image for name in ("single_face", "carphone")]
    cv2.imwrite(str(tmp_path / "evaluation.png"), cv2.cvtColor(pictures[0], cv2.COLOR_RGB2BGR))
    holdout = Holdout.read(HoldoutConfig(folder=str(tmp_path)), models)
    smaller = cv2.resize(pictures[0], None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA)
    brighter = np.clip(smaller.astype(np.int16) + 25, 0, 255).astype(np.uint8)
    again = cv2.imdecode(cv2.imencode(".jpg", brighter, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR)
    assert holdout.mark([row(reader.read(again))])[0]["held_out"]
    assert not holdout.mark([row(reader.read(pictures[1]))])[0]["held_out"]
    other, same = row(reader.read(pictures[1])), row(reader.read(again))
    assert [face["held_out"] for face in holdout.mark([other, same])] == [False, True]
    pictures_of_a_set = [face | {"kind": "image"} for face in (other, same)]
    assert [face["held_out"] for face in holdout.mark(pictures_of_a_set)] == [True, True]
    strict = Holdout.read(HoldoutConfig(folder=str(tmp_path), bits=0), models)
    assert not strict.mark([row(reader.read(again))])[0]["held_out"]  # it was told by its distance, not by being the same
    assert strict.digest != holdout.digest


def test_an_evaluation_folder_may_lie_in_an_object_store(models, clip):
    commit("memory://evaluation/deep/photo.jpg", Path(clip("obama")).read_bytes())
    commit("memory://evaluation/video.mp4", Path(clip("single_face")).read_bytes())
    found = Holdout.read(HoldoutConfig(folder="memory://evaluation"), models)
    assert len(found.hashes) >= 3
    with pytest.raises(UserError, match="there is no folder memory://nowhere"):
        Holdout.read(HoldoutConfig(folder="memory://nowhere"), models)


def test_files_may_be_named_one_by_one(models, clip, tmp_path):
    shutil.copyfile(clip("biden"), tmp_path / "biden.jpg")
    one = Holdout.read(HoldoutConfig(files=(clip("obama"),)), models)
    both = Holdout.read(HoldoutConfig(files=(clip("obama"),), folder=str(tmp_path)), models)
    assert len(one.hashes) == 1 and len(both.hashes) == 2 and both.bars(one.embeddings[0]) and one.digest != both.digest
    with pytest.raises(UserError, match=r"holdout.files: .*gone.png cannot be read"):
        Holdout.read(HoldoutConfig(files=(str(tmp_path / "gone.png"),)), models)
    with pytest.raises(UserError, match=r"holdout.files: .*: neither a picture nor a video"):
        Holdout.read(HoldoutConfig(files=(str(tmp_path),)), models)


def test_a_content_is_held_out_with_the_sets_that_hold_it_and_what_fits_nothing_is_told(models, clip, tmp_path, capsys):
    photos = {name: Path(clip(name)).read_bytes() for name in ("obama", "biden")}
    sets = [commit_set([(photos[name], None), (b"edited", None)], {}, str(tmp_path)) for name in photos]
    items = [item_for(clip(name), identity=name) for name in photos]
    items += [item_for(str(tmp_path / "synthetic" / made), source_id=f"{name}_set") for name, made in zip(photos, sets, strict=True)]
    usable = {item.source_id for item in items}
    (tmp_path / "torn.json").write_text("{")  # it failed, and is not read again
    items.append(item_for(str(tmp_path / "torn.json")))
    known = HoldoutConfig(sha256=(sha256_bytes(photos["obama"]),), identities=("biden",))
    found = Holdout.read(known, models).find_sources(items, usable, str(tmp_path))
    assert found.sources == {"obama", "obama_set"} and "warning" not in capsys.readouterr().out
    assert found.digest != Holdout.read(known, models).digest
    wrong = HoldoutConfig(sha256=(*known.sha256, "abc"), identities=("biden", "nobody_of_that_name"))
    assert Holdout.read(wrong, models).find_sources(items, usable, str(tmp_path)).sources == {"obama", "obama_set"}
    told = capsys.readouterr().out
    Holdout.read(known, models).find_sources(items, usable - {"biden", "obama", "obama_set"}, str(tmp_path))
    unseen = capsys.readouterr().out
    assert "holdout.identities: no source here is of biden:" in unseen and "rejected or failed do not count" in unseen
    assert "holdout.sha256: no source here is of abc:" in told and "holdout.identities: no source here is of nobody_of_that_name:" in told


def test_an_evaluation_video_bars_its_person(models, clip, tmp_path):
    """Held-out faces and the build's go through the same recognizer, on chips."""
    shutil.copyfile(clip("single_face"), tmp_path / "evaluation.mp4")
    holdout = Holdout.read(HoldoutConfig(folder=str(tmp_path)), models, GroupsConfig())
    assert holdout.embeddings.shape == (len(holdout.hashes), 128) and len(holdout.hashes) >= 2
    assert holdout.bars(holdout.embeddings[0])
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"holdout.folder: .*broken.mp4 cannot be read"):
        Holdout.read(HoldoutConfig(folder=str(tmp_path)), models, GroupsConfig())


def two_people(clip):
    """A picture (BGR) of two people, one with the larger face."""
    small, large = (cv2.imread(clip(name)) for name in ("biden", "obama"))
    large = cv2.resize(large, None, fx=2.0, fy=2.0)
    both = np.full((max(small.shape[0], large.shape[0]), small.shape[1] + large.shape[1], 3), 127, np.uint8)
    both[: small.shape[0], : small.shape[1]] = small
    both[: large.shape[0], small.shape[1] :] = large
    return both


def test_everybody_in_an_evaluation_picture_is_kept_out(models, reader, clip, tmp_path, capsys):
    """Of two people only the one with the larger face was."""
    both = two_people(clip)
    cv2.imwrite(str(tmp_path / "two.png"), both)
    holdout = Holdout.read(HoldoutConfig(folder=str(tmp_path)), models)
    assert holdout.embeddings.shape == (2, 128) and len(holdout.hashes) == 2
    for name in ("biden", "obama"):
        face = reader.read(np.ascontiguousarray(cv2.imread(clip(name))[:, :, ::-1]))
        assert holdout.bars(face.embedding)
    shown = reader.read_all(np.ascontiguousarray(both[:, :, ::-1]))
    assert [face["held_out"] for face in holdout.mark([row(face) for face in shown])] == [True, True]
    assert "several faces are in two.png (2)" in capsys.readouterr().out


def test_everybody_in_a_photo_that_is_held_out_by_its_content_is_kept_out(models, reader, clip, tmp_path):
    """A build looks at the largest face of a photo, and the others were trained on."""
    cv2.imwrite(str(tmp_path / "two.png"), two_people(clip))
    items = [item_for(str(tmp_path / "two.png"), source_id="two"), item_for(clip("biden"))]
    usable = {item.source_id for item in items}
    holdout = Holdout.read(HoldoutConfig(sha256=(sha256_bytes((tmp_path / "two.png").read_bytes()),)), models)
    found = holdout.find_sources(items, usable, str(tmp_path)).with_photos(items, usable, models, GroupsConfig())
    assert len(found.embeddings) == len(found.hashes) == 2
    for name in ("biden", "obama"):
        assert found.bars(reader.read(np.ascontiguousarray(cv2.imread(clip(name))[:, :, ::-1])).embedding)
    assert holdout.find_sources(items, set(), str(tmp_path)).with_photos(items, set(), models, GroupsConfig()).hashes == ()


@pytest.mark.parametrize(
    ("beside", "said"), [("photo.heic", "1 files .*photo.heic"), ("linked", "1 files .*linked"), ("notes.txt", "no picture or video")]
)
def test_what_could_not_be_kept_out_of_training_is_no_evaluation_folder(models, clip, tmp_path, beside, said):
    """It was passed over without a word, and its people trained on."""
    folder = tmp_path / "evaluation"
    folder.mkdir()
    if beside == "linked":
        (folder / beside).symlink_to(Path(clip("obama")).parent)
    else:
        (folder / beside).write_bytes(b"")
    if beside != "notes.txt":
        shutil.copyfile(clip("obama"), folder / "obama.jpg")
    with pytest.raises(UserError, match=rf"holdout.folder: .*{said}"):
        Holdout.read(HoldoutConfig(folder=str(folder)), models)


@pytest.mark.parametrize("name", ["gone.png", "gone.mp4"])
def test_an_evaluation_file_that_cannot_be_read_is_named(models, tmp_path, name):
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=rf"holdout.folder: .*{name} cannot be read"):
        Holdout.read(HoldoutConfig(folder=str(tmp_path)), models)


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
