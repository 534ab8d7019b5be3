"""Several things at a time in threads: in order, errors in their turn, and nobody waits for what is not asked for any more."""

import signal
import threading
from contextlib import closing

import pytest

from infra.threads import in_threads

LONG = 60.0


def test_several_are_under_way_and_come_in_their_order():
    """Each waits for the other; one after another they would wait for ever."""
    both = threading.Barrier(2, timeout=LONG)

    def work(job):
        if job < 2:
            both.wait()
        return -job

    assert list(in_threads(work, range(50), 2, 8)) == [-job for job in range(50)]
    assert list(in_threads(work, [], 2, 8)) == []


def test_no_more_are_begun_than_were_asked_to_be_ahead():
    begun, end = [], threading.Event()

    def work(job):
        begun.append(job)
        return job == 0 or end.wait(LONG)

    with closing(in_threads(work, range(100), 3, 5)) as found:
        assert next(found) is True
        end.set()
        assert next(found) is True  # of 6 that were given then, one more was taken away
    assert set(begun) <= set(range(6))


@pytest.mark.parametrize("why", ["an error", "Ctrl-C", "enough"])
def test_who_stops_waits_for_nothing_and_nothing_more_is_begun(why):
    begun, both, end = [], threading.Barrier(2, timeout=LONG), threading.Event()

    def work(job):
        begun.append(job)
        if job < 2:
            both.wait()
        if job == 0 and why == "Ctrl-C":
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        if job == 0 and why == "an error":
            raise ValueError("job 0")
        if job != 0 or why != "enough":
            assert end.wait(LONG), "nobody stopped"
        return job

    found = in_threads(work, range(100), 2, 100)
    if why == "enough":
        assert next(found) == 0
        found.close()
    else:
        with pytest.raises((ValueError, KeyboardInterrupt)) as told:
            list(found)
        assert told.type is (ValueError if why == "an error" else KeyboardInterrupt)
    mine = [thread for thread in threading.enumerate() if thread.name == "in_threads"]
    assert not end.is_set() and mine and all(thread.daemon for thread in mine)  # one is in a job, and is left alone
    end.set()
    for thread in mine:
        thread.join(LONG)
    assert len(begun) < 10
