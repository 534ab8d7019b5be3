"""Encode: what is stored is what the models give; kills, views and forgetting leave the right files; a cache that does not fit is refused."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.subset import make_view
from infra.errors import UserError
from lato.codec import SpaceToDepthCodec, decode_latents
from lato.edits import Edit, Expression, Intensity, instruction_for, mirror_instruction, parse_instruction
from lato.pipeline import resize, to_picture
from lato.text_encoder import TextEncoder, TextEncoderSettings
from lato.tiny_vlm import build_tiny_vlm
from tests.training.test_data import upload, withdraw
from tests.training.versions import publish
from training.data import Dataset
from training.encode import EncodeConfig, EncodedCache, encode, revision_of
from training.stage_factory import digest_of

HERE = EncodeConfig(image_size=32, mirror=True, workers=0)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of a small VLM and of the codec."""
    folder = tmp_path_factory.mktemp("parts")
    vlm = build_tiny_vlm(hidden_size=32, num_layers=2, image_size=56)
    TextEncoder(*vlm, TextEncoderSettings(min_pixels=56 * 56, max_pixels=56 * 56)).save_pretrained(folder / "vlm")
    SpaceToDepthCodec(2).save_pretrained(folder / "vae")
    return folder / "vlm", folder / "vae"


@pytest.fixture(scope="module")
def encoded(small, parts, tmp_path_factory):
    """The small version, encoded; not to be changed."""
    folder = tmp_path_factory.mktemp("encoded") / "states"
    encode(Dataset.open(str(small)), parts[0], folder, HERE, parts[1])
    return folder


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_prefix_and_suffixes_joined_equal_full_passes(parts):
    """Pictures and texts of several lengths in one batch, quoted words, and a limit that cuts text and even picture."""
    loaded = TextEncoder.from_pretrained(parts[0])
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in ((512, 512), (200, 700), (64, 60))]
    texts = ["smile", "turn the head 30 degrees to the left, and look very surprised", 'hold a sign "hi", smile']
    for limits in ({"max_pixels": 56 * 56}, {"max_pixels": 140 * 140}, {"max_pixels": 140 * 140, "max_length": 24}):
        encoder = TextEncoder(loaded.model, loaded.processor, TextEncoderSettings(min_pixels=56 * 56, **limits))
        shared = encoder.encode_shared(pictures, [[text, "", text + " now"] for text in texts])
        for number, asked in enumerate((texts, ["", "", ""], [text + " now" for text in texts])):
            for own, full, picture, text in zip(shared, encoder.encode(pictures, asked), pictures, asked, strict=True):
                assert own.states(number).shape == full.shape
                assert float((own.states(number) - full).abs().max()) < 1e-5
                assert encoder.token_counts(picture, text) == (len(own.prefix), len(own.suffixes[number]))
        assert len({len(own.prefix) for own in shared}) > 1
    assert any(len(own.suffixes[0]) == 0 for own in shared)  # the last limit cuts all of a text


def test_mirrored_text_parses_to_the_mirrored_edit():
    edits = [Edit(**{axis: degrees}) for axis in ("yaw", "pitch", "roll") for degrees in (-60, 30)]
    edits += [edit.model_copy(update={"expression": Expression.ANGRY, "intensity": Intensity.SLIGHTLY}) for edit in edits]
    edits += [Edit(yaw=30, roll=-30), Edit(yaw=-30, roll=-30, pitch=30, expression=Expression.SAD)]
    changed = 0
    for edit in edits:
        for number in range(60):
            text = instruction_for(edit, f"k{number}", "test" if number % 3 == 0 else "train").text
            mirrored = mirror_instruction(text)
            assert parse_instruction(mirrored) == edit.mirrored(), text
            assert mirror_instruction(mirrored) == text
            changed += mirrored != text
    assert changed > 400
    assert (
        mirror_instruction("Left, LEFT, leftwards, the leftmost and right-hand one")
        == "Right, RIGHT, rightwards, the rightmost and left-hand one"
    )
    assert mirror_instruction("a bright copyright, upright, lefty") == "a bright copyright, upright, lefty"


