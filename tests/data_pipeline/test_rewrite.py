"""Instructions rewritten by an endpoint: each sample asks for its own, and only what says the edit and nothing else is taken."""

import base64
import json
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import ValidationError

import data_pipeline.rewrite as rewrite_module
from data_pipeline.rewrite import RewriteConfig, Rewriter, Wanted
from infra.errors import UserError
from lato.edits import Edit, Expression, Intensity, instruction_for, uses_template
from lato.instruction_words import unread_words

HAPPY = Edit(expression=Expression.HAPPY)


@pytest.fixture
def endpoint(monkeypatch):
    """An endpoint that answers what `replies` says, statuses first; `asked` has the requests."""
    monkeypatch.setattr(rewrite_module, "_PAUSE", 0.01)
    asked, statuses, replies = [], [], ["Make the person look happy"]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status = statuses.pop(0) if statuses else 200
            self.send_response(200 if status == "broken off" else status)
            if status == "broken off":
                self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": replies[0]}}]}).encode())

        def do_GET(self):  # as a redirect would be followed
            asked.append(self.headers["Authorization"])
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked, statuses, replies
    server.shutdown()
    server.server_close()


def write(rewriter, *wanted):
    """The instructions of samples, given as (key, split) or (key, split, edit)."""
    samples = [Wanted(edit[0] if edit else HAPPY, key, split, "") for key, split, *edit in wanted]
    return rewriter.write(samples)


def blind(address, **changes):
    return RewriteConfig(endpoint=address, picture=False, **changes)


def test_each_sample_asks_for_its_own_and_only_once(endpoint, tmp_path):
    address, asked, statuses, _ = endpoint
    statuses += [429, 503]
    rewriter = Rewriter(blind(address), str(tmp_path))
    wanted = [(f"p_{number}", "train") for number in range(12)]
    written = write(rewriter, *wanted)
    assert len(asked) == 14 and len({request["seed"] for request in asked}) == 12
    assert {one.text for one in written.values()} == {"Make the person look happy"}
    told = {(one.rewriting.model, one.rewriting.prompt, one.rewriting.seed) for one in written.values()}
    assert told == {(request["model"], request["messages"][0]["content"], request["seed"]) for request in asked}
    assert [written[key].template for key, _ in wanted] == [instruction_for(HAPPY, *one).template for one in wanted]
    assert rewriter.counts() == [{"step": "instructions", "name": "rewritten", "count": 12}]
    assert write(Rewriter(blind(address), str(tmp_path)), *wanted) == written
    assert len(asked) == 14


def test_a_model_that_sees_is_shown_each_samples_source(endpoint, tmp_path):
    """Another picture is another question; who asks a blind one sends none, and another prompt."""
    address, asked, _, _ = endpoint
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(name.encode())
        written = Rewriter(RewriteConfig(endpoint=address), str(tmp_path)).write([Wanted(HAPPY, "p", "train", str(tmp_path / name))])
    pictures = [request["messages"][0]["content"][0]["image_url"]["url"] for request in asked]
    assert pictures == [f"data:image/jpeg;base64,{base64.b64encode(name).decode()}" for name in (b"a.jpg", b"b.jpg")]
    assert asked[0]["messages"][0]["content"][1] == {"type": "text", "text": written["p"].rewriting.prompt}
    assert written["p"].rewriting.picture and "the picture is the photo" in written["p"].rewriting.prompt
    unseen = write(Rewriter(blind(address), str(tmp_path)), ("p", "train"))["p"]
    assert not unseen.rewriting.picture and "picture" not in asked[2]["messages"][0]["content"]


def test_an_answer_that_breaks_off_is_asked_for_again(endpoint, tmp_path):
    address, asked, statuses, _ = endpoint
    statuses += ["broken off"]
    assert write(Rewriter(blind(address), str(tmp_path)), ("p", "train"))["p"].text == "Make the person look happy"
    assert len(asked) == 2


@pytest.mark.parametrize("address", ["myhost/v1", "ftp://host/v1", "http://127.0.0.1:80a/v1", "http:///v1", ""])
def test_an_endpoint_that_is_no_address_is_refused_with_the_config(address):
    with pytest.raises(ValidationError, match="expected http"):
        RewriteConfig(endpoint=address)


def test_a_key_that_was_read_with_its_line_is_used_and_one_that_cannot_be_is_not_told(endpoint, tmp_path, monkeypatch):
    """Python's error, which names the whole header, was."""
    address, asked, _, _ = endpoint
    monkeypatch.setenv("LATO_API_KEY", "sk-top-secret\r\n")
    write(Rewriter(blind(address), str(tmp_path)), ("p", "train"))
    assert len(asked) == 1
    monkeypatch.setenv("LATO_API_KEY", "sk-top\nsecret")
    with pytest.raises(UserError, match=r"\$LATO_API_KEY: it holds characters") as told:
        write(Rewriter(blind(address), str(tmp_path)), ("q", "train"))
    assert "sk-top" not in str(told.value) and len(asked) == 1


