"""The judge of histories finds what it is there to find."""

from __future__ import annotations

from tests.history import History, SessionHistory


def test_a_read_is_stale_if_a_newer_version_was_there_for_longer_than_the_bound() -> None:
    history = History()
    history.wrote(1, 2, acked=10.0)
    history.wrote(1, 3, acked=11.0)
    for began in (10.5, 11.5, 11.9, 12.1):
        history.read(1, 2, began)
    assert [read.began for read in history.stale(1.0)] == [12.1]
    assert [read.began for read in history.stale(0.0)] == [11.5, 11.9, 12.1]
    assert history.stale(5.0) == []


def test_an_answer_that_came_late_does_not_make_an_older_version_newer() -> None:
    history = History()
    history.wrote(1, 3, acked=10.0)
    history.wrote(1, 2, acked=10.1)
    history.read(1, 2, 12.0)
    history.read(1, 3, 12.0)
    history.read(2, 1, 12.0)
    assert [read.version for read in history.stale(1.0)] == [2]


def test_a_session_notices_what_it_did_not_see_again() -> None:
    session = SessionHistory()
    session.wrote(1, 5)
    session.read(1, 4)
    session.read(1, 6)
    session.read(1, 5)
    session.read(2, 1)
    assert (session.unseen_writes, session.went_back) == ([(1, 5, 4)], [(1, 6, 5)])
