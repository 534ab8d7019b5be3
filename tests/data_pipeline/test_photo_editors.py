"""Edited photos as sources: what is made is filtered like all else, made once, and never parted from its photo."""

import base64
import functools
import http.server
import json
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from data_pipeline.build import build_dataset
from data_pipeline.config import DataConfig
from data_pipeline.forget import forget
from data_pipeline.holdout import HoldoutConfig
from data_pipeline.image_set import read_image_set
from data_pipeline.places import warps
from data_pipeline.published import read_index, read_manifest, read_members
from data_pipeline.rewrite import RewriteConfig
from data_pipeline.rules import PairingConfig
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.diffusers_edit import DiffusersConfig, choose_edits, declare
from data_pipeline.synthetic.sources import SyntheticConfig, edit_photos, synthetic_sources
from data_pipeline.synthetic.warp import WarpConfig, expression_shift, move_landmarks, warp
from data_pipeline.synthetic.weights import keep_weights, read_weights, weights_of
from data_pipeline.why import why
from data_pipeline.worklist import item_for, read_worklist
from infra.errors import UserError
from infra.storage import sha256_bytes, sha256_file
from lato.edits import Edit, Expression, Intensity, instruction_for, parse_instruction
from lato.pairs import decode_pair
from tests.data_pipeline.small import read_candidates


def config(**synthetic):
    return DataConfig(
        synthetic=SyntheticConfig(**synthetic), analyze=AnalyzeConfig(workers=0), pairing=PairingConfig(max_upscale=6.0, max_padding=0.5)
    )


def test_a_shift_is_what_the_expression_does():
    smile, surprise = (expression_shift(e, Intensity.STRONGLY) for e in (Expression.HAPPY, Expression.SURPRISED))
    assert smile[[48, 54], 1].mean() < smile[[51, 57], 1].mean()  # corners of the mouth rise against its middle
    assert smile[54, 0] - smile[48, 0] > 0.02  # and part
    assert surprise[57, 1] - surprise[51, 1] > 0.05  # the mouth opens
    assert np.abs(smile[36:48]).mean() < np.abs(smile[48:]).mean()


def test_a_warp_brings_the_landmarks_where_they_should_be(reader, clip):
    photo = np.asarray(Image.open(clip("obama")).convert("RGB"))
    face = reader.read(photo)
    target = move_landmarks(face.mesh.landmarks68, Expression.SURPRISED, Intensity.STRONGLY)
    warped = warp(photo, face.mesh.landmarks68, target)
    found = reader.read(warped).mesh.landmarks68
    mouth = slice(48, 68)
    assert np.abs(found[mouth] - target[mouth]).mean() < 0.5 * np.abs(found[mouth] - face.mesh.landmarks68[mouth]).mean()
    corner = photo[:20, :20]
    assert (warped[:20, :20] == corner).all()  # far from the face nothing moves


def test_the_face_that_a_box_names_is_edited(models, clip, tmp_path):
    """Two rows of one photo: each has edits of its own."""
    photo = np.hstack([cv2.resize(cv2.imread(clip(name)), (600, 600)) for name in ("obama", "biden")])
    cv2.imwrite(str(tmp_path / "both.png"), photo)
    boxes = {"left": (0.0, 0.0, 0.5, 1.0), "right": (0.5, 0.0, 1.0, 1.0)}
    photos = [item_for(str(tmp_path / "both.png"), source_id=name, box=box) for name, box in boxes.items()]
    settings = WarpConfig(expressions=(Expression.HAPPY,), workers=0)
    made = synthetic_sources(SyntheticConfig(warp=settings), photos, models, str(tmp_path))
    assert {item.source_id: item.box for item in made} == {f"{name}_warp": box for name, box in boxes.items()}
    left, right = (np.mean(read_image_set(item.uri).images[1].declared.landmarks, axis=0)[0] for item in made)
    assert left < 600 < right


