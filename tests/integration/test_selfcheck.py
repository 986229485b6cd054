"""`staleproof selfcheck` on real Redis and Valkey, and as a person runs it beside the real processes."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from cdc.events import Position, stamp_text
from consumers.doubts import Kind, RegionFacts
from consumers.selfcheck import examine
from invalidator.guard import Batch, Closing, ControlStep, KeyChange, Outcome, Pass, RowStep
from invalidator.layout import Row, row_field, view_scope
from invalidator.region import Region
from invalidator.views import load_views
from tests.fix_stack import Site
from tests.waiting import wait_until

VIEWS = load_views(
    """
version: 1
views:
  contact: {key: "contact:{id}", tables: {public.contacts: {}}}
  template: {key: "template:{id}", tables: {public.templates: {}}}
""",
    place="views.yaml",
)
HISTORY = "77:1"
DATA, CONTROL = row_field("shop.public.contacts", 0), row_field("shop.staleproof.control", 0)


class Shard:
    """The first shard of a region, driven without a worker: cold, then one heartbeat after the other."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.lsn, self.control_next, self.data_next = 0x600, 30, 5

    def begin(self) -> None:
        views = [(view.name, view.digest) for view in VIEWS.views.values()]
        rows = [(DATA, self.row(self.data_next)), (CONTROL, self.row(self.control_next))]
        assert self.region.cold(0, self.control_next, views, rows) is Outcome.APPLIED

    def row(self, offset: int, position: str = "0" * 32, stamp: int = 0) -> Row:
        return Row(
            next_offset=offset, topic_id="ab" * 16, leader_epoch=2, sequence=offset, position=position,
            stamp=stamp_text(stamp), digest=VIEWS.digest,
        )  # fmt: skip

    def hear(self, *closings: Closing, position: str = "") -> None:
        step = RowStep(CONTROL, self.control_next, self.row(self.control_next + 1))
        if not position:
            request = ControlStep(step=step, closings=closings)
        else:
            request = ControlStep(
                step=step, position=position, stamp=stamp_text(self.lsn), limit=stamp_text(self.lsn + 2**24),
                history=HISTORY, epoch=position[:8],
            )  # fmt: skip
        assert self.region.hear(0, request).outcome is Outcome.APPLIED
        self.control_next += 1

    def heartbeat(self, time_ms: int) -> None:
        """Publish one, and let it pass."""
        self.lsn += 0x10
        position = Position(5, self.lsn, 0).text
        self.hear(position=position)
        passed = self.region.pass_heartbeat(
            0,
            Pass(
                position=position,
                stamp=stamp_text(self.lsn),
                time_ms=time_ms,
                proof="",
                barriers=((DATA, self.data_next),),
            ),
        )
        assert passed.outcome is Outcome.APPLIED

    def change(self, key: str) -> None:
        self.lsn += 0x10
        position = Position(5, self.lsn, 0).text
        row = self.row(self.data_next + 1, position, self.lsn)
        _, stripe = self.region.layout.place(key)
        change = KeyChange(key, stripe, position, (stamp_text(self.lsn),))
        applied = self.region.apply(0, Batch(rows=(RowStep(DATA, self.data_next, row),), changes=(change,)))
        assert applied.outcome is Outcome.APPLIED
        self.data_next += 1


def now_ms() -> int:
    return int(time.time() * 1000)


def kinds(facts: RegionFacts) -> list[Kind]:
    return [doubt.kind for doubt in facts.doubts]


def asked(region: Region, max_age_seconds: float = 10.0) -> RegionFacts:
    return examine(region, VIEWS, max_age_seconds=max_age_seconds)


@pytest.fixture
def shard(region: Region) -> Shard:
    return Shard(region)


def test_a_region_that_nobody_started_is_cold(region: Region) -> None:
    facts = asked(region)
    assert kinds(facts) == [Kind.COLD]
    assert (facts.ok, facts.sum.there, facts.sum.fences) == (False, 0, 0)


