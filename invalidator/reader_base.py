"""What both readers, for threads and for asyncio, have in common: everything that waits for nothing."""

from __future__ import annotations

import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from secrets import token_hex
from typing import Any

from cdc.errors import ConfigError
from invalidator.codecs import Codec
from invalidator.herd import Flight, Limits
from invalidator.judging import Need, shown_by
from invalidator.layout import Layout
from invalidator.loading import Prover
from invalidator.near import Near
from invalidator.reader_acts import Flow, Found
from invalidator.reading import Counts, Reading
from invalidator.sessions import is_psycopg
from invalidator.tokens import Session, Token
from invalidator.typed_views import OnDoubt, Seconds, TypedView, known_view, typed_view, with_loader
from invalidator.views import View, Views

_log = logging.getLogger("staleproof")


class WriteToken:
    """What `write_token` gives: its token is there once the transaction is committed."""

    def __init__(self) -> None:
        self._token: Token | None = None

    @property
    def token(self) -> Token:
        """Raises ConfigError before the transaction is committed."""
        if self._token is None:
            raise ConfigError("a write has its token only once it is committed: ask after the `with` block")
        return self._token

    @property
    def text(self) -> str:
        """The token as it travels."""
        return self.token.text

    def settle(self, token: Token) -> None:
        """The transaction is committed."""
        self._token = token


class ReadSnapshot:
    """A transaction of the application's own, of which it is known what its reads see at least."""

    def __init__(self, session: Any, begun: Any) -> None:
        self.session = session
        self.begun = begun


class ReaderBase(ABC):
    """A reader without its ways to wait. `reading` has the logic."""

    def __init__(
        self, layout: Layout, views: Views, limits: Limits | None, near: Near | None, make_flight: Callable[[], Flight]
    ) -> None:
        self._views = views
        self._limits = limits or Limits()
        self._prover = Prover()
        self._owner = token_hex(8)
        self._untyped: dict[str, TypedView[Any]] = {}
        self.reading = Reading(
            layout,
            self._limits,
            near,
            owner=self._owner,
            clock=time.monotonic,
            share=random.random,
            make_flight=make_flight,
            alarm=alarm,
        )
        self.layout = layout
        """Where this region's keys lie."""

    @property
    def counts(self) -> Counts:
        """What happened to the reads so far."""
        return self.reading.counts

    def invalidate_local(self, view: str, key: object) -> None:
        """Drop one value from the near cache of this process."""
        self.reading.forget(known_view(self._views, view), key)

    def refresh(self, found: Iterable[Found]) -> None:
        """Look again, in the background, for what is ageing."""
        for one in found:
            if one.again is not None:
                self._run_aside(one.again)

    @abstractmethod
    def _run_aside(self, flow: Flow[Any]) -> None:
        """Run a flow beside whatever goes on."""

    def _declared(
        self, name: str, load: Any, kind: Any, codec: Codec | None, max_staleness: Seconds | None, on_doubt: OnDoubt
    ) -> TypedView[Any]:
        return typed_view(known_view(self._views, name), load, kind, codec or Codec(), max_staleness, on_doubt)

    def _undeclared(self, name: str, load: Callable[[Any], Any]) -> TypedView[Any]:
        """A view whose values are what JSON gives, with a loader for one key."""
        typed = self._untyped.get(name)
        if typed is None:
            typed = self._untyped[name] = self._declared(name, None, Any, None, None, OnDoubt.CLOSED)
        return with_loader(typed, lambda session, *_, **__: load(session))

    def _any_view(self) -> View:
        """One of the views: whoever asks for a watermark only has to name one."""
        return next(iter(self._views.views.values()))

    def _lease_terms(self, seconds: float) -> tuple[str, int, int]:
        """Whose a lease is, for how many milliseconds, and how many may live in one shard."""
        return self._owner, int(seconds * 1_000), max(1, self._limits.region_loads // self.layout.shards)


def wants_transaction(session: Any) -> bool:
    """Whether a session of psycopg's is in none, so that one is to be opened for what follows."""
    return is_psycopg(session) and session.autocommit and not session.info.transaction_status


def check_idle(connection: Any) -> None:
    """Raises ConfigError where a transaction of ours cannot be opened and committed."""
    if not is_psycopg(connection) or not connection.autocommit or connection.info.transaction_status:
        raise ConfigError(
            "write_token opens and commits a transaction itself, on a psycopg connection in autocommit mode that is in "
            "none: inside a transaction of your own call reader.token(session) before its COMMIT"
        )


def note_shown(token: Token | Session | str | None, need: Need, found: Iterable[Found]) -> None:
    """Tell a session what its read showed."""
    if need.track and isinstance(token, Session):
        for one in found:
            if one.evidence is not None:
                token.add(shown_by(one.evidence))
                token.lost = False


def alarm(event: str, view: str) -> None:
    """Something that must never happen: an error in the log, without any value."""
    _log.error("%s view=%s", event, view)
