"""An audit: labels are taken in a page and beat the filters."""

import json
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest

from data_pipeline.audit import choose, read_labels, serve_audit, summarize
from data_pipeline.build import build_dataset
from data_pipeline.candidates import read_candidates
from data_pipeline.rules import PairingConfig
from tests.data_pipeline.small import config


@pytest.fixture(scope="module")
def first(models, tmp_path_factory):
    work = tmp_path_factory.mktemp("audit")
    return work, build_dataset(config(8), str(work), models)


def test_labels_are_taken_in_a_page_and_beat_the_filters(first, models):
    work, version = first
    middle = float(np.median([row["sharpness"] for row in read_candidates(version.uri)]))
    strict = PairingConfig(min_sharpness=middle)
    build_dataset(config(8, name="strict", pairing=strict), str(work), models)
    entries = choose(str(work), "strict", per_stratum=3, seed=1)
    assert {entry.stratum for entry in entries} > {"accepted"}
    assert entries == choose(str(work), "strict", per_stratum=3, seed=1)
    server = serve_audit(str(work), "strict", per_stratum=3, seed=1, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"

    def post(body, kind="application/json"):
        return urllib.request.urlopen(urllib.request.Request(f"{address}/label", json.dumps(body).encode(), {"Content-Type": kind}))

    try:
        accepted = next(entry for entry in entries if entry.stratum == "accepted")
        refused = next(entry for entry in entries if entry.stratum != "accepted")
        assert accepted.key in urllib.request.urlopen(address).read().decode()
        assert urllib.request.urlopen(f"{address}/pair/{accepted.key}").read()[:2] == b"\xff\xd8"
        drawn, plain = (urllib.request.urlopen(f"{address}/pair/{accepted.key}{how}").read() for how in ("", "?plain"))
        assert plain[:2] == b"\xff\xd8" and plain != drawn  # without landmarks
        assert post({"key": accepted.key, "good": False}).status == 200
        assert post({"key": refused.key, "good": True}).status == 200
        for body, kind in (({"key": "nobody", "good": True}, "application/json"), ({"key": accepted.key, "good": True}, "text/plain")):
            with pytest.raises(urllib.error.HTTPError):
                post(body, kind)
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{address}/pair/../../ledger.jsonl")
    finally:
        server.shutdown()
    assert read_labels(str(work)) == {accepted.key: False, refused.key: True}
    assert summarize(str(work))[0][:3] == ("accepted", 1, 0)
    labelled = build_dataset(config(8, name="labelled", pairing=strict), str(work), models)
    verdicts = {row["key"]: row["verdict"] for row in read_candidates(labelled.uri)}
    assert verdicts[accepted.key] == "labelled bad"
    assert verdicts[refused.key] in ("accepted", "quota", "near-duplicate")
