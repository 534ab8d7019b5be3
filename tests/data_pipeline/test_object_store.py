"""The whole build on an object store that answers 500 now and then, and slowly: the same bytes as on disk."""

import io
import os
import random
import threading
import time

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.analyze import analyze
from data_pipeline.build import build_dataset
from data_pipeline.segments import AnalyzeConfig
from data_pipeline.verify import verify_version
from data_pipeline.worklist import WorkItem, item_for
from infra.addresses import join
from infra.errors import UserError
from infra.lease import lease
from infra.state import PUBLISHED, read_schema, read_table
from infra.storage import commit, delete, exists, list_files, list_folders, read_bytes
from tests.data_pipeline.crash_chain import CONFIG, build


@pytest.fixture(scope="module")
def store(monkeypatch_module):
    """A real S3 API on this machine; `store.trouble` is the share of requests that fail."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    moto = DomainDispatcherApplication(create_backend_app)
    drawn = random.Random(0)

    class Store:
        trouble = 0.0
        refused = 0

        def __init__(self):
            self.answers = []  # method, path and bytes of each

        def __call__(self, environ, start_response):
            if drawn.random() < self.trouble:
                self.refused += 1
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
                return [b"trouble"]
            if drawn.random() < self.trouble:
                time.sleep(0.2)
            answer = list(moto(environ, start_response))
            self.answers.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], sum(map(len, answer))))
            return answer

    application = Store()
    server = make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch_module.setenv(name, value)
    for name in ("bucket", "commits"):
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir(name)
    yield application
    server.shutdown()


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_commits_are_created_once(store):
    uri = "s3://commits/first/a"
    assert commit(uri, b"first", exclusive=True)
    assert not commit(uri, b"second", exclusive=True)
    assert read_bytes(uri) == b"first"
    commit(uri, b"third")
    assert read_bytes(uri) == b"third"
    assert list_files("s3://commits/first") == [uri]
    assert list_folders("s3://commits") == ["s3://commits/first"]
    delete(uri)
    assert not exists(uri)


def test_a_folder_of_the_store_has_one_holder(store):
    with lease("s3://bucket/held", "one"), pytest.raises(UserError, match="is in use"), lease("s3://bucket/held", "two"):
        pass
    with lease("s3://bucket/held", "three"):
        pass


def answers_to(store, act, where):
    """What `act` returns, and the answers to what it asked of files whose path has `where` in it."""
    before = len(store.answers)
    found = act()
    return found, [(method, size) for method, path, size in store.answers[before:] if where in path]


def test_of_a_table_only_what_is_asked_for_is_fetched(store):
    """The columns that one does not read, face chips most of all, are nearly all of a part."""
    faces = 4000
    rows = pa.table({"track": list(range(faces)), "chip": [os.urandom(1000) for _ in range(faces)], "yaw": [0.5] * faces})
    file = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata({"ledger": "{}"}), file)
    uri = "s3://bucket/tables/a.parquet"
    commit(uri, file.getvalue())
    schema, answers = answers_to(store, lambda: read_schema(uri), "a.parquet")
    assert schema.metadata == {b"ledger": b"{}"} and schema.names == rows.column_names
    assert sum(size for _, size in answers) <= 1 << 16 and len(answers) <= 2
    some, answers = answers_to(store, lambda: read_table(uri, ["track", "yaw"]), "a.parquet")
    assert some == rows.select(["track", "yaw"])
    assert sum(size for _, size in answers) < len(file.getvalue()) / 10 and len(answers) <= 4
    whole, answers = answers_to(store, lambda: read_table(uri), "a.parquet")
    assert whole == rows and len(answers) <= 2
    for damaged in (b"", b"no table", file.getvalue()[:-9], b"PAR1 cut short PAR1"):
        commit(uri, damaged)
        for read in (lambda: read_schema(uri), lambda: read_table(uri, ["track"]), lambda: read_table(uri)):
            with pytest.raises(UserError, match=r"a\.parquet is damaged \(.*Delete it"):
                read()
    delete(uri)
    for read in (lambda: read_schema(uri), lambda: read_table(uri, ["track"])):
        with pytest.raises(FileNotFoundError):
            read()
    with pytest.raises(UserError, match="there is no such file"):
        read_table(uri, ["track"], PUBLISHED)


def test_what_was_looked_at_is_found_again_by_a_listing_and_the_ends_of_its_parts(store, models, clip):
    items = [item_for(clip(name)) for name in ("obama", "obama2")]
    work = "s3://bucket/looked"

    def look():
        return analyze(items, AnalyzeConfig(workers=0), models, work).rows

    first = look()
    assert [row["status"] for row in first] == ["ok", "ok"]
    again, answers = answers_to(store, look, "/parts/")
    assert again == first
    assert sorted(method for method, _ in answers) == ["GET", "GET", "HEAD", "HEAD"]


@pytest.mark.slow
def test_a_build_on_a_troubled_store_has_the_bytes_of_one_on_disk(store, models, clip, tmp_path):
    names = {"obama": "obama", "obama2": "obama", "single_face": None}
    local = [item_for(clip(name), licence="test", identity=person) for name, person in names.items()]
    build(str(tmp_path / "disk"), models, local)
    remote = []
    for item in local:
        name = item.uri.rsplit("/", 1)[-1]
        commit(f"s3://bucket/sources/{name}", read_bytes(item.uri))
        remote.append(WorkItem(**{**item.model_dump(), "uri": f"s3://bucket/sources/{name}"}))
    store.trouble = 0.05
    version = build_dataset(CONFIG, "s3://bucket/work", models, remote)
    store.trouble = 0.0
    assert store.refused > 10
    assert verify_version(version.uri) == []
    for shard in list_files(join(version.uri, "shards")):
        assert read_bytes(shard) == (tmp_path / "disk/versions/v1/shards" / shard.rsplit("/", 1)[-1]).read_bytes()
