"""Loads from the database with a proof of what they could see, and the fills made of them.

In flows a function that reads; out flow what it read and a Proof, or no proof where nothing is certain. On psycopg
connections in autocommit mode it runs in one REPEATABLE READ transaction of ours, whose snapshot was taken first: every
read of the load sees exactly that. Any other session brings a transaction of its own: its reads see that or more.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any, TypeVar

import msgspec

from cdc.errors import ConfigError
from cdc.events import History, parse_lsn, stamp_text
from cdc.snapshots import Snapshot, parse_pg_snapshot, parse_pg_standby_snapshot
from invalidator import entry as entries
from invalidator.guard import Fill
from invalidator.layout import Layout
from invalidator.sessions import (
    Ask,
    Run,
    SourceFault,
    Steps,
    Undo,
    check_in_transaction,
    has_changed_objects,
    is_psycopg,
    perform,
    remembers_objects,
)
from invalidator.tokens import Token
from invalidator.views import View

T = TypeVar("T")

# Who is this server? Asked once per connection of a primary: it cannot become another one without a restart.
# `server` tells apart what a pooler or balancer may put behind one connection.
_SERVER = "concat_ws('/', extract(epoch FROM pg_postmaster_start_time()), inet_server_addr(), inet_server_port())"
_HISTORY = """(SELECT system_identifier FROM pg_control_system())::text || ':' || CASE
    WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
    ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END"""
_IDENTIFY = f"SELECT {_SERVER}, pg_is_in_recovery(), {_HISTORY}"
_REPLAYED = f"SELECT {_SERVER}, coalesce(pg_last_wal_replay_lsn(), '0/0')::text"
# The time at which the statement arrived: the snapshot is younger.
_NOW_MS = "floor(extract(epoch FROM statement_timestamp()) * 1000)::bigint"
_SEEN = f"SELECT {_SERVER}, pg_is_in_recovery(), pg_current_snapshot()::text, {_NOW_MS}"
_BEGIN = f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {_SEEN}"
# A snapshot that is still the same at the end shows that the loader did not leave the transaction; one that wrote
# sees itself.
_END = "SELECT pg_current_snapshot()::text, pg_current_xact_id_if_assigned() IS NULL; COMMIT"
# Of a standby also how far it is by then: that much it may have shown.
_END_OF_STANDBY = _END.replace(";", ", coalesce(pg_last_wal_replay_lsn(), '0/0')::text;")
# Of a transaction that is not ours: whether each statement has a snapshot of its own, so that the next one sees what
# is replayed by now; how far the server is; when it began (its snapshot may be as old); and what tells whether it is
# still the same.
_WITHIN = f"""{_SEEN}, current_setting('transaction_isolation') IN ('read committed', 'read uncommitted'),
    CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_replay_lsn(), '0/0')
        ELSE pg_current_wal_insert_lsn() END::text,
    floor(extract(epoch FROM transaction_timestamp()) * 1000)::bigint,
    concat(pg_backend_pid(), '/', transaction_timestamp()), pg_current_xact_id_if_assigned() IS NULL"""
_WRITTEN = f"SELECT {_HISTORY}, pg_current_xact_id_if_assigned()::text"
_COMMITTED = f"SELECT {_HISTORY}, pg_current_wal_insert_lsn()::text"


class Proof(msgspec.Struct, frozen=True):
    """What a load could see, and the database's time when it began, in milliseconds since 1970."""

    snapshot: Snapshot
    as_of_ms: int

    @property
    def storable(self) -> bool:
        """Whether an entry can hold it: a snapshot of thousands of running transactions is too long."""
        return len(self.snapshot.text) <= entries.SEEN_BYTES_MAX


class ClockReading(msgspec.Struct, frozen=True):
    """The primary's clock, milliseconds since 1970, in the reply to a statement sent at `asked` (monotonic seconds)."""

    time_ms: int
    asked: float


