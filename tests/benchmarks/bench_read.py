"""What a read costs: a guarded hit beside a bare GET, and beside the caches that Python developers know.

One client, one Redis, one value (a contact of about 600 bytes) and one serialiser (JSON by msgspec) for all; interleaved
rounds in one process, each contestant measured alone, medians. `…_us` is wall time and `…_cpu_us` the client process's
own time, per read; of the `many` ones per key, 100 keys a call. No worker runs beside it: the shard is opened by hand,
for the history and the stamps of a real PostgreSQL, so that misses are really loaded from a table and filled.

- bare_get: `Redis.get` of redis-py with its own defaults, and the decoder. Nothing protects what it returns. The
  defaults have a deadline, as our reader has, and in asyncio that costs redis-py a task per request. bare_no_deadline is
  `socket_timeout=None`: faster, and it waits for ever for a server that hangs.
- guarded_hit, bounded_hit: our reader, without and with `max_staleness`.
- near_hit: the value lies in this process. Its type is frozen, so that all callers get one object and nothing is
  decoded. near_decoded: of a type that is not frozen, so that each caller gets an object of its own.
- dogpile_hit is `get_or_create`, cashews_hit the decorator: their read-through calls. dogpile_get and cashews_get are
  their plain lookups, which do less than our reader does.

In every round all values are compared, and our reader's counts must say that hits were hits and fills were accepted; a
proxy counts the round trips of a hit. If anything is wrong there are no figures.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from functools import partial
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
    """Options. `reads` of each contestant in a round: many short rounds, so that noise meets all of them."""

    rounds: int = 60
    reads: int = 200


class Contact(msgspec.Struct, frozen=True):
    """A profile as marketing people keep it."""

    id: int
    email: str
    status: str
    attributes: tuple[tuple[str, str], ...]
    """Nothing in it can be set."""


class OwnContact(msgspec.Struct):
    """The same, of a type whose fields can be set."""

    id: int
    email: str
    status: str
    attributes: list[tuple[str, str]]


class Contestant(msgspec.Struct, frozen=True, kw_only=True):
    """Who reads, and what must come of it. `counts` are our reader's, `expected` is by how much a round moves them."""

    read: Callable[[int], Any]
    wanted: Callable[[int], object]
    reads: int
    is_async: bool = False
    per: int = 1
    counts: Counter[str] = msgspec.field(default_factory=Counter)
    expected: Mapping[str, int] = {}
    before: Callable[[], None] = lambda: None


encode, decode = msgspec.json.encode, msgspec.json.Decoder(Contact).decode


def contact(number: int) -> Contact:
    """One of them."""
    attributes = tuple((f"field_{n}", f"value {number * n % 997} of field {n}") for n in range(15))
    return Contact(number, f"person{number}@example.org", "subscribed", attributes)


def run(settings: Settings, bench: Bench) -> Results:
    """Measure all of them."""
    with bench.directory() as directory, bench.stack(directory) as stack:
        url = next(iter(stack.redis_urls.values()))
        with psycopg.connect(stack.postgres_dsn, autocommit=True) as database, asyncio.Runner() as runner:
            field = _Field(url, database, settings, runner)
            trips = count_round_trips(url)
            contestants = {name: partial(measure, name, one, runner) for name, one in field.all().items()}
            rounds = bench.interleave(contestants, rounds=settings.rounds, warm_ups=2)
            runner.run(field.close())
    return summary(rounds) | {"value_bytes": len(encode(contact(7))), "round_trips": trips}


def measure(name: str, contestant: Contestant, runner: asyncio.Runner) -> Results:
    """One round of it. Raises RuntimeError where it did not do what it is measured for."""
    contestant.before()
    counted = Counter(contestant.counts)
    if contestant.is_async:
        values, wall, cpu = runner.run(_await_all(contestant.read, contestant.reads))
    else:
        values, wall, cpu = _read_all(contestant.read, contestant.reads)
    if values != [contestant.wanted(number % KEYS) for number in range(contestant.reads)]:
        raise RuntimeError(f"{name} gave another value")
    moved = {what: count - counted[what] for what, count in contestant.counts.items() if count != counted[what]}
    if moved != contestant.expected:
        raise RuntimeError(f"{name} was counted as {moved} instead of {contestant.expected}")
    share = 1e6 / contestant.reads / contestant.per
    return {"us": wall * share, "cpu_us": cpu * share}


