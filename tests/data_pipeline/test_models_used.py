"""Whose models a version was made with, and under which licence: those of the catalogue, and an insightface pack of one's own."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.analyze import analyze
from data_pipeline.build import build_dataset
from data_pipeline.chips import SIDE
from data_pipeline.config import DataConfig
from data_pipeline.groups import GroupsConfig, backfill, group_digests, read_columns
from data_pipeline.published import read_index
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig
from data_pipeline.worklist import item_for
from infra import assets
from infra.errors import UserError
from infra.storage import sha256_file


def test_an_insightface_pack_is_another_fingerprint_and_runs(models, clip, tmp_path):
    """A pack's folder by its files' names. Its own weights cannot be had here: a recognizer of the same kind stands in its place."""
    pack = tmp_path / "buffalo_l"
    pack.mkdir()
    with pytest.raises(UserError, match="no det_"):
        group_digests(models, GroupsConfig(pack=str(pack)))
    shutil.copyfile(models / "face_recognition_sface_2021dec.onnx", pack / "w600k_r50.onnx")
    write_scrfd(pack / "det_10g.onnx")
    work = str(tmp_path / "work")
    ledger = analyze([item_for(clip("obama"))], AnalyzeConfig(workers=0), models, work)
    packed = GroupsConfig(names=("identity",), pack=str(pack))
    assert group_digests(models, packed) != group_digests(models, GroupsConfig(names=("identity",)))
    digests = group_digests(models, packed)
    assert backfill(ledger.rows[0]["parts"], digests, packed, models, work, 0) == 1
    row = next(iter(read_columns(work, "identity", ledger.rows[0]["parts"][0], digests["identity"]).values()))
    scale = SIDE / 640  # the pack's detector sees its face in the middle of the chip
    expected = np.array([[-2, -2], [2, -2], [0, 0], [-2, 3], [2, 3]]) * 16 * scale + SIDE / 2
    np.testing.assert_allclose(np.reshape(row["points5"], (5, 2)), expected, atol=0.5)


def test_a_version_lists_its_models_with_their_licences(models, tmp_path):
    """The pack's own where a file of it is in no catalogue; its card and an export say which are under none that allows commercial use."""
    pack = tmp_path / "pack"
    pack.mkdir()
    shutil.copyfile(models / "face_recognition_sface_2021dec.onnx", pack / "w600k_r50.onnx")
    write_scrfd(pack / "det_10g.onnx")
    config = DataConfig(
        synthetic=SyntheticConfig(anny=AnnyConfig(people=5, images=3, workers=0)),
        analyze=AnalyzeConfig(workers=0, groups=GroupsConfig(names=("identity",), pack=str(pack))),
    )
    version = build_dataset(config, str(tmp_path / "w"), models)
    found = {model["name"]: (model["sha256"], model["licence"]) for model in read_index(version.uri)["models"]}
    assert found.keys() == {"detector", "mesh", "identity/det_10g.onnx", "identity/w600k_r50.onnx"}
    assert found["identity/det_10g.onnx"] == (sha256_file(str(pack / "det_10g.onnx")), "non-commercial research only (insightface)")
    sface = assets.load_catalog()["sface"]
    assert found["identity/w600k_r50.onnx"] == (sface.sha256, sface.licence)  # by its content: whose it is, not where it lies
    card = Path(version.uri, "README.md").read_text()
    assert all(f"| {name} | {licence} | {digest} |" in card for name, (digest, licence) in found.items())
    words = ["data", "export", version.uri, str(tmp_path / "out"), "--licence", "commercial"]
    copied = subprocess.run([sys.executable, "-m", "infra.cli", *words], capture_output=True, text=True, check=True)
    told = [line for line in copied.stdout.splitlines() if line.startswith("note: ")]
    assert len(told) == 1 and told[0].endswith("identity/det_10g.onnx: non-commercial research only (insightface)")
    assert read_index(str(tmp_path / "out"))["models"] == read_index(version.uri)["models"]
    assert "identity/det_10g.onnx" in (tmp_path / "out" / "README.md").read_text()
    owned = config.analyze.groups.model_copy(update={"pack_licence": "our own"})
    mended = config.model_copy(update={"analyze": config.analyze.model_copy(update={"groups": owned})})
    again = build_dataset(mended, str(tmp_path / "w"), models)
    assert again.digest == version.digest and "our own" in Path(again.uri, "README.md").read_text()


def write_scrfd(path):
    """An ONNX file with SCRFD's outputs (three strides, two anchors, five points) that sees one face of 192 px in the middle of any picture."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, outputs = [], []
    for kind, width in (("scores", 1), ("boxes", 4), ("points", 10)):
        for stride in (8, 16, 32):
            cells = 640 // stride
            values = np.zeros((cells * cells * 2, width), np.float32)
            if stride == 16:
                middle = (cells // 2 * cells + cells // 2) * 2
                values[middle] = {"scores": 0.99, "boxes": 6.0, "points": np.array([-2, -2, 2, -2, 0, 0, -2, 3, 2, 3])}[kind]
            name = f"{kind}{stride}"
            nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values)))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, values.shape))
    given = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, 640, 640])
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "scrfd", [given], outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        str(path),
    )
