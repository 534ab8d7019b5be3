"""Conditions of views: what can be written, and what is told of the rest; and labels that are none."""

import http.client
import json
import threading

import pytest

from data_pipeline.audit import LABELS, read_labels, serve_audit
from data_pipeline.subset import make_view, matching, select
from infra.errors import UserError

ROWS = [
    {"key": "a", "kind": "video", "expression": "happy", "yaw": 30.0, "licence": "MIT", "target_licence": "MIT"},
    {"key": "b", "kind": "video", "expression": "sad", "yaw": 0.0, "licence": "MIT", "target_licence": "CC BY (old)"},
    {"key": "c", "kind": "synthetic", "expression": None, "yaw": -30.0, "licence": "CC0-1.0", "target_licence": None},
]


def test_consent_is_asked_of_both_ends_and_none_speaks_for_the_other():
    both = [
        {"key": key, "consent": "given", "target_consent": other}
        for key, other in (("a", "given"), ("b", "unknown"), ("c", ""), ("d", None))
    ]
    assert [row["key"] for row in matching(both, "consent = given")] == ["a"]
    assert [row["key"] for row in matching(both, "consent != unknown")] == ["a", "c"]


@pytest.mark.parametrize(
    ("where", "keys"),
    [
        ("kind = video", "ab"),
        ("kind = video and yaw > 0", "a"),
        ("kind = video AND yaw >= 0 And expression != happy", "b"),
        ("expression in happy, sad", "ab"),
        ("licence in 'MIT', CC BY (old)", "ab"),
        ("licence = MIT", "a"),
        ("yaw <= 0", "bc"),
        ("expression != sad", "ac"),  # a pair of which only the pose changes has no expression
        ("expression != sad and yaw < 0", "c"),
        ("expression in happy,glad", "a"),
    ],
)
def test_what_conditions_choose(where, keys):
    assert "".join(row["key"] for row in select(ROWS, where)) == keys


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("kind = video or kind = synthetic", "no kind is 'video or kind = synthetic'. Write column operator value.*there is no or"),
        ("expression in happy OR sad", "no expression is 'happy OR sad'.*there is no or"),
        ("(kind = video)", r"cannot read '\(kind = video\)'.*no brackets"),
        ("expression in (happy,sad)", r"no expression is '\(happy'.*no brackets"),
        ("kind = video and", "no sample is left of 3. There are kind: synthetic, video"),
        ("kind video", "cannot read 'kind video'.*Operators: = != < <= > >= in"),
        ("mood = happy", "there is no such column. Columns: key, kind, expression, yaw, licence"),
        ("kind = vidio", "no sample is left of 3. There are kind: synthetic, video"),
        ("kind = video and yaw > 60", "no sample is left of 3. There are kind: synthetic, video; yaw: -30 to 30"),
        ("expression > 3", "expression is text, which is not > than another"),
        ("yaw = left", "yaw is a number, given 'left'"),
        ("yaw > nan", "yaw is a number, given 'nan'"),
        ("", "cannot read ''"),
    ],
)
def test_what_cannot_be_read_or_chooses_nothing_is_told(where, message):
    with pytest.raises(UserError, match=message):
        select(ROWS, where)


def test_a_value_that_no_sample_has_is_told_with_those_there_are(capsys):
    select(ROWS, "expression in happy,glad and kind != photo")
    said = capsys.readouterr().out
    assert "no sample has expression 'glad'; there are happy, sad" in said
    assert "no sample has kind 'photo'; there are synthetic, video" in said
    select(ROWS, "expression in happy,sad")
    assert "warning" not in capsys.readouterr().out


def test_a_view_that_is_made_again_does_not_mind_what_is_gone():
    """After forgetting, a value of its condition may be there no more."""
    assert matching(ROWS[:2], "licence in CC0-1.0,CC BY (old)") == []


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_are_above_nothing(synthetic_version, weight):
    with pytest.raises(UserError, match="weight: expected a number above 0"):
        make_view(synthetic_version.uri, "weighed", "kind = synthetic", weight)


def test_a_label_that_is_none_is_answered_and_one_that_cannot_be_kept_says_why(synthetic_version, tmp_path):
    import shutil
    from pathlib import Path

    work = tmp_path / "work"
    shutil.copytree(Path(synthetic_version.uri).parents[1], work)
    server = serve_audit(str(work), "v1", per_stratum=2, seed=0, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def ask(method, path, body=None, length=None):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
        headers = {"Content-Type": "application/json"} | ({"Content-Length": length} if length else {})
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    try:
        page = ask("GET", "/")[1]
        key = json.loads(page.split("const entries = ", 1)[1].split(";\n", 1)[0])[0]["key"]
        assert 'id="error"' in page
        good = json.dumps({"key": key, "good": True})
        for body in (
            "{oops",
            "[1]",
            "3",
            json.dumps({"key": key}),
            json.dumps({"key": key, "good": 1}),
            '{"key": "p_0", "good": true}',
            b"\xff",
        ):
            status, text = ask("POST", "/label", body)
            assert status == 400 and text.startswith("not a label: ")
        assert ask("POST", "/label", good, length="many")[0] == 400
        assert read_labels(str(work)) == {}
        (work / LABELS).write_text("{oops\n")
        for method, path, body in (("POST", "/label", good), ("GET", "/", None)):
            status, text = ask(method, path, body)
            assert status == 500 and "labels.jsonl: line 1 is damaged" in text
        assert (work / LABELS).read_text() == "{oops\n"
        (work / LABELS).unlink()
        assert ask("POST", "/label", good) == (200, "kept")
        assert read_labels(str(work)) == {key: True}
    finally:
        server.shutdown()
        server.server_close()
