"""The guard's decisions, in Python: the readable twin of `lua/`, held equal to it on real servers by a property test.

In flows a `Shard` (the same texts that Redis stores) and a request; out flow the changed shard and what the script
would have replied. Pure. The requests are also what `region.py` sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from cdc.events import POSITION_WIDTH, split_stamps
from cdc.snapshots import covers, covers_range
from invalidator import entry as entries
from invalidator.layout import (
    EMPTY_FENCE,
    EXACT_STAMPS,
    FORMAT,
    NO_DIGEST,
    NO_INSTANCE,
    REGION_SCOPE,
    ZERO_POSITION,
    ZERO_STAMP,
    Fence,
    Row,
    Scope,
    offset_text,
    view_scope,
)


class Outcome(StrEnum):
    """What a script said."""

    APPLIED = "APPLIED"
    SUPERSEDED = "SUPERSEDED"
    REFUSED = "REFUSED"
    REWIND = "REWIND"
    COLD = "COLD"
    DISPLACED = "DISPLACED"


# --- requests -------------------------------------------------------------------------------------------------------


class RowStep(msgspec.Struct, frozen=True):
    """Move the row at `field` from `expected` (next offset) to `row`."""

    field: str
    expected: int
    row: Row


class ScopeRaise(msgspec.Struct, frozen=True):
    """Make every older entry of a scope unreadable: TRUNCATE and its like."""

    field: str
    position: str
    stamps: tuple[str, ...]


class KeyChange(msgspec.Struct, frozen=True):
    """One cache key that changed: unlink its entry. `stamps`: the union of all coalesced changes, ascending."""

    key: str
    stripe: str
    position: str
    stamps: tuple[str, ...]


class KeyRefresh(msgspec.Struct, frozen=True):
    """One cache key that changed, with the new value as an entry's tail."""

    change: KeyChange
    view: str
    tail: bytes
    ttl_ms: int


class Beat(msgspec.Struct, frozen=True):
    """What of a heartbeat lets a fence shrink: its position and the text of its snapshot."""

    position: str
    seen: str

    @property
    def text(self) -> str:
        """As sent."""
        return self.position + self.seen


class Closing(msgspec.Struct, frozen=True):
    """Close `scope`: what was or may have been lost in it is unknown.

    Heartbeats from control offset `offset` on count for its opening. `digest`: of the view, where it changes.
    """

    scope: str
    offset: int
    digest: str = ""


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Records of one shard, planned and coalesced: at most one change per key.

    Without rows it is a replay: nothing is learnt from it, as whoever moves the rows merges its changes, or has.
    """

    rows: tuple[RowStep, ...]
    closings: tuple[Closing, ...] = ()
    raises: tuple[ScopeRaise, ...] = ()
    changes: tuple[KeyChange, ...] = ()
    refreshes: tuple[KeyRefresh, ...] = ()
    beat: Beat | None = None


class ControlStep(msgspec.Struct, frozen=True, kw_only=True):
    """One control record, and what it causes in the same step. `owned`: the caller's rows.

    `position`, `stamp`, `limit` (the highest stamp that may be claimed now) and `instance` (16 digits, the capture that
    sent it) are of a heartbeat. `epoch` (8 digits) begins, and the region closes, once.
    `key` and its `stripe` are fenced by `stamp`, a transaction of the order's own.
    """

    step: RowStep
    position: str = ""
    stamp: str = ""
    limit: str = ""
    history: str = ""
    instance: str = NO_INSTANCE
    epoch: str = ""
    closings: tuple[Closing, ...] = ()
    key: str = ""
    stripe: str = ""
    owned: tuple[tuple[str, int], ...] = ()


class Pass(msgspec.Struct, frozen=True, kw_only=True):
    """Every row may have passed a heartbeat: `barriers` maps a row's field to the offset it must have reached."""

    position: str
    stamp: str
    time_ms: int
    proof: str
    """What the heartbeat's own transaction saw: all of it was logged before."""
    barriers: tuple[tuple[str, int], ...]


