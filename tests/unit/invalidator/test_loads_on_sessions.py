"""What a load proves inside a transaction of the application's own, step by step."""

from __future__ import annotations

from typing import Any, Self

import pytest

from invalidator.loading import Loaded, Prover
from invalidator.sessions import perform

HISTORY = "77:1"
SERVER = "one"
BEGAN_MS, NOW_MS = 1_000, 5_000


def told(
    *, standby: bool = False, snapshot: str = "10:12:11", renews: bool = True, replayed: str = "0/64",
    transaction: str = "7/t", unwritten: bool = True,
) -> tuple[Any, ...]:  # fmt: skip
    """The answer of a session inside its transaction."""
    return SERVER, standby, snapshot, NOW_MS, renews, replayed, BEGAN_MS, transaction, unwritten


class Cursor:
    def __init__(self, session: Session) -> None:
        self._session = session
        self._row: tuple[Any, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, query: str) -> None:
        identifies = "pg_current_snapshot" not in query
        self._row = (SERVER, self._session.rows[0][1], HISTORY) if identifies else self._session.rows.pop(0)

    def fetchone(self) -> tuple[Any, ...]:
        return self._row


class Session:
    """Gives `rows` one after the other; an ORM's where it has objects."""

    def __init__(self, *rows: tuple[Any, ...], **objects: Any) -> None:
        self.rows = list(rows)
        self.__dict__.update(objects)

    def cursor(self) -> Cursor:
        return Cursor(self)


def load(session: Session) -> Loaded:
    return perform(Prover(lambda: 3.0).load(session), session, lambda _: "value")


def test_a_load_in_read_committed_is_as_new_as_the_question():
    loaded = load(Session(told(), told()))
    assert (loaded.value, loaded.own, loaded.begun_now) == ("value", False, True)
    assert loaded.proof is not None
    assert loaded.clock is not None
    assert (loaded.proof.snapshot.history, loaded.proof.as_of_ms) == (HISTORY, NOW_MS)
    assert loaded.proof.snapshot.text == f"p{10:016x}{12:016x}{11:016x}"
    assert (loaded.clock.time_ms, loaded.clock.asked) == (NOW_MS, 3.0)


def test_what_was_committed_during_a_load_in_read_committed_may_be_shown_and_is_told():
    loaded = load(Session(told(), told(snapshot="11:14:", replayed="0/70")))
    assert loaded.proof is not None
    assert loaded.proof.snapshot.text == f"p{10:016x}{12:016x}{11:016x}"  # this much it shows at least
    assert loaded.stored is not None
    assert loaded.stored.snapshot.text == f"s{10:016x}{0:016x}{0x70:016x}"
    same = load(Session(told(renews=False), told(renews=False, snapshot="11:14:")))
    assert same.stored == same.proof


def test_a_load_in_repeatable_read_is_as_old_as_its_transaction():
    loaded = load(Session(told(renews=False), told(renews=False)))
    assert loaded.proof is not None
    assert (loaded.proof.as_of_ms, loaded.begun_now) == (BEGAN_MS, False)


@pytest.mark.parametrize(("renews", "lsn"), [(True, 0x64), (False, 0)])
def test_a_standby_shows_what_was_replayed_only_where_a_later_snapshot_is_taken(renews, lsn):
    row = told(standby=True, snapshot="10:12:", renews=renews)
    loaded = load(Session(row, row))
    assert loaded.proof is not None
    assert loaded.proof.snapshot.text == f"s{10:016x}{lsn:016x}{0x64:016x}"
    assert (loaded.clock, loaded.begun_now) == (None, False)


@pytest.mark.parametrize(("before", "after"), [(False, False), (True, False)])
def test_what_the_transaction_wrote_is_for_itself_only(before, after):
    loaded = load(Session(told(unwritten=before), told(unwritten=after)))
    assert loaded.own
    assert loaded.proof is not None


@pytest.mark.parametrize(
    "ended",
    [told(transaction="7/u"), told(standby=True), ("two", *told()[1:])],
    ids=["commits", "is promoted", "moves"],
)
def test_a_load_that_ends_elsewhere_than_it_began_proves_nothing(ended):
    assert load(Session(told(), ended)).proof is None


@pytest.mark.parametrize(
    ("objects", "proven"),
    [
        ({"identity_map": {}, "new": (), "dirty": (), "deleted": ()}, True),
        ({"identity_map": {1: object()}}, False),
        ({"identity_map": {}, "dirty": [object()]}, False),
        ({"identity_map": {}, "new": [object()]}, False),
        ({"identity_map": {}, "deleted": [object()]}, False),
    ],
)
def test_what_an_orm_session_remembers_proves_nothing(objects, proven):
    assert (load(Session(told(), told(), **objects)).proof is not None) == proven


def test_objects_that_were_loaded_after_the_snapshot_was_taken_are_new_enough():
    session, prover = Session(told(), told(), told(), identity_map={}), Prover()
    begun = perform(prover.begin(session), session)
    session.identity_map = {1: object()}
    for _ in range(2):
        loaded = perform(prover.load_within(begun, session), session, lambda _: "value")
        assert loaded.proof is not None
        assert loaded.clock is None
