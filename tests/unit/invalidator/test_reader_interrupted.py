"""What remains when a read is cancelled, or meets a server that is not what it was taken for. Step by step, no driver."""

from __future__ import annotations

import os
from asyncio import CancelledError
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from cdc.errors import ConfigError
from cdc.snapshots import parse_pg_snapshot
from invalidator.codecs import Codec
from invalidator.herd import Limits
from invalidator.judging import Need
from invalidator.layout import Layout
from invalidator.loading import ClockReading, Loaded, Proof
from invalidator.near import Near
from invalidator.reader import note_shown
from invalidator.reader_acts import AskClock, Found, Lease, Load, Look, Offer, Wait
from invalidator.reader_commands import Looked
from invalidator.reading import Reading, Unproven
from invalidator.tokens import Session, Token
from invalidator.typed_views import OnDoubt, typed_view
from tests.unit.invalidator.scripted import EPOCH, HISTORY, NOW_MS, VIEWS, Database, Driver, ScriptedRegion, watermark

MISS = Looked("OPEN", watermark(NOW_MS), EPOCH, [None])
PROOF = Proof(parse_pg_snapshot(HISTORY, "10:12:11"), NOW_MS)
VIEW = typed_view(VIEWS.views["contact"], None, Any, Codec(), None, OnDoubt.CLOSED)


class Flight:
    def __init__(self) -> None:
        self.result: Any = None
        self.finished = False

    def finish(self, result: Any) -> None:
        self.result, self.finished = result, True


@pytest.fixture
def reading() -> Reading:
    return make(ScriptedRegion().layout)


def make(layout: Layout) -> Reading:
    return Reading(
        layout,
        Limits(loads=2),
        Near(),
        owner="0" * 16,
        clock=lambda: 0.0,
        share=lambda: 0.5,
        make_flight=Flight,
        alarm=lambda *_: None,
    )


def until(flow: Any, kind: type) -> Any:
    """Answer what the flow asks for, up to the first act of this kind."""
    act = next(flow)
    while not isinstance(act, kind):
        assert isinstance(act, Look | Lease)
        act = flow.send(MISS if isinstance(act, Look) else ["GRANTED"] * len(act.fields))
    return act


def finish(flow: Any, answer: Any) -> Any:
    """Answer, and all that follows of a good load."""
    try:
        while True:
            act = flow.send(answer)
            assert isinstance(act, Offer | Lease)
            answer = []
    except StopIteration as stop:
        return stop.value


def loaded(**known: Any) -> Loaded:
    return Loaded({"contact:7": "value"}, PROOF, ClockReading(NOW_MS, 0.0), **known)


@pytest.mark.parametrize("need", [Need(), Need(strong=True)])
def test_a_cancelled_load_gives_its_lease_back(reading: Reading, need: Need) -> None:
    flow = reading.get(VIEW, 7, need)
    until(flow, Load)
    back = flow.throw(CancelledError())
    assert isinstance(back, Lease)
    assert back.seconds == 0
    with pytest.raises(CancelledError):
        flow.send(["RELEASED"])


def test_who_is_interrupted_while_it_asks_for_a_lease_gives_it_back(reading: Reading) -> None:
    flow = reading.get(VIEW, 7)
    asked = until(flow, Lease)
    back = flow.throw(CancelledError())
    assert isinstance(back, Lease)
    assert (back.fields, back.seconds) == (asked.fields, 0)
    flow.close()


@pytest.mark.parametrize("times", [1, 5])
def test_flows_that_are_closed_leave_nothing_behind(reading: Reading, times: int) -> None:
    for _ in range(times):  # more often than loads may be under way
        flow = reading.get(VIEW, 7)
        until(flow, Load)
        flow.close()
    flow = reading.get(VIEW, 7)
    until(flow, Load)
    assert finish(flow, loaded()).value == "value"


def test_of_those_who_waited_for_a_cancelled_load_one_loads(reading: Reading) -> None:
    leader, *others = (reading.get(VIEW, 7) for _ in range(3))
    until(leader, Load)
    waits = [until(flow, Wait) for flow in others]
    assert isinstance(leader.throw(CancelledError()), Lease)
    with pytest.raises(CancelledError):
        leader.send(["RELEASED"])
    assert all(wait.flight.finished for wait in waits)
    assert [type(flow.send(True)) for flow in others] == [Lease, Wait]


