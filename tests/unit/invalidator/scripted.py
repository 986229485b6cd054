"""A database and a region that say what a test tells them to, for both readers: threads and asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import Any, Self

from invalidator.async_reader import AsyncCacheReader
from invalidator.entry import Content, Kind, encode_tail, lead
from invalidator.guard import Fill, Outcome
from invalidator.layout import Layout
from invalidator.reader import CacheReader
from invalidator.reader_commands import Filled, Looked
from invalidator.views import load_views

VIEWS = load_views(
    """
version: 1
views:
  contact: {key: "contact:{id}", mode: invalidate, tables: {public.contacts: {}}}
  member: {key: "member:{segment}:{contact}", mode: invalidate, tables: {public.members: {}}}
  page: {key: "page:{id}", mode: invalidate, ttl_seconds: 100, tables: {public.pages: {}}}
""",
    place="views.yaml",
)
HISTORY = "77:1"
EPOCH = f"{5:08x}o{HISTORY}"
NOW_MS = 5_000


def p(xmin: int, xmax: int, *running: int) -> str:
    """A primary's proof."""
    return "p" + "".join(f"{stamp:016x}" for stamp in (xmin, xmax, *running))


def watermark(time_ms: int, proof: str = "", *, lsn: int = 0x100, epoch: int = 5) -> str:
    """As a shard stores it."""
    return f"{epoch:08x}{lsn:016x}{0:08x}{time_ms:012x}{proof}"


def stored(
    key: str, payload: bytes | None = b'{"email":"a"}', *, seen: str = p(0, 0), as_of_ms: int = 1, encoding: str = "j",
    kind: Kind = Kind.FILL, view: str = "contact", generations: str = "0" * 64,
) -> bytes:  # fmt: skip
    """An entry."""
    tail = encode_tail(view=view, key=key, seen=seen, payload=payload or b"", as_of_ms=as_of_ms)
    content = Content.ABSENT if payload is None else Content.VALUE
    return lead(kind, content, encoding).encode() + generations.encode() + tail


class Database:
    """Answers as a primary, unless a test says otherwise."""

    def __init__(self) -> None:
        self.autocommit = True
        self.transaction_status = 0
        self.pgconn = object()  # psycopg's mark
        self.identity: tuple[Any, ...] = ("one", False, HISTORY)
        self.replayed: tuple[Any, ...] = ("one", "0/64")
        self.seen: tuple[Any, ...] = ("one", False, "10:12:11", NOW_MS)
        self.reached = "0/65"
        self.end: tuple[Any, ...] = ("10:12:11", True)
        self.rolled_back = False
        self.lent = 0
        self.fails: Exception | None = None

    def answer(self, query: str) -> tuple[Any, ...]:
        if query.startswith("BEGIN"):
            return self.seen
        if query.endswith("COMMIT"):
            return (*self.end, self.reached) if "pg_last_wal_replay_lsn" in query else self.end
        if "pg_last_wal_replay_lsn" in query:
            return self.replayed
        return self.seen if "pg_current_snapshot" in query else self.identity


class _Cursor:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._row: tuple[Any, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, query: str) -> None:
        self._row = self._database.answer(query)

    def nextset(self) -> bool:
        return True

    def fetchone(self) -> tuple[Any, ...]:
        return self._row


class _AsyncCursor(_Cursor):
    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def execute(self, query: str) -> None:  # type: ignore[override]  # the other kind of driver
        super().execute(query)

    async def fetchone(self) -> tuple[Any, ...]:  # type: ignore[override]  # the other kind of driver
        return super().fetchone()


class _Connection:
    def __init__(self, database: Database) -> None:
        self._database = database
        self.pgconn = database.pgconn
        self.info = database  # of which the transaction's status is asked

    @property
    def autocommit(self) -> bool:
        return self._database.autocommit

    def cursor(self, **_: object) -> _Cursor:
        return _Cursor(self._database)

    def rollback(self) -> None:
        self._database.rolled_back = True


class _AsyncConnection(_Connection):
    def cursor(self, **_: object) -> _AsyncCursor:
        return _AsyncCursor(self._database)

    async def rollback(self) -> None:  # type: ignore[override]  # the other kind of driver
        super().rollback()


