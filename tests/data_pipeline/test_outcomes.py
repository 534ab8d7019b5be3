"""What becomes of sources: the plan, warnings, what is reopened, kept out or forgotten."""

import json
import os
import shutil
from pathlib import Path

import av
import pytest
from PIL import Image

from data_pipeline import places, sources, worker
from data_pipeline.build import build_dataset
from data_pipeline.config import DataConfig
from data_pipeline.decode import sample_frames
from data_pipeline.decoder import DecodeError
from data_pipeline.forget import apply_removals, forget
from data_pipeline.holdout import HoldoutConfig
from data_pipeline.places import places_of
from data_pipeline.plan import plan_build
from data_pipeline.publish import Stopped
from data_pipeline.removals import Removals
from data_pipeline.report import write_data_report
from data_pipeline.retry import reopen
from data_pipeline.rules import PairingConfig
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.split import SplitConfig
from data_pipeline.synthetic.anny_people import AnnyConfig
from data_pipeline.synthetic.sources import SyntheticConfig
from data_pipeline.verify import verify_version
from data_pipeline.why import why
from data_pipeline.worklist import item_for
from infra.errors import UserError
from tests.data_pipeline.small import CONFIG, read_candidates
from tests.data_pipeline.videos import with_keyframes


def lying(clip, target, states):
    """The clip in another container, which says of itself that it has so many frames."""
    with av.open(clip) as given, av.open(str(target), "w") as made:
        if target.suffix == ".mkv":  # Matroska's writers leave it in a tag
            stream = made.add_stream_from_template(given.streams.video[0])
            stream.metadata["NUMBER_OF_FRAMES"] = str(states)
            for packet in given.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    made.mux(packet)
            return
        stream = made.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.bit_rate = given.streams.video[0].width, given.streams.video[0].height, 4_000_000
        for frame in given.decode(video=0):
            made.mux(stream.encode(frame))
        made.mux(stream.encode())
    content = bytearray(target.read_bytes())
    at = content.index(b"strh") + 8 + 32
    content[at : at + 4] = states.to_bytes(4, "little")
    target.write_bytes(content)


def test_another_number_of_frames_than_stated_is_a_warning_and_no_verdict(models, clip, tmp_path):
    (tmp_path / "src").mkdir()
    states = {"tagged.mkv": 999, "header.avi": 50}
    for name, count in states.items():
        lying(clip("single_face"), tmp_path / "src" / name, count)
    shutil.copyfile(clip("single_face"), tmp_path / "src/honest.mp4")
    alone = AnalyzeConfig(workers=0)
    config = DataConfig(
        folder=str(tmp_path / "src"), analyze=alone, synthetic=SyntheticConfig(anny=AnnyConfig(people=3, images=3, workers=0))
    )
    work = str(tmp_path / "w")
    build_dataset(config, work, models, [])
    page = Path(write_data_report(work)).read_text()
    rows = {row["source_id"]: row for row in map(json.loads, (tmp_path / "w/ledger.jsonl").read_text().splitlines())}
    for name, count in states.items():
        source = name.split(".")[0]
        said = f"its container states {count} frames, it has 72"
        assert (rows[source]["status"], rows[source]["warnings"]) == ("ok", [said])
        assert rows[source]["faces"]
        assert f"warning: {said}" in why(source, work)
        assert f'<td>{source}</td><td class="long">{said}</td>' in page
    assert rows["honest"]["status"] == "ok" and "warnings" not in rows["honest"]
    assert not [line for line in why("honest", work) if "warning" in line]


