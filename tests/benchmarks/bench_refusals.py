"""How often the guard refuses a value for nothing, where long transactions and many changes meet on one stripe.

On the real stack (PostgreSQL, Kafka, Redis, capture, worker) with the demonstration's tables and views. All keys are
contacts of one of 256 stripes: every 5 s a transaction begins that writes a row of the stripe at once and commits 20 s
later; 5 short transactions per second change one row each; readers read and fill without pause, and some entries are
removed at random, as a full Redis would, so that fills happen at any time. Counting begins when the region is open and
the first long transaction has committed.

Each row holds its version, and this process, which makes all the changes, knows when it sent each COMMIT and when it
had the answer. A refusal is *needful* if a newer version of that key was committed before the fill was sent, *needless*
if none was being committed until the refusal was known, and *in doubt* if the fill met a COMMIT under way. Those in
doubt count as needless. `needless_ratio` is of all fills that were tried.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from enum import StrEnum
from importlib import resources as packaged
from typing import Any

import msgspec
import psycopg
from psycopg_pool import ConnectionPool

from consumers.regions import read_views, redis_connection
from consumers.settings import Settings as Staleproof
from infra.demo.data import Sizes, load
from infra.site import Site
from infra.site_maker import SiteMaker
from invalidator import CacheReader
from invalidator.guard import Fill, Outcome
from invalidator.layout import Layout
from invalidator.nodes import connect
from invalidator.region import Filled, Region
from tests.benchmarks.harness import Bench, Results

REGION = "eu"
STRIPES = 256
"""The fewest that the settings allow, so that a stripe has many keys."""

LONG_KEYS = 8
"""More than long transactions are open at once: each has a row for itself."""

SIZES = Sizes(contacts=20_000, templates=2, campaigns=2, segments=2, members=80, events=10)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Options. A load takes `load_ms` longer than its query: the longer, the more changes overtake it."""

    seconds: float = 90.0
    long_seconds: float = 20.0
    long_every_seconds: float = 5.0
    changes_per_s: float = 5.0
    readers: int = 2
    reads_per_s: float = 1_000.0
    evictions_per_s: float = 20.0
    load_ms: float = 0.0
    seed: int = 1


class Write(msgspec.Struct, frozen=True):
    """One version of one key; `sent` and `answered` are the moments of its COMMIT, in one clock."""

    version: int
    sent: float
    answered: float


class Attempt(msgspec.Struct, frozen=True):
    """One fill: the version that it offered, and the moments when it was sent and its answer known."""

    key: int
    version: int
    sent: float
    answered: float
    outcome: Outcome
    reason: str


class Verdict(StrEnum):
    """Whether a refusal was worth it."""

    NEEDFUL = "needful"
    NEEDLESS = "needless"
    IN_DOUBT = "in_doubt"


def judge(attempt: Attempt, writes: Iterable[Write]) -> Verdict:
    """The verdict on a refused attempt, by all writes of its key."""
    newer = [write for write in writes if write.version > attempt.version]
    if any(write.answered <= attempt.sent for write in newer):
        return Verdict.NEEDFUL
    if any(write.sent <= attempt.answered for write in newer):
        return Verdict.IN_DOUBT
    return Verdict.NEEDLESS


def count(attempts: Sequence[Attempt], writes: dict[int, list[Write]]) -> Results:
    """The numbers of a run: what was tried, refused and why, and how much of that for nothing."""
    refused = [attempt for attempt in attempts if attempt.outcome is Outcome.REFUSED]
    verdicts = [(attempt, judge(attempt, writes.get(attempt.key, []))) for attempt in refused]
    needless = [attempt for attempt, verdict in verdicts if verdict is not Verdict.NEEDFUL]
    return {
        "fills": len(attempts),
        "refused": len(refused),
        "needless_refused": len(needless),
        "needless_ratio": len(needless) / len(attempts) if attempts else 0.0,
        "in_doubt": sum(verdict is Verdict.IN_DOUBT for _, verdict in verdicts),
        "refused_by_reason": dict(Counter(attempt.reason for attempt in refused)),
        "needless_by_reason": dict(Counter(attempt.reason for attempt in needless)),
    }