def test_a_cold_region_is_closed_until_the_third_heartbeat_and_then_ok(shard: Shard) -> None:
    shard.begin()
    facts = asked(shard.region)
    assert kinds(facts) == [Kind.EPOCH, *[Kind.CLOSED] * 3, Kind.WATERMARK]
    for counted in (1, 2):
        shard.heartbeat(now_ms())
        facts = asked(shard.region)
        assert kinds(facts) == [Kind.CLOSED] * 3
        scopes = {scope.view: (scope.closed_at, scope.heartbeats) for scope in facts.shards[0].scopes}
        # The first one begins the epoch, which closes the region from the record after it.
        assert scopes == {None: (31, counted - 1), "contact": (30, counted), "template": (30, counted)}
    shard.heartbeat(now_ms())
    shard.heartbeat(now_ms())
    facts = asked(shard.region)
    assert facts.ok, facts.doubts
    assert facts.sum.closed_scopes == 0
    (only,) = facts.shards
    assert (only.epoch, only.method, only.history) == (5, "own", HISTORY)
    assert [scope.view for scope in only.scopes] == [None, "contact", "template"]
    newest = Position(5, shard.lsn, 0).text
    assert max(scope.generation for scope in only.scopes) == newest  # the region's, which opened last
    assert only.heartbeat is not None
    assert (only.heartbeat.position, only.heartbeat.stamp) == (newest, stamp_text(shard.lsn))
    assert only.watermark is not None
    assert only.watermark.position == newest
    assert 0 <= only.watermark.age_seconds_by_this_clock < 10


def opened(shard: Shard) -> RegionFacts:
    shard.begin()
    for _ in range(5):
        shard.heartbeat(now_ms())
    facts = asked(shard.region)
    assert facts.ok, facts.doubts
    return facts


def test_a_change_takes_a_fence_into_use_and_moves_its_row(shard: Shard) -> None:
    before = opened(shard)
    shard.change("contact:42")
    facts = asked(shard.region)
    assert facts.sum.fences == before.sum.fences + 1
    rows = {(row.topic, row.partition): row for row in facts.shards[0].rows}
    row = rows["shop.public.contacts", 0]
    assert (row.next_offset, row.sequence, row.leader_epoch) == (shard.data_next, shard.data_next, 2)
    assert (row.position, row.stamp) == (Position(5, shard.lsn, 0).text, stamp_text(shard.lsn))
    assert row.digest_matches


def test_an_ordered_view_is_closed_since_the_order(shard: Shard) -> None:
    opened(shard)
    since = shard.control_next + 1
    shard.hear(Closing(view_scope("contact"), since))
    shard.heartbeat(now_ms())
    facts = asked(shard.region)
    assert kinds(facts) == [Kind.CLOSED]
    (contact,) = [scope for scope in facts.shards[0].scopes if scope.view == "contact"]
    assert (contact.open, contact.closed_at, contact.heartbeats) == (False, since, 1)


def test_a_lost_fence_hash_an_old_watermark_and_other_views_are_doubts(shard: Shard, redis_url: str) -> None:
    opened(shard)
    shard.heartbeat(now_ms() - 20_000)
    assert kinds(asked(shard.region)) == [Kind.WATERMARK]
    assert asked(shard.region, 60).ok
    redis.Redis.from_url(redis_url).delete(shard.region.layout.fences_key(0))
    assert kinds(asked(shard.region, 60)) == [Kind.FENCES_LOST]
    shard.heartbeat(now_ms())  # the heartbeat's script makes it again
    assert asked(shard.region).ok
    other = load_views(
        'version: 1\nviews:\n  contact: {key: "c:{id}", tables: {public.contacts: {}}}\n', place="other.yaml"
    )
    assert kinds(examine(shard.region, other, max_age_seconds=10)) == [Kind.DIGEST] * 3  # meaning, absence, rows


def selfcheck(site: Site, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of the command as a process."""
    process = site.start("selfcheck", "--region", "eu", "--json", *options)
    code = process.wait(60)
    site.processes.remove(process)  # it ended by itself, perhaps with doubts
    log: Path = max(site.directory.glob("selfcheck-*.log"), key=lambda path: path.stat().st_mtime_ns)
    printed: dict[str, Any] = json.loads(log.read_text())
    log.unlink()
    return code, printed


def doubted(site: Site, *options: str) -> list[str]:
    code, printed = selfcheck(site, *options)
    assert code == bool(printed["doubts"])
    return [doubt["kind"] for doubt in printed["doubts"]]


def test_beside_real_processes_it_is_ok_and_says_when_capture_stands_still(site: Site) -> None:
    assert doubted(site) == ["cold"]
    capture = site.start("capture")
    site.start("invalidate", "--region", "eu")
    site.wait_open("eu")
    code, printed = selfcheck(site)
    assert (code, printed["doubts"]) == (0, [])
    assert {row["topic"] for row in printed["shards"][0]["rows"]} >= {site.settings.source.control_topic}
    os.kill(capture.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: doubted(site, "--max-age-seconds", "2") == ["watermark"], "the watermark grows old")
    finally:
        os.kill(capture.pid, signal.SIGCONT)
    wait_until(lambda: not doubted(site), "it is well again")