def test_failures_are_reopened_by_reason(models, tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src/broken.mp4").write_bytes(b"no video")
    work = tmp_path / "w"
    config = CONFIG.model_copy(
        update={"folder": str(tmp_path / "src"), "synthetic": SyntheticConfig(anny=AnnyConfig(people=3, images=3, workers=0))}
    )
    build_dataset(config, str(work), models, [])
    with pytest.raises(UserError, match=r"no source failed with 'crash'; reasons in this build: decode"):
        reopen(str(work), "crash")
    parts = len(list((work / "parts").iterdir()))
    assert reopen(str(work), "decode") == ["broken"]
    assert len(list((work / "parts").iterdir())) == parts - 1
    build_dataset(config, str(work), models, [])
    assert len(list((work / "parts").iterdir())) == parts


def test_what_is_seen_after_a_retry_is_in_the_next_version(models, clip, tmp_path, monkeypatch):
    """A source that ended its decoder once, whole or in one of its segments; its parts keep their names, and all that was made of them is made anew."""
    monkeypatch.setattr(sources, "SEGMENT_SECONDS", 0.8)
    (tmp_path / "src").mkdir()
    shutil.copyfile(clip("single_face"), tmp_path / "src/whole.mp4")
    with_keyframes(clip("single_face"), tmp_path / "src/cut.mp4", every=8)
    config = DataConfig(
        folder=str(tmp_path / "src"),
        analyze=AnalyzeConfig(workers=0, fps=5.0),
        synthetic=SyntheticConfig(anny=AnnyConfig(people=3, images=3, workers=0)),
        pairing=PairingConfig(max_upscale=6.0),
        split=SplitConfig(max_component=1.0),
    )
    work = str(tmp_path / "w")
    watch = worker.Worker._watch

    def die(self, segment, torn, counts):
        if segment.item.source_id == "whole" or (segment.item.source_id == "cut" and segment.start > 0):
            raise DecodeError("crash", "the decoder died")
        return watch(self, segment, torn, counts)

    with monkeypatch.context() as patch:
        patch.setattr(worker.Worker, "_watch", die)
        lacking = build_dataset(config, work, models, [])
    assert sorted(reopen(work, "crash")) == ["cut", "whole"]
    assert verify_version(lacking.uri) == []
    again = build_dataset(config, work, models, [])
    fresh = build_dataset(config, str(tmp_path / "w2"), models, [])
    assert again.digest == fresh.digest != lacking.digest
    assert build_dataset(config, work, models, []).digest == again.digest


def test_failed_renders_are_reopened(models, clip, tmp_path):
    """A source that was away when its crops were cut; once it is back the version is that of a build in which it never was."""
    (tmp_path / "src").mkdir()
    file = tmp_path / "src/clip.mp4"
    shutil.copyfile(clip("single_face"), file)
    config = DataConfig(
        folder=str(tmp_path / "src"),
        analyze=AnalyzeConfig(workers=0),
        synthetic=SyntheticConfig(anny=AnnyConfig(people=3, images=3, workers=0)),
        pairing=PairingConfig(max_upscale=6.0),
    )
    work = str(tmp_path / "w")
    with pytest.raises(Stopped):
        build_dataset(config, work, models, [], until="pair")
    state = file.stat()
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    torn = build_dataset(config, work, models, [])
    assert {row["source_id"] for row in read_candidates(torn.uri) if row["verdict"] == "render failed"} == {"clip"}
    file.write_bytes(content)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert build_dataset(config, work, models, []).digest == torn.digest
    assert reopen(work, "render") == ["clip"]
    assert verify_version(torn.uri) == []
    whole = build_dataset(config, work, models, [])
    assert whole.digest == build_dataset(config, str(tmp_path / "w2"), models, []).digest != torn.digest
    with pytest.raises(UserError, match="no pair of a version here is 'render failed'"):
        reopen(work, "render")


def test_evaluation_sets_are_kept_out(models, clip, tmp_path):
    """By declared name, by content, and a real person by looks: other photos of them are barred."""
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    frame = next(iter(sample_frames(clip("single_face"), 5.0)))
    Image.fromarray(frame.image).save(evaluation / "frame.png")
    clips = [item_for(clip("single_face"), licence="test")]
    plain = CONFIG.model_copy(update={"pairing": PairingConfig(max_upscale=6.0)})
    free = build_dataset(plain, str(tmp_path / "w"), models, clips)
    assert any(row["kind"] == "video" for row in read_candidates(free.uri) if row["verdict"] == "accepted")
    barred = plain.model_copy(update={"name": "barred", "holdout": HoldoutConfig(identities=("anny_0_00001",), folder=str(evaluation))})
    rows = read_candidates(build_dataset(barred, str(tmp_path / "w"), models, clips).uri)
    assert {row["source_id"] for row in rows if row["verdict"] == "held out"} == {"single_face", "anny_0_00001"}
    assert not {"single_face", "anny_0_00001"} & {row["source_id"] for row in rows if row["split"]}
    Image.new("RGB", (64, 64)).save(evaluation / "blank.png")
    with pytest.raises(UserError, match=r"no face is found in blank.png"):
        build_dataset(barred, str(tmp_path / "w"), models, clips)


def test_the_plan_counts_what_will_be_looked_at(models, clip, tmp_path):
    (tmp_path / "fake.mp4").write_text("no video")
    items = [item_for(clip(name), licence="MIT") for name in ("single_face", "obama")]
    items += [item_for(str(tmp_path / "fake.mp4"), licence="MIT"), item_for(clip("carphone"), licence="unknown")]
    synthetic = SyntheticConfig(anny=AnnyConfig(people=3, images=4))
    config = DataConfig(analyze=AnalyzeConfig(fps=5.0, licences=("MIT",)), synthetic=synthetic, pairing=PairingConfig(per_identity=2))
    plan = plan_build(items, config, models)
    assert plan.sources == {"video": 3, "image": 1, "synthetic": 3}
    assert (plan.unreadable, plan.refused) == (["fake"], {"licence unknown": 1})
    looked_at = len(list(sample_frames(clip("single_face"), 5.0)))
    assert abs(plan.frames - (looked_at + 1 + 3 * 4)) <= 1
    assert plan.most_samples == 120 + 0 + 3 * 4  # a source's quota, a photo alone, a person's quota; both directions
    assert plan.megabytes == pytest.approx(sum(Path(clip(name)).stat().st_size for name in ("single_face", "obama")) / 1e6 + 8e-6)
    assert 0 < plan.probe.seconds_per_frame < 5 and 100 < plan.probe.worker_megabytes < 20_000
    assert plan.probe.start_seconds > 1 and plan.seconds(2) > plan.probe.start_seconds  # Ray and the models
    assert plan.asked == max(place.memory for place in places_of(config)) >= places.LOOKING
    assert plan_build(items, config.model_copy(update={"analyze": AnalyzeConfig(workers=0)}), models).asked == 0
    work = tmp_path / "w"
    here = config.analyze.model_copy(update={"workers": 0})  # what is compared does not depend on where it is made
    build_dataset(config.model_copy(update={"analyze": here, "pairing": PairingConfig(max_upscale=9.0)}), str(work), models, items)
    written = sum(path.stat().st_size for path in (work / "parts").iterdir()) / 1e6
    assert written / 4 < plan.observation_megabytes < written * 4
    sizes = [path.stat().st_size for path in (work / "renders").iterdir()]
    assert 2 * min(sizes) < plan.probe.bytes_per_sample < 4 * max(sizes)


def test_the_plan_counts_pairs_of_a_persons_photos(models, clip):
    """It said that there are none at most."""
    items = [item_for(clip(name), identity="obama") for name in ("obama", "obama2")]
    items.append(item_for(clip("biden"), identity="biden"))
    config = DataConfig(analyze=AnalyzeConfig(workers=0), pairing=PairingConfig(same_person=True))
    assert plan_build(items, config, models).most_samples == 2
    assert plan_build(items, config.model_copy(update={"pairing": PairingConfig()}), models).most_samples == 0


def test_forget_asks_whom(built):
    work, _ = built
    with pytest.raises(UserError, match="nothing to forget"):
        forget(str(work))
    with pytest.raises(UserError, match="no build here"):
        forget(str(work / "nowhere"), identity="x")
    assert Removals.read(str(work)).identities == frozenset()
    assert apply_removals(str(work)).sources == 0
