"""Readers on real servers: tokens across regions, bounds while a region lags, sessions of the application's own, and
what becomes of a connection that was given up. Both readers, for threads and for asyncio, go through the same tests.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool
from pydantic import BaseModel

from cdc.errors import ConfigError, TransientError
from consumers.regions import open_region, redis_connection
from infra.proxy import FaultProxy, Way
from invalidator import (
    AsyncCacheReader,
    AsyncRegion,
    CacheReader,
    Codec,
    Limits,
    Near,
    Region,
    Session,
    Token,
    Unproven,
    connect_async,
)
from invalidator.nodes import Connection, connect
from tests.fix_stack import DEFAULT_HEARTBEAT, SCHEMA, VIEWS, Site
from tests.waiting import wait_until

Load = Callable[..., Any]


@pytest.fixture(scope="module")
def site(staleproof_factory: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two regions for the whole module, open."""
    with staleproof_factory.make(
        schema=SCHEMA, views=VIEWS, regions=("eu", "us"), source=DEFAULT_HEARTBEAT,
        directory=tmp_path_factory.mktemp("reader"),
    ) as made:  # fmt: skip
        yield made


@pytest.fixture
def number(site: Site) -> int:
    """A contact that no other test touches."""
    row = site.database.execute("SELECT coalesce(max(id), 0) + 1 FROM contacts").fetchone()
    assert row is not None
    site.database.execute("INSERT INTO contacts VALUES (%s, 'first', 's')", (row[0],))
    return int(row[0])


class Sync:
    """A reader for threads."""

    def __init__(
        self, site: Site, region: str, *, url: str | None = None, dsn: str | None = None, **options: Any
    ) -> None:
        known = open_region(site.settings, region)
        if url is not None:
            known = Region(region, connect(Connection(url=url, timeout_seconds=0.5)), known.layout)
        self.site, self.dsn = site, dsn or site.dsn
        self.loads = 0
        self.reader = CacheReader(known, site.views, self._lend, **options)

    @contextmanager
    def _lend(self) -> Iterator[Any]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            yield connection

    def email(self, number: int, **needs: Any) -> Any:
        def load(connection: Any) -> Any:
            self.loads += 1
            row = connection.execute("SELECT email FROM contacts WHERE id = %s", (number,)).fetchone()
            return None if row is None else row[0]

        return self.reader.get("contact", number, load, **needs)

    def write(self, number: int, email: str) -> Token:
        with psycopg.connect(self.site.dsn, autocommit=True) as connection:
            with self.reader.write_token(connection) as promised:
                connection.execute("UPDATE contacts SET email = %s WHERE id = %s", (email, number))
            return promised.token

    def passed(self, token: Token) -> bool:
        return self.reader.passed(token)

    def close(self) -> None:
        self.reader.close()


class Async:
    """The one for asyncio, called as if it were the other."""

    def __init__(
        self, site: Site, region: str, *, url: str | None = None, dsn: str | None = None, **options: Any
    ) -> None:
        self.site, self.dsn = site, dsn or site.dsn
        self.loads = 0
        self._runner = asyncio.Runner()
        known = (
            redis_connection(site.settings.regions[region]) if url is None else Connection(url=url, timeout_seconds=0.5)
        )
        layout = open_region(site.settings, region).layout
        self.region = AsyncRegion(region, connect_async(known), layout)
        self.reader = AsyncCacheReader(self.region, site.views, self._lend, **options)

    @asynccontextmanager
    async def _lend(self) -> Any:
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            yield connection

    def email(self, number: int, **needs: Any) -> Any:
        async def load(connection: Any) -> Any:
            self.loads += 1
            row = await (await connection.execute("SELECT email FROM contacts WHERE id = %s", (number,))).fetchone()
            return None if row is None else row[0]

        return self.run(self.reader.get("contact", number, load, **needs))

    def write(self, number: int, email: str) -> Token:
        async def write() -> Token:
            async with await psycopg.AsyncConnection.connect(self.site.dsn, autocommit=True) as connection:
                async with self.reader.write_token(connection) as promised:
                    await connection.execute("UPDATE contacts SET email = %s WHERE id = %s", (email, number))
                return promised.token

        return self.run(write())

    def passed(self, token: Token) -> bool:
        return self.run(self.reader.passed(token))

    def run(self, awaitable: Awaitable[Any]) -> Any:
        async def awaited() -> Any:
            return await awaitable

        return self._runner.run(awaited())

    def close(self) -> None:
        self.run(self.reader.aclose())
        self._runner.close()


