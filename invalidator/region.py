"""One region's Redis: the door to it. In flow the guard's requests, out flow Outcomes; the scripts decide.

Every reply is looked at. What may pass by itself is a TransientError, what a person must mend a FatalError; a missing
function library is loaded and the same request sent again, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry

from cdc.errors import FatalError, TransientError
from invalidator.guard import Batch, Close, ControlStep, Fill, KeyChange, Outcome, Pass
from invalidator.layout import FORMAT, REGION_SCOPE, Layout, Row, offset_text

LIBRARY = "staleproof1"

_PASSING = ("LOADING", "BUSY", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "OOM", "NOREPLICAS", "MISCONF")
_MENDING = ("NOAUTH", "WRONGPASS", "NOPERM", "STALEPROOF")


class Applied(msgspec.Struct, frozen=True):
    """Reply to a batch; the counts are of entries."""

    outcome: Outcome
    unlinked: int = 0
    kept: int = 0
    written: int = 0


class Filled(msgspec.Struct, frozen=True):
    """Reply to a fill; `reason` of a refusal: closed, history, digest, forged, lost, region, view or stripe."""

    outcome: Outcome
    reason: str = ""


class Found(msgspec.Struct, frozen=True):
    """Reply to a read: HIT (with `entry`), MISS, CLOSED or COLD; `watermark` as stored, or empty."""

    status: str
    watermark: str
    entry: bytes | None = None


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """How a region's Redis is reached. The URL may carry user and password; TLS is `rediss://`."""

    url: str
    username: str | None = None
    password: str | None = None
    tls_ca: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    timeout_seconds: float = 1.0


def connect(options: Connection) -> redis.Redis:
    """A client with deadlines and without retries of its own: a repeated script is ours to decide."""
    extra: dict[str, Any] = {"username": options.username, "password": options.password}
    if options.url.startswith("rediss://"):
        extra["ssl_ca_certs"] = options.tls_ca
        extra["ssl_certfile"], extra["ssl_keyfile"] = options.tls_certificate, options.tls_key
    return redis.Redis.from_url(
        options.url,
        socket_timeout=options.timeout_seconds,
        socket_connect_timeout=options.timeout_seconds,
        retry=Retry(NoBackoff(), 0),
        **{name: value for name, value in extra.items() if value is not None},
    )