def summary(rounds: dict[str, list[Results]]) -> Results:
    """Medians of the rounds, and of their ratios."""
    each = {f"{name}_us": round(medians(results)["us"], 2) for name, results in rounds.items()}
    cpu = {f"{name}_cpu_us": round(medians(results)["cpu_us"], 2) for name, results in rounds.items()}

    def ratio(one: str, other: str, what: str = "us") -> float:
        return round(median_ratio(rounds[one], rounds[other], what), 3)

    return {
        **each,
        **cpu,
        "guarded_hit_ratio": ratio("guarded_hit", "bare_get"),
        "guarded_hit_cpu_ratio": ratio("guarded_hit", "bare_get", "cpu_us"),
        "no_deadline_ratio": ratio("guarded_hit", "bare_no_deadline"),
        "no_deadline_cpu_ratio": ratio("guarded_hit", "bare_no_deadline", "cpu_us"),
        "bounded_hit_ratio": ratio("bounded_hit", "bare_get"),
        "bounded_hit_cpu_ratio": ratio("bounded_hit", "bare_get", "cpu_us"),
        "get_many_ratio": ratio("get_many", "bare_get_many"),
        "dogpile_ratio": ratio("guarded_hit", "dogpile_hit"),
        "dogpile_get_ratio": ratio("guarded_hit", "dogpile_get"),
        "async_guarded_hit_ratio": ratio("async_guarded_hit", "async_bare_get"),
        "async_guarded_hit_cpu_ratio": ratio("async_guarded_hit", "async_bare_get", "cpu_us"),
        "async_no_deadline_ratio": ratio("async_guarded_hit", "async_bare_no_deadline"),
        "async_no_deadline_cpu_ratio": ratio("async_guarded_hit", "async_bare_no_deadline", "cpu_us"),
        "cashews_ratio": ratio("async_guarded_hit", "cashews_hit"),
        "cashews_get_ratio": ratio("async_guarded_hit", "cashews_get"),
    }


