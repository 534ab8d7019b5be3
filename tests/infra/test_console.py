"""What a job says of its progress."""

import time

from infra.console import Progress, each


def test_progress_tells_queue_rate_and_time_left_of_this_run_alone(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress("analyze", 100, "segments")
    progress.done = 80  # stood before: says nothing of how fast it goes now
    now[0] += 10.0
    progress.advance(5)
    now[0] += 1.0
    progress.advance(5)  # too soon for another line
    now[0] += 9.0
    progress.advance(10)
    assert capsys.readouterr().out.splitlines() == [
        "  analyze: 85/100 segments, 30.0/min, 15 waiting, 30.0 s left",
        "  analyze: 100/100 segments, 1.0/s",
    ]


def test_a_stage_with_nothing_to_wait_for_is_silent_and_one_that_takes_long_comes_to_its_end(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    assert list(each("hash", "abc", "sources")) == [*"abc"] and capsys.readouterr().out == ""
    for seconds in each("hash", [6.0, 1.0], "sources"):
        now[0] += seconds
    assert capsys.readouterr().out.splitlines() == [
        "  hash: 1/2 sources, 10.0/min, 1 waiting, 6.0 s left",
        "  hash: 2/2 sources, 17.1/min",
    ]