KINDS: Mapping[str, Any] = {"threads": Sync, "async": Async}


@pytest.fixture(params=sorted(KINDS))
def open_reader(request: pytest.FixtureRequest, site: Site) -> Iterator[Callable[..., Any]]:
    opened: list[Any] = []

    def open_one(region: str, **options: Any) -> Any:
        opened.append(KINDS[request.param](site, region, **options))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


@contextmanager
def paused(site: Site, *command: str) -> Iterator[None]:
    """The region's worker stands still: nothing is invalidated."""
    processes = site.running(*command)
    assert processes
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


def test_a_write_is_read_in_another_region_that_lags_behind(site: Site, open_reader: Any, number: int) -> None:
    here, there = open_reader("eu"), open_reader("us")
    assert there.email(number) == "first"
    with paused(site, "invalidate", "--region", "us"):
        token = here.write(number, "second")
        assert there.email(number) == "first"  # whoever has no token is served what the region knows
        assert not there.passed(token)
        for wanted in (token, token.text):
            assert there.email(number, token=wanted) == "second"
    wait_until(lambda: there.passed(token), "the region has applied the write", seconds=20)
    there.email(number, token=token)
    loads = there.loads
    assert there.email(number, token=token) == "second"
    assert there.loads == loads  # a hit, now that the region has passed it


def test_a_token_taken_inside_a_transaction_counts_once_it_is_committed(
    site: Site, open_reader: Any, number: int
) -> None:
    there = open_reader("us")
    reader = CacheReader(open_region(site.settings, "eu"), site.views, pytest.fail)
    there.email(number)
    with psycopg.connect(site.dsn) as connection:
        assert reader.token(connection).empty
        connection.execute("UPDATE contacts SET email = 'second' WHERE id = %s", (number,))
        token = reader.token(connection)
        assert there.email(number, token=token) == "first"
        assert not there.passed(token)
        connection.commit()
    assert there.email(number, token=token) == "second"
    wait_until(lambda: there.passed(token), "the region has applied the write", seconds=20)


def test_write_token_refuses_a_transaction_of_the_applications_own(site: Site) -> None:
    reader = CacheReader(open_region(site.settings, "eu"), site.views, pytest.fail)
    with (
        psycopg.connect(site.dsn) as connection,
        pytest.raises(ConfigError, match=r"reader\.token"),
        reader.write_token(connection),
    ):
        pytest.fail("it was opened")
    with psycopg.connect(site.dsn, autocommit=True) as connection:
        with pytest.raises(ZeroDivisionError), reader.write_token(connection) as promised:
            raise ZeroDivisionError
        with pytest.raises(ConfigError, match="committed"):
            _ = promised.text


def test_a_bound_holds_while_the_region_lags(site: Site, open_reader: Any, number: int) -> None:
    reader = open_reader("eu")
    assert reader.email(number, max_staleness=60) == "first"
    with paused(site, "invalidate", "--region", "eu"):
        site.database.execute("UPDATE contacts SET email = 'second' WHERE id = %s", (number,))
        assert reader.email(number, max_staleness=60) == "first"
        wait_until(lambda: reader.email(number, max_staleness=1.5) == "second", "the bound forces a load", seconds=5)
    wait_until(lambda: reader.email(number) == "second", "the worker goes on", seconds=20)


