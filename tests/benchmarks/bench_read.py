"""What a read costs: a guarded hit beside a bare GET, and beside the caches that Python developers know.

One client, one Redis, one value (a contact of about 600 bytes) and one serialiser (JSON by msgspec) for all; interleaved
rounds in one process, each contestant measured alone, medians. Wall time per read; CPU time is the client's own.
The shard is opened by hand, for the history and the stamps of a real PostgreSQL, so that misses are really filled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import msgspec
import psycopg
import redis
import redis.asyncio
from cashews import Cache
from dogpile.cache import make_region

from cdc.events import Position, stamp_text
from infra.proxy import FaultProxy
from invalidator import AsyncCacheReader, AsyncRegion, CacheReader, Near, connect_async
from invalidator.guard import ControlStep, Pass, RowStep
from invalidator.layout import Layout, Row, row_field
from invalidator.nodes import Connection, connect
from invalidator.region import Region
from invalidator.views import load_views
from tests.benchmarks.harness import Bench, Results, median_ratio, medians

KEYS = 200
MANY = 100
"""Keys of one `get_many`."""

MISSES_SHARE = 20
"""Loads are so much slower that there are fewer of them in a round."""

VIEWS = load_views(
    'version: 1\nviews: {contact: {key: "contact:{id}", mode: invalidate, tables: {public.contacts: {}}}}',
    place="bench",
)
CONTROL, DATA = row_field("bench.control", 0), row_field("bench.public.contacts", 0)
EPOCH = 1


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Options. `reads` of each contestant in a round."""

    rounds: int = 30
    reads: int = 400


class Contact(msgspec.Struct, frozen=True):
    """A profile as marketing people keep it."""

    id: int
    email: str
    status: str
    attributes: dict[str, str]


encode, decode = msgspec.json.encode, msgspec.json.Decoder(Contact).decode


def contact(number: int) -> Contact:
    """One of them."""
    attributes = {f"field_{n}": f"value {number * n % 997} of field {n}" for n in range(14)}
    return Contact(number, f"person{number}@example.org", "subscribed", attributes)


def run(settings: Settings, bench: Bench) -> Results:
    """Measure all of them."""
    with bench.directory() as directory, bench.stack(directory) as stack:
        url = next(iter(stack.redis_urls.values()))
        with psycopg.connect(stack.postgres_dsn, autocommit=True) as database, asyncio.Runner() as runner:
            contestants = _Contestants(url, database, settings, runner)
            contestants.check()
            rounds = bench.interleave(contestants.all(), rounds=settings.rounds, warm_ups=2)
            runner.run(contestants.close())
    return summary(rounds) | {"round_trips_per_hit": contestants.round_trips}


def summary(rounds: dict[str, list[Results]]) -> Results:
    """Medians of the rounds, and of their ratios."""
    each = {f"{name}_us": round(medians(results)["us"], 2) for name, results in rounds.items()}
    cpu = {f"{name}_cpu_us": round(medians(results)["cpu_us"], 2) for name, results in rounds.items()}

    def ratio(one: str, other: str, what: str = "us") -> float:
        return round(median_ratio(rounds[one], rounds[other], what), 3)

    return {
        **each,
        "near_hit_us": cpu["near_hit_cpu_us"],
        **cpu,
        "guarded_hit_ratio": ratio("guarded_hit", "bare_get"),
        "guarded_hit_cpu_ratio": ratio("guarded_hit", "bare_get", "cpu_us"),
        "bounded_hit_ratio": ratio("bounded_hit", "bare_get"),
        "dogpile_ratio": ratio("guarded_hit", "dogpile_hit"),
        "async_guarded_hit_ratio": ratio("async_guarded_hit", "async_bare_get"),
        "async_guarded_hit_cpu_ratio": ratio("async_guarded_hit", "async_bare_get", "cpu_us"),
        "cashews_ratio": ratio("async_guarded_hit", "cashews_hit"),
        "get_many_ratio": ratio("get_many", "bare_get_many"),
    }


