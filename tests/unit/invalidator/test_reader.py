"""What a reader takes for proven, and what it does not. The servers are scripted here; real ones in tests/integration."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from cdc.errors import ConfigError, TransientError
from invalidator.entry import Content, Kind, encode_tail, lead
from invalidator.guard import Fill, Outcome
from invalidator.layout import Layout
from invalidator.reader import CacheReader
from invalidator.region import Filled, Found
from invalidator.views import load_views

VIEWS = load_views(
    """
version: 1
views:
  contact: {key: "contact:{id}", mode: invalidate, tables: {public.contacts: {}}}
  member: {key: "member:{segment}:{contact}", mode: invalidate, tables: {public.members: {}}}
""",
    place="views.yaml",
)


class Cursor:
    def __init__(self, row: tuple[Any, ...]) -> None:
        self._row = row

    def fetchone(self) -> tuple[Any, ...]:
        return self._row

    def nextset(self) -> bool:
        return True


class Connection:
    """Answers as a primary, unless a test says otherwise."""

    autocommit = True

    def __init__(self) -> None:
        self.identity: tuple[Any, ...] = ("one", False, "77", 1)
        self.replayed: tuple[Any, ...] = ("one", "0/64")
        self.seen: tuple[Any, ...] = ("one", False, "10:12:11", 5_000)
        self.end: tuple[Any, ...] = ("10:12:11", True)
        self.rolled_back = False

    def execute(self, query: str) -> Cursor:
        if query.startswith("BEGIN"):
            return Cursor(self.seen)
        if query.endswith("COMMIT"):
            return Cursor(self.end)
        return Cursor(self.replayed if "pg_last_wal_replay_lsn" in query else self.identity)

    def rollback(self) -> None:
        self.rolled_back = True


class ScriptedRegion:
    layout = Layout()

    def __init__(self) -> None:
        self.found: Found | Exception = Found("MISS", "")
        self.fills: list[Fill] = []

    def read(self, shard: int, key: str, view: str, digest: str) -> Found:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found

    def fill(self, shard: int, request: Fill) -> Filled:
        self.fills.append(request)
        return Filled(Outcome.APPLIED)


@pytest.fixture
def connection() -> Connection:
    return Connection()


@pytest.fixture
def region() -> ScriptedRegion:
    return ScriptedRegion()


@pytest.fixture
def reader(connection: Connection, region: ScriptedRegion) -> CacheReader:
    return CacheReader(region, VIEWS, lambda: nullcontext(connection))  # type: ignore[arg-type]


def test_a_miss_is_filled_with_the_snapshot_of_its_load(reader: CacheReader, region: ScriptedRegion) -> None:
    assert reader.get("contact", 7, lambda _: {"email": "a"}) == {"email": "a"}
    (fill,) = region.fills
    assert (fill.key, fill.view, fill.history) == ("contact:7", "contact", "77:1")
    assert fill.seen == "p" + "".join(f"{stamp:016x}" for stamp in (10, 12, 11))


def test_a_standbys_fill_carries_what_was_replayed_before_it(
    reader: CacheReader, region: ScriptedRegion, connection: Connection
) -> None:
    connection.identity, connection.seen = ("one", True, "77", 1), ("one", True, "10:12:", 5_000)
    connection.end = ("10:12:", True)
    reader.get("contact", 7, lambda _: 1)
    assert region.fills[0].seen == f"s{10:016x}{0x64:016x}"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"end": ("10:13:11", True)}, id="the loader left the transaction"),
        pytest.param({"end": ("10:12:11", False)}, id="the loader wrote"),
        pytest.param({"seen": ("one", True, "10:12:11", 5_000)}, id="the server was demoted meanwhile"),
        pytest.param({"seen": ("two", False, "10:12:11", 5_000)}, id="another server answered"),
        pytest.param(
            {"identity": ("one", True, "77", 1), "seen": ("one", True, "10:12:11", 1), "replayed": ("two", "0/99")},
            id="another standby told the replay position",
        ),
    ],
)
def test_what_is_not_proven_is_returned_and_not_cached(
    reader: CacheReader, region: ScriptedRegion, connection: Connection, change: dict[str, Any]
) -> None:
    for name, value in change.items():
        setattr(connection, name, value)
    assert reader.get("contact", 7, lambda _: 1) == 1
    assert region.fills == []
    assert reader.counts["unproven"] == 1


def test_an_error_of_the_loader_passes_and_nothing_is_cached(
    reader: CacheReader, region: ScriptedRegion, connection: Connection
) -> None:
    def load(_: object) -> None:
        raise LookupError("no such thing")

    with pytest.raises(LookupError):
        reader.get("contact", 7, load)
    assert connection.rolled_back
    assert region.fills == []


def stored(key: str, payload: bytes = b'{"email":"a"}') -> bytes:
    tail = encode_tail(view="contact", key=key, seen="p" + "0" * 32, payload=payload, as_of_ms=1)
    return lead(Kind.FILL, Content.VALUE).encode() + b"0" * 64 + tail


def test_a_hit_is_served_without_a_load(reader: CacheReader, region: ScriptedRegion) -> None:
    region.found = Found("HIT", "", stored("contact:7"))
    assert reader.get("contact", 7, pytest.fail) == {"email": "a"}


@pytest.mark.parametrize("entry", [stored("contact:8"), b"rubbish", stored("contact:7", b"{")])
def test_an_entry_that_is_not_the_one_asked_for_is_a_miss(
    reader: CacheReader, region: ScriptedRegion, entry: bytes
) -> None:
    region.found = Found("HIT", "", entry)
    assert reader.get("contact", 7, lambda _: "loaded") == "loaded"
    assert reader.counts["foreign"] == 1


def test_a_redis_that_is_away_costs_a_load_and_no_error(reader: CacheReader, region: ScriptedRegion) -> None:
    region.found = TransientError("away")
    assert reader.get("contact", 7, lambda _: 1) == 1
    assert region.fills == []


def test_an_absent_row_is_cached_as_absent(reader: CacheReader, region: ScriptedRegion) -> None:
    assert reader.get("contact", 7, lambda _: None) is None
    assert region.fills[0].lead == "1faj"


def test_a_value_that_is_too_large_is_not_cached(connection: Connection, region: ScriptedRegion) -> None:
    reader = CacheReader(region, VIEWS, lambda: nullcontext(connection), payload_bytes_max=10)  # type: ignore[arg-type]
    assert reader.get("contact", 7, lambda _: "x" * 20) == "x" * 20
    assert region.fills == []


@pytest.mark.parametrize(
    ("view", "key", "said"),
    [("nosuch", 1, "there is no view"), ("member", 1, "segment, contact"), ("contact", 1.5, "contact")],
)
def test_a_wrong_question_is_one_clear_error(reader: CacheReader, view: str, key: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        reader.get(view, key, pytest.fail)


def test_a_connection_in_a_transaction_of_its_own_is_refused(reader: CacheReader, connection: Connection) -> None:
    connection.autocommit = False
    with pytest.raises(ConfigError, match="autocommit"):
        reader.get("contact", 1, pytest.fail)
