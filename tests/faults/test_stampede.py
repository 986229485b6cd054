"""P7: a whole region is raised at its peak. Readers wait, the database is asked only so much, and it passes by itself."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable
from statistics import quantiles
from typing import Any, Self

import pytest
from psycopg_pool import ConnectionPool

from cdc.errors import TransientError
from consumers.fence import Aim
from consumers.fence import run as fence
from consumers.regions import open_region
from invalidator import CacheReader, Limits
from tests.fix_stack import MakeSite, Site
from tests.waiting import wait_until

READS_PER_SECOND = 500
CONNECTIONS = 20
PROCESSES = 4
"""Readers that share nothing but Redis and the database: as many as there are processes."""

REGION_LOADS = 12
LOAD_SECONDS = 0.02
KEYS = 2_000
THREADS = 200
LIMITS = Limits(loads=CONNECTIONS // PROCESSES, region_loads=REGION_LOADS, wait_seconds=3.0)
RECOVERY_SECONDS = 60.0
RECOVERED_HITS = 0.9
TICK_SECONDS = 0.25


class Traffic:
    """Reads that arrive at a rate, whatever becomes of those before them."""

    def __init__(self, site: Site) -> None:
        self.seconds: list[float] = []
        self.overloaded = 0
        self.errors: list[BaseException] = []
        self.most_loading = 0
        self._loading = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._due: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        kwargs = {"autocommit": True}
        self._pools = [
            ConnectionPool(site.dsn, kwargs=kwargs, min_size=LIMITS.loads, max_size=LIMITS.loads, open=True)
            for _ in range(PROCESSES)
        ]
        self.readers = [
            CacheReader(open_region(site.settings, "eu"), site.views, pool.connection, limits=LIMITS)
            for pool in self._pools
        ]
        self.views = [reader.view("contact", self._load) for reader in self.readers]
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(THREADS)]
        self._threads.append(threading.Thread(target=self._arrive))

    def __enter__(self) -> Self:
        for pool in self._pools:
            pool.wait()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        for pool in self._pools:
            pool.close()

    def counted(self, name: str) -> int:
        return sum(reader.counts[name] for reader in self.readers)

    def recent_hits(self) -> float:
        """The share of hits among the reads of the next tick."""
        hits, done = self.counted("hit"), len(self.seconds)
        time.sleep(TICK_SECONDS)  # a tick
        return (self.counted("hit") - hits) / max(1, len(self.seconds) - done)

    def _arrive(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            due += 1 / READS_PER_SECOND
            time.sleep(max(0.0, due - time.monotonic()))  # arrivals have a rate of their own
            self._due.put(due)
        for _ in range(THREADS):
            self._due.put(None)

    def _work(self, number: int) -> None:
        rng, view = random.Random(number), self.views[number % PROCESSES]
        while (due := self._due.get()) is not None:
            try:
                view.get(int(KEYS * rng.random() ** 2))
            except TransientError:
                self.overloaded += 1
            except BaseException as error:
                self.errors.append(error)
                raise
            self.seconds.append(time.monotonic() - due)

    def _load(self, connection: Any, key: int) -> Any:
        with self._lock:
            self._loading += 1
            self.most_loading = max(self.most_loading, self._loading)
        try:
            row = connection.execute(
                "SELECT email FROM contacts, pg_sleep(%s) WHERE id = %s", (LOAD_SECONDS, key)
            ).fetchone()
        finally:
            with self._lock:
                self._loading -= 1
        return None if row is None else row[0]


@pytest.mark.slow  # 25 seconds of 500 reads a second: shown by `make faults`
def test_a_raised_region_recovers_and_the_database_is_not_overrun(
    make_site: MakeSite, record_testsuite_property: Callable[[str, object], None]
) -> None:
    site = make_site()
    site.start("capture")
    site.start("invalidate", "--region", "eu")
    site.database.execute("INSERT INTO contacts SELECT i, 'e', 's' FROM generate_series(0, %s) i", (KEYS,))
    site.wait_open("eu")
    site.wait_drained("eu")
    with Traffic(site) as traffic:
        wait_until(lambda: traffic.recent_hits() > RECOVERED_HITS, "the cache is warm", seconds=60)
        warm = traffic.counted("loaded")
        began, first = time.monotonic(), len(traffic.seconds)
        fence(site.settings, Aim(region="eu", everything=True), confirm=lambda _: True, as_json=True)
        wait_until(lambda: traffic.counted("closed") > 50, "the region is closed", seconds=20)
        wait_until(lambda: traffic.recent_hits() > RECOVERED_HITS, "the region has recovered", seconds=RECOVERY_SECONDS)
        recovered = time.monotonic() - began
        seconds = traffic.seconds[first:]
    p99 = quantiles(seconds, n=100)[98]
    shown = f"recovered after {recovered:.1f} s, p99 {p99:.2f} s, {traffic.overloaded} overloaded of {len(seconds)}"
    shown += f", {traffic.most_loading} loads at most, {traffic.counted('loaded') - warm} loads"
    record_testsuite_property("stampede", shown)
    assert not traffic.errors, shown
    assert 2 <= traffic.most_loading <= REGION_LOADS, shown
    assert traffic.counted("loaded") - warm > KEYS / 2, shown
    assert p99 < LIMITS.wait_seconds + 1, shown
    assert traffic.overloaded < len(seconds) / 50, shown
