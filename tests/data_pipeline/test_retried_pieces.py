"""A piece of a long video that failed is looked at again: what was two tracks is one then. What was published of the other pieces stays what it was."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipeline import score
from data_pipeline.candidates import write_candidates
from data_pipeline.extend import NEEDED, Base
from data_pipeline.extension_checks import check_found
from data_pipeline.judge import accepted_rows, judge
from data_pipeline.observations import commit_part
from data_pipeline.pairing import group_people
from data_pipeline.rules import PairingConfig, Rules
from tests.data_pipeline.test_joins import smile

TURNED = (0.0, 31.0)
CONFIG = PairingConfig(min_agreement=0.0, per_cell=20, per_identity=60)


class Alike:
    """Everybody has one face."""

    models = config = None

    def read(self, part):
        return dict.fromkeys(range(12), np.eye(4, dtype=np.float32)[0])

    def compute(self, wanted):
        """All is known."""


@pytest.fixture
def film(tmp_path, monkeypatch):
    """Parts of three pieces in which one man turns his head all along, the last the least sharp; and of the second as it was when it failed."""
    monkeypatch.setattr(score, "same_person_threshold", lambda *_: 0.45)
    rng = np.random.default_rng(0)
    points = rng.uniform(100, 400, 136).tolist()
    quality = dict.fromkeys(("pitch", "roll", "expression_intensity", "noise", "clipped", "blockiness", "letterbox", "skin_ita"), 0.0)
    common = quality | {
        "source_id": "film",
        "source_sha256": "x",
        "kind": "video",
        "track": 0,
        "width": 800,
        "height": 800,
        "face_px": 300.0,
    }
    common |= {"box": [100, 100, 400, 400], "landmarks": points, "blendshapes": smile(0.0), "expression": "neutral"}
    for number, (part, sharp) in enumerate((("a", 150.0), ("b", 140.0), ("c", 100.0))):
        rows = [common | {"frame": 100 * number + n, "pts": 100.0 * number + n, "yaw": TURNED[n % 2]} for n in range(12)]
        rows = [row | {"sharpness": sharp + n, "phash": rng.bytes(32), "representative": n < 6} for n, row in enumerate(rows)]
        commit_part(str(tmp_path), part, [row | {"at_start": n == 0, "goes_on": n == 11} for n, row in enumerate(rows)], {}, {})
    commit_part(str(tmp_path), "failed", [], {"status": "failed", "reason": "crash"}, {})
    return tmp_path


def score_table(film, parts, published=()):
    faces = [face | {"held_out": False} for face in score.read_faces({"parts": parts}, {}, Alike(), str(film))]
    uri = str(film / f"{'-'.join(parts)}.parquet")
    score.write_scores(group_people(faces, False, dict(published)), 2.1, uri)
    return uri


def test_what_was_published_is_found_again_with_its_persons_quotas(film):
    before = score_table(film, ["a", "failed", "c"])
    (judged,) = judge([before], Rules(CONFIG), Alike())
    keys = {row["key"] for row in accepted_rows(before, judged)}
    version = film / "versions/v1"
    write_candidates([before], [judged], {}, {"film": "test"}, {key: ["crop"] for key in keys}, str(version))
    published = {row["key"]: row for row in pq.read_table(version / "candidates.parquet", columns=NEEDED).to_pylist() if row["rendered"]}
    manifest = [{"key": key, "source_id": "film", "identity": row["person"], "split": "train"} for key, row in published.items()]
    base = Base(str(film), str(version), {"name": "v1"}, manifest, judged=published).without({})
    assert set(base.usage.person) == set(base.tracks) == {"film/0", "film/2000000"}

    now = score_table(film, ["a", "b", "c"], base.faces.items())
    base = base.as_joined_in([now])
    assert base.keys == published.keys() <= set(pq.read_table(now)["key"].to_pylist())
    assert set(base.usage.person) == set(base.tracks) == {"film/0"}
    assert sum(base.usage.person.values()) == len(published) / 2
    room = CONFIG.model_copy(update={"per_identity": 2 + len(published) // 2, "per_cell": 999, "per_source": 999})
    rules = Rules(room, frozen=base.keys, usage=base.usage, trained=base.trained)
    rows = accepted_rows(now, *judge([now], rules, Alike()))
    check_found(base, [row["key"] for row in rows])
    ends = {row["key"]: (row["from_part"], row["from_row"], row["to_part"], row["to_row"]) for row in rows}
    assert len(set(ends.values())) == len(ends) and base.keys <= ends.keys()
    assert len(ends.keys() - base.keys) == 4  # two and their reverses: the quotas of both tracks are one person's now