def test_what_is_stored_is_what_the_models_give(small, parts, encoded):
    dataset = Dataset.open(str(small))
    cache = EncodedCache.open(encoded, dataset.digest, revision_of(parts[0]))
    encoder, codec = TextEncoder.from_pretrained(parts[0]), SpaceToDepthCodec.from_pretrained(parts[1])
    assert (cache.text_dim, cache.has_latents, cache.mirrored, cache.latent_shape) == (32, True, True, (12, 16, 16))
    for row in dataset.rows[::5]:
        pair = dataset.read(row)
        for mirrored in (False, True):
            both = [np.ascontiguousarray(i[:, ::-1]) if mirrored else i for i in (pair.source_image(), pair.target_image())]
            text = mirror_instruction(pair.meta.instruction) if mirrored else pair.meta.instruction
            for instruction, asked in ((True, text), (False, "")):
                expected = encoder.encode(both[:1], [asked])[0]
                found = cache.text(row["key"], instruction, mirrored)
                assert found.dtype == torch.float32
                torch.testing.assert_close(found, expected, rtol=2**-8, atol=1e-4)  # bf16
            for latents, picture in zip(cache.latents(row["key"], mirrored), both, strict=True):
                assert np.array_equal(to_picture(decode_latents(codec, latents[None])[0]), resize(picture, (32, 32)))  # 8 bits survive bf16
    prefixes = load_file(encoded / cache.files[0])
    assert sum(tensor.numel() for tensor in prefixes.values()) * 2 < (encoded / cache.files[0]).stat().st_size


def test_the_size_is_said_before_and_comes_true(small, parts, tmp_path, capsys):
    encode(Dataset.open(str(small)), parts[0], tmp_path / "states", HERE, parts[1])
    said = capsys.readouterr().out
    total, unit = re.search(r"30 samples, about [\d.]+ kB each, ([\d.]+) (kB|MB) in all", said).groups()
    assert said.index("in all") < said.index("samples, ", said.index("in all"))
    written = sum(path.stat().st_size for path in (tmp_path / "states").glob("states-*"))
    assert abs(written / (float(total) * {"kB": 1e3, "MB": 1e6}[unit]) - 1) < 0.06
    encode(Dataset.open(str(small)), parts[0], tmp_path / "states", HERE, parts[1])
    assert "30 of them stand already" in capsys.readouterr().out


def test_a_disk_without_room_is_said_before_anything_is_written(small, parts, tmp_path, monkeypatch):
    room = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    with pytest.raises(UserError, match=r"MB are still to be written, 100.0 kB are free|kB are still to be written, 100.0 kB are free"):
        encode(Dataset.open(str(small)), parts[0], tmp_path / "states", HERE, parts[1])
    assert list((tmp_path / "states").glob("states-*")) == []


_KILLED = """
import os, sys
from training.data import Dataset
from training.encode import EncodeConfig, encode
os.environ["LATO_FAIL_AT_STEP"] = "5"
while True:
    child = os.fork()
    if child == 0:
        encode(Dataset.open(sys.argv[1]), sys.argv[2], sys.argv[3], EncodeConfig(image_size=32, mirror=True, workers=0), sys.argv[4])
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    left = sorted(name.split("-")[0] for name in os.listdir(sys.argv[3]) if not name.startswith("."))
    print("killed" if os.WIFSIGNALED(status) else status, left.count("states"), left.count("index"), flush=True)
    if not os.WIFSIGNALED(status):
        break
"""


@pytest.mark.slow
def test_killed_and_run_again_it_writes_the_same_files(small, parts, encoded, tmp_path):
    """Killed before the third file, before the fifth, and between the table and the index that publishes it."""
    command = [sys.executable, "-c", _KILLED, str(small), str(parts[0]), str(tmp_path / "states"), str(parts[1])]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    said = [line for line in ended.stdout.splitlines() if re.fullmatch(r"(killed|\d+) \d+ \d+", line)]
    assert said == ["killed 2 0", "killed 4 0", "killed 5 1", "0 5 2"]
    assert files(tmp_path / "states") == files(encoded)