class ScriptedRegion:
    """Entries by key; what is filled is remembered, and found from then on where `takes` says so."""

    def __init__(self, shards: int = 1) -> None:
        self.layout = Layout(shards=shards)
        self.status = "OPEN"
        self.watermark = watermark(NOW_MS)
        self.epoch = EPOCH
        self.entries: dict[str, bytes] = {}
        self.fails: Exception | None = None
        self.fills: list[Fill] = []
        self.outcome = Filled(Outcome.APPLIED)
        self.takes = False
        self.leases: list[tuple[tuple[str, ...], int]] = []
        self.lease_answers: Callable[[str], str] = lambda _: "GRANTED"
        self.looks = 0

    def look(self, shard: int, keys: Any, view: str, digest: str) -> Looked:
        del shard, view, digest
        self.looks += 1
        if self.fails is not None:
            raise self.fails
        found = [self.entries.get(key) if self.status == "OPEN" else None for key in keys]
        return Looked(self.status, self.watermark, self.epoch, found)

    def fill_many(self, shard: int, fills: Any, owner: str = "") -> list[Filled]:
        del shard, owner
        if self.fails is not None:
            raise self.fails
        self.fills += fills
        if self.takes:
            self.entries |= {fill.key: fill.lead.encode() + b"0" * 64 + fill.tail for fill in fills}
        return [self.outcome] * len(fills)

    def lease(self, shard: int, fields: Any, owner: str, lease_ms: int, living_max: int) -> list[str]:
        del shard, owner, living_max
        if self.fails is not None:
            raise self.fails
        self.leases.append((tuple(fields), lease_ms))
        return [self.lease_answers(field) if lease_ms else "RELEASED" for field in fields]


class _AsyncRegion:
    def __init__(self, region: ScriptedRegion) -> None:
        self._region = region
        self.layout = region.layout

    async def look(self, *args: Any) -> Looked:
        return self._region.look(*args)

    async def fill_many(self, *args: Any) -> list[Filled]:
        return self._region.fill_many(*args)

    async def lease(self, *args: Any) -> list[str]:
        return self._region.lease(*args)


class Driver:
    """One of the two readers, called as if it were for threads. Loaders are plain functions here."""

    def __init__(self, kind: str, region: ScriptedRegion, database: Database, **options: Any) -> None:
        self.kind = kind
        self.region, self.database = region, database
        self._runner = asyncio.Runner() if kind == "async" else None
        primary = options.pop("primary", None)
        lend = self._lend_async if self._runner else self._lend
        if primary is not None:
            options["primary"] = lambda: lend(primary)
        if self._runner:
            self.reader: Any = AsyncCacheReader(_AsyncRegion(region), VIEWS, lambda: lend(database), **options)  # type: ignore[arg-type]  # scripted
        else:
            self.reader = CacheReader(region, VIEWS, lambda: lend(database), **options)  # type: ignore[arg-type]  # scripted

    @property
    def counts(self) -> Any:
        return self.reader.counts

    def get(self, view: str, key: object, load: Callable[[Any], Any], **needs: Any) -> Any:
        return self.wait(self.reader.get(view, key, self.loader(load), **needs))

    def view(self, name: str, load: Callable[..., Any], **options: Any) -> Any:
        return self.reader.view(name, self.loader(load), **options)

    def loader(self, load: Callable[..., Any]) -> Callable[..., Any]:
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            return load(*args, **kwargs)

        return awaited if self._runner else load

    def wait(self, result: Any) -> Any:
        async def awaited() -> Any:
            return await result

        return self._runner.run(awaited()) if self._runner else result

    def run(self, flow: Any) -> Any:
        return self.wait(self.reader.run(flow))

    def close(self) -> None:
        if self._runner:
            self._runner.close()

    @contextmanager
    def _lend(self, database: Database) -> Any:
        database.lent += 1
        if database.fails is not None:
            raise database.fails
        with nullcontext(_Connection(database)) as connection:
            yield connection

    @asynccontextmanager
    async def _lend_async(self, database: Database) -> Any:
        database.lent += 1
        if database.fails is not None:
            raise database.fails
        yield _AsyncConnection(database)
