"""What of a region's shards is a reason not to rely on the region. Pure.

In flow the facts of each shard and our views; out flow doubts with their remedies, and the verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum

import msgspec

from consumers.shard_facts import ScopeFacts, ShardFacts, WatermarkFacts, scope_text
from invalidator.layout import FORMAT, NO_DIGEST, view_scope
from invalidator.views import Views

HEARTBEATS_NEEDED = 3


class Kind(StrEnum):
    """Kinds of doubt."""

    COLD = "cold"
    FORMAT = "format"
    UNREADABLE = "unreadable"
    EPOCH = "epoch"
    FENCES_LOST = "fences_lost"
    CLOSED = "closed"
    DIGEST = "digest"
    WATERMARK = "watermark"


class Doubt(msgspec.Struct, frozen=True, kw_only=True):
    """Why a shard cannot be relied on now, and the remedy."""

    shard: int
    kind: Kind
    text: str


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """All shards together; `watermark` is the oldest, None where a shard has none."""

    shards: int
    there: int
    fences: int
    scopes: int
    closed_scopes: int
    rows: int
    watermark: WatermarkFacts | None


class RegionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The whole region, and the verdict: `ok`, or doubts."""

    region: str
    ok: bool
    doubts: tuple[Doubt, ...]
    views_digest: str
    max_age_seconds: float
    sum: Totals
    shards: tuple[ShardFacts, ...]


def judge(region: str, shards: Sequence[ShardFacts], views: Views, *, max_age_seconds: float) -> RegionFacts:
    """The verdict on a region; its watermarks may be `max_age_seconds` old, or so far in the future."""
    doubts = tuple(doubt for facts in shards for doubt in _doubts(facts, views, max_age_seconds))
    return RegionFacts(
        region=region,
        ok=not doubts,
        doubts=doubts,
        views_digest=views.digest,
        max_age_seconds=max_age_seconds,
        sum=_totals(shards),
        shards=tuple(shards),
    )


def _totals(shards: Sequence[ShardFacts]) -> Totals:
    watermarks = [facts.watermark for facts in shards if facts.watermark is not None]
    scopes = [scope for facts in shards for scope in facts.scopes]
    return Totals(
        shards=len(shards),
        there=sum(facts.there for facts in shards),
        fences=sum(facts.fences for facts in shards),
        scopes=len(scopes),
        closed_scopes=sum(not scope.open for scope in scopes),
        rows=sum(len(facts.rows) for facts in shards),
        watermark=min(watermarks, key=lambda w: w.position) if watermarks and len(watermarks) == len(shards) else None,
    )


def _doubts(facts: ShardFacts, views: Views, max_age_seconds: float) -> Iterator[Doubt]:
    def doubt(kind: Kind, text: str) -> Doubt:
        return Doubt(shard=facts.shard, kind=kind, text=text)

    if not facts.there:
        yield doubt(Kind.COLD, "the shard is not there: a running worker makes it, closed until heartbeats prove it")
        return
    if facts.format != FORMAT:
        remedy = "ask with the release that the workers run"
        yield doubt(Kind.FORMAT, f"written in format {facts.format!r}, and this release reads {FORMAT}: {remedy}")
        return
    for name in facts.unreadable:
        yield doubt(
            Kind.UNREADABLE,
            f"field {name} of the header cannot be read: delete the header, and a worker makes it again, closed",
        )
    if facts.epoch is None and "e" not in facts.unreadable:
        yield doubt(Kind.EPOCH, "no heartbeat told the epoch yet: start `staleproof capture`")
    if not facts.fences:
        yield doubt(
            Kind.FENCES_LOST,
            "the fence hash is gone, so every fill is refused: a running worker makes it again; if it was evicted,"
            " set maxmemory-policy noeviction",
        )
    yield from (doubt(Kind.CLOSED, _closed_text(scope)) for scope in facts.scopes if not scope.open and _counts(scope))
    yield from (doubt(Kind.DIGEST, text) for text in _other_views(facts, views))
    text = _old_text(facts.watermark, max_age_seconds)
    if text:
        yield doubt(Kind.WATERMARK, text)


def _counts(scope: ScopeFacts) -> bool:
    """A view that the workers do not plan any more is closed, and nobody reads it."""
    return scope.view is None or scope.digest != NO_DIGEST


def _closed_text(scope: ScopeFacts) -> str:
    return (
        f"{scope_text(scope)} is closed; {scope.heartbeats} of {HEARTBEATS_NEEDED} heartbeats counted since control"
        f" offset {scope.closed_at}: it opens by itself while capture and the workers run"
    )


def _other_views(facts: ShardFacts, views: Views) -> Iterator[str]:
    remedy = "give every process the same views file, and start the workers again"
    known = {scope.view for scope in facts.scopes}
    for name in views.views:
        if name not in known and view_scope(name) not in facts.unreadable:
            yield f"view {name} of the views file is not known to the workers: {remedy}"
    for scope in facts.scopes:
        if scope.digest_matches is False:
            yield f"view {scope.view} means something else to the workers than in the views file: {remedy}"
        elif scope.view is not None and scope.digest_matches is None and scope.digest != NO_DIGEST:
            yield f"view {scope.view} is known to the workers, and the views file does not have it: {remedy}"
    others = [f"{row.topic}/{row.partition}" for row in facts.rows if row.digest_matches is False]
    if others:
        yield f"{len(others)} rows were planned by other views, {others[0]} the first: {remedy}"


def _old_text(watermark: WatermarkFacts | None, max_age_seconds: float) -> str:
    if watermark is None:
        return "there is no watermark, as no heartbeat passed every row yet: see that capture and all workers run"
    age_seconds = watermark.age_seconds_by_this_clock
    if age_seconds > max_age_seconds:
        return (
            f"the watermark is {age_seconds:.1f} s old by this machine's clock, more than {max_age_seconds:g}:"
            " see that capture and all workers run, and that the clocks agree"
        )
    if age_seconds < -max_age_seconds:
        return f"the watermark lies {-age_seconds:.1f} s in the future of this machine's clock: set the clocks"
    return ""
