"""insightface packs whose recognizer has no known same-person threshold: used where one is stated, and only there."""

import dataclasses
import shutil

import numpy as np
import pytest
from pydantic import ValidationError

from data_pipeline.build import build_dataset
from data_pipeline.chips import cut_chip
from data_pipeline.config import DataConfig, with_own_thresholds
from data_pipeline.groups import GROUPS, Face, GroupsConfig
from data_pipeline.identities import same_person_threshold
from data_pipeline.observe import observe
from data_pipeline.rules import PairingConfig
from data_pipeline.score import ScoreInput, score_pairs
from data_pipeline.segments import AnalyzeConfig
from infra.errors import UserError
from tests.data_pipeline.small import config
from tests.data_pipeline.test_models_used import write_scrfd


@pytest.fixture(params=[("det_500m", "w600k_mbf"), ("scrfd_10g_bnkps", "glintr100")])
def pack(request, models, tmp_path):
    """A folder by its files' names. Their weights cannot be had here: the embedded recognizer stands in their place."""
    folder = tmp_path / "pack"
    folder.mkdir()
    detector, recognizer = request.param
    write_scrfd(folder / f"{detector}.onnx")
    shutil.copyfile(models / "face_recognition_sface_2021dec.onnx", folder / f"{recognizer}.onnx")
    return folder


def with_groups(**groups):
    return DataConfig(pairing=PairingConfig(min_similarity=0.3), analyze=AnalyzeConfig(groups=GroupsConfig(**groups)))


def test_a_recognizer_of_another_name_needs_a_threshold_that_is_stated(pack, models, person, reader, tmp_path):
    with pytest.raises(
        UserError, match=r"no same-person threshold is known for the recognizer .* State .*analyze\.groups\.pack_threshold="
    ):
        build_dataset(with_groups(pack=str(pack)), str(tmp_path / "w"), models)
    assert not (tmp_path / "w").exists()
    stated = with_own_thresholds(with_groups(pack=str(pack), pack_threshold=0.37), models)
    assert (stated.pairing.min_similarity, stated.split.link_similarity, stated.holdout.similarity) == (0.3, 0.37, 0.37)
    assert same_person_threshold(models, stated.analyze.groups) == 0.37  # and by it tracks are joined
    picture = person(3)()
    made = cut_chip(picture, reader.read(picture).mesh.landmarks68)
    faces = [Face(made, made.place(reader.read(picture).mesh.landmarks68))]
    (row,) = GROUPS["identity"].make(models, stated.analyze.groups)(faces)
    assert abs(np.linalg.norm(row["embedding"]) - 1) < 1e-5


def test_a_threshold_is_of_a_pack():
    with pytest.raises(ValidationError, match="pack_threshold is of the models of a pack"):
        GroupsConfig(pack_threshold=0.4)


def test_another_stated_threshold_is_another_build(work, models):
    """Tracks may be joined otherwise by it: scores are made anew, and a version that stands is not taken for the one that is asked for."""
    observed = observe(config(12), str(work), models)
    found = {}
    for stated in (None, 0.3, 0.4):
        groups = GroupsConfig(pack=None if stated is None else "pack", pack_threshold=stated)
        identities = dataclasses.replace(observed.identities, config=groups)
        given = ScoreInput(observed.columns, identities, 0.6, False, observed.holdout)
        tables = score_pairs(observed.ledger.usable(), given, {}, str(work), 0)
        found[stated] = (tuple(tables), dataclasses.replace(observed, identities=identities).digest())
    assert len({tables for tables, _ in found.values()}) == len({digest for _, digest in found.values()}) == 3
    assert found[None][1] == observed.digest()