class _Contestants:
    """Everybody, on the same server with the same values."""

    def __init__(self, url: str, database: psycopg.Connection[Any], settings: Settings, runner: asyncio.Runner) -> None:
        self._settings = settings
        self._runner = runner
        self._database = database
        self._url = url
        self.round_trips = 0.0
        self._values = {number: contact(number) for number in range(KEYS)}
        self._region = Region("bench", connect(Connection(url=url)), Layout())
        open_shard(self._region, database)
        lend = lambda: nullcontext(database)  # noqa: E731 - one connection for all
        self._reader = CacheReader(self._region, VIEWS, lend)
        self._near_reader = CacheReader(self._region, VIEWS, lend, near=Near())
        self._contacts = self._reader.view("contact", self._load, type=Contact)
        self._bounded = self._reader.view("contact", self._load, type=Contact, max_staleness=3600)
        self._near = self._near_reader.view("contact", self._load, type=Contact, max_staleness=3600)
        self._async_region = AsyncRegion("bench", connect_async(Connection(url=url)), Layout())
        self._async_contacts = AsyncCacheReader(self._async_region, VIEWS, _no_database).view(
            "contact", _no_load, type=Contact
        )
        self._bare = redis.Redis.from_url(url)
        self._async_bare = redis.asyncio.Redis.from_url(url)
        self._dogpile = make_region(serializer=encode, deserializer=decode).configure(
            "dogpile.cache.redis", expiration_time=3600, arguments={"url": url, "redis_expiration_time": 7200}
        )
        self._cashews = Cache()
        self._cashews.setup(url, pickle_type="null", client_side=False)
        self._cashews_get = self._cashews(ttl="1h", key="cashews:{number}")(self._cashews_load)
        for number in range(KEYS):
            self._bare.set(f"bare:{number}", encode(self._values[number]))
            self._contacts.get(number)
            self._dogpile.set(f"dogpile:{number}", self._values[number])
            runner.run(self._cashews_get(number))
        self._allowed = False  # from here on whoever loads has missed

    _allowed = True

    def all(self) -> dict[str, Callable[[], Results]]:
        """By name: what measures one round of it."""
        reads = self._settings.reads
        return {
            "bare_get": self._timed(self.bare_get, reads),
            "guarded_hit": self._timed(self._contacts.get, reads),
            "bounded_hit": self._timed(self._bounded.get, reads),
            "near_hit": self._timed(self._near.get, reads),
            "dogpile_hit": self._timed(self.dogpile_hit, reads),
            "bare_get_many": self._timed(self.bare_get_many, max(1, reads // MANY), per=MANY),
            "get_many": self._timed(self.get_many, max(1, reads // MANY), per=MANY),
            "miss_fill": self._timed(self.miss_fill, max(1, reads // MISSES_SHARE), before=self._empty),
            "async_bare_get": self._timed_async(self.async_bare_get, reads),
            "async_guarded_hit": self._timed_async(self._async_contacts.get, reads),
            "cashews_hit": self._timed_async(self.cashews_hit, reads),
        }

    def check(self) -> None:
        """That each gives the value, and a guarded hit is one round trip. Raises RuntimeError."""
        for name, read in {
            "bare": self.bare_get, "guarded": self._contacts.get, "bounded": self._bounded.get, "near": self._near.get,
            "dogpile": self.dogpile_hit,
        }.items():  # fmt: skip
            _same(name, read(7), self._values[7])
        for name, many in {"bare": self.bare_get_many(7), "guarded": self.get_many(7)}.items():
            _same(f"{name} many", many, [self._values[(7 + n) % KEYS] for n in range(MANY)])
        for name, awaited in {
            "async bare": self.async_bare_get, "async guarded": self._async_contacts.get, "cashews": self.cashews_hit,
        }.items():  # fmt: skip
            _same(name, self._runner.run(_awaited(awaited(7))), self._values[7])
        with FaultProxy(int(self._url.rsplit(":", 1)[1].split("/")[0])) as proxy:
            region = Region("bench", connect(Connection(url=f"redis://127.0.0.1:{proxy.port}/0")), Layout())
            contacts = CacheReader(region, VIEWS, _no_session).view("contact", _no_load, type=Contact)
            contacts.get(0)
            before = proxy.counts().requests
            for number in range(KEYS):
                _same("proxied", contacts.get(number), self._values[number])
            self.round_trips = (proxy.counts().requests - before) / KEYS
        if self.round_trips != 1:
            raise RuntimeError(f"a guarded hit takes {self.round_trips} round trips")

    async def close(self) -> None:
        """Close what belongs to the loop."""
        await self._async_region.aclose()
        await self._async_bare.aclose()
        await self._cashews.close()

    # -- one read each

    def bare_get(self, number: int) -> Any:
        """What nobody can beat."""
        return decode(self._bare.get(f"bare:{number}"))  # type: ignore[arg-type]  # redis-py's union

    def dogpile_hit(self, number: int) -> Any:
        """As its documentation shows it."""
        return self._dogpile.get_or_create(f"dogpile:{number}", _no_load)

    def bare_get_many(self, number: int) -> Any:
        """One MGET."""
        names = [f"bare:{(number + n) % KEYS}" for n in range(MANY)]
        return [decode(data) for data in self._bare.mget(names)]  # type: ignore[union-attr]  # as above

    def get_many(self, number: int) -> Any:
        """Ours."""
        return list(self._contacts.get_many([(number + n) % KEYS for n in range(MANY)]).values())

    def miss_fill(self, number: int) -> Any:
        """Look, lease, load in a transaction of PostgreSQL, fill."""
        return self._contacts.get(number)

    async def async_bare_get(self, number: int) -> Any:
        """What nobody can beat, in asyncio."""
        return decode(await self._async_bare.get(f"bare:{number}"))

    async def cashews_hit(self, number: int) -> Any:
        """As its documentation shows it; the serialiser is ours."""
        return decode(await self._cashews_get(number))

    # -- measuring

    def _timed(
        self, read: Callable[[int], Any], reads: int, *, per: int = 1, before: Callable[[], None] | None = None
    ) -> Callable[[], Results]:
        def measure() -> Results:
            if before is not None:
                before()
            wall, cpu = time.perf_counter(), time.process_time()
            for number in range(reads):
                read(number % KEYS)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            self._allowed = False
            return {"us": wall / reads / per * 1e6, "cpu_us": cpu / reads / per * 1e6}

        return measure

    def _timed_async(self, read: Callable[[int], Awaitable[Any]], reads: int) -> Callable[[], Results]:
        async def measured() -> Results:
            wall, cpu = time.perf_counter(), time.process_time()
            for number in range(reads):
                await read(number % KEYS)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            return {"us": wall / reads * 1e6, "cpu_us": cpu / reads * 1e6}

        return lambda: self._runner.run(measured())

    def _empty(self) -> None:
        """The next reads are misses."""
        self._region.unlink(0, [f"contact:{number}" for number in range(self._settings.reads // MISSES_SHARE)])
        self._allowed = True

    def _load(self, connection: psycopg.Connection[Any], number: int) -> Any:
        if not self._allowed:
            raise RuntimeError("a hit was not a hit")
        connection.execute("SELECT 1").fetchone()
        return self._values[number]

    async def _cashews_load(self, number: int) -> bytes:
        if not self._allowed:
            raise RuntimeError("a hit was not a hit")
        return encode(self._values[number])


def open_shard(region: Region, database: psycopg.Connection[Any]) -> None:
    """An open shard that knows this database's history and that its transactions so far were seen by a heartbeat."""
    row = database.execute(
        "SELECT (SELECT system_identifier FROM pg_control_system())::text || ':' ||"
        " ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int,"
        " pg_current_xact_id()::text, (extract(epoch FROM clock_timestamp()) * 1000)::bigint"
    ).fetchone()
    assert row is not None
    history, stamp, now_ms = row
    view = VIEWS.views["contact"]
    region.prepare()
    region.cold(0, 0, [("contact", view.digest)], [(CONTROL, Row(next_offset=0)), (DATA, Row(next_offset=0))])
    begins = RowStep(CONTROL, 0, Row(next_offset=1))
    region.hear(0, ControlStep(step=begins, epoch=f"{EPOCH:08x}", history=history))
    for number in range(3):
        position = Position(EPOCH, 1 + number, 0).text
        step = RowStep(CONTROL, number + 1, Row(next_offset=number + 2))
        beat = ControlStep(step=step, position=position, stamp=stamp_text(int(stamp)), limit="f" * 16, history=history)
        region.hear(0, beat)
        proof = "p" + stamp_text(int(stamp)) * 2
        passed = Pass(position=position, stamp=stamp_text(0), time_ms=now_ms, proof=proof, barriers=((DATA, 0),))
        region.pass_heartbeat(0, passed)


async def _awaited(one: Awaitable[Any]) -> Any:
    return await one


def _same(name: str, value: object, wanted: object) -> None:
    if value != wanted:
        raise RuntimeError(f"{name} gave another value")


def _no_load(*_: object) -> Any:
    raise RuntimeError("a hit was not a hit")


def _no_session() -> Any:
    raise RuntimeError("a hit was not a hit")


_no_database = _no_session
