"""The demo: the whole mission at small size, on real clips and synthetic people."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pydantic import Field

from data_pipeline.build import build_dataset
from data_pipeline.config import DataConfig
from data_pipeline.publish import DatasetVersion, print_version
from data_pipeline.rules import PairingConfig
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig
from data_pipeline.worklist import WorkItem, item_for
from infra import assets
from infra.config import Config
from infra.console import duration, heading, say
from infra.runtime import RuntimeConfig
from training import presets
from training.config import DataSource
from training.stages.dit_config import DitConfig
from training.stages.predictor import PredictorConfig
from training.stages.tokenizer import TokenizerConfig

TINY = (
    "Everything: the three models have {sizes} parameters (the paper's DiT alone: 12 billion) and trained for minutes on two CPU cores. "
    "The DiT draws {size} x {size} pixels through a lossless space-to-depth codec, because no pretrained image VAE comes offline; its text encoder is the small "
    "Qwen2.5-VL that was trained from scratch as the landmark predictor minutes before. Pictures below are what such models draw; nothing was chosen or improved."
)


class EvalSettings(Config):
    """Evaluation of the demo."""

    samples: int = Field(default=10, ge=1)
    """Held-out samples."""
    steps: int = Field(default=12, ge=1)
    """Euler steps."""
    guidance: float = Field(default=1.5, ge=0)
    """Scale of joint guidance."""


class QuickstartConfig(Config):
    """The demo. Sizes are for two CPU cores and twelve minutes."""

    clips: tuple[str, ...] = ("single_face", "face_noface", "carphone", "no_face")
    """Assets: real clips."""
    photos: tuple[str, ...] = ("obama", "obama2", "obama3", "biden")
    """Assets: photos; those whose names differ only by a number show one person."""
    folder: str | None = None
    """Your own videos and photos, beside these."""
    data: DataConfig = DataConfig(
        synthetic=SyntheticConfig(anny=AnnyConfig(people=240, images=4)),
        # the clips that can be had offline are small and old
        pairing=PairingConfig(same_person=True, max_upscale=6.0, per_identity=3),
    )
    """The dataset build."""
    tokenizer: TokenizerConfig = presets.TOKENIZER["tiny"]
    """Stage 1."""
    predictor: PredictorConfig = presets.PREDICTOR["tiny"]
    """Stage 2."""
    dit: DitConfig = presets.DIT["tiny"]
    """Stage 3."""
    evaluation: EvalSettings = EvalSettings()
    """Edits and scores."""
    runtime: RuntimeConfig = RuntimeConfig()
    """Where Ray runs."""


def run_quickstart(config: QuickstartConfig, work: str) -> None:
    """The demo, in a work folder that the caller holds."""
    from evaluation.run import VERSION, EvalConfig, evaluate, print_summary
    from infra.environment import describe_environment
    from infra.jobs.common import perception_models
    from infra.runtime import prepare_ray, stop_ray
    from infra.storage import sha256_json
    from infra.tracking import default_uri, ui_command
    from training.launch import made_of, train
    from training.stage_factory import Job, digest_of

    started = time.monotonic()
    models = perception_models()
    sources = _sources(config, work)
    prepare_ray(config.runtime)
    uri = default_uri(work)
    heading("1-2  Sources, observations, pairs, shards")
    version = build_dataset(config.data, work, models, sources)
    print_version(version)
    parent = _open_run(uri, work, sha256_json([config.model_dump(mode="json"), version.digest, VERSION]))
    parent.describe(config.model_dump(mode="json"), describe_environment())
    try:
        parent.dataset("pairs", version.digest, version.uri)
        parent.metrics({f"samples_{split}": count for split, count in version.samples.items()})

        heading("3  Training, each with DeepSpeed ZeRO on two Ray Train workers")
        data = (DataSource(uri=version.uri),)

        def stage(name: str, settings: Any, **paths: str) -> Any:
            inputs = {version.uri: version.digest} | {name: digest_of(path, [version.digest]) for name, path in paths.items()}
            job = Job(stage=name, config=settings, data=data, folder="", **paths)
            # a demo that is changed trains anew, beside what it trained before
            folder = Path(work) / "runs" / f"{name}-{sha256_json(made_of(job, inputs))[:8]}"
            return train(job.model_copy(update={"folder": str(folder)}), inputs, uri, "quickstart", parent.run_id)

        tokenizer = stage("tokenizer", config.tokenizer)
        predictor = stage("predictor", config.predictor)
        text_cache = _encode(version, predictor.export, Path(work) / "text_states")
        dit = stage("dit", config.dit, tokenizer=str(tokenizer.export), encoded=str(text_cache))
        stages = [("tokenizer", "px", tokenizer), ("predictor", "cross-entropy", predictor), ("dit", "squared error", dit)]
        for name, _, result in stages:
            if result.last >= result.first:
                raise RuntimeError(f"{name} did not learn: held-out {result.first:.4f} at step 0, {result.last:.4f} at the end")

        heading("4-5  Edits and scores")
        pipeline = Path(work) / "pipeline"
        _assemble(tokenizer.export, predictor.export, dit.export, pipeline, config)
        stop_ray()  # the rest runs in this process, torch in one thread of it (`quieten`): what Ray's processes hold is given back first
        settings = EvalConfig(**config.evaluation.model_dump())
        result = evaluate(settings, version.uri, pipeline, models, work)
        print_summary(result.summary)
        _log_scores(parent, result.summary, result.scores)

        heading("6  Report")
        report = _report(config, work, version, stages, result, pipeline, parent, ui_command(work))
        say(f"  {report}")
        say(f"  MLflow: {ui_command(work)}")
        say(f"  done in {duration(time.monotonic() - started)}")
        parent.close()
    except BaseException as error:
        parent.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise


def _open_run(uri: str, work: str, made_of: str) -> Any:
    """The demo's run in MLflow: the one of this folder if it is of the same digest, else a new one, because MLflow keeps the first value of every number."""
    from infra.storage import commit
    from infra.tracking import open_run

    file = Path(work) / "mlflow_run"
    known = file.read_text().split() if file.exists() else []
    run_id = known[0] if known[1:] == [made_of] else None
    run = open_run(uri, "quickstart", "quickstart", str(Path(work) / "mlflow_backlog"), run_id=run_id)
    commit(str(file), f"{run.run_id}\n{made_of}\n".encode())
    return run