def test_a_session_never_goes_back(site: Site, open_reader: Any, number: int) -> None:
    reader, session = open_reader("eu"), Session()
    assert reader.email(number) == "first"
    with paused(site, "invalidate", "--region", "eu"):
        site.database.execute("UPDATE contacts SET email = 'second' WHERE id = %s", (number,))
        assert reader.email(number, token=session) == "first"
        assert reader.email(number, token=session, strong=True) == "second"
        assert reader.email(number, token=session) == "second"
        assert reader.email(number, token=Session(session.text)) == "second"
        session = Session()
        session.add(reader.write(number, "third"))
        assert reader.email(number, token=session) == "third"


@pytest.mark.parametrize("level", ["read committed", "repeatable read"])
def test_a_miss_is_loaded_on_the_applications_own_session(site: Site, number: int, level: str) -> None:
    reader = CacheReader(open_region(site.settings, "eu"), site.views, pytest.fail)
    contact = reader.view("contact", load_email)
    with psycopg.connect(site.dsn, row_factory=dict_row) as connection:
        connection.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        with reader.snapshot(connection) as snapshot:
            assert contact.get(number, snapshot=snapshot) == {"email": "first"}
    wait_until(lambda: is_cached(site, "eu", number), "what was loaded there is cached", seconds=1)


def test_a_transaction_that_wrote_fills_nothing(site: Site, number: int) -> None:
    reader = CacheReader(open_region(site.settings, "eu"), site.views, pytest.fail)
    contact = reader.view("contact", load_email)
    with psycopg.connect(site.dsn, row_factory=dict_row) as connection:
        connection.execute("UPDATE contacts SET email = 'mine' WHERE id = %s", (number,))
        with reader.snapshot(connection) as snapshot:
            assert contact.get(number, snapshot=snapshot) == {"email": "mine"}
        connection.rollback()
    assert reader.counts["unproven"] == 1
    assert not is_cached(site, "eu", number)


def test_an_old_snapshot_of_the_application_fills_nothing_stale(site: Site, number: int) -> None:
    reader = CacheReader(open_region(site.settings, "eu"), site.views, pytest.fail)
    contact = reader.view("contact", load_email)
    with psycopg.connect(site.dsn, row_factory=dict_row) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT 1")
        site.database.execute("UPDATE contacts SET email = 'second' WHERE id = %s", (number,))
        site.wait_drained("eu")
        with reader.snapshot(connection) as snapshot:
            assert contact.get(number, snapshot=snapshot) == {"email": "first"}
    assert reader.counts["refused"] == 1
    assert not is_cached(site, "eu", number)


def test_a_pool_may_have_rows_of_its_own_kind(site: Site, number: int) -> None:
    kwargs = {"autocommit": True, "row_factory": dict_row}
    with ConnectionPool(site.dsn, kwargs=kwargs, min_size=1, max_size=1) as pool:
        reader = CacheReader(open_region(site.settings, "eu"), site.views, pool.connection)
        contact = reader.view("contact", load_email)
        assert contact.get(number) == {"email": "first"}
        assert contact.get(number) == {"email": "first"}
        assert (reader.counts["filled"], reader.counts["hit"]) == (1, 1)


class Row(BaseModel):
    """A model that people have already."""

    email: str


class FrozenRow(msgspec.Struct, frozen=True):
    """The quick kind."""

    email: str


@pytest.mark.parametrize("kind", [Row, FrozenRow])
@pytest.mark.parametrize("codec", [Codec(), Codec(serializer="msgpack", compress_from_bytes=1)])
def test_values_come_back_as_what_they_were(site: Site, number: int, kind: Any, codec: Codec) -> None:
    with ConnectionPool(site.dsn, kwargs={"autocommit": True}, min_size=1, max_size=1) as pool:
        reader = CacheReader(open_region(site.settings, "us"), site.views, pool.connection, near=Near())
        contact = reader.view("contact", lambda *_: kind(email="x" * 100), type=kind, codec=codec, max_staleness=60)
        for _ in range(3):
            assert contact.get(number) == kind(email="x" * 100)
        assert (reader.counts["loaded"], reader.counts["hit"], reader.counts["near"]) == (1, 1, 1)
        untyped = reader.view("contact", pytest.fail)
        assert untyped.get(number) == {"email": "x" * 100}


