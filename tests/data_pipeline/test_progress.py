"""Every stage of a build that may take long says how far it is: one that lost its progress would be silent for hours."""

import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data_pipeline.build import build_dataset
from data_pipeline.config import DataConfig
from data_pipeline.holdout import HoldoutConfig
from data_pipeline.rewrite import RewriteConfig
from data_pipeline.rules import PairingConfig
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.worklist import item_for
from infra import console
from tests.data_pipeline.videos import altered

STAGES = {
    "holdout": {"files", "sources"},
    "hash": {"sources"},
    "pieces": {"sources"},
    "analyze": {"segments"},
    "ledger": {"sources"},
    "columns": {"parts"},
    "score": {"bundles"},
    "judge": {"pairs"},
    "identity": {"blocks of likenesses"},
    "copies": {"components", "videos of a component read", "pairs of blocks of a component's tracks"},
    "render": {"sources"},
    "rewrite": {"samples"},
    "pack": {"samples"},
}


@pytest.fixture
def endpoint():
    """A language model that answers one thing."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": "no"}}]}).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_every_stage_tells_its_progress_and_a_build_that_stands_waits_for_none(models, clip, tmp_path, monkeypatch, capsys, endpoint):
    for name, how in {"first": {}, "second": {"crop": 0.04}}.items():
        altered(clip("carphone"), tmp_path / f"{name}.mp4", **how)
    (tmp_path / "evaluation").mkdir()
    shutil.copyfile(clip("obama"), tmp_path / "evaluation/photo.jpg")
    items = [item_for(str(tmp_path / f"{name}.mp4"), licence="test", group="g") for name in ("first", "second")]
    config = DataConfig(
        analyze=AnalyzeConfig(workers=0),
        pairing=PairingConfig(max_upscale=9.0, min_sharpness=3.0, min_agreement=0.0),
        holdout=HoldoutConfig(folder=str(tmp_path / "evaluation"), sha256=("0" * 64,)),
        instructions=RewriteConfig(endpoint=endpoint, picture=False),
    )
    monkeypatch.setattr(console, "_EVERY", 0.0)
    version = build_dataset(config, str(tmp_path / "w"), models, items)
    assert sum(version.samples.values())
    told = {}
    for name, done, total, unit in re.findall(r"^  (\w+): (\d+)/(\d+) ([^,]+), [\d.]+/(?:s|min)", capsys.readouterr().out, re.MULTILINE):
        told.setdefault((name, unit), []).append((int(done), int(total)))
    assert {(name, unit) for name, units in STAGES.items() for unit in units} - told.keys() == set()
    assert all(steps[-1][0] == steps[-1][1] for steps in told.values())  # each comes to its end
    monkeypatch.setattr(console, "_EVERY", 60.0)
    build_dataset(config, str(tmp_path / "w"), models, items)
    assert not re.search(r"\d+/\d+ ", capsys.readouterr().out)