class Region:
    """The guard's scripts on one region. `name` appears in errors only."""

    def __init__(self, name: str, client: redis.Redis, layout: Layout) -> None:
        self.name = name
        self.layout = layout
        self._client = client

    def prepare(self) -> None:
        """Load the function library unless exactly this one is there."""
        loaded = self._call("FUNCTION", "LIST", "LIBRARYNAME", LIBRARY, "WITHCODE")
        if library().encode() not in _flat(loaded):
            self._call("FUNCTION", "LOAD", "REPLACE", library())

    def header(self, shard: int) -> dict[str, str]:
        """The shard's header; empty when the shard is not there."""
        reply = self._call("HGETALL", self.layout.header_key(shard))
        pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
        return {name.decode(): value.decode() for name, value in pairs}

    def apply(self, shard: int, batch: Batch) -> Applied:
        """Apply one batch atomically. Safe to repeat: rows are compared first."""
        args: list[str | bytes | int] = [FORMAT, batch.beat.text if batch.beat else ""]
        args += [len(batch.rows), len(batch.raises), len(batch.changes)]
        for step in batch.rows:
            args += [step.field, offset_text(step.expected), step.row.text]
        for order in batch.raises:
            args += [order.field, order.position + "".join(order.stamps)]
        args += [_packed(change) for change in batch.changes]
        for refresh in batch.refreshes:
            args += [_packed(refresh.change), refresh.view, "1evj", refresh.tail, refresh.ttl_ms]
        names = [c.key for c in batch.changes] + [r.change.key for r in batch.refreshes]
        reply = self._function("sp1_apply", self._keys(shard, names), args)
        return Applied(Outcome(reply[0].decode()), *(int(count) for count in reply[1:]))

    def cold(
        self, shard: int, offset: int, views: Sequence[tuple[str, str]], rows: Sequence[tuple[str, Row]]
    ) -> Outcome:
        """Create the shard, closed; DISPLACED when it is there already."""
        args: list[str | bytes | int] = [FORMAT, offset_text(offset), len(views)]
        args += [part for view in views for part in view]
        args += [part for name, row in rows for part in (name, row.text)]
        return self._outcome("sp1_cold", shard, args)

    def close(self, shard: int, request: Close) -> Outcome:
        """Close a scope and jump rows."""
        args: list[str | bytes | int] = [FORMAT, request.scope or REGION_SCOPE, offset_text(request.offset)]
        args += [request.epoch, request.history, request.digest, request.rows_digest]
        args += [part for name, row in request.rows for part in (name, row.text)]
        return self._outcome("sp1_close", shard, args)

    def hear(self, shard: int, request: ControlStep) -> Outcome:
        """Take one control record in."""
        step = request.step
        args: list[str | bytes | int] = [FORMAT, step.field, offset_text(step.expected), step.row.text]
        args += [offset_text(step.expected), request.position, request.stamp, request.limit, request.history]
        args += [part for name, offset in request.owned for part in (name, offset_text(offset))]
        return self._outcome("sp1_hear", shard, args)

    def pass_heartbeat(self, shard: int, request: Pass) -> tuple[Outcome, int]:
        """Move the watermark if every row passed; also how many scopes opened."""
        args: list[str | bytes | int] = [FORMAT, request.position, request.stamp, f"{request.time_ms:012x}"]
        args += [part for name, barrier in request.barriers for part in (name, offset_text(barrier))]
        reply = self._function("sp1_pass", self._keys(shard), args)
        return Outcome(reply[0].decode()), int(reply[1]) if len(reply) > 1 else 0

    def fill(self, shard: int, request: Fill) -> Filled:
        """Offer a value that was read from the database."""
        args: list[str | bytes | int] = [FORMAT, request.history, request.view, request.digest, request.stripe]
        args += [request.lead, request.tail, request.ttl_ms]
        reply = self._function("sp1_fill", self._keys(shard, [request.key]), args)
        return Filled(Outcome(reply[0].decode()), reply[1].decode() if len(reply) > 1 else "")

    def read(self, shard: int, key: str, view: str, digest: str) -> Found:
        """The entry under `key`, if it may be served."""
        keys = [self.layout.header_key(shard), self.layout.entry_key(shard, key)]
        reply = self._function("sp1_read", keys, [FORMAT, view, digest], read_only=True)
        return Found(reply[0].decode(), reply[1].decode(), *reply[2:3])

    def unlink(self, shard: int, keys: Sequence[str]) -> int:
        """Remove entries; always safe."""
        return int(self._call("UNLINK", *(self.layout.entry_key(shard, key) for key in keys)))

    def _keys(self, shard: int, names: Sequence[str] = ()) -> list[str]:
        layout = self.layout
        return [layout.header_key(shard), layout.fences_key(shard), *(layout.entry_key(shard, n) for n in names)]

    def _outcome(self, function: str, shard: int, args: list[str | bytes | int]) -> Outcome:
        return Outcome(self._function(function, self._keys(shard), args)[0].decode())

    def _function(
        self, function: str, keys: list[str], args: list[str | bytes | int], *, read_only: bool = False
    ) -> list[bytes]:
        command = ("FCALL_RO" if read_only else "FCALL", function, len(keys), *keys, *args)
        try:
            reply: list[bytes] = self._call(*command)
        except _LibraryMissing:
            self.prepare()
            reply = self._call(*command)
        return reply

    def _call(self, *command: Any) -> Any:
        try:
            return self._client.execute_command(*command)  # type: ignore[no-untyped-call]  # untyped in redis-py
        except (redis.ConnectionError, redis.TimeoutError) as error:
            if isinstance(error, redis.AuthenticationError):
                raise self._fatal(error) from error
            raise TransientError(f"region {self.name}: redis does not answer: {error}") from error
        except redis.ResponseError as error:
            raise self._judged(error) from error

    def _judged(self, error: redis.ResponseError) -> Exception:
        text = str(error)
        if "Function not found" in text:
            return _LibraryMissing(f"region {self.name}: function library {LIBRARY} is not loaded")
        if isinstance(error, redis.OutOfMemoryError | redis.ReadOnlyError | redis.BusyLoadingError):
            return TransientError(f"region {self.name}: {type(error).__name__}: {text}")
        if text.startswith(_MENDING) or isinstance(error, NoPermissionError):
            return self._fatal(error)
        if text.startswith(_PASSING):
            return TransientError(f"region {self.name}: {text}")
        return FatalError(f"region {self.name}: redis refused a script: {text}; please report this")

    def _fatal(self, error: Exception) -> FatalError:
        return FatalError(f"region {self.name}: {error}; mend the user, its password or its ACL and start again")


class _LibraryMissing(TransientError):
    """The node has lost, or never had, the function library."""


@cache
def library() -> str:
    """The function library: every file of `lua/`, in order of name."""
    files = sorted((f for f in resources.files("invalidator").joinpath("lua").iterdir()), key=lambda f: f.name)
    return f"#!lua name={LIBRARY}\n" + "".join(f.read_text() for f in files if f.name.endswith(".lua"))


def _packed(change: KeyChange) -> str:
    return change.stripe + change.position + "".join(change.stamps)


def _flat(reply: Any) -> list[Any]:
    """Every leaf of a nested reply: RESP2 gives lists, RESP3 maps."""
    if isinstance(reply, dict):
        return [leaf for pair in reply.items() for leaf in _flat(pair)]
    if isinstance(reply, list | tuple):
        return [leaf for part in reply for leaf in _flat(part)]
    return [reply]