def test_two_processes_load_a_key_once(site: Site, number: int) -> None:
    """Two readers stand for two processes: they share nothing but Redis."""
    started, loads = threading.Barrier(8), []

    def load(connection: Any, key: int) -> Any:
        loads.append(key)
        row = connection.execute("SELECT email FROM contacts, pg_sleep(0.3) WHERE id = %s", (key,)).fetchone()
        return row[0]

    def read(view: Any) -> Any:
        started.wait(10)
        return view.get(number)

    with ConnectionPool(site.dsn, kwargs={"autocommit": True}, min_size=8, max_size=8) as pool:
        readers = [CacheReader(open_region(site.settings, "eu"), site.views, pool.connection) for _ in range(2)]
        views = [reader.view("contact", load) for reader in readers]
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(read, views * 4)) == ["first"] * 8
    assert loads == [number]
    header = open_region(site.settings, "eu")
    assert header.lease(0, [f"contact:{number}"], "x" * 16, 1, 1) == ["GRANTED"]  # nothing was left behind


def test_a_reply_that_comes_late_is_never_anothers(site: Site, open_reader: Any, number: int) -> None:
    """The reply to a read that timed out arrives afterwards, on a connection that nobody reads any more."""
    site.database.execute("INSERT INTO contacts VALUES (%s, 'other', 's')", (number + 1,))
    with FaultProxy(int(site.settings.regions["eu"].url.get_secret_value().rsplit(":", 1)[1].split("/")[0])) as proxy:
        reader = open_reader("eu", url=f"redis://127.0.0.1:{proxy.port}/0", limits=Limits(breaker_failures=100))
        assert [reader.email(n) for n in (number, number + 1)] == ["first", "other"]
        assert [reader.email(n) for n in (number, number + 1)] == ["first", "other"]
        before = proxy.counts().connections
        proxy.delay(Way.REPLIES, 800)
        assert reader.email(number) == "first"  # loaded: the region did not answer in time
        proxy.heal()
        for _ in range(5):
            assert [reader.email(n) for n in (number + 1, number)] == ["other", "first"]
        assert proxy.counts().connections > before
        assert reader.reader.counts["down"] == 1
        assert reader.reader.counts["foreign"] == 0


def test_a_server_that_never_greets_is_given_up_in_time(site: Site, open_reader: Any, number: int) -> None:
    """It accepts connections and says nothing: the deadline holds for a connection that is being opened as well."""
    with FaultProxy(int(site.settings.regions["eu"].url.get_secret_value().rsplit(":", 1)[1].split("/")[0])) as proxy:
        proxy.blackhole(Way.REPLIES)
        reader = open_reader("eu", url=f"redis://127.0.0.1:{proxy.port}/0", limits=Limits(breaker_failures=100))
        began = time.monotonic()
        assert reader.email(number) == "first"
        assert time.monotonic() - began < 4
        assert reader.reader.counts["down"] == 1
        proxy.heal()
        assert [reader.email(number) for _ in range(3)] == ["first"] * 3
        assert reader.reader.counts["hit"] >= 1


def test_a_connection_whose_reply_did_not_come_is_closed(site: Site) -> None:
    """A region that another caller asks next, on the connection that was given up, would answer the wrong question."""
    port = int(site.settings.regions["eu"].url.get_secret_value().rsplit(":", 1)[1].split("/")[0])
    view = site.views.views["contact"]
    with FaultProxy(port) as proxy:
        known = open_region(site.settings, "eu")
        region = Region(
            "eu", connect(Connection(url=f"redis://127.0.0.1:{proxy.port}/0", timeout_seconds=0.3)), known.layout
        )
        assert region.look(0, ["contact:0"], view.name, view.digest).status == "OPEN"
        proxy.delay(Way.REPLIES, 450)
        with pytest.raises(TransientError):
            region.look(0, ["contact:0"], view.name, view.digest)
        proxy.heal()
        assert region.lease(0, ["of nobody"], "x" * 16, 0, 1) == ["RELEASED"]
        assert len(region.look(0, [f"contact:{n}" for n in range(3)], view.name, view.digest).entries) == 3