def run(settings: Settings, bench: Bench) -> Results:
    """Counts over the measured time."""
    with ExitStack() as resources:
        directory = resources.enter_context(bench.directory())
        stack = resources.enter_context(bench.stack(directory, [REGION]))
        site = _open_site(resources.enter_context(SiteMaker.open(stack, directory)))
        bench.say("the region is open")
        load_run = Load(settings, site)
        resources.callback(load_run.stop)
        load_run.start()
        load_run.wait(settings.long_seconds + settings.long_every_seconds, "warm-up", bench)
        began = time.monotonic()
        load_run.wait(settings.seconds, "measuring", bench)
        ended = time.monotonic()
        load_run.stop()
        alarms = site.logged("alarm")
    if alarms:
        raise RuntimeError(f"an alarm was raised without a fault: {alarms[0]}")
    attempts = [attempt for attempt in load_run.attempts if began <= attempt.sent and attempt.answered <= ended]
    writes = load_run.writes
    return {
        **count(attempts, writes),
        "seconds": ended - began,
        "changes": sum(began <= write.sent <= ended for known in writes.values() for write in known),
        "reads": load_run.reads,
        "keys": len(load_run.short_keys) + LONG_KEYS,
    }


class Load:
    """The writers and readers of the stripe, each on a thread and a connection of its own."""

    def __init__(self, settings: Settings, site: Site) -> None:
        keys = keys_of_one_stripe(Layout(stripes=STRIPES), SIZES.contacts)
        self.long_keys, self.short_keys = keys[:LONG_KEYS], keys[LONG_KEYS:]
        self.writes: dict[int, list[Write]] = defaultdict(list)
        self.attempts: list[Attempt] = []
        self.reads = 0
        self._settings = settings
        self._site = site
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []
        self._versions: Counter[int] = Counter()

    def start(self) -> None:
        """Begin."""
        self._run(self._write)
        self._run(self._begin_long_transactions)
        self._run(self._evict)
        for number in range(self._settings.readers):
            self._run(lambda number=number: self._read(random.Random(f"{self._settings.seed}:reader {number}")))

    def wait(self, seconds: float, what: str, bench: Bench) -> None:
        """Let it run for so long; raises what ended a thread or a process meanwhile."""
        bench.say(f"{what}: {seconds:.0f} s")
        ended = time.monotonic() + seconds
        while not self._stop.wait(min(1.0, max(0.0, ended - time.monotonic()))) and time.monotonic() < ended:
            self._site.check_processes()
        if self._failures:
            raise self._failures[0]

    def stop(self) -> None:
        """End every thread; open transactions commit."""
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, task: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                task()
            except BaseException as error:  # noqa: BLE001 - raised again by `wait`
                self._failures.append(error)
                self._stop.set()

        self._threads.append(threading.Thread(target=guarded))
        self._threads[-1].start()

    def _connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._site.dsn, autocommit=True)

    def _write(self) -> None:
        rng = random.Random(f"{self._settings.seed}:writer")
        with self._connect() as connection:
            while not self._stop.wait(rng.expovariate(self._settings.changes_per_s)):
                self._change(connection, rng.choice(self.short_keys), open_seconds=0.0)

    def _begin_long_transactions(self) -> None:
        number = 0
        while not self._stop.wait(self._settings.long_every_seconds if number else 0.0):
            key = self.long_keys[number % LONG_KEYS]
            self._run(lambda key=key: self._write_slowly(key))
            number += 1

    def _write_slowly(self, key: int) -> None:
        with self._connect() as connection:
            self._change(connection, key, open_seconds=self._settings.long_seconds)

    def _change(self, connection: psycopg.Connection[Any], key: int, *, open_seconds: float) -> None:
        """Write the next version of a key; one transaction at a time has the key."""
        self._versions[key] += 1
        version = self._versions[key]
        connection.execute("BEGIN")
        connection.execute(
            "UPDATE contacts SET attributes = jsonb_build_object('version', %s::int), updated_at = now() WHERE id = %s",
            (version, key),
        )
        self._stop.wait(open_seconds)
        sent = time.monotonic()
        connection.execute("COMMIT")
        self.writes[key].append(Write(version, sent, time.monotonic()))

    def _evict(self) -> None:
        rng = random.Random(f"{self._settings.seed}:evictions")
        region = _open_region(self._site.settings, Region)
        while not self._stop.wait(rng.expovariate(self._settings.evictions_per_s)):
            region.unlink(0, [f"contact:{rng.choice([*self.long_keys, *self.short_keys])}"])

    def _read(self, rng: random.Random) -> None:
        region = _open_region(self._site.settings, WatchedRegion)
        region.load_seconds = self._settings.load_ms / 1000
        keys = [*self.long_keys, *self.short_keys]
        pause = self._settings.readers / self._settings.reads_per_s
        with ConnectionPool(self._site.dsn, kwargs={"autocommit": True}, min_size=1, max_size=1) as pool:
            reader = CacheReader(region, read_views(self._site.settings.views), pool.connection)
            while not self._stop.wait(pause):
                region.key = rng.choice(keys)
                reader.get("contact", region.key, region.load)
                self.reads += 1
        self.attempts += region.attempts


