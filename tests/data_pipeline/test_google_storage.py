"""Google Cloud Storage: commits and leases are its own conditional writes, and a build whose sources and folder lie there has the bytes of one on disk."""

import shutil

import fsspec
import pytest

from data_pipeline.build import build_dataset
from data_pipeline.verify import verify_version
from infra.addresses import join
from infra.errors import UserError, is_of_a_store
from infra.lease import lease
from infra.storage import commit, commit_file, delete, delete_folder, exists, list_files, list_folders, read_bytes
from tests.data_pipeline.crash_chain import CONFIG
from tests.gcs import emulator


@pytest.fixture(scope="module", autouse=True)
def bucket():
    with emulator("bucket") as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", address)
        patch.setitem(fsspec.config.conf["gs"], "token", "anon")
        yield


def test_commits_are_created_once(tmp_path):
    for name, first in (("small", b"first"), ("large", bytes(6 << 20))):  # large ones are sent in pieces
        uri = f"gs://bucket/commits/{name}"
        assert commit(uri, first, exclusive=True)
        assert not commit(uri, b"second", exclusive=True)
        assert read_bytes(uri) == first
        commit(uri, b"third")
        assert read_bytes(uri) == b"third"
    (tmp_path / "file").write_bytes(b"fourth")
    commit_file(str(tmp_path / "file"), "gs://bucket/commits/small")
    assert read_bytes("gs://bucket/commits/small") == b"fourth"
    assert [uri.rsplit("/", 1)[-1] for uri in list_files("gs://bucket/commits")] == ["large", "small"]
    assert "gs://bucket/commits" in list_folders("gs://bucket")
    for _ in range(2):
        delete("gs://bucket/commits/small")
    assert not exists("gs://bucket/commits/small")
    for _ in range(2):
        delete_folder("gs://bucket/commits")
    assert not exists("gs://bucket/commits")


def test_what_another_process_writes_is_listed():
    commit("gs://bucket/listed/a", b"a")
    assert len(list_files("gs://bucket/listed")) == 1
    other, _ = fsspec.core.url_to_fs("gs://bucket", skip_instance_cache=True)
    other.pipe_file("bucket/listed/b", b"b")
    assert len(list_files("gs://bucket/listed")) == 2


def test_a_folder_there_has_one_holder():
    with lease("gs://bucket/held", "one"), pytest.raises(UserError, match="is in use"), lease("gs://bucket/held", "two"):
        pass
    with lease("gs://bucket/held", "three"):
        assert exists("gs://bucket/held/lease.json")
    assert not exists("gs://bucket/held/lease.json")


def test_a_refusal_is_known_as_the_stores():
    from gcsfs.retry import validate_response

    with pytest.raises(OSError, match="Forbidden") as refused:  # of no class of its own
        validate_response(403, b"", "b/bucket/o/x")
    assert is_of_a_store(refused.value)
    assert not is_of_a_store(OSError("the disk's"))


@pytest.mark.slow
def test_a_build_there_has_the_bytes_of_one_on_disk(models, clip, tmp_path):
    (tmp_path / "sources").mkdir()
    for name in ("obama", "single_face"):
        file = shutil.copy(clip(name), tmp_path / "sources")
        commit_file(file, f"gs://bucket/sources/{file.rsplit('/', 1)[-1]}")
    made = {}
    for place in (str(tmp_path), "gs://bucket"):
        version = build_dataset(CONFIG.model_copy(update={"folder": join(place, "sources")}), join(place, "work"), models)
        assert verify_version(version.uri) == []
        made[place] = {uri.rsplit("/", 1)[-1]: read_bytes(uri) for uri in list_files(join(version.uri, "shards"))}
    local, remote = made.values()
    assert local == remote and len(local) > 1
    assert build_dataset(CONFIG.model_copy(update={"folder": "gs://bucket/sources"}), "gs://bucket/work", models).digest == version.digest
