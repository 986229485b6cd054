"""One region's Redis: the door to it. In flow the guard's requests, out flow Outcomes; the scripts decide.

Every reply is looked at. What may pass by itself is a RegionFault (a TransientError), what a person must mend a
FatalError; `redis_errors.py` has the table. Which server a request goes to is the business of `nodes.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any

import msgspec
import redis

from cdc.errors import FatalError
from invalidator import plain, reader_commands
from invalidator.guard import Batch, Beat, Close, Closing, ControlStep, Fill, KeyChange, Outcome, Pass
from invalidator.layout import FORMAT, Layout, Row, offset_text
from invalidator.node import Node
from invalidator.nodes import Nodes
from invalidator.plain import Debt
from invalidator.reader_commands import Filled, Looked, Request
from invalidator.region_faults import judging

SCAN_COUNT = 1_000
"""Keys that one step of a scan looks at: well below a millisecond of Redis."""


class Applied(msgspec.Struct, frozen=True):
    """Reply to a batch; the counts are of entries. `restored`: 1 if the fence hash had been lost."""

    outcome: Outcome
    unlinked: int = 0
    kept: int = 0
    written: int = 0
    restored: int = 0


class Heard(msgspec.Struct, frozen=True):
    """Reply to a control record. `restored`: 1 if the fence hash had been lost."""

    outcome: Outcome
    restored: int = 0


class Passed(msgspec.Struct, frozen=True):
    """Reply to a heartbeat that all rows may have passed; how many scopes `opened`, and as in `Heard`."""

    outcome: Outcome
    opened: int = 0
    restored: int = 0


class Found(msgspec.Struct, frozen=True):
    """Reply to a read: HIT (with `entry`), MISS, CLOSED or COLD; `watermark` as stored, or empty."""

    status: str
    watermark: str
    entry: bytes | None = None


class Region:
    """The guard's scripts on one region. `name` appears in errors only."""

    def __init__(self, name: str, nodes: Nodes, layout: Layout) -> None:
        self.name = name
        self.layout = layout
        self._nodes = nodes
        self._talking: set[Node] = set()  # on whose lines replies are due

    def prepare(self) -> None:
        """Load the function library wherever exactly this one is not there."""
        for node in self._servers():
            with self._judging():
                node.load()

    def header(self, shard: int) -> dict[str, str]:
        """The shard's header; empty when the shard is not there."""
        name = self.layout.header_key(shard)
        reply = self._call(name, "HGETALL", name)
        pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
        return {name.decode(): value.decode() for name, value in pairs}

    def fence_count(self, shard: int) -> int:
        """How many fences the shard keeps, the one for all other stripes included; 0 when the hash is gone."""
        name = self.layout.fences_key(shard)
        return int(self._call(name, "HLEN", name))

    def is_full(self) -> bool | None:
        """Whether fills are refused for want of memory. Our other scripts run all the same, so none of them tells.

        None where our user may not ask (INFO).
        """
        try:
            return any(map(self._refuses_fills, self._servers()))
        except FatalError as error:
            if isinstance(error.__cause__, redis.exceptions.NoPermissionError):
                return None
            raise

    def apply(self, shard: int, batch: Batch) -> Applied:
        """Apply one batch atomically. Safe to repeat: rows are compared first."""
        return self.submit(shard, batch).applied()

    def submit(self, shard: int, batch: Batch) -> Submitted:
        """Send one batch without waiting. Replies come in the order of sending: each must be asked for, or `abandon`.

        A batch whose predecessor failed fails too, as its rows are not where it expects them. Raises RegionFault.
        """
        args: list[str | bytes | int] = [FORMAT, batch.beat.text if batch.beat else ""]
        args += [len(batch.rows), len(batch.raises), len(batch.changes)]
        for step in batch.rows:
            args += [step.field, offset_text(step.expected), step.row.text]
        for order in batch.raises:
            args += [order.field, order.position + "".join(order.stamps)]
        args += _closings(batch.closings)
        args += [_packed(change) for change in batch.changes]
        for refresh in batch.refreshes:
            args += [_packed(refresh.change), refresh.view, "1evj", refresh.tail, refresh.ttl_ms]
        names = [c.key for c in batch.changes] + [r.change.key for r in batch.refreshes]
        keys = self._keys(shard, names)
        with self._judging():
            node = self._nodes.serving(keys[0])
            self._talking.add(node)
            node.send("FCALL", "sp1_apply", len(keys), *keys, *args)
        return Submitted(self, node, batch)

    def abandon(self) -> None:
        """Give up replies that were not asked for: whether those batches were applied, the rows tell."""
        while self._talking:
            self._talking.pop().hang_up()

    def cold(
        self, shard: int, offset: int, views: Sequence[tuple[str, str]], rows: Sequence[tuple[str, Row]]
    ) -> Outcome:
        """Create the shard, closed; DISPLACED when it is there already."""
        args: list[str | bytes | int] = [FORMAT, offset_text(offset), len(views)]
        args += [part for view in views for part in view]
        args += [part for name, row in rows for part in (name, row.text)]
        return self._outcome("sp1_cold", shard, args)

    def close(self, shard: int, request: Close) -> Outcome:
        """Close scopes and jump rows."""
        restart = request.control_restart
        args: list[str | bytes | int] = [FORMAT, "" if restart is None else offset_text(restart), request.rows_digest]
        args += _closings(request.closings)
        args += [part for name, row in request.rows for part in (name, row.text)]
        return self._outcome("sp1_close", shard, args)

    def hear(self, shard: int, request: ControlStep) -> Heard:
        """Take one control record in."""
        step = request.step
        args: list[str | bytes | int] = [FORMAT, step.field, offset_text(step.expected), step.row.text]
        args += [offset_text(step.row.next_offset - 1), request.position, request.stamp, request.limit, request.history]
        args += [request.epoch, request.stripe, request.instance, len(request.owned)]
        args += [part for name, offset in request.owned for part in (name, offset_text(offset))]
        args += _closings(request.closings)
        names = [request.key] if request.stripe else []
        outcome, *restored = self._function("sp1_hear", self._keys(shard, names), args)
        return Heard(Outcome(outcome.decode()), *map(int, restored))

    def pass_heartbeat(self, shard: int, request: Pass) -> Passed:
        """Move the watermark if every row passed."""
        args: list[str | bytes | int] = [
            FORMAT,
            request.position,
            request.stamp,
            f"{request.time_ms:012x}",
            request.proof,
        ]
        args += [part for name, barrier in request.barriers for part in (name, offset_text(barrier))]
        outcome, *counts = self._function("sp1_pass", self._keys(shard), args)
        return Passed(Outcome(outcome.decode()), *map(int, counts))

    def fill(self, shard: int, request: Fill) -> Filled:
        """Offer a value that was read from the database."""
        return self.fill_many(shard, [request])[0]

    def fill_many(self, shard: int, requests: Sequence[Fill], owner: str = "") -> list[Filled]:
        """Offer values of one view, in one script: each is judged by itself. One answer per request.

        Leases of `owner` on their keys end. Raises ValueError for more than one view, definition, history or lifetime.
        """
        request = reader_commands.fill_request(self.layout, shard, requests, owner)
        return reader_commands.filled(self._ask("FCALL", request), len(requests))

    def look(self, shard: int, keys: Sequence[str], view: str, digest: str) -> Looked:
        """The entries under `keys` that may be served, and how far their shard is."""
        request = reader_commands.read_request(self.layout, shard, keys, view, digest)
        return reader_commands.looked(self._ask("FCALL_RO", request), len(keys))

    def lease(self, shard: int, fields: Sequence[str], owner: str, lease_ms: int, living_max: int) -> list[str]:
        """Ask for the leases of `fields`, mostly cache keys, of which so many may live in the shard; 0 ms: end them.

        Per field GRANTED, HELD by somebody, FULL, or RELEASED.
        """
        request = reader_commands.lease_request(self.layout, shard, fields, owner, lease_ms, living_max)
        return reader_commands.leased(self._ask("FCALL", request))

    def read(self, shard: int, key: str, view: str, digest: str) -> Found:
        """The entry under `key`, if it may be served."""
        found = self.look(shard, [key], view, digest)
        status = found.status
        if status == "OPEN":
            status = "MISS" if found.entries[0] is None else "HIT"
        return Found(status, found.watermark, found.entries[0])

    def keys(self, start: str) -> Iterator[str]:
        """Every cache key that begins with `start` and has an entry, readable or not; one may come more than once."""
        head = f"{{{self.layout.prefix}:"
        with self._judging():
            for node in self._nodes.primaries():
                for name in node.client.scan_iter(match=f"{head}*}}:e:{start}*", count=1_000):
                    shard, _, key = name.decode("utf-8", "replace").removeprefix(head).partition("}:e:")
                    if shard.isdecimal():
                        yield key

    def unlink(self, shard: int, keys: Sequence[str]) -> int:
        """Remove entries; always safe."""
        names = [self.layout.entry_key(shard, key) for key in keys]
        return int(self._call(self.layout.header_key(shard), "UNLINK", *names))

    # -- plain views: keys of the application's own, which lie anywhere

    def unlink_plain(self, keys: Sequence[str]) -> int:
        """Remove keys as they are named, each where it lies; no batch may be under way. After a fault `abandon`."""
        parts = self._nodes.together(keys)
        if len(parts) == 1:
            return int(self._call(parts[0][0], "UNLINK", *parts[0]))
        removed, elsewhere = 0, list[str]()
        with self._judging():
            sent = [(self._nodes.serving(part[0]), part) for part in parts]
            for node, part in sent:
                self._talking.add(node)
                node.send("UNLINK", *part)
            for node, part in sent:
                try:
                    removed += int(node.answer())
                except (
                    redis.exceptions.AskError,
                    redis.exceptions.TryAgainError,
                ):  # a slot that moves; MOVED is an ASK
                    elsewhere += part
                if node.is_answered:
                    self._talking.discard(node)
        return removed + sum(int(self._call(key, "UNLINK", key)) for key in elsewhere)

    def beside(self, keys: Sequence[str]) -> list[int]:
        """For each key a shard on its server, which loses what the key loses; the first where there is none."""
        with self._judging():
            shards = range(self.layout.shards - 1, -1, -1)
            on = {self._nodes.serving(self.layout.header_key(shard)): shard for shard in shards}
            return [on.get(self._nodes.serving(key), 0) for key in keys]

    def owe(self, shard: int, debts: Sequence[Debt], beat: Beat | None, owed_max: int) -> None:
        """Remember debts; beyond so many, those of whole views."""
        args: list[str | bytes | int] = [FORMAT, beat.text if beat else "", owed_max]
        for debt in debts:
            args += [debt.key, plain.view_debt(debt.view), debt.position + "".join(debt.stamps)]
        self._function("sp1_owe", [self.layout.owed_key(shard)], args)

    def pay(self, shard: int, debts: Mapping[str, str], notes: Mapping[str, str]) -> None:
        """Forget debts, name to fence, unless they have grown; remember what views were swept for."""
        args: list[str | bytes | int] = [FORMAT, len(debts), *chain(*debts.items()), *chain(*notes.items())]
        self._function("sp1_pay", [self.layout.owed_key(shard)], args)

    def owed(self, shard: int) -> Iterator[tuple[str, str]]:
        """All that is owed and noted; what changes meanwhile may come twice."""
        name, cursor = self.layout.owed_key(shard), 0
        while True:
            cursor, found = self._call(name, "HSCAN", name, cursor, "COUNT", SCAN_COUNT)
            yield from ((field.decode(), text.decode()) for field, text in found.items())
            if not int(cursor):
                return

    def fields(self, key: str, names: Sequence[str]) -> list[str]:
        """Fields of one of a shard's hashes; empty where there is none."""
        return [(text or b"").decode() for text in self._call(key, "HMGET", key, *names)]

    def servers(self) -> list[tuple[Any, Node]]:
        """Every server that takes writes, with its place: another place is another server."""
        with self._judging():
            return [(node.place, node) for node in self._nodes.primaries()]

    def scan(self, node: Node, cursor: int, pattern: str) -> tuple[int, list[str]]:
        """Some of a server's keys that fit a pattern, and the cursor to go on from; 0: that was all."""
        with self._judging():
            cursor, found = node.call("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_COUNT)
        return int(cursor), [name.decode("utf-8", "replace") for name in found]

    def _keys(self, shard: int, names: Sequence[str] = ()) -> list[str]:
        layout, start = self.layout, self.layout.entry_key(shard, "")
        return [layout.header_key(shard), layout.fences_key(shard), *[start + name for name in names]]

    def _outcome(self, function: str, shard: int, args: list[str | bytes | int]) -> Outcome:
        return Outcome(self._function(function, self._keys(shard), args)[0].decode())

    def _servers(self) -> list[Node]:
        """Each server that serves a shard, once, as of now."""
        with self._judging():
            primaries = self._nodes.primaries()
            serving = {self._nodes.serving(self.layout.header_key(shard)) for shard in range(self.layout.shards)}
        return [node for node in primaries if node in serving]

    def _refuses_fills(self, node: Node) -> bool:
        with self._judging():
            info: dict[str, Any] = node.call("INFO", "memory")
        counted = info["used_memory"] - info.get("mem_not_counted_for_evict", 0)
        makes_room = info["maxmemory_policy"].startswith("allkeys")
        return bool(0 < info["maxmemory"] < counted and not makes_room)

    def _answer(self, node: Node) -> list[bytes]:
        with self._judging():
            reply: list[bytes] = node.answer()
        if node.is_answered:
            self._talking.discard(node)
        return reply

    def _function(self, function: str, keys: list[str], args: list[str | bytes | int]) -> list[bytes]:
        """Call a function where the first of `keys`, and so all of them, are served."""
        reply: list[bytes] = self._call(keys[0], "FCALL", function, len(keys), *keys, *args)
        return reply

    def _ask(self, command: str, request: Request) -> list[bytes]:
        """One of the readers' requests, all of which may run twice."""
        try:
            reply: list[bytes] = self._nodes.ask(request[2], command, *request)  # type: ignore[arg-type]  # the first key
        except (redis.RedisError, OSError):
            with self._judging():
                raise
        return reply

    def _call(self, key: str, *command: Any) -> Any:
        """One request where `key` is served."""
        with self._judging():
            return self._nodes.call(key, *command)

    def _judging(self) -> AbstractContextManager[None]:
        return judging(self.name, self._nodes.doubt)


class Submitted:
    """A batch that was sent. `applied` waits for the reply; once. `seconds` passed from sending to the reply."""

    def __init__(self, region: Region, node: Node, batch: Batch) -> None:
        self.batch = batch
        self.seconds = 0.0
        self._region = region
        self._node = node
        self._sent = time.perf_counter()

    def applied(self) -> Applied:
        """What the script said. Raises RegionFault, FatalError."""
        outcome, *counts = self._region._answer(self._node)  # noqa: SLF001 - the other half of Region.submit
        self.seconds = time.perf_counter() - self._sent
        return Applied(Outcome(outcome.decode()), *map(int, counts))


def _closings(closings: Sequence[Closing]) -> list[str | bytes | int]:
    parts: list[str | bytes | int] = [len(closings)]
    for closing in closings:
        parts += [closing.scope, offset_text(closing.offset), closing.digest]
    return parts


def _packed(change: KeyChange) -> str:
    return change.stripe + change.position + "".join(change.stamps)
