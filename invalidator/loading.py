"""Loads from the database with a proof of what they could see, and the fills made of them.

In flows a function that reads; out flow what it read and a Proof, or no proof where nothing is certain. It runs on a
connection whose snapshot was taken first, in one REPEATABLE READ transaction: every read of the load sees exactly that
snapshot. Needs autocommit connections with psycopg's `execute`, `fetchone` and `nextset`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import msgspec

from cdc.errors import ConfigError
from cdc.events import parse_lsn
from cdc.snapshots import Snapshot, parse_pg_snapshot, parse_pg_standby_snapshot
from invalidator import entry as entries
from invalidator.guard import Fill
from invalidator.layout import Layout
from invalidator.views import View

T = TypeVar("T")

# Who is this server? Asked once per connection of a primary: it cannot become another one without a restart.
# `server` tells apart what a pooler or balancer may put behind one connection.
_SERVER = "concat_ws('/', extract(epoch FROM pg_postmaster_start_time()), inet_server_addr(), inet_server_port())"
_IDENTIFY = f"""SELECT {_SERVER}, pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system())::text, CASE
    WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
    ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END"""  # noqa: S608 - our own constant
_REPLAYED = f"SELECT {_SERVER}, coalesce(pg_last_wal_replay_lsn(), '0/0')::text"
_SEEN = f"""SELECT {_SERVER}, pg_is_in_recovery(), pg_current_snapshot()::text,
    (extract(epoch FROM clock_timestamp()) * 1000)::bigint"""  # noqa: S608 - our own constant
_BEGIN = f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {_SEEN}"
# A snapshot that is still the same at the end shows that the loader did not leave the transaction; one that wrote
# sees itself.
_END = "SELECT pg_current_snapshot()::text, pg_current_xact_id_if_assigned() IS NULL; COMMIT"


class Proof(msgspec.Struct, frozen=True):
    """What a load could see, and the database's time when it began, in milliseconds since 1970."""

    snapshot: Snapshot
    as_of_ms: int

    @property
    def storable(self) -> bool:
        """Whether an entry can hold it: a snapshot of thousands of running transactions is too long."""
        return len(self.snapshot.text) <= entries.SEEN_BYTES_MAX


class _Server(msgspec.Struct, frozen=True):
    name: str
    standby: bool
    history: str


class ProvenSource:
    """A database, through connections that `connect` lends: a context manager each, e.g. psycopg_pool's `connection`.

    Thread-safe as far as `connect` is.
    """

    def __init__(self, connect: Callable[[], AbstractContextManager[Any]]) -> None:
        self._connect = connect
        self._servers: weakref.WeakKeyDictionary[Any, _Server] = weakref.WeakKeyDictionary()

    def load(self, load: Callable[[Any], T]) -> tuple[T, Proof | None]:
        """What `load(connection)` returns, with the proof; None where it is unproven. Errors of `load` pass through."""
        with self._connect() as connection:
            if not connection.autocommit:
                raise ConfigError("the reader needs connections in autocommit mode: it opens the transaction itself")
            server = self._servers.get(connection) or self._identify(connection)
            replayed, replayed_by = 0, server.name
            if server.standby:
                replayed_by, text = connection.execute(_REPLAYED).fetchone()
                replayed = parse_lsn(text)
            try:
                cursor = connection.execute(_BEGIN)
                cursor.nextset()
                name, standby, text, now_ms = cursor.fetchone()
                value = load(connection)
                still, unwritten = connection.execute(_END).fetchone()
            except BaseException:
                connection.rollback()
                raise
            if (name, standby) != (server.name, server.standby) or replayed_by != name:
                del self._servers[connection]  # promoted, or another server behind a balancer: whose history is it?
                return value, None
            if still != text or not unwritten:
                return value, None
            if standby:
                return value, Proof(parse_pg_standby_snapshot(server.history, text, replayed), now_ms)
            return value, Proof(parse_pg_snapshot(server.history, text), now_ms)

    def _identify(self, connection: Any) -> _Server:
        name, standby, system, timeline = connection.execute(_IDENTIFY).fetchone()
        server = _Server(name, standby, f"{system}:{timeline}")
        self._servers[connection] = server  # a standby may follow a new timeline: then fills are refused, and safe
        return server


class FillMaker:
    """Makes the fills of one load: values of one view under one proof."""

    def __init__(self, view: View, layout: Layout, proof: Proof) -> None:
        """Raises ValueError for a proof that is not `storable`."""
        self._place = layout.place
        self._view = view.name
        self._digest = view.digest
        self._history = proof.snapshot.history
        self._ttl_ms = view.ttl_ms or 0
        self._encode = entries.TailEncoder(
            view=view.name,
            seen=proof.snapshot.text,
            as_of_ms=proof.as_of_ms,
            expires_ms=proof.as_of_ms + self._ttl_ms if self._ttl_ms else 0,
        ).encode
        self._lead_of_value = entries.lead(entries.Kind.FILL, entries.Content.VALUE)
        self._lead_of_absence = entries.lead(entries.Kind.FILL, entries.Content.ABSENT)

    def fill(self, key: str, payload: bytes | None) -> tuple[int, Fill]:
        """The shard and the fill for `key`. `payload` is JSON, None where the database has no such object."""
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