class Close(msgspec.Struct, frozen=True, kw_only=True):
    """Close scopes and jump rows, in one step.

    `control_restart`: the control topic was made again and counts from this offset. `rows_digest`: from now on all rows
    are planned by those views.
    """

    closings: tuple[Closing, ...] = ()
    control_restart: int | None = None
    rows_digest: str = ""
    rows: tuple[tuple[str, Row], ...] = ()


class Fill(msgspec.Struct, frozen=True, kw_only=True):
    """Store a value that was read with proof `seen` (inside the tail)."""

    key: str
    stripe: str
    view: str
    digest: str
    history: str
    lead: str
    tail: bytes
    ttl_ms: int

    @property
    def seen(self) -> str:
        """The proof inside the tail."""
        return self.tail[36 : 36 + int(self.tail[24:28], 16)].decode("ascii")


# --- proofs and fences ----------------------------------------------------------------------------------------------


def covers_all(seen: str, stamps: Iterable[str], position: str) -> bool:
    """`covers`, of every stamp."""
    return all(covers(seen, stamp, position) for stamp in stamps)


def admits(fence: Fence, seen: str) -> bool:
    """Whether the read behind `seen` saw everything that `fence` knows."""
    if fence.exact:
        return covers_all(seen, fence.stamps, fence.position)
    low, high = fence.stamps
    return covers_range(seen, low, high, fence.position)


def forged(seen: str, limit: str) -> bool:
    """Whether `seen` claims more than can exist now: a stamp beyond `limit`, of GTIDs one of the limit's origin."""
    if seen[:1] == "g":
        ends = split_stamps(seen[1:])
        return any(low[:4] <= limit[:4] and high > limit for low, high in zip(ends[::2], ends[1::2], strict=False))
    return seen[1:17] > limit or (seen[:1] == "p" and seen[17:33] > limit)


def merge(fence: Fence, position: str, stamps: Iterable[str], beat: Beat | None) -> Fence:
    """`fence` with the changes `stamps`, the newest of them at `position`.

    What a heartbeat before `position` saw is dropped: a snapshot that sees a record logged after that heartbeat was
    taken after the heartbeat's own, so it sees all that the heartbeat saw.
    """
    exact, kept = fence.exact, fence.stamps
    if beat and position[:8] == beat.position[:8] and position > beat.position:
        if not exact and admits(fence, beat.seen):
            exact, kept = True, ()
        if exact:
            kept = tuple(stamp for stamp in kept if not covers(beat.seen, stamp, fence.position))
    union = tuple(sorted({*kept, *stamps}))
    newest = max(fence.position, position)
    if exact and len(union) <= EXACT_STAMPS:
        return Fence(True, newest, union)
    return Fence(False, newest, (union[0], union[-1]))


# --- the shard and its scripts --------------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class Shard:
    """What Redis holds of one shard, as text. An empty `header` is a shard that is not there."""

    header: dict[str, str] = field(default_factory=dict)
    fences: dict[str, str] = field(default_factory=dict)
    entries: dict[str, bytes] = field(default_factory=dict)

    @property
    def epoch(self) -> str:
        """Eight digits."""
        return self.header["e"][:8]

    def scope(self, name: str) -> Scope | None:
        """The scope in field `name`, if it is there."""
        text = self.header.get(name)
        return None if text is None else Scope.parse(text)

    def scopes(self) -> list[tuple[str, Scope]]:
        """Every scope by its field."""
        return [(name, Scope.parse(text)) for name, text in self.header.items() if name.startswith("s:")]

    def next_offset(self, name: str) -> int:
        """Next offset of the row in field `name`; a missing row starts at 0."""
        text = self.header.get(name)
        return 0 if text is None else Row.parse(text).next_offset

    def newest_of_rows(self) -> tuple[str, str]:
        """Highest position of all rows, and highest stamp of those in this epoch."""
        rows = [Row.parse(text) for name, text in self.header.items() if name.startswith("t:")]
        newest = max((row.position for row in rows), default=ZERO_POSITION)
        return newest, max((row.stamp for row in rows if row.position[:8] == self.epoch), default=ZERO_STAMP)

    def default_fence(self) -> tuple[Fence, int]:
        """The fence of every stripe without one; and 1 where it was re-made from all rows, as its hash was lost."""
        if "*" in self.fences:
            return Fence.parse(self.fences["*"]), 0
        newest, stamp = self.newest_of_rows()
        fence = Fence(False, newest, (ZERO_STAMP, stamp))
        self.fences["*"] = fence.text
        return fence, 1