def test_who_asked_for_less_does_not_fail_with_who_asked_for_more(reading: Reading) -> None:
    leader, other = reading.get(VIEW, 7, Need(token=Token(HISTORY, (f"{99:016x}",)))), reading.get(VIEW, 7)
    until(leader, Load)
    wait = until(other, Wait)
    for _ in range(2):
        act = leader.send(Loaded({"contact:7": "value"}, None, None))
    assert isinstance(act, Lease)
    with pytest.raises(Unproven):
        leader.send(["RELEASED"])
    assert isinstance(wait.flight.result, Unproven)
    act = other.send(True)
    while not isinstance(act, Load):
        act = other.send(MISS if isinstance(act, Look) else ["GRANTED"])
    assert finish(other, loaded()).value == "value"


def test_one_read_at_a_time_asks_for_the_databases_clock(reading: Reading) -> None:
    first, second = (reading.get(VIEW, 7, Need(bound_ms=1_000)) for _ in range(2))
    assert isinstance(next(first), AskClock)
    wait = next(second)
    assert isinstance(wait, Wait)
    first.send(ClockReading(NOW_MS, 0.0))
    assert wait.flight.finished  # type: ignore[attr-defined]  # of this file
    assert isinstance(second.send(True), Look)


def test_a_shard_that_stays_closed_beside_an_open_one_slows_no_loads() -> None:
    reading = make(ScriptedRegion(shards=2).layout)
    times = []
    reading._gate.raised = times.append  # type: ignore[method-assign]  # to see when
    shards = {reading._layout.place(f"contact:{key}")[0]: key for key in range(20)}
    for _ in range(3):
        for shard, status in ((0, "CLOSED"), (1, "OPEN")):
            flow = reading.get(VIEW, shards[shard])
            next(flow)
            flow.send(Looked(status, watermark(NOW_MS), EPOCH, [None]))
            flow.close()
    assert len(times) == 1


def test_a_session_remembers_what_its_own_transaction_showed(reading: Reading) -> None:
    session = Session()
    flow = reading.get(VIEW, 7, Need(track=True), snapshot=object())
    until(flow, Load)
    found: Found = finish(flow, loaded(own=True))
    assert found.kept is None  # for nobody else
    note_shown(session, Need(track=True), [found])
    assert session.token == Token(HISTORY, seen=PROOF.snapshot.text)


@pytest.fixture(params=["threads", "async"])
def driver(request: pytest.FixtureRequest) -> Any:
    driver = Driver(request.param, ScriptedRegion(), Database())
    yield driver
    driver.close()


@pytest.mark.parametrize("need", [{"strong": True}, {"token": "not a token"}])
def test_a_standby_is_not_taken_for_the_primary(driver: Driver, need: dict[str, Any]) -> None:
    driver.database.identity, driver.database.seen = ("one", True, HISTORY), ("one", True, "10:12:", NOW_MS)
    driver.database.end = ("10:12:", True)
    with pytest.raises(Unproven, match="strong"):
        driver.get("contact", 7, lambda _: "old", **need)


def test_a_primary_that_a_tokens_history_has_left_behind_shows_it_not(driver: Driver) -> None:
    with pytest.raises(Unproven, match="token"):
        driver.get("contact", 7, lambda _: "old", token=Token("77:2", (f"{5:016x}",)))


def test_a_child_does_not_wait_for_loads_that_its_parent_has_under_way() -> None:
    reader = Driver("threads", ScriptedRegion(), Database(), limits=Limits(loads=1, wait_seconds=0.2), near=Near())
    keys = (7, 8)

    def load(_: Any) -> str:
        pid = os.fork()
        if pid:
            return f"child ended with {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}"
        status = 2
        try:
            status = int([reader.get("contact", key, lambda _: "value") for key in keys] != ["value"] * 2)
        finally:
            os._exit(status)

    assert reader.get("contact", 7, load) == "child ended with 0"


def test_a_write_that_was_rolled_back_has_no_token(driver: Driver) -> None:
    """psycopg's transaction swallows psycopg.Rollback."""

    class Transaction(suppress):
        async def __aenter__(self) -> None:
            pass

        async def __aexit__(self, *error: object) -> bool:
            return self.__exit__(*error)  # type: ignore[arg-type]  # the three

    connection: Any = SimpleNamespace(
        pgconn=None, autocommit=True, info=Database(), transaction=lambda: Transaction(ZeroDivisionError)
    )

    async def write() -> Any:
        async with driver.reader.write_token(connection) as promised:
            raise ZeroDivisionError
        return promised

    if driver.kind == "async":
        promised = driver.wait(write())
    else:
        with driver.reader.write_token(connection) as promised:
            raise ZeroDivisionError
    with pytest.raises(ConfigError, match="committed"):
        assert promised.token
