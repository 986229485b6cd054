"""The three functions that readers call, as requests and replies; the sync and the async door send the same. Pure.

docs/protocol.md §2.5. A request is (first key, arguments after FCALL or FCALL_RO).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from invalidator.guard import Fill, Outcome
from invalidator.layout import FORMAT, Layout

Request: TypeAlias = list[str | bytes | int]

READ, FILL, LEASE = "sp1_read", "sp1_fill", "sp1_lease"


class Looked(msgspec.Struct, frozen=True):
    """Reply to a read of one shard: OPEN (with an entry per key, None where none may be served), CLOSED or COLD.

    `watermark` and `epoch` as stored, or empty.
    """

    status: str
    watermark: str
    epoch: str
    entries: Sequence[bytes | None]


class Filled(msgspec.Struct, frozen=True):
    """Reply to a fill; `reason` of a refusal: closed, history, digest, forged, lost, region, view or stripe."""

    outcome: Outcome
    reason: str = ""


def read_request(layout: Layout, shard: int, keys: Sequence[str], view: str, digest: str) -> Request:
    """Entries of one shard."""
    start = layout.entry_key(shard, "")
    return [READ, len(keys) + 1, layout.header_key(shard), *[start + key for key in keys], FORMAT, view, digest]


def looked(reply: Sequence[Any], count: int) -> Looked:
    """What a read of so many keys was answered."""
    status, watermark, epoch, *found = reply
    return Looked(status.decode(), watermark.decode(), epoch.decode(), found or [None] * count)


def fill_request(layout: Layout, shard: int, fills: Sequence[Fill], owner: str) -> Request:
    """Values of one view under one proof. Raises ValueError for more than one view, definition, history or lifetime."""
    first, start = fills[0], layout.entry_key(shard, "")
    history, view, digest, ttl_ms = first.history, first.view, first.digest, first.ttl_ms
    request: Request = [FILL, len(fills) + 3, layout.header_key(shard), layout.fences_key(shard)]
    request += [layout.leases_key(shard), *[start + fill.key for fill in fills]]
    request += [FORMAT, history, view, digest, ttl_ms, owner]
    for fill in fills:
        if fill.view != view or fill.digest != digest or fill.history != history or fill.ttl_ms != ttl_ms:
            raise ValueError("fills of one script are of one view, definition, history and lifetime")
        request += (fill.stripe, fill.lead, fill.tail)
    return request


def filled(reply: Sequence[bytes], count: int) -> list[Filled]:
    """What so many fills were answered, one by one."""
    if reply[0] == b"COLD":
        return [_FILLED[b"COLD"]] * count
    return [_FILLED[text] for text in reply]


def lease_request(
    layout: Layout, shard: int, fields: Sequence[str], owner: str, lease_ms: int, living_max: int
) -> Request:
    """Leases in one shard, so many of which may live at a time; `lease_ms` 0 gives them back."""
    return [LEASE, 1, layout.leases_key(shard), FORMAT, owner, lease_ms, living_max, *fields]


def leased(reply: Sequence[bytes]) -> list[str]:
    """Per field GRANTED, HELD, FULL or RELEASED."""
    return [text.decode() for text in reply]


_REASONS = ("closed", "history", "digest", "forged", "lost", "region", "view", "stripe")
_FILLED = {outcome.encode(): Filled(outcome) for outcome in (Outcome.APPLIED, Outcome.SUPERSEDED, Outcome.COLD)} | {
    f"REFUSED {reason}".encode(): Filled(Outcome.REFUSED, reason) for reason in _REASONS
}