def apply(shard: Shard, batch: Batch) -> tuple[Outcome, int, int, int, int]:
    """Apply one batch; entries unlinked, kept, written, and lost fence hashes are counted. Twin of `sp1_apply`."""
    if not shard.header:
        return Outcome.COLD, 0, 0, 0, 0
    outcome = _compare(shard, batch.rows, batch.rows[0].row.digest, Outcome.DISPLACED) if batch.rows else None
    if outcome is None and any(step.row.position[:8] > shard.epoch for step in batch.rows):
        outcome = Outcome.REFUSED
    if outcome is not None:
        return outcome, 0, 0, 0, 0
    _close_scopes(shard, batch.closings)
    for order in batch.raises:
        _raise(shard, order, batch.beat)
    default, restored = shard.default_fence()
    changes = [*batch.changes, *(refresh.change for refresh in batch.refreshes)]
    fences = {c.stripe: Fence.parse(shard.fences.get(c.stripe, default.text)) for c in changes}
    counts = {"unlinked": 0, "kept": 0, "written": 0}
    for change in batch.changes:
        data = shard.entries.get(change.key)
        if data is not None:
            if _stays(data, change, shard.epoch) or (not batch.rows and _shows(data, change)):
                counts["kept"] += 1
            else:
                del shard.entries[change.key]
                counts["unlinked"] += 1
    for refresh in batch.refreshes:
        what = _refresh(shard, refresh, fences[refresh.change.stripe], replay=not batch.rows)
        if what:
            counts[what] += 1
    if not batch.rows:
        return Outcome.APPLIED, counts["unlinked"], counts["kept"], counts["written"], restored
    for change in changes:
        if change.position[:8] == shard.epoch:
            fences[change.stripe] = merge(fences[change.stripe], change.position, change.stamps, batch.beat)
    shard.fences.update({stripe: fence.text for stripe, fence in fences.items()})
    for step in batch.rows:
        _advance(shard, step)
    return Outcome.APPLIED, counts["unlinked"], counts["kept"], counts["written"], restored


def cold(shard: Shard, offset: int, views: Sequence[tuple[str, str]], rows: Sequence[tuple[str, Row]]) -> Outcome:
    """Create a shard that is not there, closed. Twin of `sp1_cold`."""
    if shard.header:
        return Outcome.DISPLACED
    shard.header = {"v": FORMAT, "e": "00000000o", REGION_SCOPE: _closed(None, NO_DIGEST, offset).text}
    shard.header |= {view_scope(view): _closed(None, digest, offset).text for view, digest in views}
    shard.header |= {name: row.text for name, row in rows}
    shard.fences = {"*": EMPTY_FENCE.text}
    return Outcome.APPLIED


def close(shard: Shard, request: Close) -> Outcome:
    """Close scopes and jump rows. Twin of `sp1_close`."""
    if not shard.header:
        return Outcome.COLD
    if request.control_restart is not None:
        closed_at = offset_text(request.control_restart)
        for name, scope in shard.scopes():
            if not scope.open:
                anew = msgspec.structs.replace(scope, closed_at=closed_at, heartbeats=0, instance=NO_INSTANCE, third="")
                shard.header[name] = anew.text
    _close_scopes(shard, request.closings)
    if request.rows_digest:
        for name, text in shard.header.items():
            if name.startswith("t:"):
                shard.header[name] = text[:120] + request.rows_digest
    shard.header |= {name: row.text for name, row in request.rows}
    return Outcome.APPLIED


