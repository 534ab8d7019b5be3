"""What is tried again and how long is waited; on real HTTP servers and real workers of Ray."""

import http.client
import http.server
import os
import threading
import types
import urllib.error

import pytest
from aiohttp import ClientResponseError, RequestInfo, ServerDisconnectedError
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from data_pipeline.sources import ContentHashes
from data_pipeline.staging import staged
from data_pipeline.worklist import WorkItem
from infra import backoff, pool
from infra.backoff import passes, retried
from infra.errors import UserError
from infra.place import Place
from infra.pool import run_all
from infra.storage import read_bytes


def of_urllib(code):
    return urllib.error.HTTPError("http://x", code, "", None, None)


def of_boto(status, code):
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


def of_aiohttp(status):
    return ClientResponseError(RequestInfo(URL("http://x"), "GET", CIMultiDictProxy(CIMultiDict()), URL("http://x")), (), status=status)


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        of_urllib(503), of_urllib(429), of_boto(500, "InternalError"), of_aiohttp(502), ConnectionResetError(), TimeoutError(),
        http.client.IncompleteRead(b""), urllib.error.URLError(ConnectionRefusedError()), ServerDisconnectedError(),
        EndpointConnectionError(endpoint_url="http://x"), ReadTimeoutError(endpoint_url="http://x"), caused(OSError(), of_boto(503, "SlowDown")),
    ],
)  # fmt: skip
def test_what_may_pass_is_tried_again(error):
    assert passes(error)


@pytest.mark.parametrize(
    "error",
    [
        of_urllib(404), of_boto(403, "AccessDenied"), of_aiohttp(401), FileNotFoundError(), PermissionError(), OSError(28, "no room"), ValueError(),
        UserError(""), NoCredentialsError(), MemoryError(), urllib.error.URLError("unknown url type"), caused(PermissionError(), of_boto(403, "x")),
    ],
)  # fmt: skip
def test_what_stays_as_it_is_ends_at_once(error):
    assert not passes(error)


@pytest.fixture
def waits(monkeypatch):
    """Seconds that would have been waited."""
    found = []
    monkeypatch.setattr(backoff, "time", types.SimpleNamespace(sleep=found.append))
    return found


def test_waits_grow_are_bounded_and_differ(waits):
    for _ in range(50):
        for failed in range(1, 9):
            backoff.wait(failed, 1.0, 30.0)
    for number, whole in enumerate((1, 2, 4, 8, 16, 30, 30, 30)):
        mine = waits[number::8]
        assert all(whole / 2 <= value <= whole for value in mine) and len(set(mine)) > 40


def test_tries_are_counted(waits):
    calls = []

    def act():
        calls.append(1)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        retried(act, tries=3)
    assert len(calls) == 3 and len(waits) == 2


@pytest.fixture
def server():
    """Answers with 503 as often as `troubles` says, then with content."""

    class Handler(http.server.BaseHTTPRequestHandler):
        troubles = 0
        asked = 0

        def do_GET(self):
            Handler.asked += 1
            troubled = Handler.troubles > 0 and (self.command == "GET" or "always" in self.path)
            Handler.troubles -= troubled
            status = 404 if "gone" in self.path else 503 if troubled else 200
            self.send_response(status)
            self.send_header("Content-Length", "7")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"content")

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    Handler.uri = f"http://127.0.0.1:{served.server_port}"
    yield Handler
    served.shutdown()


def test_a_server_that_is_busy_for_a_moment_is_asked_again(server, waits, monkeypatch, tmp_path):
    monkeypatch.setenv("LATO_SCRATCH", str(tmp_path))
    server.troubles = 2
    assert read_bytes(f"{server.uri}/a.bin") == b"content" and len(waits) == 2
    server.troubles = 2
    with staged(f"{server.uri}/b.bin") as path:
        assert path.read_bytes() == b"content"
    assert len(waits) == 4 and [file.suffix for file in path.parent.iterdir()] == [".bin"]
    server.troubles = 99
    with pytest.raises(ClientResponseError):
        read_bytes(f"{server.uri}/a.bin")
    assert len(waits) == 7
    asked = server.asked
    with pytest.raises(FileNotFoundError):
        read_bytes(f"{server.uri}/gone.bin")
    assert len(waits) == 7 and server.asked - asked <= 3  # looks at its size, and a read


def test_a_source_on_a_server_that_stays_busy_is_not_missing(server, waits, tmp_path):
    """That would be a verdict on it; the build stops instead."""
    item = WorkItem(source_id="s", uri=f"{server.uri}/always.mp4", kind="video")
    server.troubles = 10_000
    with pytest.raises(UserError, match=r"always\.mp4 cannot be read now"):
        ContentHashes(str(tmp_path)).of(item)
    assert len(waits) == 3
    assert ContentHashes(str(tmp_path)).of(item.model_copy(update={"uri": f"{server.uri}/gone.mp4"})) is None


class _Frail:
    """Ends its worker the first times it is asked."""

    def __init__(self, folder, deaths):
        self._folder, self._deaths = folder, deaths

    def run(self, job):
        mark = self._folder / f"{job}"
        seen = len(mark.read_text()) if mark.exists() else 0
        mark.write_text("x" * (seen + 1))
        if seen < self._deaths:
            os._exit(1)
        return job


def test_jobs_whose_worker_died_wait_before_they_are_done_again(ray_session, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(pool, "wait", waited.append)
    make = lambda: _Frail(tmp_path, 2)  # noqa: E731
    assert sorted(done.result for done in run_all(make, ["a", "b"], 2, Place("test"))) == ["a", "b"]
    assert waited == [1, 2]
    calm = tmp_path / "calm"
    calm.mkdir()
    assert len(list(run_all(lambda: _Frail(calm, 0), ["a", "b"], 2, Place("test")))) == 2
    assert waited == [1, 2]