def test_warped_photos_are_sources_tied_to_their_photo(models, clip, tmp_path):
    photos = [item_for(clip(name), licence="test") for name in ("obama", "biden")]
    version = build_dataset(config(warp=WarpConfig(intensity=Intensity.STRONGLY, workers=0)), str(tmp_path), models, photos)
    items = {item.source_id: item for item in read_worklist(str(tmp_path / "worklist.parquet"))}
    assert items["obama_warp"].attributes["made_from"] == "obama"
    assert items["obama_warp"].licence == "test"
    rows = read_candidates(version.uri)
    made = [row for row in rows if row["source_id"].endswith("_warp")]
    assert {"accepted", "expression verifier"} <= {row["verdict"] for row in made}  # some pass, what does not show it is refused
    splits = {row["source_id"]: row["split"] for row in read_manifest(version.uri)}
    assert splits
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "synthetic").iterdir()}
    (tmp_path / "versions/v1/index.json").unlink()
    again = build_dataset(config(warp=WarpConfig(intensity=Intensity.STRONGLY, workers=0)), str(tmp_path), models, photos)
    assert again.digest == version.digest
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "synthetic").iterdir()} == before
    assert "biden_warp" in splits
    held = HoldoutConfig(sha256=(sha256_file(clip("biden")),))  # the photo evaluation uses: its edits show it too
    synthetic = {"warp": WarpConfig(intensity=Intensity.STRONGLY, workers=0), "anny": AnnyConfig(people=2, images=4, workers=0)}
    barred = config(**synthetic).model_copy(update={"name": "barred", "holdout": held})
    verdicts = {(row["source_id"], row["verdict"]) for row in read_candidates(build_dataset(barred, str(tmp_path), models, photos).uri)}
    assert ("biden_warp", "held out") in verdicts and ("biden_warp", "accepted") not in verdicts
    assert ("obama_warp", "held out") not in verdicts


ASKED = {  # what was asked of a photo at rest that faces the camera, and what the editor made of it
    1: (Edit(expression=Expression.HAPPY, intensity=Intensity.STRONGLY), {"expression": "happy", "intensity": "strongly"}),
    2: (Edit(expression=Expression.HAPPY, intensity=Intensity.STRONGLY), {"expression": "happy", "intensity": "strongly", "yaw": 30.0}),
    3: (Edit(yaw=30), {"yaw": 30.0}),
    4: (Edit(yaw=30), {"yaw": -30.0}),
    5: (Edit(pitch=-30), {}),
}
RIGHT = {1, 3}


class Drawer:
    """An editor that draws the person anew, sometimes with another pose than was asked."""

    def __init__(self, person, reader):
        self._person, self._reader = person, reader

    def edit(self, photo, seed, box):
        face = self._reader.read(photo)
        return [(jpeg_of(self._person(**made)), declare(face.mesh, edit)) for edit, made in ASKED.values()]


def jpeg_of(image):
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def verdicts_of(version, source):
    """Number of the edit -> verdicts of its pairs with the photo, and the worst miss that is stored."""
    found = {}
    for row in read_candidates(version.uri):
        if row["source_id"] == source and 0 in (row["from_frame"], row["to_frame"]):
            verdicts, miss = found.get(row["from_frame"] or row["to_frame"], (set(), 0.0))
            found[row["from_frame"] or row["to_frame"]] = (verdicts | {row["verdict"]}, max(miss, row["declared_miss"]))
    return found


def test_an_edit_with_another_pose_than_was_asked_is_refused(reader, person, models, tmp_path):
    """The pose of an edited photo is held to the photo's and the step that was asked, also where only an expression was; the miss is stored."""
    (tmp_path / "p.jpg").write_bytes(jpeg_of(person(3)()))
    work, photo = str(tmp_path / "w"), item_for(str(tmp_path / "p.jpg"), licence="CC0-1.0")
    edited = edit_photos("drawn", WarpConfig(workers=0), lambda: Drawer(person(3), reader), [photo], work, 0, warps())
    loose = PairingConfig(max_upscale=6.0, max_padding=0.5, min_expression=0.0, per_cell=9, per_identity=99, min_similarity=-1)
    version = build_dataset(DataConfig(analyze=AnalyzeConfig(workers=0), pairing=loose), work, models, [photo, *edited])
    found = verdicts_of(version, "p_drawn")
    assert found.keys() == ASKED.keys()
    for number, (verdicts, miss) in found.items():
        assert (
            ("pose discriminator" not in verdicts and miss <= 10) if number in RIGHT else (verdicts == {"pose discriminator"} and miss > 10)
        )
        assert number not in RIGHT or "accepted" in verdicts
    refused = {row["name"]: row["count"] for row in version.funnel if row["step"] == "candidate pairs"}["rejected: pose discriminator"]
    assert refused >= 6
    # another tolerance is applied to what is stored: no table of scores, nor anything else, is made anew
    tables = {path.name: path.stat().st_mtime_ns for folder in ("pairs", "parts") for path in (tmp_path / "w" / folder).iterdir()}
    wide = loose.model_copy(update={"pose_tolerance": 90.0})
    again = build_dataset(DataConfig(name="v2", analyze=AnalyzeConfig(workers=0), pairing=wide), work, models, [photo, *edited])
    assert all("pose discriminator" not in verdicts for verdicts, _ in verdicts_of(again, "p_drawn").values())
    assert tables == {path.name: path.stat().st_mtime_ns for folder in ("pairs", "parts") for path in (tmp_path / "w" / folder).iterdir()}


