"""Reading through the cache: a hit is served as it is, a miss is loaded with a proof of what the load could see.

In flow a view, a key and a loader; out flows the value. What cannot be proven is returned, never cached. The loader
runs on a connection whose snapshot the reader took first, in one REPEATABLE READ transaction: every read of the load
sees exactly that snapshot. Needs autocommit connections with psycopg's `execute`, `fetchone` and `nextset`.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import msgspec

from cdc.errors import BadRecord, ConfigError, TransientError
from cdc.events import parse_lsn
from cdc.snapshots import Snapshot, parse_pg_snapshot, parse_pg_standby_snapshot
from invalidator import entry as entries
from invalidator.guard import Fill, Outcome
from invalidator.layout import Layout
from invalidator.region import Region
from invalidator.views import View, Views

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


class _Server(msgspec.Struct, frozen=True):
    name: str
    standby: bool
    history: str


class Counts(Counter[str]):
    """What happened to the reads.

    hit, miss, closed, cold, down, foreign; filled, superseded, unproven, oversize, refused and refused:<reason>.
    """


class CacheReader:
    """A read-through client of one region. Thread-safe as far as `connect` is; one object serves a process.

    `connect` gives a context manager that lends an autocommit connection, e.g. psycopg_pool's `pool.connection`.
    Values larger than `payload_bytes_max` (as JSON) are returned and not cached.
    """

    def __init__(
        self,
        region: Region,
        views: Views,
        connect: Callable[[], AbstractContextManager[Any]],
        *,
        payload_bytes_max: int = 1 << 20,
    ) -> None:
        self.counts = Counts()
        self._region = region
        self._views = views
        self._connect = connect
        self._payload_bytes_max = payload_bytes_max
        self._servers: weakref.WeakKeyDictionary[Any, _Server] = weakref.WeakKeyDictionary()

    @property
    def layout(self) -> Layout:
        """Where this region's keys lie."""
        return self._region.layout

    def get(self, view: str, key: object, load: Callable[[Any], T | None]) -> T | None:
        """The value of `key` in `view`: from the cache where it may be served, else from `load(connection)`.

        `key` is the template's one part, or a mapping of its parts. `load` returns something JSON can hold, or None
        when the database has no such object; that is cached too. A hit comes back as JSON gives it. Errors of `load`
        pass through and nothing is cached. Raises ConfigError for an unknown view or a key that does not fit it.
        """
        known = self._view(view)
        name = _render(known, key)
        try:
            found = self._region.read(self.layout.place(name)[0], name, known.name, known.digest)
        except TransientError:
            self.counts["down"] += 1
            return self._load(load)[0]
        if found.entry is not None:
            try:
                entry = entries.decode(found.entry)
                if (entry.key, entry.view, entry.encoding) == (name, known.name, "j"):
                    self.counts["hit"] += 1
                    return None if entry.content is entries.Content.ABSENT else msgspec.json.decode(entry.payload)
            except (BadRecord, msgspec.DecodeError):
                pass  # counted below: whatever lies there is not what was asked for
            self.counts["foreign"] += 1
        else:
            self.counts[found.status.lower()] += 1
        value, proof = self._load(load)
        if proof is None:
            self.counts["unproven"] += 1
        else:
            self._fill(known, name, value, *proof)
        return value

    def _view(self, name: str) -> View:
        view = self._views.views.get(name)
        if view is None:
            raise ConfigError(f"there is no view {name!r}; known are {', '.join(sorted(self._views.views))}")
        return view

    def _load(self, load: Callable[[Any], T | None]) -> tuple[T | None, tuple[Snapshot, int] | None]:
        """The loaded value with its snapshot and the database's time, or without where nothing is proven."""
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
                return value, (parse_pg_standby_snapshot(server.history, text, replayed), now_ms)
            return value, (parse_pg_snapshot(server.history, text), now_ms)

    def _identify(self, connection: Any) -> _Server:
        name, standby, system, timeline = connection.execute(_IDENTIFY).fetchone()
        server = _Server(name, standby, f"{system}:{timeline}")
        self._servers[connection] = server  # a standby may follow a new timeline: then fills are refused, and safe
        return server

    def _fill(self, view: View, name: str, value: object, snapshot: Snapshot, as_of_ms: int) -> None:
        content = entries.Content.ABSENT if value is None else entries.Content.VALUE
        payload = b"" if value is None else msgspec.json.encode(value)
        seen = snapshot.text
        if len(payload) > self._payload_bytes_max or len(seen) > entries.SEEN_BYTES_MAX:
            self.counts["oversize"] += 1
            return
        shard, stripe = self.layout.place(name)
        ttl_ms = view.ttl_ms or 0
        expires_ms = as_of_ms + ttl_ms if ttl_ms else 0
        tail = entries.encode_tail(
            view=view.name, key=name, seen=seen, payload=payload, as_of_ms=as_of_ms, expires_ms=expires_ms
        )
        request = Fill(
            key=name,
            stripe=stripe,
            view=view.name,
            digest=view.digest,
            history=snapshot.history,
            lead=entries.lead(entries.Kind.FILL, content),
            tail=tail,
            ttl_ms=ttl_ms,
        )
        try:
            filled = self._region.fill(shard, request)
        except TransientError:
            self.counts["down"] += 1  # the value is good; only the cache did not take it
            return
        if filled.outcome is Outcome.APPLIED:
            self.counts["filled"] += 1
        elif filled.outcome is Outcome.REFUSED:
            self.counts["refused"] += 1
            self.counts[f"refused:{filled.reason}"] += 1
        else:
            self.counts[filled.outcome.lower()] += 1


def _render(view: View, key: object) -> str:
    fields = view.key.fields
    if not isinstance(key, Mapping):
        key = {fields[0]: key} if len(fields) == 1 else {}
    if set(key) != set(fields):
        raise ConfigError(
            f"view {view.name} is asked for by {', '.join(fields)}; got {', '.join(map(str, key)) or 'none'}"
        )
    try:
        return view.key.render([key[name] for name in fields])
    except BadRecord as error:
        raise ConfigError(f"view {view.name}: {error}") from error