class WatchedRegion(Region):
    """A region that remembers what each fill offered and what became of it. One reader uses it."""

    key = 0
    load_seconds = 0.0
    _version = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.attempts: list[Attempt] = []

    def load(self, connection: Any) -> dict[str, Any]:
        """The contact, as an application would load it; its version is remembered for the fill that follows."""
        row = connection.execute(
            "SELECT email, first_name, last_name, city, language, status, attributes FROM contacts WHERE id = %s",
            (self.key,),
        ).fetchone()
        time.sleep(self.load_seconds)  # a slow application, not a wait for something
        self._version = row[6].get("version", 0)
        return {"email": row[0], "name": f"{row[1]} {row[2]}", "city": row[3], "status": row[5], "more": row[6]}

    def fill_many(self, shard: int, requests: Sequence[Fill], owner: str = "") -> list[Filled]:
        """As the region, and noted; there is one at a time."""
        sent = time.monotonic()
        (filled,) = super().fill_many(shard, requests, owner)
        attempt = Attempt(self.key, self._version, sent, time.monotonic(), filled.outcome, filled.reason)
        self.attempts.append(attempt)
        return [filled]


def keys_of_one_stripe(layout: Layout, contacts: int) -> list[int]:
    """The contacts whose keys share contact 1's stripe."""
    wanted = layout.place("contact:1")
    return [number for number in range(1, contacts + 1) if layout.place(f"contact:{number}") == wanted]


def _open_region(settings: Staleproof, kind: type[Region]) -> Any:
    known = settings.regions[REGION]
    return kind(REGION, connect(redis_connection(known)), Layout(prefix=known.prefix, stripes=known.stripes))


def _open_site(maker: SiteMaker) -> Site:
    """The demonstration's tables and views, in one region."""
    demo = packaged.files("infra.demo")

    def fill(dsn: str) -> None:
        with psycopg.connect(dsn, autocommit=True) as database:
            database.execute(demo.joinpath("schema.sql").read_text(encoding="utf-8").encode())
            load(database, 1, SIZES)

    return maker.make(
        schema=fill,
        views=demo.joinpath("views.yaml").read_text(encoding="utf-8"),
        regions={REGION: {"stripes": STRIPES}},
        source={"heartbeat_interval_ms": 250},  # the settings' default
    )