def hear(shard: Shard, request: ControlStep) -> tuple[Outcome, int]:
    """Take one control record in; also how many lost fence hashes were re-made. Twin of `sp1_hear`."""
    if not shard.header:
        return Outcome.COLD, 0
    owned = [RowStep(name, offset, Row(next_offset=offset)) for name, offset in request.owned]
    digest = request.step.row.digest
    outcome = _compare(shard, owned, digest, Outcome.DISPLACED)
    outcome = outcome or _compare(shard, [request.step], digest, Outcome.APPLIED)
    if outcome is not None:
        return outcome, 0
    if request.epoch > shard.epoch:
        _close_scopes(shard, (Closing(REGION_SCOPE, request.step.row.next_offset),))
        shard.header["e"] = request.epoch + shard.header["e"][8] + request.history
        shard.header.pop("b", None)
    if request.position[:8] > shard.epoch:
        return Outcome.REFUSED, 0
    _close_scopes(shard, request.closings)
    restored = _fence_key(shard, request) if request.stripe else 0
    if request.position and request.position[:8] == shard.epoch:
        if len(shard.header["e"]) == 9:
            shard.header["e"] += request.history
        # One that a paused capture publishes late counts for nothing.
        if shard.header.get("b", "")[:POSITION_WIDTH] < request.position:
            shard.header["b"] = request.position + request.stamp + request.limit
            _count_heartbeat(shard, request, offset_text(request.step.row.next_offset - 1))
    _advance(shard, request.step)
    return Outcome.APPLIED, restored


def pass_heartbeat(shard: Shard, request: Pass) -> tuple[Outcome, int, int]:
    """Move the watermark, open scopes; how many, and how many lost fence hashes were re-made. Twin of `sp1_pass`."""
    if not shard.header:
        return Outcome.COLD, 0, 0
    behind = any(shard.next_offset(name) < barrier for name, barrier in request.barriers)
    if behind or shard.epoch != request.position[:8]:
        return Outcome.REFUSED, 0, 0
    _, restored = shard.default_fence()
    if shard.header.get("w", "")[:POSITION_WIDTH] < request.position:
        shard.header["w"] = f"{request.position}{request.time_ms:012x}{request.proof}"
    opened = 0
    newest, stamp = shard.newest_of_rows()
    fence = Fence(False, max(newest, request.position), (ZERO_STAMP, max(stamp, request.stamp)))
    for name, scope in shard.scopes():
        if not scope.open and scope.heartbeats == 3 and scope.third <= request.position:
            generation = _raised(scope.generation, request.position)
            shard.header[name] = Scope(generation=generation, digest=scope.digest, fence=fence).text
            opened += 1
    return Outcome.APPLIED, opened, restored


def fill(shard: Shard, request: Fill) -> tuple[Outcome, str]:
    """Store what was read, if it is proven; else say why not. Twin of `sp1_fill`."""
    if not shard.header:
        return Outcome.COLD, ""
    region, view = shard.scope(REGION_SCOPE), shard.scope(view_scope(request.view))
    if region is None or view is None or region.fence is None or view.fence is None:
        return Outcome.REFUSED, "closed"
    if shard.header["e"][9:] != request.history:
        return Outcome.REFUSED, "history"
    if view.digest != request.digest:
        return Outcome.REFUSED, "digest"
    seen = request.seen
    if seen[:1] == "s" and shard.header["e"][8] != "o":
        seen = seen[:17] + ZERO_STAMP
    limit = shard.header.get("b", "")[48:64]
    if not limit or forged(seen, limit):
        return Outcome.REFUSED, "forged"
    if "*" not in shard.fences:
        return Outcome.REFUSED, "lost"
    stripe = Fence.parse(shard.fences.get(request.stripe, shard.fences["*"]))
    for name, fence in (("region", region.fence), ("view", view.fence), ("stripe", stripe)):
        if not admits(fence, seen):
            return Outcome.REFUSED, name
    data = shard.entries.get(request.key)
    if data is not None and readable(data, region, view) and not _outdates(seen, data):
        return Outcome.SUPERSEDED, ""
    shard.entries[request.key] = request.lead.encode() + (region.generation + view.generation).encode() + request.tail
    return Outcome.APPLIED, ""


