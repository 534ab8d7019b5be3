"""Identity is computed for the faces that a pair needs; what was known before changes no byte, and a looser config opens no video."""

import shutil

import pytest

from data_pipeline.build import build_dataset
from data_pipeline.config import DataConfig
from data_pipeline.groups import GroupsConfig, backfill, group_digests
from data_pipeline.identities import NAME, AskedGroup
from data_pipeline.judge import count_verdicts, judge
from data_pipeline.observe import observe
from data_pipeline.published import read_index
from data_pipeline.rules import PairingConfig, Rules
from data_pipeline.score import ScoreInput, score_pairs
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.why import explain
from data_pipeline.worklist import item_for
from infra.errors import UserError
from tests.data_pipeline.small import read_candidates

PAIRING = PairingConfig(max_upscale=6.0)
CONFIG = DataConfig(analyze=AnalyzeConfig(workers=0), pairing=PAIRING)
IDENTITY = GroupsConfig(names=("identity",))


@pytest.fixture(scope="module")
def built(models, clip, tmp_path_factory):
    work = tmp_path_factory.mktemp("lazy")
    video = work / "single_face.mp4"
    shutil.copyfile(clip("single_face"), video)
    return work, item_for(str(video)), build_dataset(CONFIG, str(work / "work"), models, [item_for(str(video))])


def known(work, models):
    """Part and row of every face that has a vector."""
    identities = AskedGroup.open(NAME, str(work), group_digests(models, IDENTITY), IDENTITY, models, 0)
    return {(path.stem, row) for path in (work / "parts").glob("*.parquet") for row in identities.read(path.stem)}


def test_only_the_faces_of_pairs_that_were_asked_for_have_a_vector(built, models):
    work, _, version = built
    rows = read_candidates(version.uri)
    asked = [row for row in rows if row["similarity"] is not None]
    ends = {(row[f"{side}_part"], row[f"{side}_row"]) for row in asked for side in ("from", "to")}
    assert known(work / "work", models) == ends
    assert {row["verdict"] for row in asked} <= {"accepted", "identity", "held out"}
    assert all(row["similarity"] is not None for row in rows if row["verdict"] == "accepted")
    spared = [row for row in rows if row["verdict"] in ("quota", "near-duplicate", "expression unclear")]
    assert spared
    assert all(row["similarity"] is None for row in spared)
    told = {name: said for name, _, _, said in explain(spared[0], PAIRING)}
    assert told["identity"] == "not computed"


def test_what_was_known_before_changes_no_byte(built, models, tmp_path):
    _, item, version = built
    observed = observe(CONFIG, str(tmp_path), models, [item])
    every = [part for row in observed.ledger.rows for part in row["parts"]]
    assert backfill(every, group_digests(models, IDENTITY), IDENTITY, models, str(tmp_path), 0) == 1
    again = build_dataset(CONFIG, str(tmp_path), models, [item])
    assert again.digest == version.digest
    for name in ("candidates", "manifest"):
        file = read_index(version.uri)[name]
        assert (tmp_path / "versions/v1" / file).read_bytes() == (built[0] / "work/versions/v1" / file).read_bytes()
    assert (tmp_path / "versions/v1/components.json").read_bytes() == (built[0] / "work/versions/v1/components.json").read_bytes()


def test_a_looser_config_computes_what_is_missing_from_chips(built, models, tmp_path):
    """Judged anew with the video gone: more faces get a vector, and the pairs that it refuses say so."""
    work, item, _ = built
    shutil.copytree(work / "work", tmp_path / "work")
    observed = observe(CONFIG, str(tmp_path / "work"), models, [item])
    before = known(tmp_path / "work", models)
    (work / "single_face.mp4").rename(work / "away.mp4")
    try:
        given = ScoreInput(observed.columns, observed.identities, PAIRING.margin, False, observed.holdout)
        tables = score_pairs(observed.ledger.usable(), given, {}, str(tmp_path / "work"), 0)
        loose = PAIRING.model_copy(update={"per_cell": 99, "per_identity": 99, "min_expression": 0.0, "min_similarity": 1.1})
        judged = judge(tables, Rules(loose), observed.identities)
    finally:
        (work / "away.mp4").rename(work / "single_face.mp4")
    assert before < known(tmp_path / "work", models)
    counts = count_verdicts(judged)
    assert counts["identity"] > 0
    assert not {"accepted", "quota"} & counts.keys()  # who is refused takes up no quota


def test_without_identity_no_pair_can_be_judged(models, clip, tmp_path):
    config = CONFIG.model_copy(update={"analyze": AnalyzeConfig(workers=0, groups=GroupsConfig(names=("occlusion", "writing")))})
    with pytest.raises(UserError, match="identity is not among them"):
        observe(config, str(tmp_path), models, [item_for(clip("single_face"))])
