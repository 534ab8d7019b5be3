"""All sources are hashed before the first is looked at: several at a time, with what is said of them as if it were one after another."""

import errno
import os
import threading
from contextlib import suppress

import pytest

import data_pipeline.sources as sources_module
from data_pipeline.sources import ContentHashes
from data_pipeline.worklist import WorkItem, item_for
from infra.errors import UserError

LONG = 60.0
real = sources_module.content_sha256


@pytest.fixture
def items(tmp_path):
    """Of six files, the third of which is missing."""
    for name in "abdef":
        (tmp_path / f"{name}.mp4").write_bytes(name.encode())
    return [item_for(str(tmp_path / f"{name}.mp4")) for name in "abcdef"]


def test_several_are_hashed_at_a_time_each_file_once_and_all_is_as_one_after_another(items, tmp_path, monkeypatch):
    film = [WorkItem(source_id=f"span{n}", uri=items[0].uri, kind="video", start=float(n)) for n in range(5)]
    given = [*items, *film]
    alone, together = ContentHashes(str(tmp_path / "w")), ContentHashes(str(tmp_path / "v"))
    one_by_one = {item.source_id: alone.of(item) for item in given}
    asked, both = [], threading.Barrier(2, timeout=LONG)

    def hash_it(uri):
        asked.append(uri)
        if uri in (items[0].uri, items[1].uri):
            both.wait()  # one after another they would wait in vain
        return real(uri)

    monkeypatch.setattr(sources_module, "content_sha256", hash_it)
    assert together.of_all(given) == one_by_one and one_by_one["c"] is None
    assert together.unreadable == alone.unreadable != {}
    assert sorted(asked) == sorted({item.uri for item in given} - {items[2].uri})
    for hashes in (alone, together):
        hashes.save()
    assert (tmp_path / "v/contents.json").read_bytes() == (tmp_path / "w/contents.json").read_bytes()
    assert ContentHashes(str(tmp_path / "v")).of_all(given) == one_by_one and len(asked) == 5


def test_of_two_that_the_machine_does_not_give_the_first_in_the_list_is_told_and_none_is_waited_for(items, tmp_path, monkeypatch):
    later, end, ended = threading.Event(), threading.Event(), []

    def hash_it(uri):
        if uri == items[1].uri:
            later.wait(LONG)  # the other fails before it
        if uri in (items[1].uri, items[3].uri):
            later.set()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if uri == items[4].uri:
            end.wait(LONG)  # a film of hours
            ended.append(uri)
        return real(uri)

    monkeypatch.setattr(sources_module, "content_sha256", hash_it)
    with pytest.raises(UserError, match=r"b\.mp4 cannot be read now"):
        ContentHashes(str(tmp_path / "w")).of_all(items)
    assert not ended
    end.set()


def test_what_is_hashed_is_kept_while_others_are(items, tmp_path, monkeypatch):
    monkeypatch.setattr(sources_module, "_KEEP_SECONDS", -1.0)
    monkeypatch.setattr(sources_module, "content_sha256", lambda uri: real(uri if uri != items[5].uri else 1 / 0))
    with suppress(ZeroDivisionError):  # a mistake in the code ends the run
        ContentHashes(str(tmp_path / "w")).of_all(items)
    monkeypatch.setattr(sources_module, "content_sha256", lambda uri: pytest.fail(f"{uri} is hashed again"))
    assert all(ContentHashes(str(tmp_path / "w")).of_all([items[n] for n in (0, 1, 3, 4)]).values())