def read(shard: Shard, key: str, view_name: str, digest: str) -> tuple[str, bytes | None]:
    """HIT with the entry, or MISS, CLOSED, COLD. Twin of `sp1_read`."""
    if not shard.header:
        return "COLD", None
    region, view = shard.scope(REGION_SCOPE), shard.scope(view_scope(view_name))
    if region is None or view is None or not region.open or not view.open:
        return "CLOSED", None
    data = shard.entries.get(key)
    if data is not None and readable(data, region, view) and view.digest == digest:
        return "HIT", data
    return "MISS", None


def readable(data: bytes, region: Scope | None, view: Scope | None) -> bool:
    """Whether the entry carries the current generations of two open scopes."""
    if region is None or view is None or not region.open or not view.open or len(data) < entries.HEAD_BYTES:
        return False
    return data[4:36] == region.generation.encode() and data[36:68] == view.generation.encode()


# --- parts ----------------------------------------------------------------------------------------------------------


def _raised(generation: str, position: str) -> str:
    """Always larger: a raise may be logged before another and become visible after it."""
    return max(position, generation[:24] + f"{int(generation[24:], 16) + 1:08x}")


def _compare(shard: Shard, steps: Sequence[RowStep], digest: str, ahead: Outcome) -> Outcome | None:
    pending = done = 0
    outcome = None
    for step in steps:
        stored = shard.next_offset(step.field)
        text = shard.header.get(step.field)
        if text is not None and Row.parse(text).digest not in (digest, NO_DIGEST):
            outcome = Outcome.DISPLACED
        elif stored == step.expected:
            pending += 1
        elif stored == step.row.next_offset:
            done += 1
        elif stored < step.expected:
            outcome = Outcome.REWIND
        else:
            outcome = outcome or ahead
    if outcome is not None or done == 0:
        return outcome
    return Outcome.APPLIED if pending == 0 else Outcome.REWIND


def _advance(shard: Shard, step: RowStep) -> None:
    row, text = step.row, shard.header.get(step.field)
    if text is not None:
        old = Row.parse(text)
        if old.position[:8] >= row.position[:8]:
            stamp = max(old.stamp, row.stamp) if old.position[:8] == row.position[:8] else old.stamp
            row = msgspec.structs.replace(row, position=max(old.position, row.position), stamp=stamp)
    shard.header[step.field] = row.text


def _raise(shard: Shard, order: ScopeRaise, beat: Beat | None) -> None:
    scope = shard.scope(order.field)
    if scope is None:
        return
    fence = scope.fence
    if fence is not None and order.position[:8] == shard.epoch:
        fence = merge(fence, order.position, order.stamps, beat)
    generation = _raised(scope.generation, order.position)
    shard.header[order.field] = msgspec.structs.replace(scope, generation=generation, fence=fence).text


def _close_scopes(shard: Shard, closings: Iterable[Closing]) -> None:
    for closing in closings:
        shard.header[closing.scope] = _closed(shard.scope(closing.scope), closing.digest, closing.offset).text
        if closing.scope == REGION_SCOPE:  # the fence it opens with covers every stamp of before
            shard.header.pop("w", None)
            shard.fences = {"*": EMPTY_FENCE.text}
            for name, scope in shard.scopes():
                if scope.open:
                    shard.header[name] = msgspec.structs.replace(scope, fence=EMPTY_FENCE).text


def _count_heartbeat(shard: Shard, beat: ControlStep, heard: str) -> None:
    """Three in a row of one capture: what replaced ones publish late was committed who knows when."""
    for name, scope in shard.scopes():
        if not scope.open and scope.closed_at <= heard and scope.heartbeats < 3:
            count = scope.heartbeats + 1 if scope.instance == beat.instance else 1
            third = beat.position if count == 3 else ""
            counted = msgspec.structs.replace(scope, heartbeats=count, instance=beat.instance, third=third)
            shard.header[name] = counted.text


