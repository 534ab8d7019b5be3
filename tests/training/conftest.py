"""What the training tests share."""

import os

import fsspec
import pytest

from tests.training.versions import publish


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A published version of 30 pairs of noise in five shards; not to be changed."""
    folder = tmp_path_factory.mktemp("small") / "v1"
    publish(folder, {"train": 20, "val": 6, "test": 4})
    return folder


@pytest.fixture(scope="module")
def bucket():
    """The address of a bucket behind a real S3 API on this machine."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # one that is kept knows another server
        name = f"training-{os.urandom(4).hex()}"  # what a server held stays in its process
        fsspec.filesystem("s3").mkdir(name)
        yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