@pytest.fixture(scope="module")
def tiny_editor(tmp_path_factory):
    """InstructPix2Pix of a few thousand random weights, as a folder that diffusers loads by name."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("editor")
    words = [
        "<|startoftext|>",
        "<|endoftext|>",
        *"abcdefghijklmnopqrstuvwxyz0123456789",
        *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz0123456789.,"),
    ]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    StableDiffusionInstructPix2PixPipeline(
        vae=AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(vocab_size=len(words), bos_token_id=0, eos_token_id=1, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
        ),
        tokenizer=CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77),
        unet=UNet2DConditionModel(
            in_channels=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, cross_attention_dim=16, attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.mark.slow
def test_any_diffusers_pipeline_edits_photos_and_what_it_spoils_is_refused(tiny_editor, models, clip, tmp_path):
    settings = DiffusersConfig(pipeline=str(tiny_editor), edits=2, steps=2, size=64, workers=0)
    both = config(diffusers=settings, anny=AnnyConfig(people=4, images=3, workers=0))
    version = build_dataset(both, str(tmp_path), models, [item_for(clip("obama"), licence="test")])
    item = next(item for item in read_worklist(str(tmp_path / "worklist.parquet")) if item.source_id == "obama_diffusers")
    assert len(json.loads(Path(item.uri).read_text())["images"]) == 3  # the photo and its two edits
    assert not [row for row in read_manifest(version.uri) if row["source_id"] == "obama_diffusers"]  # noise has no face
    listed = {model["name"]: model["sha256"] for model in read_index(version.uri)["models"] if model["name"].startswith("diffusers")}
    name = f"diffusers {tiny_editor}"
    parts = {
        part: f"{name} {part}"
        for part in ("text_encoder/model.safetensors", *(f"{net}/diffusion_pytorch_model.safetensors" for net in ("unet", "vae")))
    }
    assert listed == {row: sha256_file(str(tiny_editor / part)) for part, row in parts.items()}
    (tmp_path / "versions/v1/index.json").unlink()
    (tiny_editor / "unet/diffusion_pytorch_model.safetensors").rename(tiny_editor / "unet/away.safetensors")
    again = build_dataset(
        both, str(tmp_path), models, [item_for(clip("obama"), licence="test")]
    )  # what edited is listed, not what lies there now
    assert {model["name"] for model in read_index(again.uri)["models"]} >= listed.keys()
    assert again.digest == version.digest
    with pytest.raises(UserError, match="cannot load"):
        build_dataset(
            config(diffusers=DiffusersConfig(pipeline="/nowhere", workers=0)), str(tmp_path / "b"), models, [item_for(clip("obama"))]
        )


def test_weights_from_the_hub_carry_their_commit_and_earlier_ones_stay(tmp_path, monkeypatch):
    """As the hub's cache holds them: a folder by the commit, whose files are links."""
    import huggingface_hub

    commit = "a" * 40
    snapshot = tmp_path / "hub/models--owner--editor/snapshots" / commit
    (snapshot / "unet").mkdir(parents=True)
    (snapshot.parents[1] / "blobs").mkdir()
    (snapshot.parents[1] / "blobs/x").write_bytes(b"weights")
    (snapshot / "unet/model.safetensors").symlink_to(snapshot.parents[1] / "blobs/x")
    (snapshot / "model_index.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text(commit)
    lookup = functools.partial(huggingface_hub.try_to_load_from_cache, cache_dir=tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lookup)
    row = {"name": f"diffusers owner/editor@{commit} unet/model.safetensors", "sha256": sha256_bytes(b"weights")}
    work = str(tmp_path / "w")
    assert read_weights("owner/editor", work) == []
    keep_weights("owner/editor", work)
    assert read_weights("owner/editor", work) == [row]
    (snapshot.parents[1] / "blobs/x").write_bytes(b"other weights")
    keep_weights("owner/editor", work)
    assert [row["sha256"] for row in read_weights("owner/editor", work)] == sorted(map(sha256_bytes, (b"weights", b"other weights")))
    assert weights_of("owner/unknown") == []
    (damaged,) = (tmp_path / "w/synthetic").iterdir()
    damaged.write_bytes(b"[1]")
    with pytest.raises(UserError, match=r"is damaged.*restore it from a copy"):
        read_weights("owner/editor", work)


def test_edits_are_drawn_by_seed_and_differ():
    assert choose_edits(1, 5) == choose_edits(1, 5) != choose_edits(2, 5)
    assert len({str(edit) for edit in choose_edits(1, 21)}) == 21
    assert DiffusersConfig(edits=21).edits == 21
    with pytest.raises(ValidationError, match="less than or equal to 21"):  # there are no more: fewer would come than were asked for
        DiffusersConfig(edits=22)


@pytest.fixture
def endpoint():
    """An OpenAI-compatible API: every third answer says something else."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(given)
            text = given["messages"][0]["content"][1]["text"].rsplit("\n\n", 1)[1]
            answer = "Please: " + text if len(asked) % 3 else "Make it look nicer."
            body = json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()


def test_rewritten_instructions_must_say_the_same(endpoint, models, tmp_path):
    address, asked = endpoint
    people = config(anny=AnnyConfig(people=6, images=4, workers=0))
    rewritten = people.model_copy(update={"instructions": RewriteConfig(endpoint=address, model="m")})
    version = build_dataset(rewritten, str(tmp_path), models)
    rows = read_manifest(version.uri)
    counts = {row["name"]: row["count"] for row in version.funnel if row["step"] == "instructions"}
    assert sum(counts.values()) == len(rows)
    assert counts["rewritten"] > counts["refused: not the same edit"] > 0
    assert sum(row["instruction"].startswith("Please: ") for row in rows) == counts["rewritten"]
    assert all(parse_instruction(row["instruction"]) for row in rows)
    for row in rows:  # the sample says how its text came about
        meta = decode_pair(row["key"], read_members(version.uri, row)).meta
        assert instruction_for(meta.edit, meta.template_seed, meta.split).template == meta.template
        assert (meta.rewriting is not None) == meta.instruction.startswith("Please: ")
        if meta.rewriting:
            assert meta.rewriting.model == "m" and meta.rewriting.prompt.endswith(instruction_for(meta.edit, row["key"], meta.split).text)
            assert f"rewritten by m, seed {meta.rewriting.seed}" in " ".join(why(row["key"], str(tmp_path)))
    shown = {base64.b64decode(given["messages"][0]["content"][0]["image_url"]["url"].split(",")[1]) for given in asked}
    assert shown == {read_members(version.uri, row)["source.jpg"] for row in rows}
    answers = {path.name.split(".")[0] for path in (tmp_path / "rewrites").iterdir()}
    assert answers == {row["key"] for row in rows}
    before = len(asked)
    (tmp_path / "versions/v1/index.json").unlink()
    assert build_dataset(rewritten, str(tmp_path), models).digest == version.digest
    assert len(asked) == before  # nothing is asked twice
    gone = people.model_copy(update={"name": "v2", "instructions": RewriteConfig(endpoint="http://127.0.0.1:9/v1", model="other")})
    with pytest.raises(UserError, match="gave no answer"):
        build_dataset(gone, str(tmp_path), models)
    forget(str(tmp_path), source=rows[0]["source_id"])  # what was said of their picture goes with them, and nothing else
    left = {row["key"] for row in rows if row["source_id"] != rows[0]["source_id"]}
    assert {path.name.split(".")[0] for path in (tmp_path / "rewrites").iterdir()} == left < answers
