"""What a shard's header says of its guard, as facts. Pure.

Positions, stamps and digests stay the hexadecimal texts of docs/protocol.md, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import msgspec

from cdc.events import POSITION_WIDTH, STAMP_WIDTH, Position, lsn_text
from invalidator.layout import FORMAT, NO_DIGEST, REGION_SCOPE, UNKNOWN_TOPIC, Row, Scope
from invalidator.views import Views

_TIME_WIDTH = 12
_METHODS = {"o": "own", "d": "debezium"}

T = TypeVar("T")


class ScopeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A scope; `view` None: the region's.

    Open, it has a fence: `stamps` one by one, or their (low, high) where not `exact`. Closed, heartbeats count from
    control offset `closed_at` on, and `heartbeats` have. `digest_matches` None: no view of ours, nothing to compare.
    """

    view: str | None
    open: bool
    generation: str
    digest: str
    digest_matches: bool | None
    position: str | None
    stamps: tuple[str, ...] | None
    exact: bool | None
    closed_at: int | None
    heartbeats: int | None


class RowFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint of a topic-partition; None: not known."""

    topic: str
    partition: int
    next_offset: int
    leader_epoch: int | None
    topic_id: str | None
    sequence: int
    position: str
    stamp: str
    digest: str
    digest_matches: bool | None


class BeatFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The newest heartbeat; `limit` is the highest stamp that a proof may claim now."""

    position: str
    stamp: str
    limit: str


class WatermarkFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything up to `position` is applied, as of `time_ms` of the database's clock.

    The age compares that with the clock of the machine that asks: it is as wrong as the two differ.
    """

    position: str
    time_ms: int
    age_seconds_by_this_clock: float


class ShardFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A shard; only the first two fields say something where it is not `there`. `fences`: fields of the fence hash."""

    shard: int
    there: bool
    epoch: int | None = None
    method: str | None = None
    history: str | None = None
    fences: int = 0
    scopes: tuple[ScopeFacts, ...] = ()
    rows: tuple[RowFacts, ...] = ()
    heartbeat: BeatFacts | None = None
    watermark: WatermarkFacts | None = None
    unreadable: tuple[str, ...] = ()
    format: str = FORMAT


def read_shard(shard: int, header: Mapping[str, str], fences: int, views: Views, *, now_ms: int) -> ShardFacts:
    """What a shard's header says. A field that cannot be read is named in `unreadable`, and never an error."""
    if not header:
        return ShardFacts(shard=shard, there=False)
    if header.get("v") != FORMAT:
        return ShardFacts(shard=shard, there=True, format=header.get("v", ""), fences=fences)
    unreadable: list[str] = []

    def parsed(name: str, parse: Callable[[str], T]) -> T | None:
        try:
            return parse(header[name]) if name in header else None
        except ValueError:
            unreadable.append(name)
            return None

    scopes = [parsed(name, partial(_scope, name, views)) for name in sorted(header) if name.startswith("s:")]
    rows = [parsed(name, partial(_row, name, views)) for name in sorted(header) if name.startswith("t:")]
    epoch = header.get("e", "")
    return ShardFacts(
        shard=shard,
        there=True,
        epoch=parsed("e", lambda text: int(text[:8], 16)) or None,
        method=_METHODS.get(epoch[8:9]),
        history=epoch[9:] or None,
        fences=fences,
        scopes=tuple(scope for scope in scopes if scope is not None),
        rows=tuple(row for row in rows if row is not None),
        heartbeat=parsed("b", _beat),
        watermark=parsed("w", partial(_watermark, now_ms)),
        unreadable=tuple(unreadable),
    )


def scope_text(scope: ScopeFacts) -> str:
    """Whose it is."""
    return "the region" if scope.view is None else f"view {scope.view}"


def place_text(position: str) -> str:
    """A position for people."""
    if not position.strip("0"):
        return "the beginning"
    at = Position.parse(position)
    return f"{lsn_text(at.lsn)} of epoch {at.epoch}"


def _scope(name: str, views: Views, text: str) -> ScopeFacts:
    scope = Scope.parse(text)
    ours = views.views.get(name.removeprefix("s:"))
    fence = scope.fence
    return ScopeFacts(
        view=None if name == REGION_SCOPE else name.removeprefix("s:"),
        open=scope.open,
        generation=scope.generation,
        digest=scope.digest,
        digest_matches=None if ours is None else ours.digest == scope.digest,
        position=None if fence is None else fence.position,
        stamps=None if fence is None else fence.stamps,
        exact=None if fence is None else fence.exact,
        closed_at=None if scope.open else int(scope.closed_at, 16),
        heartbeats=None if scope.open else scope.heartbeats,
    )


def _row(name: str, views: Views, text: str) -> RowFacts:
    row = Row.parse(text)
    topic, _, partition = name.removeprefix("t:").rpartition("/")
    return RowFacts(
        topic=topic,
        partition=int(partition),
        next_offset=row.next_offset,
        leader_epoch=None if row.leader_epoch < 0 else row.leader_epoch,
        topic_id=None if row.topic_id == UNKNOWN_TOPIC else row.topic_id,
        sequence=row.sequence,
        position=row.position,
        stamp=row.stamp,
        digest=row.digest,
        digest_matches=None if row.digest == NO_DIGEST else row.digest == views.digest,
    )


def _beat(text: str) -> BeatFacts:
    position, stamp, limit = _cut(text, POSITION_WIDTH, STAMP_WIDTH, STAMP_WIDTH)
    return BeatFacts(position=position, stamp=stamp, limit=limit)


def _watermark(now_ms: int, text: str) -> WatermarkFacts:
    position, time = _cut(text[: POSITION_WIDTH + _TIME_WIDTH], POSITION_WIDTH, _TIME_WIDTH)
    time_ms = int(time, 16)
    age_seconds = (now_ms - time_ms) / 1000
    return WatermarkFacts(position=position, time_ms=time_ms, age_seconds_by_this_clock=age_seconds)


def _cut(text: str, *widths: int) -> list[str]:
    """Hexadecimal texts that stand one after the other. Raises ValueError."""
    if len(text) != sum(widths):
        raise ValueError("of another length")
    int(text, 16)
    starts = [sum(widths[:i]) for i in range(len(widths))]
    return [text[start : start + width] for start, width in zip(starts, widths, strict=True)]