def test_a_refusal_for_good_is_not_asked_again(endpoint, tmp_path):
    address, asked, statuses, _ = endpoint
    statuses += [401]
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"in 1 tries.*picture=false"):
        Rewriter(RewriteConfig(endpoint=address), str(tmp_path)).write([Wanted(HAPPY, "p", "train", str(tmp_path / "a.jpg"))])
    assert len(asked) == 1


def test_who_stops_a_build_does_not_wait_for_all_samples(endpoint, tmp_path, monkeypatch):
    address, asked, _, _ = endpoint
    real, told = Rewriter._post, threading.Lock()

    def post(self, request):
        if len(asked) > 20 and told.acquire(blocking=False):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.02)
        return real(self, request)

    monkeypatch.setattr(Rewriter, "_post", post)
    with pytest.raises(KeyboardInterrupt):
        write(Rewriter(blind(address), str(tmp_path)), *((f"p_{number}", "train") for number in range(200)))
    assert len(asked) < 200 and len(list((tmp_path / "rewrites").iterdir())) == len(asked)  # what was answered is kept


@pytest.mark.parametrize("status", [302, 307])
def test_a_redirect_gets_no_key(endpoint, tmp_path, monkeypatch, status):
    address, asked, _, _ = endpoint
    monkeypatch.setenv("LATO_API_KEY", "secret")

    class Redirect(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Location", f"{address}/elsewhere")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Redirect)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(UserError, match=rf"in 1 tries.*{status}.*leads on to {address}/elsewhere"):
        write(Rewriter(blind(f"http://127.0.0.1:{server.server_port}/v1"), str(tmp_path)), ("p", "train"))
    server.shutdown()
    server.server_close()
    assert not asked


@pytest.mark.parametrize(
    ("split", "reply", "taken"),
    [
        ("test", "MAKE the person look happy!", False),  # a template of train
        ("test", "Kindly make the person look happy", True),
        ("train", "could the person look happy?", False),  # one of test
        ("val", "Could the person look happy", False),
        ("val", "Make the person look happy", True),  # val has the templates of train
        ("test", "Rotate the face by 30 degrees to the right, and let him smile", False),  # one clause of two
        ("train", "Let this man smile", False),  # a sample of test that stands
        ("test", "Let this woman smile", False),  # one of train
    ],
)
def test_no_text_is_shared_between_test_and_the_rest(endpoint, tmp_path, split, reply, taken):
    address, _, _, replies = endpoint
    replies[0] = reply
    published = [("test", "Let this man smile."), ("train", "let this woman smile")]
    edit = Edit(expression=Expression.HAPPY, yaw=30) if "30" in reply else HAPPY
    rewriter = Rewriter(blind(address), str(tmp_path), published)
    found = write(rewriter, ("p", split, edit))["p"]
    assert (found.text == reply) if taken else found == instruction_for(edit, "p", split)
    assert rewriter.counts()[0]["name"] == ("rewritten" if taken else "refused: shared between test and the rest")


def test_one_answer_for_all_is_trains_whatever_the_order(endpoint, tmp_path):
    address, _, _, replies = endpoint
    replies[0] = "Kindly make the man look happy"
    rewriter = Rewriter(blind(address), str(tmp_path))
    written = write(rewriter, ("p_1", "test"), ("p_2", "train"), ("p_3", "val"), ("p_4", "test"))
    assert [key for key, one in written.items() if one.text == replies[0]] == ["p_2", "p_3"]
    assert {row["name"]: row["count"] for row in rewriter.counts()} == {"rewritten": 2, "refused: shared between test and the rest": 2}


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
    found = write(Rewriter(blind(address), str(tmp_path)), ("p", "train"))["p"]
    assert (found.text == reply) == taken
    assert (found.rewriting is not None) == taken


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_text_of_ours_with_more_to_it_is_not_taken(split):
    """Of every template: a movement without degrees, another expression or intensity, the same turn once more."""
    rewriter = Rewriter(RewriteConfig(), "")
    turn = Edit(yaw=30)
    for number in range(80):
        smile, turned = instruction_for(HAPPY, f"k{number}", split).text, instruction_for(turn, f"k{number}", split).text
        for more in (
            " and tilt it to the left",
            " and turn the head",
            " and look up",
            ", very slightly",
            " and lower the chin",
            ", more to the left",
        ):
            assert rewriter._judge(smile + more, HAPPY, True) == "refused: not the same edit", smile + more
            assert rewriter._judge(turned + more, turn, True) == "refused: not the same edit", turned + more
        for more in (" with a sad look", " with fear", " and a strong look", " with a little tilt of the head", " from the left"):
            assert rewriter._judge(smile + more, HAPPY, True) == "refused: not the same edit", smile + more
        for more in (" with a sad smile", f" and {turned}", " with a nod", " with an emotional look", " slightly", " from the left"):
            assert rewriter._judge(turned + more, turn, True) == "refused: not the same edit", turned + more


def test_every_text_of_ours_is_accounted_for():
    edits = [Edit(expression=e, intensity=i, yaw=30, pitch=-30, roll=60) for e in Expression for i in Intensity if e != Expression.NEUTRAL]
    for split in ("train", "test"):
        for edit in edits:
            for number in range(60):
                text = instruction_for(edit, f"k{number}", split).text
                assert unread_words(text) == []
                assert [side for side in ("train", "test") if uses_template(text, edit, side)] == [split]
