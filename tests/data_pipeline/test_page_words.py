"""What report and card say of a version is the version's own, and is read as it was written."""

from data_pipeline.card import _card
from data_pipeline.ledger import Ledger
from data_pipeline.published import as_table
from data_pipeline.report import _consents, _funnel, _is_of_another
from data_pipeline.worklist import WorkItem

SAMPLE = {"split": "train", "kind": "video", "edit_kind": "pose", "licence": "CC0-1.0", "source_id": "a", "target_id": "b"}


def card(shards, **changes):
    index = {"name": "v1", "digest": "0" * 64, "shards": [{"name": name} for name in shards], "models": []}
    return _card(index, as_table([SAMPLE | changes] if shards else []), None)


def test_consent_is_that_of_the_version_and_not_of_the_last_work_list():
    now = {name: WorkItem(source_id=name, uri=name, kind="video", consent="withdrawn") for name in "ab"}
    told = SAMPLE | {"consent": "signed", "target_consent": "oral"}
    assert _consents(told, now) == _consents(told, {}) == "oral and signed"
    assert _consents(told | {"target_consent": None}, now) == "signed and unknown"  # one end never speaks for the other
    assert _consents(SAMPLE, now) == "withdrawn" and _consents(SAMPLE, {}) == "unknown"  # an older manifest does not tell
    assert _consents(told | {"kind": "synthetic"}, now) == "not needed: drawn"


def test_shares_of_a_step_are_of_all_that_went_into_it():
    rows = [("candidate pairs", "in", 10), ("candidate pairs", "accepted", 4), ("samples", "train", 3), ("samples", "test", 1)]
    rows += [("instructions", "refused: not the same edit", 40), ("instructions", "rewritten", 60)]
    shares = [row["share"] for row in _funnel([{"step": step, "name": name, "count": count} for step, name, count in rows])]
    assert shares == [1.0, 0.4, 0.75, 0.25, 0.4, 0.6]


def test_a_ledger_of_other_sources_than_the_funnel_counts_is_seen():
    rows = [{"source_id": name, "status": "ok", "parts": []} for name in "abc"]
    counts = {"in": 3, "ok": 2, "rejected: near-duplicate": 1}
    funnel = [{"step": "sources", "name": name, "count": count} for name, count in counts.items()]
    funnel.append({"step": "frames", "name": "looked at", "count": 9})
    assert not _is_of_another(funnel, {"a"}, Ledger(rows), {"c": None})
    assert _is_of_another(funnel, {"a"}, Ledger(rows), {}) and _is_of_another(funnel, {"a"}, Ledger(rows[:2]), {"c": None})
    assert _is_of_another(funnel, {"a"}, Ledger([*rows[1:], rows[0] | {"status": "failed", "reason": "decode"}]), {"c": None})
    assert _is_of_another(funnel, {"elsewhere"}, Ledger(rows), {"c": None})  # as many, and others


def test_the_example_of_a_card_opens_a_shard_that_is_there():
    """`forget` and `merge` write shards under other names."""
    assert 'WebDataset("shards/train-000000.r1.tar"' in card(["test-000000.tar", "train-000001.tar", "train-000000.r1.tar"])
    assert 'WebDataset("shards/val-000000.m1.tar"' in card(["val-000000.m1.tar"])
    assert "WebDataset(" not in card([])


def test_words_of_a_work_list_are_no_markup_in_a_card():
    text = card(["train-000000.tar"], licence="CC-BY | by | x\n<img src=x onerror=alert(1)> ![](//t) `a`")
    (line,) = (line for line in text.splitlines() if "CC-BY" in line)
    assert line == r"| CC-BY \| by \| x &lt;img src=x onerror=alert(1)&gt; !\[\](//t) \`a\` | 1 |"
