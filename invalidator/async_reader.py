"""Reading through the cache, for asyncio: `CacheReader` with `await`. Loaders are coroutine functions.

reader = AsyncCacheReader(region, views, pool.connection)

@reader.loads("contact", max_staleness=5)
async def contact(connection: AsyncConnection, id: int) -> Contact | None: ...

await contact(42)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import update_wrapper
from typing import Any, Generic, TypeVar, cast

from cdc.errors import StaleproofError
from invalidator.async_region import AsyncRegion
from invalidator.codecs import Codec
from invalidator.herd import Limits
from invalidator.loading import Loaded, committed, written
from invalidator.near import Near
from invalidator.reader_acts import Act, AskClock, Flow, Lease, Load, Look, Offer, Wait
from invalidator.reader_base import ReaderBase, ReadSnapshot, WriteToken, check_idle, note_shown, wants_transaction
from invalidator.sessions import SourceFault, fault, perform_async
from invalidator.tokens import Session, Token
from invalidator.typed_views import OnDoubt, Seconds, TypedView, arguments, need_of, returned_type
from invalidator.views import Views

T = TypeVar("T")
Lend = Callable[[], AbstractAsyncContextManager[Any]]


class AsyncCachedView(Generic[T]):
    """One view with its loader: what the application reads by. As `CachedView`."""

    def __init__(self, reader: AsyncCacheReader, view: TypedView[T]) -> None:
        self._reader = reader
        self._view = view

    async def __call__(self, *parts: Any) -> T | None:
        """The value of the key with these parts."""
        return await self.get(parts[0] if len(parts) == 1 else parts)

    async def get(
        self,
        key: object,
        *,
        max_staleness: Seconds | None = None,
        token: Token | Session | str | None = None,
        strong: bool = False,
        snapshot: ReadSnapshot | None = None,
    ) -> T | None:
        """As `CachedView.get`."""
        need = need_of(self._view, max_staleness, token, strong=strong)
        reader, view = self._reader, self._view
        found = None if need.bound_ms is None else reader.reading.nearby(view, key, need)
        if found is None:
            found = await reader.run(reader.reading.get(view, key, need, snapshot))
        elif found.again is not None:
            reader.refresh((found,))
        if need.track:
            note_shown(token, need, [found])
        value: T | None = found.value
        return value

    async def get_many(
        self,
        keys: Iterable[Any],
        *,
        max_staleness: Seconds | None = None,
        token: Token | Session | str | None = None,
        strong: bool = False,
        snapshot: ReadSnapshot | None = None,
    ) -> dict[Any, T | None]:
        """As `CachedView.get_many`."""
        need = need_of(self._view, max_staleness, token, strong=strong)
        found = await self._reader.run(self._reader.reading.get_many(self._view, keys, need, snapshot))
        self._reader.refresh(found.values())
        note_shown(token, need, found.values())
        return {key: one.value for key, one in found.items()}


class AsyncCacheReader(ReaderBase):
    """A read-through client of one region; it belongs to one event loop. As `CacheReader`."""

    def __init__(
        self,
        region: AsyncRegion,
        views: Views,
        connect: Lend,
        *,
        primary: Lend | None = None,
        limits: Limits | None = None,
        near: Near | None = None,
    ) -> None:
        super().__init__(region.layout, views, limits, near, _Flight)
        self._region = region
        self._connect = connect
        self._primary = primary or connect
        self._aside: set[asyncio.Task[None]] = set()

    # -- declaring views

    def view(
        self,
        name: str,
        load: Callable[..., Awaitable[T | None]],
        *,
        type: Any = Any,  # noqa: A002 - the word that people look for
        codec: Codec | None = None,
        max_staleness: Seconds | None = None,
        on_doubt: OnDoubt = OnDoubt.CLOSED,
    ) -> AsyncCachedView[T]:
        """As `CacheReader.view`."""
        return AsyncCachedView(self, self._declared(name, load, type, codec, max_staleness, on_doubt))

    def loads(
        self,
        name: str,
        *,
        codec: Codec | None = None,
        max_staleness: Seconds | None = None,
        on_doubt: OnDoubt = OnDoubt.CLOSED,
    ) -> Callable[[Callable[..., Awaitable[T | None]]], AsyncCachedView[T]]:
        """As `CacheReader.loads`."""

        def declare(load: Callable[..., Awaitable[T | None]]) -> AsyncCachedView[T]:
            declared = self.view(
                name, load, type=returned_type(load), codec=codec, max_staleness=max_staleness, on_doubt=on_doubt
            )
            update_wrapper(cast("Any", declared), load)
            return declared

        return declare

    # -- reading and writing

    async def get(
        self,
        view: str,
        key: object,
        load: Callable[[Any], Awaitable[T | None]],
        *,
        max_staleness: Seconds | None = None,
        token: Token | Session | str | None = None,
        strong: bool = False,
    ) -> T | None:
        """As `CacheReader.get`."""
        undeclared = AsyncCachedView[T](self, self._undeclared(view, load))
        return await undeclared.get(key, max_staleness=max_staleness, token=token, strong=strong)

    @asynccontextmanager
    async def write_token(self, connection: Any) -> AsyncIterator[WriteToken]:
        """As `CacheReader.write_token`."""
        check_idle(connection)
        promised = WriteToken()
        token: Token | None = None
        async with connection.transaction():
            yield promised
            token = await perform_async(written(), connection)
        if token is None:  # psycopg.Rollback ended the block: nothing was written
            return  # type: ignore[unreachable]  # the transaction swallows that error
        promised.settle(token)
        with suppress(SourceFault):  # committed is committed: the token is good without the log's position
            promised.settle(await perform_async(committed(token), connection))

    async def token(self, session: Any) -> Token:
        """As `CacheReader.token`."""
        return await perform_async(written(), session)

    async def passed(self, token: Token | str) -> bool:
        """As `CacheReader.passed`."""
        wanted = Token.parse(token) if isinstance(token, str) else token
        return await self.run(self.reading.passed(wanted, self._any_view()))

    @asynccontextmanager
    async def snapshot(self, session: Any) -> AsyncIterator[ReadSnapshot]:
        """As `CacheReader.snapshot`."""
        async with AsyncExitStack() as stack:
            if wants_transaction(session):
                await stack.enter_async_context(session.transaction())
            yield ReadSnapshot(session, await perform_async(self._prover.begin(session), session))

    async def aclose(self) -> None:
        """Wait for what is loaded in the background, and close the connections to Redis."""
        await asyncio.gather(*self._aside, return_exceptions=True)
        await self._region.aclose()

    # -- carrying out

    async def run(self, flow: Flow[T]) -> T:
        """Carry out what a flow asks for, and return its result."""
        try:
            act = next(flow)
            while True:
                try:
                    answer = await self._perform(act)
                except BaseException as error:  # noqa: BLE001 - the flow judges; what it does not catch comes back
                    act = flow.throw(error)
                else:
                    act = flow.send(answer)
        except StopIteration as stop:
            value: T = stop.value
            return value

    async def _perform(self, act: Act) -> Any:
        if isinstance(act, Look):
            return await self._region.look(act.shard, act.names, act.view.name, act.view.digest)
        if isinstance(act, Load):
            return await self._load(act)
        if isinstance(act, Offer):
            return await self._region.fill_many(act.shard, act.fills, self._owner)
        if isinstance(act, Lease):
            return await self._region.lease(act.shard, act.fields, *self._lease_terms(act.seconds))
        if isinstance(act, Wait):
            return await cast("_Flight", act.flight).wait(act.seconds)
        if isinstance(act, AskClock):
            async with self._lent(self._primary) as session:
                return await perform_async(self._prover.ask_clock(), session)
        return await asyncio.sleep(act.seconds)

    async def _load(self, act: Load) -> Loaded:
        async def run(session: Any) -> dict[str, Any]:
            values = {}
            for name, key in act.keys.items():
                positional, named = arguments(key)
                values[name] = await act.view.load(session, *positional, **named)
            return values

        if act.snapshot is not None:
            return await perform_async(
                self._prover.load_within(act.snapshot.begun, act.snapshot.session), act.snapshot.session, run
            )
        async with self._lent(self._primary if act.primary else self._connect) as session:
            return await perform_async(self._prover.load(session), session, run)

    @asynccontextmanager
    async def _lent(self, lend: Lend) -> AsyncIterator[Any]:
        async with AsyncExitStack() as stack:
            try:
                session = await stack.enter_async_context(lend())
            except StaleproofError:
                raise
            except Exception as error:
                raise fault(error) from error
            yield session

    def _run_aside(self, flow: Flow[Any]) -> None:
        async def run() -> None:
            try:
                await self.run(flow)
            except Exception:  # noqa: BLE001 - nobody waits for it: who asks later gets the error
                self.counts["aside_failed"] += 1

        task = asyncio.get_running_loop().create_task(run())
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)


class _Flight:
    """A future with a result, of one event loop."""

    def __init__(self) -> None:
        self.result: Any = None
        self._finished = asyncio.get_running_loop().create_future()

    def finish(self, result: Any) -> None:
        """Wake everybody who waits."""
        self.result = result
        if not self._finished.done():
            self._finished.set_result(None)

    async def wait(self, seconds: float) -> bool:
        """Whether it has finished within so long."""
        done, _ = await asyncio.wait((self._finished,), timeout=seconds)
        return bool(done)
