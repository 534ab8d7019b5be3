"""Long videos and photo sets in the table step: what goes on over a border of two pieces, and against which rest a face is read."""

import io
import itertools

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import data_pipeline.sources as sources_module
from data_pipeline.build import build_dataset
from data_pipeline.config import DataConfig
from data_pipeline.decode import sample_frames
from data_pipeline.joins import Meeting, join_tracks, read_joined, track_of_source
from data_pipeline.observations import commit_part, read_part
from data_pipeline.pairing import group_people
from data_pipeline.published import read_manifest, read_members
from data_pipeline.rules import PairingConfig
from data_pipeline.score import write_scores
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.sources import plan_segments
from data_pipeline.tracks import REPRESENTATIVES
from data_pipeline.worklist import item_for
from infra.errors import UserError
from lato.edits import Expression
from lato.faces.expression import EXPRESSIONS, _load
from lato.pairs import decode_pair
from tests.data_pipeline.small import read_candidates
from tests.data_pipeline.test_real_expressions import face

LOOSE = {"max_upscale": 20.0, "max_padding": 1.0, "per_identity": 9999, "per_cell": 9999, "per_source": 9999, "near_duplicate_bits": -1}
CUTS = (4.0, 10.0)


def write_shots(clip, target):
    """One man in one place in three takes of 4, 6 and 4 seconds, in other colours each, a keyframe a second."""
    takes = ((0, 100, (0, 1, 2)), (600, 750, (2, 0, 1)), (300, 400, (0, 1, 2)))
    with av.open(str(target), "w") as made, av.open(clip) as given:
        stream = made.add_stream("libx264", rate=25, options={"g": "25", "sc_threshold": "0", "crf": "16"})
        frames = [frame.to_ndarray(format="rgb24") for frame in itertools.islice(given.decode(video=0), 750)]
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for first, last, colours in takes:
            for image in frames[first:last]:
                made.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:, :, colours]), format="rgb24")))
        made.mux(stream.encode())
    return str(target)


def test_a_track_goes_on_over_a_border_and_over_no_cut_at_it_or_away_from_it(models, clip, tmp_path, monkeypatch):
    """Borders at 5 s, a second after a cut, and at 10 s, where a cut is: only the take of 4 to 10 s is on both sides of one."""
    monkeypatch.setattr(sources_module, "SEGMENT_SECONDS", 5.0)
    item = item_for(write_shots(clip("franck"), tmp_path / "takes.mp4"), licence="test")
    assert [piece[:2] for piece in plan_segments(item)] == [(0.0, 5.0), (5.0, 10.0), (10.0, None)]
    assert {frame.shot for frame in sample_frames(item.uri, 5.0)} == {0, 1, 2}
    config = DataConfig(analyze=AnalyzeConfig(workers=0), pairing=PairingConfig(**LOOSE, min_expression=0.3, min_agreement=0.0))
    version = build_dataset(config, str(tmp_path / "w"), models, [item])
    rows = read_candidates(version.uri)
    shots = {(np.searchsorted(CUTS, row["from_pts"], "right"), np.searchsorted(CUTS, row["to_pts"], "right")) for row in rows}
    assert shots == {(0, 0), (1, 1), (2, 2)}
    over = [row for row in rows if row["from_part"] != row["to_part"]]
    assert over and all(4.0 <= row[pts] < 10.0 for row in over for pts in ("from_pts", "to_pts"))
    # what is told of a sample's two faces is what they were paired by, whatever its piece alone had read
    known = {row["key"]: row for row in rows}
    for sample in read_manifest(version.uri):
        meta = decode_pair(sample["key"], read_members(version.uri, sample)).meta
        for side, state in (("from", meta.source), ("to", meta.target)):
            assert state.expression == known[sample["key"]][f"{side}_expression"]
            assert state.expression_intensity == round(known[sample["key"]][f"{side}_expression_intensity"], 3)
    faces = {row["name"]: row["count"] for row in version.funnel if row["step"] == "faces"}
    assert faces["found"] == sum(count for name, count in faces.items() if name != "found")
    parts = [read_part(str(tmp_path / "w"), path.stem) for path in (tmp_path / "w/parts").glob("*.parquet")]
    (table,) = (tmp_path / "w/pairs").iterdir()
    left_out = int(pq.read_schema(table).metadata[b"left_out"])
    assert sum(sum(part["representative"].to_pylist()) for part in parts) - faces["representatives"] == left_out > 0


