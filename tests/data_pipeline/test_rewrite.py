"""Instructions rewritten by an endpoint: each sample asks for its own, and only what says the edit and nothing else is taken."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import data_pipeline.rewrite as rewrite_module
from data_pipeline.rewrite import RewriteConfig, Rewriter
from infra.errors import UserError
from lato.edits import Edit, Expression, Intensity, instruction_for, unread_words

HAPPY = Edit(expression=Expression.HAPPY)


@pytest.fixture
def endpoint(monkeypatch):
    """An endpoint that answers what `replies` says, statuses first; `asked` has the requests."""
    monkeypatch.setattr(rewrite_module, "_PAUSE", 0.01)
    asked, statuses, replies = [], [], ["Make the person look happy"]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(statuses.pop(0) if statuses else 200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": replies[0]}}]}).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked, statuses, replies
    server.shutdown()
    server.server_close()


def test_each_sample_asks_for_its_own_and_only_once(endpoint, tmp_path):
    address, asked, statuses, _ = endpoint
    statuses += [429, 503]
    rewriter = Rewriter(RewriteConfig(endpoint=address), str(tmp_path))
    wanted = [(HAPPY, f"p_{number}", "train") for number in range(12)]
    rewriter.ask(wanted)
    assert len(asked) == 14 and len({request["seed"] for request in asked}) == 12
    written = [rewriter.instruction(*one) for one in wanted]
    assert {one.text for one in written} == {"Make the person look happy"}
    told = {(one.rewriting.model, one.rewriting.prompt, one.rewriting.seed) for one in written}
    assert told == {(request["model"], request["messages"][0]["content"], request["seed"]) for request in asked}
    assert [one.template for one in written] == [instruction_for(*one).template for one in wanted]
    assert len(asked) == 14
    assert rewriter.counts() == [{"step": "instructions", "name": "rewritten", "count": 12}]


def test_a_refusal_for_good_is_not_asked_again(endpoint, tmp_path):
    address, asked, statuses, _ = endpoint
    statuses += [401]
    with pytest.raises(UserError, match="in 1 tries"):
        Rewriter(RewriteConfig(endpoint=address), str(tmp_path)).ask([(HAPPY, "p", "train")])
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("reply", "taken"),
    [
        ("Please adjust the man's face so that he appears happy.", True),
        ("Let the woman\u2019s face show happiness", True),
        ("Do not make the person look happy", False),
        ("Don't make the person look happy", False),
        ("Make the person look happy and remove the glasses", False),
        ("Make the person look happy without teeth", False),
        ("Make the person look happy on the left half of a 30 degrees wide picture", False),
    ],
)
def test_only_the_edit_and_nothing_else_is_taken(endpoint, tmp_path, reply, taken):
    address, _, _, replies = endpoint
    replies[0] = reply
    found = Rewriter(RewriteConfig(endpoint=address), str(tmp_path)).instruction(HAPPY, "p", "train")
    assert (found.text == reply) == taken
    assert (found.rewriting is not None) == taken


def test_every_text_of_ours_is_accounted_for():
    edits = [Edit(expression=e, intensity=i, yaw=30, pitch=-30, roll=60) for e in Expression for i in Intensity if e != Expression.NEUTRAL]
    for split in ("train", "test"):
        for edit in edits:
            for number in range(60):
                assert unread_words(instruction_for(edit, f"k{number}", split).text) == []
