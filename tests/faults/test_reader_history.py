"""P2 and P3 while everything around the readers fails: what was read and written is recorded, and judged afterwards.

Bounded readers, and sessions that write and read in two regions in turn; one region's Redis is stopped, cut off, rolled
back and emptied, its worker and the source stand still. A reader without a bound shows that the faults do bite.
"""

from __future__ import annotations

import asyncio
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from cdc.errors import TransientError
from consumers.regions import open_region
from infra.proxy import FaultProxy, Way
from infra.redis_faults import RedisFaults
from infra.servers import Servers
from invalidator import (
    AsyncCacheReader,
    AsyncRegion,
    CacheReader,
    Limits,
    Near,
    Region,
    Session,
    connect_async,
)
from invalidator.nodes import Connection, connect
from tests.fix_redis import BINARIES
from tests.fix_stack import MakeSite, Site
from tests.history import History, SessionHistory

KEYS = 24
PROOF_KEYS = 6
"""More keys, that only the reader without a bound reads: what others load for theirs would make its entries new."""

BOUND_SECONDS = 1.0
CALM_SECONDS = 1.5
PACE_SECONDS = 0.002
LIMITS = Limits(loads=12, wait_seconds=5.0, breaker_seconds=0.3)

one_kind = pytest.mark.parametrize("mortal_redis", [max(BINARIES)], indirect=True)