def test_a_shared_load_is_judged_for_everybody_who_waits(site: Site, number: int) -> None:
    """Who presents a token waits for a load that began before the write, and does not get its value."""
    loading, go_on = threading.Event(), threading.Event()

    def load(connection: Any, key: int) -> Any:
        row = connection.execute("SELECT email FROM contacts WHERE id = %s", (key,)).fetchone()
        if not loading.is_set():
            loading.set()
            assert go_on.wait(10)
        return row[0]

    with ConnectionPool(site.dsn, kwargs={"autocommit": True}, min_size=2, max_size=2) as pool:
        reader = CacheReader(
            open_region(site.settings, "eu"), site.views, pool.connection, limits=Limits(wait_seconds=9)
        )
        view = reader.view("contact", load)
        with ThreadPoolExecutor(2) as threads, psycopg.connect(site.dsn, autocommit=True) as connection:
            first = threads.submit(view.get, number)
            assert loading.wait(10)
            with reader.write_token(connection) as write:
                connection.execute("UPDATE contacts SET email = 'second' WHERE id = %s", (number,))
            second = threads.submit(view.get, number, token=write.token)
            wait_until(lambda: reader.counts["miss"] == 2, "the second has looked", seconds=5)
            go_on.set()
            assert (first.result(10), second.result(10)) == ("first", "second")


def test_a_cancelled_read_takes_its_connection_with_it(site: Site, number: int) -> None:
    site.database.execute("INSERT INTO contacts VALUES (%s, 'other', 's')", (number + 1,))
    port = int(site.settings.regions["eu"].url.get_secret_value().rsplit(":", 1)[1].split("/")[0])
    with FaultProxy(port) as proxy:
        one = Async(site, "eu", url=f"redis://127.0.0.1:{proxy.port}/0")
        assert [one.email(n) for n in (number, number + 1)] == ["first", "other"]
        assert one.email(number) == "first"
        before = proxy.counts().connections

        async def cancelled() -> None:
            proxy.delay(Way.REPLIES, 200)
            task = asyncio.ensure_future(one.reader.get("contact", number, pytest.fail))
            await asyncio.sleep(0.05)  # the request is on its way, and its reply is not
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            proxy.heal()

        one.run(cancelled())
        for _ in range(5):
            assert [one.email(n) for n in (number + 1, number)] == ["other", "first"]
        assert proxy.counts().connections > before
        assert one.reader.counts["foreign"] == 0
        one.close()


def test_a_connection_that_the_server_closed_is_replaced_without_a_fault(
    site: Site, open_reader: Any, number: int
) -> None:
    reader = open_reader("eu")
    reader.email(number)
    reader.email(number)
    with open_region(site.settings, "eu")._nodes.serving("x").client as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    loads = reader.loads
    assert reader.email(number) == "first"
    assert (reader.loads, reader.reader.counts["down"]) == (loads, 0)


def test_a_loader_that_writes_cannot_prove_a_bound(site: Site, number: int) -> None:
    def load(connection: Any) -> Any:
        connection.execute("COMMIT")
        connection.execute("UPDATE contacts SET status = 'seen' WHERE id = %s", (number,))
        return 1

    with ConnectionPool(site.dsn, kwargs={"autocommit": True}, min_size=1, max_size=1) as pool:
        reader = CacheReader(open_region(site.settings, "eu"), site.views, pool.connection)
        assert reader.get("contact", number, load) == 1
        with pytest.raises(Unproven):
            reader.get("contact", number, load, max_staleness=60)


def load_email(connection: Any, number: int) -> Any:
    return connection.execute("SELECT email FROM contacts WHERE id = %s", (number,)).fetchone()


def is_cached(site: Site, region: str, number: int) -> bool:
    known, view = open_region(site.settings, region), site.views.views["contact"]
    return known.read(0, f"contact:{number}", view.name, view.digest).status == "HIT"
