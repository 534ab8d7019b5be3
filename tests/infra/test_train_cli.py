"""`lato train`: every mistake in one message before anything starts, what a run may change when it goes on, forks, and places for ranks."""

import json
from functools import partial
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.jobs.train import start_stage
from infra.jobs.train_checks import digests_of_starts, load_settings, parse_source
from lato.codec import SpaceToDepthCodec
from lato.tiny_vlm import build_tiny_vlm
from tests.training.versions import publish
from training import presets, resume_rules
from training.config import MAY_CHANGE, EngineConfig
from training.encode import revision_of
from training.launch import made_of
from training.stage_factory import Job
from training.stages.dit_config import DitConfig


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "v1"
    publish(folder, {"train": 8, "val": 4})
    return str(folder)


def train(version, work, *overrides, stage="tokenizer", preset="tiny", launcher="plain", fork=None, checkpoints=None, data=None, **paths):
    start_stage(stage, list(overrides), data or [version], preset, None, str(work), launcher, fork, checkpoints, paths)


@pytest.mark.parametrize(
    ("text", "uri", "weight"),
    [
        ("/a/v1", "/a/v1", None),
        ("/a/v1:2", "/a/v1", 2.0),
        ("s3://bucket/v1", "s3://bucket/v1", None),
        ("s3://bucket/v1:0.25", "s3://bucket/v1", 0.25),
        ("/a/v1:b", "/a/v1:b", None),
    ],
)
def test_a_source_has_an_address_and_maybe_a_weight(text, uri, weight):
    source = parse_source(text)
    assert (source.uri, source.weight) == (uri, weight)


@pytest.mark.parametrize("weight", ["0", "-1", "inf"])
def test_a_weight_is_above_zero(weight):
    with pytest.raises(UserError, match="expected a weight above 0"):
        parse_source(f"/a/v1:{weight}")


def test_all_mistakes_are_one_message_and_nothing_has_started(version, tmp_path):
    with pytest.raises(UserError) as told:
        train(
            version, tmp_path / "w", "engine.stepz=3", "engine.lr=-1", stage="dit", launcher="cloud",
            data=[version, str(tmp_path / "gone")], tokenizer=str(tmp_path / "t"), encoded=str(tmp_path / "e"),
        )  # fmt: skip
    for part in (
        "did you mean 'steps'",
        "engine.lr: given -1",
        "--launcher cloud: expected one of ray, plain",
        "gone: no published dataset version here",
        "--tokenizer: there is no model in",
        "nothing is encoded here",
    ):
        assert part in str(told.value)
    assert not (tmp_path / "w").exists()


def test_settings_that_do_not_fit_together_are_told(version, tmp_path):
    with pytest.raises(UserError) as told:
        train(
            version, tmp_path, "engine.workers=3", "engine.offload=all", stage="dit", preset="full",
            tokenizer=version, encoded=version,
        )  # fmt: skip
    assert "64 samples do not divide over 3 ranks (engine.workers) x 1 micro-batches" in str(told.value)
    assert "base: there is no model in models/transformer; give the folder of a pretrained one: base=FOLDER" in str(told.value)
    assert "codec: there is no model in models/vae" in str(told.value)
    assert "offload" not in str(told.value)  # full is ZeRO-3
    with pytest.raises(UserError, match=r"engine\.offload: all needs ZeRO 3"):
        train(version, tmp_path, "engine.offload=all")


def test_mistakes_in_the_mixture_are_told_before_the_start(version, tmp_path):
    publish(tmp_path / "v2", {"train": 8, "val": 4}, first=4)  # trains on what is held out in the other
    with pytest.raises(UserError) as told:
        train(version, "s3://bucket/run", data=[f"{version}:2", str(tmp_path / "v2")])
    for part in (
        "4 samples that ",
        "are in the val split of",
        "give one to every dataset or to none. Without one: ",
        "--work-dir s3://bucket/run: expected a folder that every machine sees",
    ):
        assert part in str(told.value)


def test_what_a_stage_refuses_is_told_before_the_start(version, tmp_path):
    with pytest.raises(UserError, match="image_size: this model sees multiples of 28 pixels, given 50; take 28 or 56"):
        train(version, tmp_path / "w", "image_size=50", stage="predictor")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("stage", "override", "said"),
    [
        ("tokenizer", "val_samples=0", "val_samples: given 0"),
        ("tokenizer", "widths=[32,40]", "widths.1: given 40"),
        ("tokenizer", "engine.decay_from=-1", "engine.decay_from: given -1"),
        ("tokenizer", "engine.checkpoint_activations=true", "^engine.checkpoint_activations: the tokenizer, .* set it to false"),
        ("predictor", "val_samples=0", "val_samples: given 0"),
        ("predictor", "hidden_size=31", "hidden_size: given 31"),
        ("dit", "hidden_size=100", "hidden_size: 100 channels do not divide over 3 heads"),
        ("dit", "axes_dims_rope=[8,8,8]", "axes_dims_rope: expected even numbers with a sum of 32"),
    ],
)
def test_sizes_that_no_model_has_are_told(stage, override, said):
    with pytest.raises(UserError, match=said):
        load_settings(stage, "tiny", None, [override])


