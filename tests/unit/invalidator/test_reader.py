"""What a reader takes for proven, and what it does not. The servers are scripted here; real ones in tests/integration.

Each test runs on both readers, the one for threads and the one for asyncio.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cdc.errors import ConfigError, FatalError, TransientError
from invalidator.entry import Kind
from invalidator.herd import Limits
from invalidator.near import Near
from invalidator.reading import Overloaded, Unproven
from invalidator.sessions import SourceFault
from invalidator.tokens import Session, Token
from invalidator.typed_views import OnDoubt
from tests.unit.invalidator.scripted import HISTORY, NOW_MS, Database, Driver, ScriptedRegion, p, stored, watermark

SEEN = p(10, 12, 11)
"""What the scripted database says that a load saw."""

DAY_MS = 86_400_000


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def region() -> ScriptedRegion:
    return ScriptedRegion()


@pytest.fixture(params=["threads", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def reader(kind: str, region: ScriptedRegion, database: Database) -> Iterator[Driver]:
    driver = Driver(kind, region, database)
    yield driver
    driver.close()


def loaded(value: Any = "loaded") -> Any:
    return lambda *_, **__: value


# --- proofs -----------------------------------------------------------------------------------------------------------


def test_a_miss_is_filled_with_the_snapshot_of_its_load(reader: Driver, region: ScriptedRegion) -> None:
    assert reader.get("contact", 7, loaded({"email": "a"})) == {"email": "a"}
    (fill,) = region.fills
    assert (fill.key, fill.view, fill.history) == ("contact:7", "contact", HISTORY)
    assert fill.seen == SEEN


def test_a_standbys_fill_carries_what_was_replayed_before_it(
    reader: Driver, region: ScriptedRegion, database: Database
) -> None:
    database.identity, database.seen = ("one", True, HISTORY), ("one", True, "10:12:", NOW_MS)
    database.end = ("10:12:", True)
    reader.get("contact", 7, loaded(1))
    assert region.fills[0].seen == f"s{10:016x}{0x64:016x}{0x65:016x}"


UNPROVEN = [
    pytest.param({"end": ("10:13:11", True)}, id="the loader left the transaction"),
    pytest.param({"end": ("10:12:11", False)}, id="the loader wrote"),
    pytest.param({"seen": ("one", True, "10:12:11", NOW_MS)}, id="the server was demoted meanwhile"),
    pytest.param({"seen": ("two", False, "10:12:11", NOW_MS)}, id="another server answered"),
    pytest.param(
        {"identity": ("one", True, HISTORY), "seen": ("one", True, "10:12:11", 1), "replayed": ("two", "0/99")},
        id="another standby told the replay position",
    ),
]


@pytest.mark.parametrize("change", UNPROVEN)
def test_what_is_not_proven_is_returned_and_not_cached(
    reader: Driver, region: ScriptedRegion, database: Database, change: dict[str, Any]
) -> None:
    for name, value in change.items():
        setattr(database, name, value)
    assert reader.get("contact", 7, loaded(1)) == 1
    assert region.fills == []
    assert reader.counts["unproven"] == 1


@pytest.mark.parametrize("change", UNPROVEN[:4])
@pytest.mark.parametrize("need", [{"max_staleness": 60}, {"token": Token(HISTORY, (f"{9:016x}",))}, {"strong": True}])
def test_what_is_not_proven_is_not_returned_to_who_asked_for_a_proof(
    reader: Driver, database: Database, change: dict[str, Any], need: dict[str, Any]
) -> None:
    for name, value in change.items():
        setattr(database, name, value)
    with pytest.raises(Unproven, match="view contact"):
        reader.get("contact", 7, loaded(), **need)


def test_an_error_of_the_loader_passes_and_nothing_is_cached(
    reader: Driver, region: ScriptedRegion, database: Database
) -> None:
    def load(_: object) -> None:
        raise LookupError("no such thing")

    with pytest.raises(LookupError):
        reader.get("contact", 7, load)
    assert database.rolled_back
    assert region.fills == []
    assert [ms for _, ms in region.leases] == [5_000, 0]  # the lease is given back: the next one need not wait


def test_a_database_that_is_away_is_a_fault_of_ours(reader: Driver, database: Database) -> None:
    database.fails = OSError("connection refused")
    with pytest.raises(SourceFault, match="connection refused"):
        reader.get("contact", 7, loaded())


@pytest.mark.parametrize(("autocommit", "status"), [(False, 0), (True, 2)])
def test_a_connection_in_a_transaction_of_its_own_is_refused(
    reader: Driver, database: Database, autocommit: bool, status: int
) -> None:
    database.autocommit, database.transaction_status = autocommit, status
    with pytest.raises(ConfigError, match="autocommit"):
        reader.get("contact", 1, pytest.fail)


# --- entries ----------------------------------------------------------------------------------------------------------


def test_a_hit_is_served_without_a_load(reader: Driver, region: ScriptedRegion, database: Database) -> None:
    region.entries["contact:7"] = stored("contact:7")
    assert reader.get("contact", 7, pytest.fail) == {"email": "a"}
    assert (region.looks, region.leases, database.lent) == (1, [], 0)


@pytest.mark.parametrize(
    ("entry", "counted"),
    [
        (stored("contact:8"), "foreign"),
        (stored("contact:7", view="page"), "foreign"),
        (stored("ontact:7", view="contactc"), "foreign"),
        (b"rubbish", "foreign"),
        (stored("contact:7", b"{"), "undecodable"),
        (stored("contact:7", encoding="x"), "undecodable"),
    ],
)
def test_an_entry_that_is_not_the_one_asked_for_is_a_miss(
    reader: Driver, region: ScriptedRegion, entry: bytes, counted: str, caplog: pytest.LogCaptureFixture
) -> None:
    region.entries["contact:7"] = entry
    assert reader.get("contact", 7, loaded()) == "loaded"
    assert reader.counts[counted] == 1
    assert ("foreign_entry view=contact" in caplog.text) == (counted == "foreign")


def test_an_absent_row_is_cached_as_absent(reader: Driver, region: ScriptedRegion) -> None:
    region.takes = True
    assert reader.get("contact", 7, loaded(None)) is None
    assert region.fills[0].lead == "1faj"
    assert reader.get("contact", 7, pytest.fail) is None


def test_a_value_that_is_too_large_is_not_cached(kind: str, region: ScriptedRegion, database: Database) -> None:
    reader = Driver(kind, region, database, limits=Limits(payload_bytes_max=10))
    assert reader.get("contact", 7, loaded("x" * 20)) == "x" * 20
    assert region.fills == []


def test_entries_of_a_view_with_a_ttl_do_not_all_end_at_once(reader: Driver, region: ScriptedRegion) -> None:
    for number in range(30):
        reader.get("page", number, loaded(1))
    lifetimes = {fill.ttl_ms for fill in region.fills}
    assert len(lifetimes) > 5
    assert all(90_000 <= ttl_ms <= 100_000 for ttl_ms in lifetimes)


@pytest.mark.parametrize(
    ("view", "key", "said"),
    [("nosuch", 1, "there is no view"), ("member", 1, "segment, contact"), ("contact", 1.5, "contact")],
)
def test_a_wrong_question_is_one_clear_error(reader: Driver, view: str, key: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        reader.get(view, key, pytest.fail)


# --- bounds -----------------------------------------------------------------------------------------------------------


def bounded(driver: Driver, load: Any = None, **options: Any) -> Any:
    return driver.view("contact", load or loaded(), **({"max_staleness": 2} | options))


@pytest.mark.parametrize(
    ("mark_ms", "as_of_ms", "served"),
    [
        (NOW_MS, 1, True),  # the region has applied everything up to now
        (NOW_MS - 1_500, 1, True),
        (NOW_MS - 2_500, 1, False),
        (NOW_MS - 2_500, NOW_MS - 1_000, True),  # the entry itself was read a second ago
        (NOW_MS + DAY_MS, 1, False),  # a clock jumped: nothing is proven
        (None, 1, False),
    ],
)
def test_an_entry_is_served_if_it_is_proven_to_be_within_the_bound(
    reader: Driver, region: ScriptedRegion, mark_ms: int | None, as_of_ms: int, served: bool
) -> None:
    region.watermark = "" if mark_ms is None else watermark(mark_ms)
    region.entries["contact:7"] = stored("contact:7", as_of_ms=as_of_ms)
    assert reader.wait(bounded(reader).get(7)) == ({"email": "a"} if served else "loaded")


def test_a_watermark_of_an_earlier_epoch_proves_nothing(reader: Driver, region: ScriptedRegion) -> None:
    region.watermark = watermark(NOW_MS, p(50, 50), epoch=4)
    region.entries["contact:7"] = stored("contact:7")
    assert reader.wait(bounded(reader).get(7)) == "loaded"


@pytest.mark.parametrize("seen", [f"s{10:016x}{0x64:016x}", f"g{0:016x}{9:016x}"])
def test_only_a_primarys_fill_is_as_new_as_the_clock_beside_it(
    reader: Driver, region: ScriptedRegion, seen: str
) -> None:
    region.watermark = watermark(NOW_MS - 60_000)
    region.entries["contact:7"] = stored("contact:7", seen=seen, as_of_ms=NOW_MS)
    assert reader.wait(bounded(reader).get(7)) == "loaded"


@pytest.mark.parametrize(("lsn", "served"), [(0x63, True), (0x64, True), (0x65, False)])
def test_what_a_standby_loads_is_as_new_as_the_watermark_that_it_has_replayed(
    kind: str, region: ScriptedRegion, database: Database, lsn: int, served: bool
) -> None:
    standby = Database()
    standby.identity, standby.seen = ("two", True, HISTORY), ("two", True, "10:12:", NOW_MS)
    standby.end, standby.replayed = ("10:12:", True), ("two", "0/64")
    reader = Driver(kind, region, standby, primary=database)
    region.watermark = watermark(NOW_MS, lsn=lsn)
    calls: list[Any] = []
    reader.wait(bounded(reader, lambda *_: calls.append(1)).get(7))
    assert len(calls) == (1 if served else 2)  # the second time from the primary


def test_a_bound_of_the_call_replaces_that_of_the_view(reader: Driver, region: ScriptedRegion) -> None:
    region.watermark = watermark(NOW_MS - 2_500)
    region.entries["contact:7"] = stored("contact:7")
    assert reader.wait(bounded(reader).get(7, max_staleness=60)) == {"email": "a"}
    assert reader.wait(bounded(reader).get(7, max_staleness=0.5)) == "loaded"


def test_the_clock_of_a_standby_is_not_the_databases(
    reader: Driver, region: ScriptedRegion, database: Database
) -> None:
    database.identity, database.seen = ("one", True, HISTORY), ("one", True, "10:12:", NOW_MS)
    region.entries["contact:7"] = stored("contact:7")
    database.end = ("10:12:", True)
    region.watermark = watermark(NOW_MS, lsn=0x100)
    with pytest.raises(Unproven):
        reader.wait(bounded(reader).get(7))


@pytest.mark.parametrize("bound", [0, 60])
def test_a_server_that_was_replaced_proves_nothing(reader: Driver, region: ScriptedRegion, bound: float) -> None:
    region.epoch = f"{6:08x}o77:2"
    region.watermark = watermark(NOW_MS, epoch=6)
    with pytest.raises(Unproven):
        reader.wait(bounded(reader).get(7, max_staleness=bound))


# --- tokens -----------------------------------------------------------------------------------------------------------


def token(*stamps: int, history: str = HISTORY, lsn: int = 0) -> Token:
    return Token(history, tuple(f"{stamp:016x}" for stamp in stamps), f"{lsn:016x}")


@pytest.mark.parametrize(
    ("entry", "mark", "wanted", "served"),
    [
        (p(10, 12, 11), watermark(1), token(9), True),
        (p(10, 12, 11), watermark(1), token(11), False),
        (p(10, 12, 11), watermark(1), token(12), False),
        (p(1, 1), watermark(1, p(12, 13)), token(11), True),  # the region has applied what its heartbeat saw
        (p(1, 1), watermark(1, p(11, 13, 11)), token(11), False),
        (p(1, 1), watermark(1, lsn=0x100), token(11, lsn=0x100), True),
        (p(1, 1), watermark(1, lsn=0x100), token(11, lsn=0x101), False),
        (p(1, 1), watermark(1, p(50, 50), epoch=4), token(11), False),
        (p(1, 1), watermark(1), token(11, history="77:0"), True),  # of an earlier history: whatever is readable
        (p(90, 90), watermark(1, p(90, 90)), token(11, history="77:2"), False),
        (p(90, 90), watermark(1, p(90, 90)), token(11, history="88:1"), False),
        (p(1, 1), watermark(1), token(), True),
        (p(12, 12), watermark(1), Token(HISTORY, seen=p(10, 12, 11)), True),
        (p(10, 12, 11), watermark(1), Token(HISTORY, seen=p(10, 12, 11)), True),
        (p(10, 12, 10), watermark(1), Token(HISTORY, seen=p(11, 12, 11)), False),
        (p(10, 11), watermark(1), Token(HISTORY, seen=p(10, 12, 11)), False),
    ],
)  # fmt: skip
def test_an_entry_is_served_if_it_shows_the_token(
    reader: Driver, region: ScriptedRegion, database: Database, entry: str, mark: str, wanted: Token, served: bool
) -> None:
    database.identity = ("one", False, wanted.history)
    region.entries["contact:7"] = stored("contact:7", seen=entry)
    region.watermark = mark
    assert reader.get("contact", 7, loaded(), token=wanted) == ({"email": "a"} if served else "loaded")
    assert reader.get("contact", 7, loaded(), token=wanted.text) == ({"email": "a"} if served else "loaded")


def test_an_event_shows_its_own_stamps(reader: Driver, region: ScriptedRegion) -> None:
    seen = f"{5:08x}{0x50:016x}{0:08x}{11:016x}"
    region.entries["contact:7"] = stored("contact:7", seen=seen, kind=Kind.EVENT)
    assert reader.get("contact", 7, loaded(), token=token(11)) == {"email": "a"}
    assert reader.get("contact", 7, loaded(), token=token(10)) == "loaded"


@pytest.mark.parametrize("text", ["rubbish", "1.x", "2.77:1.b.", "1.77:1.b." + "f" * 17, "1.77:1.b.\n", "x" * 5_000])
def test_what_is_no_token_asks_the_primary(reader: Driver, region: ScriptedRegion, text: str) -> None:
    region.entries["contact:7"] = stored("contact:7")
    assert reader.get("contact", 7, loaded(), token=text) == "loaded"


def test_a_session_is_never_shown_less_than_before(reader: Driver, region: ScriptedRegion) -> None:
    session = Session()
    assert reader.get("contact", 7, loaded(), token=session) == "loaded"
    region.entries["contact:7"] = stored("contact:7", seen=p(10, 11))
    assert reader.get("contact", 7, loaded("again"), token=session) == "again"
    assert reader.get("contact", 7, loaded("again"), token=Session(session.text)) == "again"
    region.entries["contact:7"] = stored("contact:7", seen=p(13, 13))
    assert reader.get("contact", 7, pytest.fail, token=session) == {"email": "a"}
    region.entries["contact:7"] = stored("contact:7", seen=p(12, 12))
    assert reader.get("contact", 7, loaded("again"), token=session) == "again"


def test_a_session_remembers_what_a_standby_replayed_during_the_load(
    kind: str, region: ScriptedRegion, database: Database
) -> None:
    standby = Database()
    standby.identity, standby.seen = ("one", True, HISTORY), ("one", True, "10:12:", NOW_MS)
    standby.end = ("10:12:", True)
    reader, session = Driver(kind, region, standby, primary=database), Session()
    assert reader.get("contact", 7, loaded(), token=session) == "loaded"
    assert session.token == Token(HISTORY, after=f"{0x65:016x}")
    region.entries["contact:7"] = stored("contact:7", seen=p(10, 11))
    region.watermark = watermark(NOW_MS, lsn=0x64)
    assert reader.get("contact", 7, loaded("again"), token=session) == "again"
    region.watermark = watermark(NOW_MS, lsn=0x65)
    hit = Session(f"1.{HISTORY}...s65")
    assert reader.get("contact", 7, pytest.fail, token=hit) == {"email": "a"}
    region.entries["contact:7"] = stored("contact:7", seen=f"s{10:016x}{0x64:016x}{0x66:016x}")
    session = Session()
    assert reader.get("contact", 7, pytest.fail, token=session) == {"email": "a"}
    assert session.token == Token(HISTORY, after=f"{0x66:016x}")
    region.entries["contact:8"] = stored("contact:8", seen=p(10, 11))
    region.watermark = watermark(NOW_MS, p(12, 12), lsn=0x66)
    for key in (8, 7, 8):  # reads of both kinds in one session: the cache serves it on
        assert reader.get("contact", key, pytest.fail, token=session) == {"email": "a"}
    assert Session(session.text).token == session.token == Token(HISTORY, seen=p(11, 11), after=f"{0x66:016x}")
    reader.close()


def test_a_session_that_was_lost_asks_the_primary_once(reader: Driver, region: ScriptedRegion) -> None:
    region.entries["contact:7"] = stored("contact:7", seen=p(13, 13))
    session = Session("rubbish")
    assert reader.get("contact", 7, loaded(), token=session) == "loaded"
    assert reader.get("contact", 7, pytest.fail, token=session) == {"email": "a"}


def test_strong_is_loaded_now_and_offered_to_the_cache(reader: Driver, region: ScriptedRegion) -> None:
    region.entries["contact:7"] = stored("contact:7")
    assert reader.get("contact", 7, loaded(), strong=True) == "loaded"
    assert (region.looks, len(region.fills)) == (0, 1)


@pytest.mark.parametrize(
    ("mark", "wanted", "passed"),
    [
        (watermark(1, p(12, 13)), token(11), True),
        (watermark(1, p(11, 13, 11)), token(11), False),
        (watermark(1, lsn=0x100), token(11, lsn=0x100), True),
        (watermark(1, lsn=0x100), token(11, lsn=0x101), False),
        (watermark(1), token(11, history="77:0"), True),
        (watermark(1, p(90, 90)), token(11, history="88:1"), False),
        (watermark(1, p(90, 90), epoch=4), token(11, history="77:0"), False),
        ("", token(11, history="77:0"), False),
    ],
)
def test_a_region_has_passed_a_token(
    reader: Driver, region: ScriptedRegion, mark: str, wanted: Token, passed: bool
) -> None:
    region.watermark = mark
    assert reader.wait(reader.reader.passed(wanted)) is passed
    assert reader.wait(reader.reader.passed(wanted.text)) is passed
    region.fails = TransientError("away")
    assert reader.wait(reader.reader.passed(wanted)) is False


# --- when something is away -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [TransientError("away"), FatalError("wrong password")])
def test_a_redis_that_is_away_costs_a_load_and_no_error(
    reader: Driver, region: ScriptedRegion, fault: Exception
) -> None:
    region.fails = fault
    assert reader.get("contact", 7, loaded(1)) == 1
    assert region.fills == []


@pytest.mark.parametrize("bound", [None, 60])
def test_failures_between_hits_are_not_in_a_row(
    kind: str, region: ScriptedRegion, database: Database, bound: float | None
) -> None:
    """Redis is left alone after three failures one after the other, not after three in a day."""
    reader = Driver(kind, region, database, limits=Limits(breaker_failures=3, breaker_seconds=60))
    region.entries["contact:7"] = stored("contact:7", as_of_ms=NOW_MS)
    for _ in range(5):
        region.fails = TransientError("away")
        reader.get("contact", 7, loaded(1), max_staleness=bound)
        region.fails = None
        assert reader.get("contact", 7, loaded(1), max_staleness=bound) == {"email": "a"}
    assert (reader.counts["down"], reader.counts["hit"], reader.counts["bypassed"]) == (5, 5, 0)
    reader.close()


def test_a_redis_that_stays_away_is_left_alone_and_tried_again(
    kind: str, region: ScriptedRegion, database: Database
) -> None:
    reader = Driver(kind, region, database, limits=Limits(breaker_failures=3, breaker_seconds=60))
    region.fails = TransientError("away")
    for _ in range(10):
        reader.get("contact", 7, loaded(1))
    assert (region.looks, reader.counts["bypassed"]) == (3, 7)
    reader.reader.reading._breaker._open_until = 0.0
    region.fails = None
    for _ in range(10):
        reader.get("contact", 7, loaded(1))
    assert region.looks == 13


@pytest.mark.parametrize("status", ["CLOSED", "COLD"])
def test_a_closed_region_is_read_past(reader: Driver, region: ScriptedRegion, status: str) -> None:
    region.status = status
    region.entries["contact:7"] = stored("contact:7")
    assert reader.get("contact", 7, loaded()) == "loaded"
    assert reader.counts[status.lower()] == 1


@pytest.mark.parametrize("on_doubt", OnDoubt)
def test_a_view_decides_what_is_served_while_the_database_is_away(
    reader: Driver, region: ScriptedRegion, database: Database, on_doubt: OnDoubt
) -> None:
    view = bounded(reader, on_doubt=on_doubt)
    region.entries["contact:7"] = stored("contact:7")
    assert reader.wait(view.get(7)) == {"email": "a"}
    region.watermark = watermark(NOW_MS - DAY_MS)
    database.fails = OSError("away")
    if on_doubt is OnDoubt.OPEN:
        assert reader.wait(view.get(7)) == {"email": "a"}
        assert reader.counts["beyond_bound"] == 1
    else:
        with pytest.raises(SourceFault):
            reader.wait(view.get(7))
    for need in ({"token": token(11)}, {"strong": True}):
        with pytest.raises(SourceFault):
            reader.wait(view.get(7, **need))
    with pytest.raises(SourceFault):
        reader.wait(view.get(8))


# --- herds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["HELD", "FULL"])
def test_who_gets_no_lease_waits_and_takes_what_another_filled(
    reader: Driver, region: ScriptedRegion, answer: str
) -> None:
    def refuse(_: str) -> str:
        region.entries["contact:7"] = stored("contact:7")
        return answer

    region.lease_answers = refuse
    assert reader.get("contact", 7, pytest.fail) == {"email": "a"}
    assert reader.counts["waited"] == (1 if answer == "HELD" else 4)


def test_who_waits_too_long_for_a_key_loads_it_beside_its_holder(
    kind: str, region: ScriptedRegion, database: Database
) -> None:
    reader = Driver(kind, region, database, limits=Limits(wait_seconds=0.1))
    region.lease_answers = lambda field: "HELD" if field == "contact:7" else "GRANTED"
    assert reader.get("contact", 7, loaded()) == "loaded"
    assert [fields for fields, ms in region.leases if not ms] == [region.leases[-2][0]]  # and gives that one back


def test_a_region_that_stays_full_is_an_error_in_time(kind: str, region: ScriptedRegion, database: Database) -> None:
    reader = Driver(kind, region, database, limits=Limits(wait_seconds=0.05))
    region.lease_answers = lambda _: "FULL"
    with pytest.raises(Overloaded, match="64 loads"):
        reader.get("contact", 7, pytest.fail)
    assert database.lent == 0


# --- several keys -----------------------------------------------------------------------------------------------------


def test_several_keys_take_one_look_one_transaction_and_one_fill(
    reader: Driver, region: ScriptedRegion, database: Database
) -> None:
    region.entries["contact:1"] = stored("contact:1")
    view = reader.view("contact", lambda _, number: None if number == 3 else f"loaded {number}")
    found = reader.wait(view.get_many([1, 2, 3]))
    assert found == {1: {"email": "a"}, 2: "loaded 2", 3: None}
    assert list(found) == [1, 2, 3]
    assert (region.looks, database.lent, [fill.key for fill in region.fills]) == (1, 1, ["contact:2", "contact:3"])


def test_one_key_in_two_forms_is_loaded_once_and_returned_twice(reader: Driver, database: Database) -> None:
    calls: list[Any] = []
    view = reader.view("contact", lambda _, number: calls.append(number) or "loaded")
    assert reader.wait(view.get_many([42, "42"])) == {42: "loaded", "42": "loaded"}
    assert len(calls) == 1


def test_keys_of_several_parts_come_as_they_were_asked_for(reader: Driver) -> None:
    view = reader.view("member", lambda _, segment, contact: f"{segment}/{contact}")
    assert reader.wait(view.get(("vip", 7))) == "vip/7"
    assert reader.wait(view("vip", 7)) == "vip/7"
    assert reader.wait(view.get({"contact": 7, "segment": "vip"})) == "vip/7"
    assert reader.wait(view.get_many([("vip", 7), ("new", 8)])) == {("vip", 7): "vip/7", ("new", 8): "new/8"}


# --- the near cache ---------------------------------------------------------------------------------------------------


@pytest.fixture
def near(kind: str, region: ScriptedRegion, database: Database) -> Iterator[Driver]:
    driver = Driver(kind, region, database, near=Near())
    yield driver
    driver.close()


def test_what_was_read_within_the_bound_is_served_from_this_process(near: Driver, region: ScriptedRegion) -> None:
    region.entries["contact:7"] = stored("contact:7")
    view = bounded(near, max_staleness=60)
    for _ in range(3):
        assert near.wait(view.get(7)) == {"email": "a"}
    assert (region.looks, near.counts["near"]) == (1, 2)


def test_without_a_bound_the_near_cache_is_not_asked(near: Driver, region: ScriptedRegion) -> None:
    region.entries["contact:7"] = stored("contact:7")
    for _ in range(3):
        near.get("contact", 7, pytest.fail)
    assert region.looks == 3


def test_the_near_cache_is_judged_by_the_watermark_it_was_read_with(
    near: Driver, region: ScriptedRegion, database: Database
) -> None:
    region.entries["contact:7"] = stored("contact:7")
    region.watermark = watermark(NOW_MS, p(11, 11))
    view = bounded(near, max_staleness=60)
    near.wait(view.get(7))
    region.entries["contact:7"] = stored("contact:7", b'"new"')
    region.watermark = watermark(NOW_MS, p(20, 20))
    assert near.wait(view.get(7, token=token(10))) == {"email": "a"}
    assert near.wait(view.get(7, token=token(15))) == "new"
    near.reader.reading._database_clock.observe(NOW_MS + 90_000, near.reader.reading._clock())
    assert near.wait(view.get(7, max_staleness=200)) == "new"
    region.watermark = watermark(NOW_MS + 90_000)
    region.entries["contact:7"] = stored("contact:7", b'"newest"')
    assert near.wait(view.get(7)) == "newest"


def test_a_moved_generation_and_a_closed_view_empty_the_near_cache(near: Driver, region: ScriptedRegion) -> None:
    view = bounded(near, max_staleness=60)
    region.entries |= {f"contact:{n}": stored(f"contact:{n}") for n in (1, 2, 3)}
    for number in (1, 2):
        near.wait(view.get(number))
    region.entries |= {f"contact:{n}": stored(f"contact:{n}", b'"new"', generations="1" * 64) for n in (1, 2, 3)}
    assert near.wait(view.get(1)) == {"email": "a"}
    near.wait(view.get(3))
    assert near.wait(view.get(1)) == "new"
    region.status = "CLOSED"
    near.wait(view.get(9))
    assert near.wait(view.get(1)) == "loaded"


def test_one_value_can_be_dropped_from_the_near_cache(near: Driver, region: ScriptedRegion) -> None:
    region.entries["contact:7"] = stored("contact:7")
    view = bounded(near, max_staleness=60)
    near.wait(view.get(7))
    region.entries["contact:7"] = stored("contact:7", b'"new"')
    near.reader.invalidate_local("contact", 7)
    assert near.wait(view.get(7)) == "new"


def test_the_near_cache_keeps_to_its_bytes(kind: str, region: ScriptedRegion, database: Database) -> None:
    reader = Driver(kind, region, database, near=Near(bytes_max=5_000))
    region.entries |= {f"contact:{n}": stored(f"contact:{n}") for n in range(100)}
    view = bounded(reader, max_staleness=60)
    for number in range(100):
        reader.wait(view.get(number))
    kept = reader.reader.reading.near
    assert 3_000 < kept.bytes <= 5_000
    before = region.looks
    reader.wait(view.get(99))
    assert region.looks == before
    reader.wait(view.get(0))
    assert region.looks == before + 1


def test_a_value_past_half_of_its_bound_is_served_and_looked_for_again(near: Driver, region: ScriptedRegion) -> None:
    region.entries["contact:7"] = stored("contact:7")
    view = bounded(near, max_staleness=60)
    near.wait(view.get(7))
    near.reader.reading._database_clock.observe(NOW_MS + 40_000, near.reader.reading._clock())
    region.watermark = watermark(NOW_MS + 40_000)
    region.entries["contact:7"] = stored("contact:7", b'"new"')
    assert near.wait(view.get(7)) == {"email": "a"}
    _finish_aside(near)
    assert near.wait(view.get(7)) == "new"
    assert near.counts["near"] == 2


def test_an_ageing_value_beside_one_that_fails_is_looked_for_the_next_time(
    near: Driver, region: ScriptedRegion, database: Database
) -> None:
    view = bounded(near, max_staleness=5)
    region.watermark = watermark(NOW_MS - 4_000)
    region.entries["contact:7"] = stored("contact:7")
    assert near.wait(view.get(7)) == {"email": "a"}
    database.fails = OSError("away")
    with pytest.raises(SourceFault):
        near.wait(view.get_many([7, 8]))
    assert not near.reader.reading._renewed


def test_ageing_values_are_not_looked_for_twice_at_a_time(near: Driver, region: ScriptedRegion) -> None:
    region.entries["contact:7"] = stored("contact:7")
    view = bounded(near, max_staleness=60)
    near.wait(view.get(7))
    reading = near.reader.reading
    reading._database_clock.observe(NOW_MS + 40_000, reading._clock())
    first = reading.nearby(view._view, 7, view._view.need)
    assert first.again is not None
    assert reading.nearby(view._view, 7, view._view.need).again is None
    near.run(first.again)
    reading._database_clock.observe(NOW_MS + 40_000, reading._clock())
    assert reading.nearby(view._view, 7, view._view.need).again is not None


def _finish_aside(driver: Driver) -> None:
    if driver.kind == "threads":
        driver.reader.close()
        return

    async def finish() -> None:
        import asyncio

        await asyncio.gather(*driver.reader._aside)

    driver.wait(finish())