class Crowd:
    """Writers and readers in threads; everything that they saw."""

    def __init__(self, site: Site, redis_port: int, proxy: FaultProxy) -> None:
        self.site = site
        self.bounded, self.unbounded = History(), History()
        self.sessions: list[SessionHistory] = []
        self.errors: list[BaseException] = []
        self.transient = 0
        self.readers: list[Any] = []
        self._stop = threading.Event()
        self._proxy = proxy
        self._pool = ConnectionPool(site.dsn, kwargs={"autocommit": True}, min_size=14, max_size=14, open=True)
        works = [self._write, self._read_unbounded, self._read_async]
        works += [self._read_bounded, self._read_near, self._session, self._session]
        self._threads = [
            threading.Thread(target=self._guarded, args=(work, number)) for number, work in enumerate(works)
        ]

    def __enter__(self) -> Self:
        self.site.database.execute(
            "INSERT INTO contacts SELECT i, '1', 's' FROM generate_series(1, %s) i", (KEYS + PROOF_KEYS,)
        )
        self._pool.wait()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads)
        self._pool.close()

    def _guarded(self, work: Callable[[random.Random], None], number: int) -> None:
        try:
            work(random.Random(number))
        except BaseException as error:
            self.errors.append(error)
            self._stop.set()
            raise

    def _reader(self, region: str, **options: Any) -> CacheReader:
        """Of eu, which fails, through the proxy."""
        known = open_region(self.site.settings, region)
        if region == "eu":
            nodes = connect(Connection(url=f"redis://127.0.0.1:{self._proxy.port}/0", timeout_seconds=0.2))
            known = Region(region, nodes, known.layout)
        reader = CacheReader(known, self.site.views, self._pool.connection, limits=LIMITS, **options)
        self.readers.append(reader)
        return reader

    def _try(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except TransientError:
            self.transient += 1
            return None

    def _update(self, connection: Any, key: int) -> int:
        row = connection.execute(
            "UPDATE contacts SET email = (email::int + 1)::text WHERE id = %s RETURNING email::int", (key,)
        ).fetchone()
        return int(row[0])

    def _write(self, rng: random.Random) -> None:
        with psycopg.connect(self.site.dsn, autocommit=True) as connection:
            while not self._stop.wait(PACE_SECONDS * 4):
                key = rng.randint(1, KEYS + PROOF_KEYS)
                version = self._update(connection, key)
                self._wrote(key, version)

    def _wrote(self, key: int, version: int) -> None:
        acked = time.monotonic()
        self.bounded.wrote(key, version, acked)
        self.unbounded.wrote(key, version, acked)

    def _read_bounded(self, rng: random.Random) -> None:
        view = self._reader("eu").view("contact", load, max_staleness=BOUND_SECONDS)
        self._read_into(rng, self.bounded, view, range(1, KEYS + 1))

    def _read_near(self, rng: random.Random) -> None:
        reader = self._reader("eu", near=Near())
        view = reader.view("contact", load, max_staleness=BOUND_SECONDS)
        self._read_into(rng, self.bounded, view, range(1, KEYS + 1))

    def _read_unbounded(self, rng: random.Random) -> None:
        view = self._reader("eu").view("contact", load)
        self._read_into(rng, self.unbounded, view, range(KEYS + 1, KEYS + PROOF_KEYS + 1))

    def _read_into(self, rng: random.Random, history: History, view: Any, keys: range) -> None:
        while not self._stop.wait(PACE_SECONDS):
            key, began = rng.choice(keys), time.monotonic()
            version = self._try(lambda key=key: view.get(key))
            if version is not None:
                history.read(key, version, began)

    def _read_async(self, rng: random.Random) -> None:
        async def run() -> None:
            kwargs = {"autocommit": True}
            async with AsyncConnectionPool(self.site.dsn, kwargs=kwargs, min_size=2, max_size=2, open=False) as pool:
                known = Connection(url=f"redis://127.0.0.1:{self._proxy.port}/0", timeout_seconds=0.2)
                region = AsyncRegion("eu", connect_async(known), open_region(self.site.settings, "eu").layout)
                reader = AsyncCacheReader(region, self.site.views, pool.connection, limits=LIMITS)
                self.readers.append(reader)
                view = reader.view("contact", load_async, max_staleness=BOUND_SECONDS)
                while not self._stop.is_set():
                    key, began = rng.randint(1, KEYS), time.monotonic()
                    try:
                        version = await view.get(key)
                    except TransientError:
                        self.transient += 1
                    else:
                        assert version is not None
                        self.bounded.read(key, version, began)
                    await asyncio.sleep(PACE_SECONDS)  # readers have a rate of their own
                await reader.aclose()

        asyncio.run(run())

    def _session(self, rng: random.Random) -> None:
        """Writes and reads, in one region and then in the other: a user who is redirected."""
        views = [self._reader(region).view("contact", load) for region in ("eu", "us")]
        writer = self.readers[-1]
        with psycopg.connect(self.site.dsn, autocommit=True) as connection:
            while not self._stop.is_set():
                session, seen = Session(), SessionHistory()
                self.sessions.append(seen)
                for _ in range(8):
                    if self._stop.wait(PACE_SECONDS):
                        return
                    key = rng.randint(1, KEYS)
                    if rng.random() < 0.3:
                        with writer.write_token(connection) as promised:
                            version = self._update(connection, key)
                        self._wrote(key, version)
                        seen.wrote(key, version)
                        session.add(promised.token)
                    for view in rng.sample(views, 2):
                        version = self._try(lambda key=key, view=view, session=session: view.get(key, token=session))
                        if version is not None:
                            seen.read(key, version)
                    session = Session(session.text)  # through a cookie


def load(connection: Any, key: int) -> int:
    row = connection.execute("SELECT email::int FROM contacts WHERE id = %s", (key,)).fetchone()
    return int(row[0])


async def load_async(connection: Any, key: int) -> int:
    row = await (await connection.execute("SELECT email::int FROM contacts WHERE id = %s", (key,))).fetchone()
    return int(row[0])


@contextmanager
def paused(processes: list[Any], seconds: float) -> Iterator[None]:
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(seconds)  # the fault's own length
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


@one_kind
def test_no_read_is_older_than_its_bound_and_no_session_goes_back_whatever_fails(
    make_site: MakeSite, mortal_redis: RedisFaults, staleproof_servers: Servers
) -> None:
    site = make_site(redis_urls={"eu": mortal_redis.url, "us": staleproof_servers.redis_urls["us"]})
    site.start_all()
    with FaultProxy(mortal_redis.port) as proxy, Crowd(site, mortal_redis.port, proxy) as crowd:

        def calm() -> None:
            time.sleep(CALM_SECONDS)  # hits come back, so that the next fault meets a full cache
            assert not crowd.errors

        calm()
        dump = mortal_redis.take_dump()
        calm()
        with paused(site.running("invalidate", "--region", "eu"), 2.5):  # the region lags
            pass
        calm()
        with paused(site.running("capture"), 2.5):  # the source lags
            pass
        calm()
        mortal_redis.process.pause()  # Redis is stopped
        time.sleep(1.0)  # the fault's own length
        mortal_redis.process.resume()
        calm()
        proxy.blackhole(Way.REPLIES)  # readers are cut off
        time.sleep(1.0)  # the fault's own length
        proxy.heal()
        calm()
        mortal_redis.roll_back(dump)
        calm()
        mortal_redis.restart_empty()
        site.wait_open("eu")
        calm()
    counts = sum((reader.counts for reader in crowd.readers), start=type(crowd.readers[0].counts)())
    assert not crowd.errors
    assert crowd.bounded.stale(BOUND_SECONDS) == []
    assert [s.unseen_writes for s in crowd.sessions if s.unseen_writes] == []
    assert [s.went_back for s in crowd.sessions if s.went_back] == []
    # The faults were there, the cache was used, and nearly every read was answered.
    assert crowd.unbounded.stale(BOUND_SECONDS)
    assert counts["hit"] > 1_000
    assert counts["near"] > 100
    assert min(counts["old"], counts["down"], counts["token"]) > 20
    assert sum(session.reads for session in crowd.sessions) > 1_000
    assert crowd.transient < len(crowd.bounded.reads) / 50