def test_one_track_goes_on_with_one():
    """Two on each side, all alike (twins): those that overlap most; a third that looks like them finds none left."""
    vectors = [{0: np.eye(4)[0], 1: np.eye(4)[0]}, {0: np.eye(4)[0], 1: np.eye(4)[0], 2: np.eye(4)[0], 3: np.eye(4)[1]}]
    met = [
        Meeting(0.5, 0, 0, (0, 0)),
        Meeting(0.9, 0, 1, (0, 1)),
        Meeting(0.8, 1, 1, (1, 1)),
        Meeting(0.4, 1, 2, (1, 2)),
        Meeting(0.95, 1, 3, (1, 3)),
    ]
    assert join_tracks([met], vectors, 0.45) == {track_of_source(1, 1): 0, track_of_source(1, 2): 1}
    on = [Meeting(0.9, 0, 0, (0, 0))]
    assert join_tracks([on, on], [vectors[0]] * 3, 0.45) == {track_of_source(1, 0): 0, track_of_source(2, 0): 0}


def smile(strength):
    """Blendshapes of one who smiles as strongly."""
    directions, happy = _load(), EXPRESSIONS.index(Expression.HAPPY) - 1
    return (0.02 + strength * directions.weights[happy] * directions.lengths[happy]).tolist()


def test_one_look_reads_alike_in_all_pieces_of_a_track(tmp_path):
    """At rest in the first piece, half smiling in the second: by its own piece the half smile were rest, and the strong one half as strong as in the first."""
    shown = ([0.0] * 60 + [1.0] * 10, [0.5] * 60 + [1.0] * 10)
    for part, strengths in zip("ab", shown, strict=True):
        rows = [{"track": 0, "frame": n, "blendshapes": smile(strength)} for n, strength in enumerate(strengths)]
        commit_part(str(tmp_path), part, rows, {}, {})
    faces = [{"part": part, "row": row, "track": 0, "expression": "?"} for part, row in (("a", 5), ("a", 65), ("b", 5), ("b", 65))]
    other = {"part": "b", "row": 1, "track": 7, "expression": "?"}
    commit_part(str(tmp_path), "nobody", [], {}, {})  # credits, or a piece that failed: it ended every build of the film
    read_joined([*faces, other], ["a", "b", "nobody"], {track_of_source(1, 0): 0}, str(tmp_path))
    assert [one["expression"] for one in faces] == ["neutral", "happy", "happy", "happy"]
    assert [one["expression_intensity"] for one in faces] == pytest.approx([0, 1, 0.5, 1], abs=0.02)
    assert other["expression"] == "?"


def test_representatives_beyond_those_of_a_joined_track_are_counted():
    pieces = [face("neutral", 0.0, frame=n, part="ab"[n // 3], row=n % 3, sharpness=50.0 + n) for n in range(6)]
    (track,) = people = list(group_people(pieces, same_person=False))
    assert (len(track.rows), track.left_out) == (REPRESENTATIVES, 3)
    write_scores(people, 2.1, table := io.BytesIO(), 3)
    assert pq.read_schema(table).metadata == {b"left_out": b"3"}


def test_photos_beyond_those_of_their_set_are_not_left_out_where_other_pairs_are_made_of_them():
    own = [face("happy", frame=n, row=n, sharpness=50.0 + n, kind="image", identity="he", source_id="set") for n in range(5)]
    other = face("neutral", 0.0, kind="image", identity="he", source_id="other", part="q")
    told = {same: [(one.scope, len(one.rows), one.left_out) for one in group_people([*own, other], same)] for same in (False, True)}
    alone, in_set = ("same_track", 1, 0), ("same_track", REPRESENTATIVES, 2)
    assert told[False] == [alone, in_set]
    assert told[True] == [alone, (*in_set[:2], 0), ("same_person", 6, 0)]


def paired_photos(uris, models, work):
    """Candidates of photos of one declared person."""
    items = [item_for(uri, licence="test", identity="he") for uri in uris]
    limits = PairingConfig(**LOOSE, same_person=True, min_background=0.0, min_clothing=0.0)
    return read_candidates(build_dataset(DataConfig(analyze=AnalyzeConfig(workers=0), pairing=limits), str(work), models, items).uri)


def test_a_declared_persons_photos_are_read_against_the_rest_of_them_all(models, clip, tmp_path):
    """A man at rest who then smiles, as photos: each against itself shows nothing."""
    photos = []
    for number, frame in enumerate(sample_frames(clip("single_face"), 3.0)):
        photos.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(frame.image).save(photos[-1])
    rows = paired_photos(photos, models, tmp_path / "w")
    accepted = {(row["from_expression"], row["to_expression"]) for row in rows if row["verdict"] == "accepted"}
    assert {("neutral", "happy"), ("happy", "neutral")} <= accepted <= set(itertools.product(("neutral", "happy"), repeat=2))


def test_the_calmest_of_a_few_photos_is_no_rest_where_the_second_network_sees_none(models, clip, tmp_path):
    """Three photos of one man of which none is at rest: he smiles on the calmest too, and the others would be told weaker than they show."""
    with pytest.raises(UserError, match="no pair was accepted"):
        paired_photos([clip(name) for name in ("obama", "obama2", "obama3")], models, tmp_path)
    (table,) = (tmp_path / "pairs").iterdir()
    assert set(pq.read_table(table)["from_expression"].to_pylist()) == {"neutral"}  # each its own