class _Field:
    """Everybody, on the same server with the same values."""

    def __init__(self, url: str, database: psycopg.Connection[Any], settings: Settings, runner: asyncio.Runner) -> None:
        self._reads = settings.reads
        self._misses = max(1, settings.reads // MISSES_SHARE)
        self._region = Region("bench", connect(Connection(url=url)), Layout())
        fill_table(database)
        open_shard(self._region, database)
        lend = lambda: nullcontext(database)  # noqa: E731 - one connection for all
        self._reader = CacheReader(self._region, VIEWS, lend)
        self._near_reader = CacheReader(self._region, VIEWS, lend, near=Near())
        self._own_reader = CacheReader(self._region, VIEWS, lend, near=Near())
        self._contacts = self._reader.view("contact", self._load, type=Contact)
        self._bounded = self._reader.view("contact", self._load, type=Contact, max_staleness=3600)
        self._near = self._near_reader.view("contact", self._load, type=Contact, max_staleness=3600)
        self._own = self._own_reader.view("contact", self._load, type=OwnContact, max_staleness=3600)
        self._async_region = AsyncRegion("bench", connect_async(Connection(url=url)), Layout())
        self._async_reader = AsyncCacheReader(self._async_region, VIEWS, no_load)
        self._async_contacts = self._async_reader.view("contact", no_load, type=Contact)
        self._bare = redis.Redis.from_url(url)
        self._async_bare = redis.asyncio.Redis.from_url(url)
        self._no_deadline = redis.Redis.from_url(url, socket_timeout=None)
        self._async_no_deadline = redis.asyncio.Redis.from_url(url, socket_timeout=None)
        self._dogpile = make_region(serializer=encode, deserializer=decode).configure(
            "dogpile.cache.redis", expiration_time=3600, arguments={"url": url, "redis_expiration_time": 7200}
        )
        self._cashews = Cache()
        self._cashews.setup(url, pickle_type="null", client_side=False)
        self._cashews_read = self._cashews(ttl="1h", key="cashews:{number}")(self._cashews_load)
        for number in range(KEYS):
            self._bare.set(f"bare:{number}", encode(contact(number)))
            self._dogpile.set(f"dogpile:{number}", contact(number))
            for view in (self._contacts, self._bounded, self._near, self._own):
                view.get(number)
            runner.run(self._cashews_read(number))
        self._may_load = False

    _may_load = True

    def all(self) -> dict[str, Contestant]:
        """By name."""
        reads, calls, misses = self._reads, max(1, self._reads // MANY), self._misses
        hits, nears = {"hit": reads}, {"near": reads}
        ours, near, own = self._reader.counts, self._near_reader.counts, self._own_reader.counts
        one = partial(Contestant, wanted=contact, reads=reads)
        many = partial(Contestant, wanted=some_contacts, reads=calls, per=MANY)
        return {
            "bare_get": one(read=self._bare_get),
            "bare_no_deadline": one(read=self._bare_no_deadline),
            "guarded_hit": one(read=self._contacts.get, counts=ours, expected=hits),
            "bounded_hit": one(read=self._bounded.get, counts=ours, expected=hits),
            "near_hit": one(read=self._near.get, counts=near, expected=nears),
            "near_decoded": one(read=self._own.get, wanted=own_contact, counts=own, expected=nears),
            "dogpile_hit": one(read=self._dogpile_hit),
            "dogpile_get": one(read=self._dogpile_get),
            "bare_get_many": many(read=self._bare_get_many),
            "get_many": many(read=self._get_many, counts=ours, expected={"hit": calls * MANY}),
            "miss_fill": Contestant(
                read=self._miss_fill,
                wanted=contact,
                reads=misses,
                counts=ours,
                expected={"miss": misses, "loaded": misses, "filled": misses},
                before=self._empty,
            ),
            "async_bare_get": one(read=self._async_bare_get, is_async=True),
            "async_bare_no_deadline": one(read=self._async_bare_no_deadline, is_async=True),
            "async_guarded_hit": one(
                read=self._async_contacts.get, counts=self._async_reader.counts, expected=hits, is_async=True
            ),
            "cashews_hit": one(read=self._cashews_hit, is_async=True),
            "cashews_get": one(read=self._cashews_get, is_async=True),
        }

    async def close(self) -> None:
        """Close what belongs to the loop."""
        await self._async_region.aclose()
        await self._async_bare.aclose()
        await self._async_no_deadline.aclose()
        await self._cashews.close()

    # -- one read each

    def _bare_get(self, number: int) -> Any:
        return decode(self._bare.get(f"bare:{number}"))  # type: ignore[arg-type]  # redis-py's union

    def _bare_no_deadline(self, number: int) -> Any:
        return decode(self._no_deadline.get(f"bare:{number}"))  # type: ignore[arg-type]  # as above

    def _dogpile_hit(self, number: int) -> Any:
        return self._dogpile.get_or_create(f"dogpile:{number}", no_load)

    def _dogpile_get(self, number: int) -> Any:
        return self._dogpile.get(f"dogpile:{number}")

    def _bare_get_many(self, number: int) -> Any:
        names = [f"bare:{(number + n) % KEYS}" for n in range(MANY)]
        return [decode(data) for data in self._bare.mget(names)]  # type: ignore[union-attr]  # as above

    def _get_many(self, number: int) -> Any:
        return list(self._contacts.get_many([(number + n) % KEYS for n in range(MANY)]).values())

    def _miss_fill(self, number: int) -> Any:
        """Look, lease, load in a transaction of PostgreSQL, fill."""
        self._may_load = True
        try:
            return self._contacts.get(number)
        finally:
            self._may_load = False

    async def _async_bare_get(self, number: int) -> Any:
        return decode(await self._async_bare.get(f"bare:{number}"))

    async def _async_bare_no_deadline(self, number: int) -> Any:
        return decode(await self._async_no_deadline.get(f"bare:{number}"))

    async def _cashews_hit(self, number: int) -> Any:
        return decode(await self._cashews_read(number))  # its pickler is off: the serialiser is ours

    async def _cashews_get(self, number: int) -> Any:
        return decode(await self._cashews.get(f"cashews:{number}"))

    # -- loading

    def _empty(self) -> None:
        """The next reads are misses."""
        self._region.unlink(0, [f"contact:{number}" for number in range(self._misses)])

    def _load(self, connection: psycopg.Connection[Any], number: int) -> Any:
        if not self._may_load:
            no_load()
        row = connection.execute(
            "SELECT id, email, status, attributes FROM contacts WHERE id = %s", (number,)
        ).fetchone()
        return None if row is None else Contact(*row[:3], tuple(map(tuple, row[3])))

    async def _cashews_load(self, number: int) -> bytes:
        if not self._may_load:
            no_load()
        return encode(contact(number))


def own_contact(number: int) -> OwnContact:
    """The same contact, of the other type."""
    one = contact(number)
    return OwnContact(one.id, one.email, one.status, list(one.attributes))


def some_contacts(number: int) -> list[Contact]:
    """What a `get_many` from there gives."""
    return [contact((number + n) % KEYS) for n in range(MANY)]


def no_load(*_: object) -> Any:
    """Whoever comes here has missed. Raises RuntimeError."""
    raise RuntimeError("a hit was not a hit")


def count_round_trips(url: str) -> dict[str, float]:
    """Of each kind of hit, through the proxy; of a bare GET too, so that it is known what one is. Raises RuntimeError."""
    trips: dict[str, float] = {}
    with FaultProxy(int(url.rsplit(":", 1)[1].split("/", maxsplit=1)[0])) as proxy, asyncio.Runner() as runner:
        proxied = f"redis://127.0.0.1:{proxy.port}/0"
        bare = redis.Redis.from_url(proxied)
        reader = CacheReader(Region("bench", connect(Connection(url=proxied)), Layout()), VIEWS, no_load)
        contacts = reader.view("contact", no_load, type=Contact)
        region = AsyncRegion("bench", connect_async(Connection(url=proxied)), Layout())
        async_contacts = AsyncCacheReader(region, VIEWS, no_load).view("contact", no_load, type=Contact)
        many = range(MANY)
        reads: dict[str, Callable[[int], object]] = {
            "bare_get": lambda number: bare.get(f"bare:{number}"),
            "guarded_hit": contacts.get,
            "get_many": lambda number: contacts.get_many([(number + n) % KEYS for n in many]),
            "async_guarded_hit": lambda number: runner.run(_awaited(async_contacts.get(number))),
        }
        for name, read in reads.items():
            read(0)  # connects
            before = proxy.counts().requests
            for number in range(KEYS):
                read(number)
            trips[name] = (proxy.counts().requests - before) / KEYS
            if trips[name] != 1:
                raise RuntimeError(f"{name} takes {trips[name]} round trips")
        runner.run(region.aclose())
    return trips


def fill_table(database: psycopg.Connection[Any]) -> None:
    """What misses load."""
    database.execute("CREATE TABLE contacts (id int PRIMARY KEY, email text, status text, attributes jsonb)")
    rows = [msgspec.structs.astuple(contact(number)) for number in range(KEYS)]
    with database.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO contacts VALUES (%s, %s, %s, %s::jsonb)",
            [(*row[:3], encode(row[3]).decode()) for row in rows],
        )


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


def _read_all(read: Callable[[int], Any], reads: int) -> tuple[list[Any], float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    values = [read(number % KEYS) for number in range(reads)]
    return values, time.perf_counter() - wall, time.process_time() - cpu


async def _await_all(read: Callable[[int], Awaitable[Any]], reads: int) -> tuple[list[Any], float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    values = [await read(number % KEYS) for number in range(reads)]
    return values, time.perf_counter() - wall, time.process_time() - cpu


async def _awaited(one: Awaitable[Any]) -> Any:
    return await one
