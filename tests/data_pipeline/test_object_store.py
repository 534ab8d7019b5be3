"""The whole build on an object store that answers 500 now and then, and slowly: the same bytes as on disk."""

import random
import threading
import time

import fsspec
import pytest

from data_pipeline.build import build_dataset
from data_pipeline.verify import verify_version
from data_pipeline.worklist import WorkItem, item_for
from infra.addresses import join
from infra.errors import UserError
from infra.lease import lease
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

        def __call__(self, environ, start_response):
            if drawn.random() < self.trouble:
                self.refused += 1
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
                return [b"trouble"]
            if drawn.random() < self.trouble:
                time.sleep(0.2)
            return moto(environ, start_response)

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
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
    yield application
    server.shutdown()


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_commits_are_created_once(store):
    uri = "s3://bucket/commits/a"
    assert commit(uri, b"first", exclusive=True)
    assert not commit(uri, b"second", exclusive=True)
    assert read_bytes(uri) == b"first"
    commit(uri, b"third")
    assert read_bytes(uri) == b"third"
    assert list_files("s3://bucket/commits") == [uri]
    assert list_folders("s3://bucket") == ["s3://bucket/commits"]
    delete(uri)
    assert not exists(uri)


def test_a_folder_of_the_store_has_one_holder(store):
    with lease("s3://bucket/held", "one"), pytest.raises(UserError, match="is in use"), lease("s3://bucket/held", "two"):
        pass
    with lease("s3://bucket/held", "three"):
        pass


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
