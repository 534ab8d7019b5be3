"""Labels when somebody is forgotten while a version is being replaced."""

import pytest

from data_pipeline import pack as pack_module
from data_pipeline import publish as publish_module
from data_pipeline.audit import LABELS, add_label, read_labels
from data_pipeline.build import build_dataset
from data_pipeline.forget import forget
from data_pipeline.published import read_index, read_manifest
from data_pipeline.succession import LABELLED
from tests.data_pipeline.test_forget import all_text_of
from tests.data_pipeline.test_succession import CUT, PEOPLE, interrupt


@pytest.mark.parametrize("stopped", ["before its candidates were written", "after"])
def test_a_removal_while_a_version_is_being_replaced_takes_no_label_of_others(models, tmp_path, monkeypatch, stopped):
    """No published version named their pairs, so all labels went; what people said cannot be made anew."""
    work = str(tmp_path)
    rows = read_manifest(build_dataset(PEOPLE, work, models, []).uri)
    for row in rows:
        add_label(work, row["key"], True, "accepted", 0)
    add_label(work, "p_nobodys", True, "accepted", 0)
    of = {row["key"]: row["source_id"] for row in rows}
    with monkeypatch.context() as patch:
        patch.setattr(*((pack_module, "encode_table") if stopped == "after" else (publish_module, "write_candidates")), interrupt_any)
        with pytest.raises(KeyboardInterrupt):
            build_dataset(CUT, work, models, [])
    forget(work, source="nobody")  # takes what the killed build left, and nothing else
    left = set(of)
    for gone in ("anny_0_00001", "anny_0_00002"):  # the second finds no candidates there any more
        forget(work, source=gone)
        left = {key for key in left if of[key] != gone}
        assert set(read_labels(work)) == left and left
        assert not any(key in all_text_of(path) for path in tmp_path.rglob("*") if path.is_file() for key in of.keys() - left)
    again = build_dataset(CUT, work, models, [])
    assert {row["key"] for row in read_manifest(again.uri)} >= left and LABELLED not in read_index(again.uri)
    assert len((tmp_path / LABELS).read_text().splitlines()) == len(left)


def interrupt_any(*_, **__):
    interrupt(None)