@pytest.mark.slow
def test_on_ray_it_writes_the_same_files(ray_session, small, parts, encoded, tmp_path):
    encode(Dataset.open(str(small)), parts[0], tmp_path / "states", HERE.model_copy(update={"workers": 2}), parts[1])
    assert files(tmp_path / "states") == files(encoded)


@pytest.fixture
def mine(small, encoded, tmp_path):
    """Copies of version and cache that a test may change."""
    shutil.copytree(small, tmp_path / "v1")
    shutil.copytree(encoded, tmp_path / "states")
    return tmp_path / "v1", tmp_path / "states"


def test_a_view_takes_the_files_of_its_version(mine, parts):
    version, folder = mine
    before = {name for name in files(folder) if name.startswith("states")}
    view = Dataset.open(make_view(str(version), "some", "source_id in s0,s3,s21")[0])
    with pytest.raises(UserError, match="encoded here is v1"):
        EncodedCache.open(folder, view.digest)
    encode(view, parts[0], folder, HERE, parts[1])
    cache, whole = EncodedCache.open(folder, view.digest), EncodedCache.open(folder, Dataset.open(str(version)).digest)
    assert {name for name in files(folder) if name.startswith("states")} == before
    for row in view.rows:
        assert torch.equal(cache.text(row["key"], True), whole.text(row["key"], True))


def test_what_was_forgotten_is_gone_from_the_cache_and_only_touched_shards_are_encoded(mine, parts):
    version, folder = mine
    before = {name for name in files(folder) if name.startswith("states")}
    digest = withdraw(version, "s2", "s23")
    dataset = Dataset.open(str(version))
    with pytest.raises(UserError, match="a version that has changed since"):
        EncodedCache.open(folder, dataset.digest)
    encode(dataset, parts[0], folder, HERE, parts[1])
    cache = EncodedCache.open(folder, dataset.digest)
    assert len(before - set(cache.files)) == 2
    assert len(set(cache.files) - before) == 2
    for name, content in files(folder).items():
        assert name in cache.files or name.startswith(f"index-{dataset.digest[:16]}")
        assert b"k0002" not in content
        assert b"k0023" not in content
    with pytest.raises(UserError, match="encoded here is v1"):
        EncodedCache.open(folder, digest)
    assert cache.text("k0003", True).shape[1] == 32


def test_several_datasets_share_a_folder(mine, parts, tmp_path):
    publish(tmp_path / "other", {"train": 3, "val": 1}, first=60)
    version, folder = mine
    other = Dataset.open(str(tmp_path / "other"))
    encode(other, parts[0], folder, HERE, parts[1])
    assert EncodedCache.open(folder, other.digest).text("k0061", False).shape[1] == 32
    assert EncodedCache.open(folder, Dataset.open(str(version)).digest).text("k0003", False).shape[1] == 32


def test_what_a_training_depends_on_is_the_same_after_another_dataset_or_run_of_encode(parts, tmp_path):
    """Else a training could not go on once anything else was encoded into its folder."""
    publish(tmp_path / "one", {"train": 18, "val": 4})
    publish(tmp_path / "two", {"train": 4, "val": 2}, first=50)
    one, two = (Dataset.open(str(tmp_path / name)) for name in ("one", "two"))
    settings = EncodeConfig(image_size=16, workers=0)
    encode(one, parts[0], tmp_path / "states", settings)
    before = digest_of(str(tmp_path / "states"), [one.digest])
    encode(two, parts[0], tmp_path / "states", settings)
    encode(one, parts[0], tmp_path / "states", settings)
    assert digest_of(str(tmp_path / "states"), [one.digest]) == before
    assert (
        digest_of(str(tmp_path / "states"), [two.digest, one.digest])
        == digest_of(str(tmp_path / "states"), [one.digest, two.digest])
        != before
    )
    encode(one, parts[0], tmp_path / "mirrored", settings.model_copy(update={"mirror": True}))
    assert digest_of(str(tmp_path / "mirrored"), [one.digest]) != before