class Loaded(msgspec.Struct, frozen=True):
    """What a load gave. `begun_now`: its snapshot was taken for it, so that it shows whatever was committed before.

    `own`: it may show what its transaction wrote and nobody else sees yet: for who asked, and nobody else.
    `showed`: where it may show more than `proof` says: a weaker proof that tells how much more.
    """

    value: Any
    proof: Proof | None
    clock: ClockReading | None
    begun_now: bool = False
    own: bool = False
    showed: str = ""

    @property
    def stored(self) -> Proof | None:
        """The proof for an entry, which must not show more than its proof tells."""
        if self.proof is None or not self.showed:
            return self.proof
        return Proof(Snapshot(self.proof.snapshot.history, self.showed), self.proof.as_of_ms)


class _Server(msgspec.Struct, frozen=True):
    name: str
    standby: bool
    history: History


class _Within(msgspec.Struct, frozen=True):
    """What one statement inside somebody else's transaction told."""

    server: str
    standby: bool
    snapshot: str
    time_ms: int
    renews: bool
    reached: str
    began_ms: int
    transaction: str
    unwritten: bool
    remembers: bool = False


class Prover:
    """The steps of proven loads, on any kind of session; what it learnt about servers lasts. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._servers: weakref.WeakKeyDictionary[Any, _Server] = weakref.WeakKeyDictionary()
        self._histories: dict[tuple[str, bool], History] = {}

    def load(self, session: Any) -> Steps[Loaded]:
        """One load on a session that was lent for it."""
        if is_psycopg(session):
            return self._in_our_transaction(session)
        return self._in_theirs(session)

    def _in_our_transaction(self, session: Any) -> Steps[Loaded]:
        if not session.autocommit or session.info.transaction_status:
            raise ConfigError(
                "the reader needs connections in autocommit mode, in no transaction: it opens and ends one itself; "
                "inside one of yours pass snapshot=, from reader.snapshot(connection)"
            )
        server = self._servers.get(session) or (yield from self._identify(session))
        replayed, replayed_by = 0, server.name
        if server.standby:
            replayed_by, lsn = yield Ask(_REPLAYED)
            replayed = parse_lsn(lsn)
        try:
            asked = self._clock()
            name, standby, text, now_ms = yield Ask(_BEGIN, result=1)
            value = yield Run()
            still, unwritten, *reached = yield Ask(_END_OF_STANDBY if standby else _END)
        except BaseException:
            with suppress(SourceFault):  # a connection that is gone has nothing to undo; what went wrong is raised
                yield Undo()
            raise
        if (name, standby) != (server.name, server.standby) or replayed_by != name:
            del self._servers[session]  # promoted, or another server behind a balancer: whose history is it?
            return Loaded(value, None, None)
        if still != text or not unwritten:
            return Loaded(value, None, None)
        if standby:
            seen = parse_pg_standby_snapshot(server.history, text, replayed, parse_lsn(*reached))
            return Loaded(value, Proof(seen, now_ms), None)
        proof = Proof(parse_pg_snapshot(server.history, text), now_ms)
        return Loaded(value, proof, ClockReading(now_ms, asked), begun_now=True)

    def _identify(self, session: Any) -> Steps[_Server]:
        server = _Server(*(yield Ask(_IDENTIFY)))
        self._servers[session] = server  # a standby may follow a new timeline: then fills are refused, and safe
        return server

    def _in_theirs(self, session: Any) -> Steps[Loaded]:
        asked = self._clock()
        begun = yield from self.begin(session)
        return (yield from self.load_within(begun, session, asked))

    def begin(self, session: Any) -> Steps[_Within]:
        """The first statement inside a transaction of the application's own."""
        check_in_transaction(session)
        told: tuple[Any, ...] = yield Ask(_WITHIN)
        fields = (*told, remembers_objects(session))
        return _Within(*fields)

    def load_within(self, begun: _Within, session: Any, asked: float | None = None) -> Steps[Loaded]:
        """One load inside that transaction. It sees the snapshot of `begin`, or a later one: at least as much.

        `asked`: when `begin` was sent, where it was sent for this load.
        """
        known = (begun.server, begun.standby)
        if known not in self._histories:
            name, standby, history = yield Ask(_IDENTIFY)
            self._histories[name, standby] = history
        history = self._histories.get(known)
        changed = has_changed_objects(session)
        value = yield Run()
        ended = _Within(*(yield Ask(_WITHIN)))
        left = (ended.server, ended.standby, ended.transaction) != (begun.server, begun.standby, begun.transaction)
        if left or history is None or begun.remembers or changed:
            return Loaded(value, None, None)
        reached = parse_lsn(ended.reached)
        if begun.standby:
            replayed = parse_lsn(begun.reached) if begun.renews else 0
            seen = parse_pg_standby_snapshot(history, begun.snapshot, replayed, reached)
            return Loaded(value, Proof(seen, begun.began_ms), None)
        proof = Proof(parse_pg_snapshot(history, begun.snapshot), begun.time_ms if begun.renews else begun.began_ms)
        own = not (begun.unwritten and ended.unwritten)
        showed = ""
        if begun.renews and ended.snapshot != begun.snapshot:  # each read may have seen more than the one before
            showed = parse_pg_standby_snapshot(history, begun.snapshot, 0, reached).text
        if asked is None:
            return Loaded(value, proof, None, own=own, showed=showed)
        clock = ClockReading(begun.time_ms, asked)
        return Loaded(value, proof, clock, begun_now=begun.renews, own=own, showed=showed)

    def ask_clock(self) -> Steps[ClockReading | None]:
        """The primary's clock; None where a standby answers, whose own may differ."""
        asked = self._clock()
        _, standby, _, now_ms = yield Ask(_SEEN)
        return None if standby else ClockReading(now_ms, asked)


