"""Reading through the cache, for threads: a value as new as was asked for, from the cache or from the database.

    reader = CacheReader(region, views, pool.connection)

    @reader.loads("contact", max_staleness=5)
    def contact(connection: Connection, id: int) -> Contact | None: ...

    contact(42)

All decisions are in `reading.py`; here they are carried out. `AsyncCacheReader` is the same for asyncio.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import update_wrapper
from secrets import token_hex
from typing import Any, Generic, TypeVar, cast

from cdc.errors import StaleproofError
from invalidator.codecs import Codec
from invalidator.herd import Limits
from invalidator.loading import Loaded, committed, written
from invalidator.near import Near
from invalidator.reader_acts import Act, AskClock, Flow, Lease, Load, Look, Offer, Wait
from invalidator.reader_base import ReaderBase, ReadSnapshot, WriteToken, check_idle, note_shown, wants_transaction
from invalidator.region import Region
from invalidator.sessions import SourceFault, fault, perform
from invalidator.tokens import Session, Token
from invalidator.typed_views import OnDoubt, Seconds, TypedView, arguments, need_of, returned_type
from invalidator.views import Views

T = TypeVar("T")
ASIDE_THREADS = 2


class CachedView(Generic[T]):
    """One view with its loader: what the application reads by."""

    def __init__(self, reader: CacheReader, view: TypedView[T]) -> None:
        self._reader = reader
        self._view = view

    def __call__(self, *parts: Any) -> T | None:
        """The value of the key with these parts."""
        return self.get(parts[0] if len(parts) == 1 else parts)

    def get(
        self,
        key: object,
        *,
        max_staleness: Seconds | None = None,
        token: Token | Session | str | None = None,
        strong: bool = False,
        snapshot: ReadSnapshot | None = None,
    ) -> T | None:
        """The value of `key`, None where the database has none.

        `key` is the template's one part, a tuple of its parts, or a mapping. Not older than `max_staleness` seconds at
        the time of asking (the view's own by default); includes what `token` names; `strong`: loaded from the primary
        now. A miss is loaded inside `snapshot` where one is given. Raises Unproven, Overloaded or SourceFault where
        nothing can be returned that was asked for, ConfigError for a key that does not fit, and the loader's errors.
        """
        need = need_of(self._view, max_staleness, token, strong=strong)
        reader, view = self._reader, self._view
        found = None if need.bound_ms is None else reader.reading.nearby(view, key, need)
        if found is None:
            found = reader.run(reader.reading.get(view, key, need, snapshot))
        elif found.again is not None:
            reader.refresh((found,))
        if need.track:
            note_shown(token, need, [found])
        value: T | None = found.value
        return value

    def get_many(
        self,
        keys: Iterable[Any],
        *,
        max_staleness: Seconds | None = None,
        token: Token | Session | str | None = None,
        strong: bool = False,
        snapshot: ReadSnapshot | None = None,
    ) -> dict[Any, T | None]:
        """The values of several keys, by key, in one request per shard; what is missing is loaded together."""
        need = need_of(self._view, max_staleness, token, strong=strong)
        found = self._reader.run(self._reader.reading.get_many(self._view, keys, need, snapshot))
        self._reader.refresh(found.values())
        note_shown(token, need, found.values())
        return {key: one.value for key, one in found.items()}


class CacheReader(ReaderBase):
    """A read-through client of one region. One object serves a process and its threads.

    `connect` gives a context manager that lends a session: psycopg connections in autocommit mode, e.g. psycopg_pool's
    `pool.connection`, or sessions of other makes (sessions.py) inside a transaction. `primary` lends sessions of the
    primary; by default it is `connect`, which then should be one.
    """

    def __init__(
        self,
        region: Region,
        views: Views,
        connect: Callable[[], AbstractContextManager[Any]],
        *,
        primary: Callable[[], AbstractContextManager[Any]] | None = None,
        limits: Limits | None = None,
        near: Near | None = None,
    ) -> None:
        super().__init__(region.layout, views, limits, near, _Flight)
        self._region = region
        self._connect = connect
        self._primary = primary or connect
        self._aside: ThreadPoolExecutor | None = None
        _READERS.add(self)

    # -- declaring views

    def view(
        self,
        name: str,
        load: Callable[..., T | None],
        *,
        type: Any = Any,  # noqa: A002 - the word that people look for
        codec: Codec | None = None,
        max_staleness: Seconds | None = None,
        on_doubt: OnDoubt = OnDoubt.CLOSED,
    ) -> CachedView[T]:
        """A view with its loader, `load(session, key)`, with the key's parts by position (a tuple) or name (a mapping).

        Values are decoded into `type`: a msgspec Struct, a dataclass, a pydantic model, or what JSON gives. Errors of
        `load` pass through and nothing is cached; None is cached as absent. Raises ConfigError.
        """
        return CachedView(self, self._declared(name, load, type, codec, max_staleness, on_doubt))

    def loads(
        self,
        name: str,
        *,
        codec: Codec | None = None,
        max_staleness: Seconds | None = None,
        on_doubt: OnDoubt = OnDoubt.CLOSED,
    ) -> Callable[[Callable[..., T | None]], CachedView[T]]:
        """As `view`, as a decorator of the loader; its return annotation is the type."""

        def declare(load: Callable[..., T | None]) -> CachedView[T]:
            declared = self.view(
                name, load, type=returned_type(load), codec=codec, max_staleness=max_staleness, on_doubt=on_doubt
            )
            update_wrapper(cast("Any", declared), load)
            return declared

        return declare

    # -- reading and writing

    def get(
        self,
        view: str,
        key: object,
        load: Callable[[Any], T | None],
        *,
        max_staleness: Seconds | None = None,
        token: Token | Session | str | None = None,
        strong: bool = False,
    ) -> T | None:
        """As `CachedView.get`, with a loader for this one key, `load(session)`; a hit comes back as JSON gives it."""
        undeclared = CachedView[T](self, self._undeclared(view, load))
        return undeclared.get(key, max_staleness=max_staleness, token=token, strong=strong)

    @contextmanager
    def write_token(self, connection: Any) -> Iterator[WriteToken]:
        """A transaction on a psycopg connection in autocommit mode; once it is committed its token can be had.

        Inside a transaction of your own use `token`. Raises ConfigError.
        """
        check_idle(connection)
        promised = WriteToken()
        token: Token | None = None
        with connection.transaction():
            yield promised
            token = perform(written(), connection)
        if token is None:  # psycopg.Rollback ended the block: nothing was written
            return  # type: ignore[unreachable]  # the transaction swallows that error
        promised.settle(token)
        with suppress(SourceFault):  # committed is committed: the token is good without the log's position
            promised.settle(perform(committed(token), connection))

    def token(self, session: Any) -> Token:
        """The token of the transaction that the session is in, before its COMMIT. It counts once that has happened."""
        return perform(written(), session)

    def passed(self, token: Token | str) -> bool:
        """Whether this whole region has applied what the token names; False too while that cannot be asked."""
        wanted = Token.parse(token) if isinstance(token, str) else token
        return self.run(self.reading.passed(wanted, self._any_view()))

    @contextmanager
    def snapshot(self, session: Any) -> Iterator[ReadSnapshot]:
        """Reads whose misses load on a session that the application owns, inside its transaction.

        On a psycopg connection in autocommit mode a transaction is opened for the block.
        """
        with ExitStack() as stack:
            if wants_transaction(session):
                stack.enter_context(session.transaction())
            yield ReadSnapshot(session, perform(self._prover.begin(session), session))

    def close(self) -> None:
        """Wait for what is loaded in the background."""
        if self._aside is not None:
            self._aside.shutdown()

    # -- carrying out

    def run(self, flow: Flow[T]) -> T:
        """Carry out what a flow asks for, and return its result."""
        try:
            act = next(flow)
            while True:
                try:
                    answer = self._perform(act)
                except BaseException as error:  # noqa: BLE001 - the flow judges; what it does not catch comes back
                    act = flow.throw(error)
                else:
                    act = flow.send(answer)
        except StopIteration as stop:
            value: T = stop.value
            return value

    def _perform(self, act: Act) -> Any:
        if isinstance(act, Look):
            return self._region.look(act.shard, act.names, act.view.name, act.view.digest)
        if isinstance(act, Load):
            return self._load(act)
        if isinstance(act, Offer):
            return self._region.fill_many(act.shard, act.fills, self._owner)
        if isinstance(act, Lease):
            return self._region.lease(act.shard, act.fields, *self._lease_terms(act.seconds))
        if isinstance(act, Wait):
            return cast("_Flight", act.flight).wait(act.seconds)
        if isinstance(act, AskClock):
            with self._lent(self._primary) as session:
                return perform(self._prover.ask_clock(), session)
        return time.sleep(act.seconds)

    def _load(self, act: Load) -> Loaded:
        def run(session: Any) -> dict[str, Any]:
            values = {}
            for name, key in act.keys.items():
                positional, named = arguments(key)
                values[name] = act.view.load(session, *positional, **named)
            return values

        if act.snapshot is not None:
            return perform(
                self._prover.load_within(act.snapshot.begun, act.snapshot.session), act.snapshot.session, run
            )
        with self._lent(self._primary if act.primary else self._connect) as session:
            return perform(self._prover.load(session), session, run)

    @contextmanager
    def _lent(self, lend: Callable[[], AbstractContextManager[Any]]) -> Iterator[Any]:
        with ExitStack() as stack:
            try:
                session = stack.enter_context(lend())
            except StaleproofError:
                raise
            except Exception as error:
                raise fault(error) from error
            yield session

    def begin_in_child(self) -> None:
        """In a child of the process: nothing that its parent has under way ends here."""
        self._owner = token_hex(8)
        self._aside = None
        self.reading.begin(self._owner)

    def _run_aside(self, flow: Flow[Any]) -> None:
        if self._aside is None:
            self._aside = ThreadPoolExecutor(ASIDE_THREADS, thread_name_prefix="staleproof")

        def run() -> None:
            try:
                self.run(flow)
            except Exception:  # noqa: BLE001 - nobody waits for it: who asks later gets the error
                self.counts["aside_failed"] += 1

        self._aside.submit(run)


_READERS: weakref.WeakSet[CacheReader] = weakref.WeakSet()


def _begin_in_child() -> None:
    for reader in list(_READERS):
        reader.begin_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)


class _Flight:
    """A threading.Event with a result."""

    def __init__(self) -> None:
        self.result: Any = None
        self._finished = threading.Event()

    def finish(self, result: Any) -> None:
        """Wake everybody who waits."""
        self.result = result
        self._finished.set()

    def wait(self, seconds: float) -> bool:
        """Whether it has finished within so long."""
        return self._finished.wait(seconds)