def _fence_key(shard: Shard, request: ControlStep) -> int:
    """Unlink it, and admit only who saw the order's own transaction. Without a heartbeat the region is closed."""
    default, restored = shard.default_fence()
    newest = shard.header.get("b")
    shard.entries.pop(request.key, None)
    if newest:
        fence = Fence.parse(shard.fences.get(request.stripe, default.text))
        shard.fences[request.stripe] = merge(fence, newest[:POSITION_WIDTH], (request.stamp,), None).text
    return restored


def _closed(scope: Scope | None, digest: str, offset: int) -> Scope:
    if scope is None:
        return Scope(generation=ZERO_POSITION, digest=digest or NO_DIGEST, closed_at=offset_text(offset))
    closed_at = offset_text(offset) if scope.open else max(scope.closed_at, offset_text(offset))
    return Scope(generation=scope.generation, digest=digest or scope.digest, closed_at=closed_at)


def _proof(data: bytes) -> str | None:
    head = data[: entries.PROOF_BYTES]
    try:
        length = int(head[92:96], 16)
    except ValueError:
        return None
    if len(head) < entries.HEAD_BYTES + length:
        return None
    return head[entries.HEAD_BYTES : entries.HEAD_BYTES + length].decode("ascii")


def _stays(data: bytes, change: KeyChange, epoch: str) -> bool:
    seen = _proof(data)
    own = data[1:2] == b"f" and change.position[:8] == epoch
    return bool(own and seen and seen[0] == "p" and covers_all(seen, change.stamps, change.position))


def _outdates(seen: str, data: bytes) -> bool:
    shown = _proof(data)
    if not shown:
        return False
    if data[1:2] == b"e":
        return covers_all(seen, split_stamps(shown[POSITION_WIDTH:]), shown[:POSITION_WIDTH])
    return shown[0] == "p" and seen[:1] != "g" and shown[17:33] <= seen[1:17]


def _shows(data: bytes, change: KeyChange) -> bool:
    """Whether an event wrote the entry, and not an older one."""
    seen = _proof(data) if data[1:2] == b"e" else None
    return bool(seen and seen[:POSITION_WIDTH] >= change.position)


def _refresh(shard: Shard, refresh: KeyRefresh, fence: Fence, *, replay: bool) -> str:
    change, epoch = refresh.change, shard.epoch
    region, view = shard.scope(REGION_SCOPE), shard.scope(view_scope(refresh.view))
    data = shard.entries.get(change.key)
    if data is not None and readable(data, region, view):
        if data[1:2] == b"f":
            if _stays(data, change, epoch):
                return "kept"
            del shard.entries[change.key]
            return "unlinked"
        if _shows(data, change):
            return "kept"
    fences = [scope.fence for scope in (region, view) if scope is not None and scope.fence is not None]
    allowed = len(fences) == 2 and change.position[:8] == epoch
    if replay:  # what the fence has not met yet, it would not remember
        allowed = allowed and change.position == fence.position
    if allowed and all(change.position >= known.position for known in (*fences, fence)):
        assert region is not None
        assert view is not None
        generations = (region.generation + view.generation).encode()
        shard.entries[change.key] = b"1evj" + generations + refresh.tail
        return "written"
    return "unlinked" if shard.entries.pop(change.key, None) is not None else ""


__all__ = [
    "Batch",
    "Beat",
    "Close",
    "Closing",
    "ControlStep",
    "Fill",
    "KeyChange",
    "KeyRefresh",
    "Outcome",
    "Pass",
    "RowStep",
    "ScopeRaise",
    "Shard",
    "admits",
    "apply",
    "close",
    "cold",
    "fill",
    "hear",
    "merge",
    "pass_heartbeat",
    "read",
    "readable",
]