def made(folder, **engine):
    start = presets.preset("tokenizer", "tiny")
    config = start.model_copy(update={"engine": start.engine.model_copy(update=engine)})
    return made_of(Job(stage="tokenizer", config=config, data=(), folder=str(folder)), {"text_encoder": "ab"})


def test_what_may_change_is_a_setting_of_the_engine():
    assert set(EngineConfig.model_fields) > MAY_CHANGE


def begun(folder):
    (folder / "metrics.jsonl").write_text('{"step": 0, "held_out": 1.0}\n')


def test_a_run_that_stopped_before_its_first_number_takes_other_settings(tmp_path):
    """As when a mistake was only found by the ranks, and is mended."""
    resume_rules.prepare(tmp_path, made(tmp_path))
    (tmp_path / "state.json").write_text('{"run_id": "of other parameters"}')
    resume_rules.prepare(tmp_path, made(tmp_path, lr=0.5))
    assert not (tmp_path / "state.json").exists()
    begun(tmp_path)
    with pytest.raises(UserError, match=r"engine\.lr: 0\.5 there, 0\.7 now"):
        resume_rules.prepare(tmp_path, made(tmp_path, lr=0.7))


def test_a_pretrained_part_is_found_from_everywhere_and_known_by_what_is_in_it(version, tmp_path, monkeypatch):
    """Ranks of Ray Train work in a folder of their own; a run that goes on, maybe elsewhere, is told of another base under the same name."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    seen = []

    def ranks(job, inputs, *_, **__):
        seen.append((job, inputs))
        resume_rules.prepare(Path(job.folder), made_of(job, inputs), job.checkpoints)
        begun(Path(job.folder))

    def save(folder, seed):
        model, processor = build_tiny_vlm(hidden_size=32, num_layers=1, image_size=28, seed=seed)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    monkeypatch.setattr("training.launch.train", ranks)
    start = partial(train, version, tmp_path / "w", "base=models/vlm", "image_size=28", "syntax=json", stage="predictor")
    save("models/vlm", 0)
    start()
    job, inputs = seen[0]
    assert job.config.base == str(tmp_path / "here/models/vlm")
    assert inputs["base"] == revision_of("models/vlm")
    start()
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    start()
    assert [job.config.base for job, _ in seen[1:]] == [str(tmp_path / place / "models/vlm") for place in ("here", "there")]
    save("models/vlm", 1)
    with pytest.raises(UserError, match=rf'when it goes on:\n  inputs\.base: "{inputs["base"][:20]}.* there, .* now\nGive'):
        start()
    assert len(seen) == 3


def test_a_codec_is_known_by_its_settings_too(tmp_path):
    """A scale is no weight."""
    found = set()
    for scale in (1.0, 0.36):
        SpaceToDepthCodec(2, scaling_factor=scale).save_pretrained(tmp_path)
        found.add(digests_of_starts(DitConfig(codec=str(tmp_path)))["codec"])
    assert len(found) == 2
    assert digests_of_starts(DitConfig()) == digests_of_starts(presets.preset("tokenizer", "tiny")) == {}


def test_of_several_datasets_the_one_that_differs_is_told(tmp_path):
    data = [{"digest": "a" * 64, "weight": 1.0}, {"digest": "b" * 64, "weight": 3.0}]
    resume_rules.prepare(tmp_path, made(tmp_path) | {"data": data})
    begun(tmp_path)
    with pytest.raises(UserError) as told:
        resume_rules.check(tmp_path, made(tmp_path) | {"data": [data[0], data[1] | {"weight": 2.0}]})
    assert "data.1.weight: 3.0 there, 2.0 now" in str(told.value)
    assert "data.0" not in str(told.value)


def test_a_run_goes_on_with_what_may_change_and_no_more(tmp_path):
    resume_rules.prepare(tmp_path, made(tmp_path))
    begun(tmp_path)
    resume_rules.prepare(tmp_path, made(tmp_path, steps=900, workers=4, zero_stage=3, keep=9))
    assert json.loads((tmp_path / resume_rules.MADE_OF).read_text())["config"]["engine"]["steps"] == 900
    with pytest.raises(UserError) as told:
        resume_rules.check(tmp_path, made(tmp_path, lr=0.5, seed=3, eval_every=1) | {"inputs": {"text_encoder": "cd"}})
    said = str(told.value)
    assert "config.engine.lr: 0.003 there, 0.5 now" in said
    assert "config.engine.seed: 0 there, 3 now" in said
    assert 'inputs.text_encoder: "ab" there, "cd" now' in said
    assert "eval_every" not in said
    assert "steps" not in said
    assert "--fork" not in said  # there is no checkpoint to fork from


def _checkpoint(folder, step):
    target = folder / "checkpoints" / f"step-{step:06d}"
    target.mkdir(parents=True)
    (target / "COMPLETE").write_text(json.dumps({"step": step, "world_size": 1, "held_out": None, "files": {}}))
    return str(target)


def test_a_fork_starts_from_the_newest_checkpoint_and_is_taken_up_again(tmp_path):
    run = tmp_path / "runs" / "dit"
    resume_rules.prepare(run, made(run))
    begun(run)
    with pytest.raises(UserError, match="no complete checkpoint to start from"):
        resume_rules.fork(run, "warm", made(run, lr=0.5))
    _checkpoint(run, 5)
    newest = _checkpoint(run, 10)
    with pytest.raises(UserError, match=r"start a new run from its weights \(step-000010\): --fork NAME"):
        resume_rules.check(run, made(run, lr=0.5))
    fork = resume_rules.fork(run, "warm", made(run, lr=0.5))
    assert fork == tmp_path / "runs" / "dit-warm"
    begun(fork)
    _checkpoint(run, 15)
    assert resume_rules.fork(run, "warm", made(run, lr=0.5)) == fork  # the same command goes on with it
    assert resume_rules.start_weights(fork) == newest
    assert resume_rules.start_weights(run) is None
    with pytest.raises(UserError, match=r"lr: 0\.5 there, 0\.7 now"):
        resume_rules.fork(run, "warm", made(run, lr=0.7))
    with pytest.raises(UserError, match="expected a name of letters"):
        resume_rules.fork(run, "../x", made(run))


def test_a_run_whose_folder_is_lost_goes_on_from_checkpoints_kept_elsewhere_and_only_with_its_settings(tmp_path):
    run, kept = tmp_path / "runs" / "dit", tmp_path / "store" / "dit"
    resume_rules.prepare(run, made(run), str(kept))
    _checkpoint(kept.parent, 10)
    (kept.parent / "checkpoints" / "step-000010").rename(kept / "step-000010")
    lost = tmp_path / "elsewhere" / "dit"
    resume_rules.check(lost, made(lost), str(kept))
    with pytest.raises(UserError, match=r"(?s)lr: 0\.003 there, 0\.5 now.*another --work-dir and another --checkpoints"):
        resume_rules.check(lost, made(lost, lr=0.5), str(kept))
    begun(run)
    with pytest.raises(UserError, match=r"checkpoints: .* there, null now"):
        resume_rules.check(run, made(run))
    fork = resume_rules.fork(run, "warm", made(run, lr=0.5), str(kept))
    assert resume_rules.start_weights(fork) == str(kept / "step-000010")
    assert (tmp_path / "store" / "dit-warm" / resume_rules.MADE_OF).is_file()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("dit", [], "huge", None), "--preset huge: expected one of tiny, base, full"),
        (("painter", [], "tiny", None), "stage painter: expected one of tokenizer, predictor, dit"),
    ],
)
def test_unknown_names_are_told(given, message):
    stage, overrides, preset, config = given
    with pytest.raises(UserError, match=message):
        load_settings(stage, preset, config, overrides)


def test_a_plan_is_printed_and_one_that_cannot_fit_is_refused_with_the_nearest(capsys, monkeypatch):
    from infra.jobs.train_plan import print_plan
    from training.gpus import GPUS, Gpu

    settings = presets.preset("dit", "tiny").model_copy(update={"num_double_blocks": 1, "num_single_blocks": 1})
    print_plan("dit", settings, "h100", 0.35, 1000)
    said = capsys.readouterr().out
    for part in ("parameters    ", "ZeRO 2 (chosen)", "peak", "tokens", "hours at an MFU of 35 %", "a checkpoint", "for 1,000"):
        assert part in said
    monkeypatch.setitem(GPUS, "toy", Gpu((), 2.20, 1.0, "none"))  # 68 MB are left for a run
    wide = settings.model_copy(update={"engine": settings.engine.model_copy(update={"global_batch": 64})})
    with pytest.raises(UserError, match=r"does not fit: it needs .* The nearest plan that fits needs .*: .*engine\.") as told:
        print_plan("dit", wide, "toy", 0.35, 1000)
    assert "2.2 GB less what CUDA" in str(told.value)
