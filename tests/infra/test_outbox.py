"""What is not sent yet lies in files that a full disk or a person may spoil."""

import resource
import signal

import pytest

from infra.errors import UserError
from infra.outbox import Outbox


def test_half_a_line_on_a_full_disk_does_not_hide_what_follows(tmp_path):
    sent: list[int] = []

    def send(entries):
        sent.extend(entry.value for entry in entries)
        return len(entries)

    outbox = Outbox(tmp_path / "box.jsonl", send)
    before, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    outbox.put("n", 1)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(outbox_line := b'["n", 1, {}]\n') + 5, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            outbox.put("n", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    outbox.put("n", 3)
    assert (tmp_path / "box.jsonl").read_bytes() == outbox_line + b'["n", 3, {}]\n'
    assert outbox.close(30) == 0
    assert sent == [1, 3]


def test_a_damaged_backlog_of_tracking_is_told(tmp_path):
    box, state = tmp_path / "box.jsonl", tmp_path / "box.sent.json"
    for content in (b"{oops", b"[]", b"{}"):
        state.write_bytes(content)
        with pytest.raises(UserError, match=r"box\.sent\.json is damaged.*Delete it and start again"):
            Outbox(box, len)
    state.unlink()
    box.write_bytes(b'["n", 1, {}]\n{oops\n')
    with pytest.raises(UserError, match=r"box\.jsonl: the line at byte 13 is damaged.*Take that line out"):
        Outbox(box, len)