def _sources(config: QuickstartConfig, work: str) -> list[WorkItem]:
    from data_pipeline.folders import items_from_folder

    def licence(name: str) -> str:
        return assets.load_catalog()[name].licence

    items = [item_for(str(assets.path(name)), licence=licence(name), consent="test use") for name in config.clips]
    for name in config.photos:
        person = name.rstrip("0123456789")
        items.append(item_for(str(assets.path(name)), licence=licence(name), consent="public official", identity=person))
    # one real person is kept apart, so that an edit of a real held-out face is shown
    items = [item.model_copy(update={"split": "test"}) if item.source_id == "single_face" else item for item in items]
    return items + (items_from_folder(config.folder, work) if config.folder else [])


def _encode(version: DatasetVersion, encoder: Path, folder: Path) -> Path:
    """Encodes the version; a folder for each encoder, because a demo that is changed trains it anew."""
    from lato.text_encoder import TextEncoder, TextEncoderSettings
    from training.data import Dataset
    from training.encode import encode, revision_of

    if not (encoder / "text_encoder.json").exists():
        loaded = TextEncoder.from_pretrained(encoder)
        area = _predictor_size(encoder) ** 2
        settings = TextEncoderSettings(min_pixels=area, max_pixels=area)
        TextEncoder(loaded.model, loaded.processor, settings).save_pretrained(encoder)
    own = folder / revision_of(encoder)[:16]
    encode(Dataset.open(version.uri), encoder, own)
    return own


def _predictor_size(folder: Path) -> int:
    from infra.state import read_json

    return int(read_json(str(folder / "predictor.json"), ("image_size",))["image_size"])


def _assemble(tokenizer: Path, predictor: Path, dit: Path, folder: Path, config: QuickstartConfig) -> None:
    from infra.jobs.common import perception_models
    from lato.codec import SpaceToDepthCodec
    from lato.faces import FaceReader
    from lato.pipeline import LaToPipeline
    from lato.predictor import LandmarkPredictor
    from lato.text_encoder import TextEncoder
    from lato.tokenizer import LandmarkTokenizer
    from lato.transformer import LaToTransformer

    LaToPipeline.from_parts(
        LaToTransformer.from_pretrained(dit),
        LandmarkTokenizer.from_pretrained(tokenizer),
        SpaceToDepthCodec.from_pretrained(dit / "vae"),
        TextEncoder.from_pretrained(predictor),
        LandmarkPredictor.from_pretrained(predictor),
        FaceReader.from_folder(perception_models()),
        config.dit.sizes[0][0],
    ).save_pretrained(folder)


def _sizes(stages: list[Any]) -> str:
    """Parameters of the trained models, counted in their files."""
    import math

    from safetensors import safe_open

    counts = []
    for name, _, result in stages:
        count = 0
        for file in result.export.glob("*.safetensors"):
            with safe_open(str(file), framework="pt") as tensors:
                count += sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118
        counts.append(f"{count / 1e6:.2f} million ({name})")
    return ", ".join(counts)


def _log_scores(run: Any, summary: dict[str, dict[str, Any]], scores: str) -> None:
    for editor, values in summary.items():
        means = values | {f"common.{name}": mean for name, mean in values["common"].items()}
        numbers = {
            f"{editor}.{name}": value["value"]
            for name, value in means.items()
            if isinstance(value, dict) and value.get("value") is not None
        }
        run.metrics(numbers)
    run.artifact(scores)


def _report(
    config: QuickstartConfig, work: str, version: DatasetVersion, stages: list[Any], result: Any, pipeline: Path, run: Any, command: str
) -> str:
    from data_pipeline.published import read_manifest
    from data_pipeline.sheet import draw_sheet, read_samples
    from evaluation.report import StageCurve, write_report
    from infra.addresses import join
    from infra.environment import git_state
    from infra.storage import commit
    from training.follow import read_metrics

    rows = [row for row in read_manifest(version.uri) if row["split"] == "train"]
    real = [row for row in rows if row["kind"] != "synthetic"][:3]
    synthetic = [row for row in rows if row["kind"] == "synthetic"][:12]
    write_report(
        join(work, "report.html"),
        "LaTo quickstart",
        [("code", git_state()), ("dataset", f"{sum(version.samples.values())} samples, digest {version.digest[:12]}")],
        TINY.format(size=config.dit.sizes[0][0], sizes=_sizes(stages)),
        version.uri,
        draw_sheet(read_samples(version.uri, real + synthetic), columns=3),
        [StageCurve(name, unit, read_metrics(r.metrics), r.seconds) for name, unit, r in stages],
        result,
        join(work, "edits"),
        str(pipeline),
        command,
    )
    import cv2

    picture = draw_sheet(read_samples(version.uri, synthetic[:8]))
    encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
    commit(join(work, "synthetic_pairs.png"), encoded)
    run.image("sample_pairs.png", picture)
    run.artifact(join(work, "report.html"))
    return join(work, "report.html")
