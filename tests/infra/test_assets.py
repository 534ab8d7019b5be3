"""Assets: by sha256, from the first mirror that answers, resumed, refused when wrong."""

import functools
import hashlib
import http.server
import threading

import pytest

from infra import assets
from infra.errors import UserError

CONTENT = bytes(range(256)) * 400


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):  # answers a range, as real mirrors do
        data = (self.directory_path / self.path.lstrip("/")).read_bytes()
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.ranges.append(start)
        self.send_response(206 if start else 200)
        self.end_headers()
        self.wfile.write(data[start:])


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    monkeypatch.setenv("LATO_ASSETS", str(tmp_path / "cache"))
    monkeypatch.setattr(assets, "_dead_hosts", set())
    served = tmp_path / "served"
    served.mkdir()
    (served / "good").write_bytes(CONTENT)
    (served / "bad").write_bytes(b"something else")
    Handler.directory_path, Handler.ranges = served, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def catalog(monkeypatch, *urls):
    asset = assets.Asset(
        file="thing.bin",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence="CC0",
        note="",
        kind="model",
        needed=True,
        mirrors=[assets.Mirror(url=url) for url in urls],
    )
    monkeypatch.setattr(assets, "load_catalog", lambda: {"thing": asset})


def test_falls_back_to_the_next_mirror(mirror, monkeypatch):
    catalog(monkeypatch, "http://127.0.0.1:9/nobody", f"{mirror}/good")
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert assets.verify("thing") == "ok"


def test_wrong_content_is_refused_with_what_was_got_and_from_where(mirror, monkeypatch):
    catalog(monkeypatch, f"{mirror}/bad")
    with pytest.raises(UserError) as error:
        assets.fetch("thing")
    assert f"{mirror}/bad: refused" in str(error.value)
    assert hashlib.sha256(b"something else").hexdigest() in str(error.value)
    assert assets.verify("thing") == "missing"


def test_goes_on_where_an_earlier_attempt_ended(mirror, monkeypatch):
    catalog(monkeypatch, f"{mirror}/good")
    assets.folder().mkdir(parents=True)
    (assets.folder() / f".{hashlib.sha256(CONTENT).hexdigest()}.part").write_bytes(CONTENT[:1000])
    assert assets.fetch("thing").read_bytes() == CONTENT
    assert Handler.ranges == [1000]


def test_here_already_is_not_fetched_again(mirror, monkeypatch):
    catalog(monkeypatch, f"{mirror}/good")
    assets.fetch("thing")
    assets.fetch("thing")
    assert Handler.ranges == [0]


def test_the_shipped_catalog_reads():
    found = assets.load_catalog()
    assert {"yunet", "sface", "face_landmarker", "single_face", "carphone"} <= found.keys()
    assert all(asset.mirrors and len(asset.sha256) == 64 and asset.licence for asset in found.values())