def written() -> Steps[Token]:
    """The token of the transaction that a session is in, before its COMMIT; an empty one where it wrote nothing."""
    history, stamp = yield Ask(_WRITTEN)
    return Token(history, () if stamp is None else (stamp_text(int(stamp)),))


def committed(token: Token) -> Steps[Token]:
    """The same after COMMIT on the same session, with a position of the log by which it was logged."""
    history, lsn = yield Ask(_COMMITTED)
    return token if history != token.history else Token(history, token.stamps, f"{parse_lsn(lsn):016x}")


class ProvenSource:
    """A database, through sessions that `connect` lends: a context manager each, e.g. psycopg_pool's `connection`.

    Thread-safe as far as `connect` is.
    """

    def __init__(self, connect: Callable[[], AbstractContextManager[Any]]) -> None:
        self._connect = connect
        self._prover = Prover()

    def load(self, load: Callable[[Any], T]) -> tuple[T, Proof | None]:
        """What `load(session)` returns, with the proof; None where it is unproven. Errors of `load` pass through."""
        with self._connect() as session:
            loaded = perform(self._prover.load(session), session, load)
        return loaded.value, loaded.stored


class FillMaker:
    """Makes the fills of one load: values of one view under one proof."""

    def __init__(
        self, view: View, layout: Layout, proof: Proof, *, encoding: str = "j", lifetime_share: float = 1.0
    ) -> None:
        """Entries live for `lifetime_share` of the view's ttl. Raises ValueError for a proof that is not `storable`."""
        self._place = layout.place
        self._view = view.name
        self._digest = view.digest
        self._history = proof.snapshot.history
        self._ttl_ms = max(1, int(view.ttl_ms * lifetime_share)) if view.ttl_ms else 0
        self._encode = entries.TailEncoder(
            view=view.name,
            seen=proof.snapshot.text,
            as_of_ms=proof.as_of_ms,
            expires_ms=proof.as_of_ms + self._ttl_ms if self._ttl_ms else 0,
        ).encode
        self._lead_of_value = entries.lead(entries.Kind.FILL, entries.Content.VALUE, encoding)
        self._lead_of_absence = entries.lead(entries.Kind.FILL, entries.Content.ABSENT)

    def fill(self, key: str, payload: bytes | None) -> tuple[int, Fill]:
        """The shard and the fill for `key`. `payload` is encoded, None where the database has no such object."""
        shard, stripe = self._place(key)
        return shard, Fill(
            key=key,
            stripe=stripe,
            view=self._view,
            digest=self._digest,
            history=self._history,
            lead=self._lead_of_absence if payload is None else self._lead_of_value,
            tail=self._encode(key, payload or b""),
            ttl_ms=self._ttl_ms,
        )