def test_a_cache_that_does_not_fit_is_refused_and_says_what_differs(mine, parts, tmp_path):
    version, folder = mine
    dataset = Dataset.open(str(version))
    with pytest.raises(UserError, match="nothing is encoded here"):
        EncodedCache.open(tmp_path / "nowhere", dataset.digest)
    with pytest.raises(UserError, match=f"encoded here is v1 \\({dataset.digest[:12]}\\), but the dataset is 000000000000"):
        EncodedCache.open(folder, "0" * 64)
    shutil.copytree(parts[0], tmp_path / "vlm")
    assert revision_of(tmp_path / "vlm") == revision_of(parts[0])
    (tmp_path / "vlm/predictor.json").write_text("{}")
    assert revision_of(tmp_path / "vlm") == revision_of(parts[0])
    settings = tmp_path / "vlm/text_encoder.json"
    settings.write_text(settings.read_text().replace("Describe", "describe"))
    other = revision_of(tmp_path / "vlm")
    with pytest.raises(UserError, match=f"another text encoder .* than the one given \\({other[:12]}\\)"):
        EncodedCache.open(folder, dataset.digest, other)
    with pytest.raises(
        UserError, match=f"text encoder: {revision_of(parts[0])[:12]} there, {other[:12]} now; picture size: 32 there, 64 now"
    ):
        encode(dataset, tmp_path / "vlm", folder, HERE.model_copy(update={"image_size": 64}), parts[1])
    with pytest.raises(UserError, match=r"image codec: .* there, none now.*mirrored pictures: True there, False now"):
        encode(dataset, parts[0], folder, EncodeConfig(workers=0))
    name = EncodedCache.open(folder, dataset.digest).files[2]
    (folder / name).write_bytes((folder / name).read_bytes()[:-2])
    with pytest.raises(UserError, match=f"1 of 5 files are missing or cut short \\(first: {name}\\)"):
        EncodedCache.open(folder, dataset.digest)


def test_without_a_codec_and_mirror_they_are_refused(mine, parts, tmp_path):
    version, _ = mine
    dataset = Dataset.open(str(version))
    encode(dataset, parts[0], tmp_path / "plain", EncodeConfig(workers=0))
    cache = EncodedCache.open(tmp_path / "plain", dataset.digest)
    assert not (cache.has_latents or cache.mirrored)
    with pytest.raises(ValueError, match="encode with --vae"):
        cache.latents("k0001")
    with pytest.raises(ValueError, match="mirror=true"):
        cache.text("k0001", True, mirrored=True)


def test_a_changed_shard_and_folders_without_models_are_refused(mine, parts, tmp_path):
    version, _ = mine
    dataset = Dataset.open(str(version))
    with pytest.raises(UserError, match="no model here"):
        encode(dataset, version, tmp_path / "states2", HERE, parts[1])
    with pytest.raises(UserError, match="expected the folder of an AutoencoderKL or a SpaceToDepthCodec"):
        encode(dataset, parts[0], tmp_path / "states2", HERE, parts[0])
    with pytest.raises(UserError, match="image_size: expected a multiple of 4"):
        encode(dataset, parts[0], tmp_path / "states2", HERE.model_copy(update={"image_size": 30}), parts[1])
    shard = version / "shards" / dataset.rows[0]["shard"]
    data = bytearray(shard.read_bytes())
    data[-3000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"its sha256 differs from index\.json"):
        encode(Dataset.open(str(version)), parts[0], tmp_path / "states2", HERE, parts[1])


def test_on_an_object_store_it_is_the_same(small, parts, encoded, bucket):
    upload(small, f"{bucket}/v1")
    dataset = Dataset.open(f"{bucket}/v1")
    encode(dataset, parts[0], f"{bucket}/states", HERE, parts[1])
    remote, local = EncodedCache.open(f"{bucket}/states", dataset.digest), EncodedCache.open(encoded, dataset.digest)
    assert remote.files == local.files
    assert torch.equal(remote.text("k0011", False, mirrored=True), local.text("k0011", False, mirrored=True))
    assert all(torch.equal(a, b) for a, b in zip(remote.latents("k0025"), local.latents("k0025"), strict=True))
