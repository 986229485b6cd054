"""What a shard's header says, and what of it is a reason for doubt."""

from __future__ import annotations

import pytest

from cdc.events import Position, stamp_text
from consumers.doubts import Kind, judge
from consumers.shard_facts import BeatFacts, ShardFacts, place_text, read_shard
from invalidator.layout import EMPTY_FENCE, NO_DIGEST, Fence, Row, Scope
from invalidator.views import load_views

VIEWS = load_views(
    """
version: 1
views:
  contact: {key: "contact:{id}", tables: {public.contacts: {}}}
  template: {key: "template:{id}", tables: {public.templates: {}}}
""",
    place="views.yaml",
)
NOW_MS = 1_800_000_000_000
AT = Position(5, 0x16_0000_0600, 0).text
STAMP = stamp_text(744)
ROW = Row(next_offset=12, topic_id="ab" * 16, leader_epoch=3, sequence=7, position=AT, stamp=STAMP, digest=VIEWS.digest)


def scope(digest: str, fence: Fence | None = EMPTY_FENCE) -> str:
    return Scope(generation=AT, digest=digest, fence=fence).text


def closed(digest: str = NO_DIGEST, heartbeats: int = 1) -> str:
    third = AT if heartbeats == 3 else ""
    return Scope(generation=AT, digest=digest, closed_at=f"{31:016x}", heartbeats=heartbeats, third=third).text


def header(**changes: str | None) -> dict[str, str]:
    """A healthy shard's; None takes a field away."""
    fields = {
        "v": "1",
        "e": "00000005o77:1",
        "s:": scope(NO_DIGEST, Fence(False, AT, (stamp_text(0), STAMP))),
        "s:contact": scope(VIEWS.views["contact"].digest),
        "s:template": scope(VIEWS.views["template"].digest),
        "t:shop.public.contacts/0": ROW.text,
        "b": AT + STAMP + stamp_text(744 + 2**24),
        "w": AT + f"{NOW_MS - 1_500:012x}",
    } | changes
    return {name: text for name, text in fields.items() if text is not None}


def verdict(*shards: dict[str, str], fences: int = 4, max_age_seconds: float = 10.0):
    read = [read_shard(i, fields, fences if fields else 0, VIEWS, now_ms=NOW_MS) for i, fields in enumerate(shards)]
    return judge("eu", read, VIEWS, max_age_seconds=max_age_seconds)


def doubts(*shards: dict[str, str], **limits: float) -> list[tuple[int, Kind]]:
    return [(doubt.shard, doubt.kind) for doubt in verdict(*shards, **limits).doubts]


def test_a_healthy_region_is_ok_and_every_figure_is_there():
    facts = verdict(header(), header(w=AT.replace("600", "500") + f"{NOW_MS - 2_000:012x}"))
    assert facts.ok
    assert facts.doubts == ()
    shard = facts.shards[0]
    assert (shard.epoch, shard.method, shard.history, shard.fences) == (5, "own", "77:1", 4)
    assert [(s.view, s.open, s.generation, s.digest_matches) for s in shard.scopes] == [
        (None, True, AT, None),
        ("contact", True, AT, True),
        ("template", True, AT, True),
    ]
    assert (shard.scopes[0].exact, shard.scopes[0].stamps, shard.scopes[0].position) == (
        False,
        (stamp_text(0), STAMP),
        AT,
    )
    (row,) = shard.rows
    assert (row.topic, row.partition, row.next_offset, row.leader_epoch) == ("shop.public.contacts", 0, 12, 3)
    assert (row.topic_id, row.sequence, row.position, row.stamp) == ("ab" * 16, 7, AT, STAMP)
    assert (row.digest, row.digest_matches) == (VIEWS.digest, True)
    assert shard.heartbeat == BeatFacts(position=AT, stamp=STAMP, limit=stamp_text(744 + 2**24))
    assert shard.watermark is not None
    assert (shard.watermark.time_ms, shard.watermark.age_seconds_by_this_clock) == (NOW_MS - 1_500, 1.5)
    total = facts.sum
    assert (total.shards, total.there, total.fences, total.scopes, total.closed_scopes, total.rows) == (
        2,
        2,
        8,
        6,
        0,
        2,
    )
    assert total.watermark is facts.shards[1].watermark  # the oldest


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"v": "2"}, [Kind.FORMAT]),
        ({"v": None}, [Kind.FORMAT]),
        ({"e": "00000000o"}, [Kind.EPOCH]),
        ({"e": "what"}, [Kind.UNREADABLE]),
        ({"e": None}, [Kind.EPOCH]),
        ({"s:": closed()}, [Kind.CLOSED]),
        ({"s:contact": closed(VIEWS.views["contact"].digest)}, [Kind.CLOSED]),
        ({"s:contact": scope("1" * 16)}, [Kind.DIGEST]),
        ({"s:contact": None}, [Kind.DIGEST]),
        ({"s:contact": "o"}, [Kind.UNREADABLE]),
        ({"s:other": scope("1" * 16)}, [Kind.DIGEST]),
        ({"s:other": scope(NO_DIGEST)}, []),  # a view of the past, which no worker plans
        ({"s:other": closed(NO_DIGEST)}, []),
        ({"t:shop.public.contacts/0": ROW.text[:120] + "1" * 16}, [Kind.DIGEST]),
        ({"t:shop.public.contacts/0": ROW.text[:120] + NO_DIGEST}, []),
        ({"t:shop.public.contacts/0": ROW.text[:-1]}, [Kind.UNREADABLE]),
        ({"t:shop.public.contacts/x": ROW.text}, [Kind.UNREADABLE]),
        ({"b": AT}, [Kind.UNREADABLE]),
        ({"b": None}, []),
        ({"w": None}, [Kind.WATERMARK]),
        ({"w": AT}, [Kind.UNREADABLE, Kind.WATERMARK]),
        ({"w": AT + "z" * 12}, [Kind.UNREADABLE, Kind.WATERMARK]),
        ({"w": AT + f"{NOW_MS - 10_000:012x}"}, []),
        ({"w": AT + f"{NOW_MS - 10_001:012x}"}, [Kind.WATERMARK]),
        ({"w": AT + f"{NOW_MS + 10_000:012x}"}, []),
        ({"w": AT + f"{NOW_MS + 10_001:012x}"}, [Kind.WATERMARK]),
    ],
)
def test_each_fault_of_a_header_is_one_doubt_about_its_shard(changes, kinds):
    assert doubts(header(), header(**changes)) == [(1, kind) for kind in kinds]
    assert verdict(header(**changes)).ok == (not kinds)


def test_a_shard_that_is_not_there_says_nothing_else_and_leaves_no_common_watermark():
    facts = verdict(header(), {})
    assert [(doubt.shard, doubt.kind) for doubt in facts.doubts] == [(1, Kind.COLD)]
    assert facts.shards[1] == ShardFacts(shard=1, there=False)
    assert (facts.sum.shards, facts.sum.there, facts.sum.watermark) == (2, 1, None)


def test_a_lost_fence_hash_is_a_doubt():
    assert doubts(header(), fences=0) == [(0, Kind.FENCES_LOST)]


def test_the_limit_of_age_is_the_callers():
    assert doubts(header(), max_age_seconds=1.5) == []
    assert doubts(header(), max_age_seconds=1.4) == [(0, Kind.WATERMARK)]


def test_a_closed_scope_says_since_when_and_how_many_heartbeats_counted():
    facts = verdict(header(**{"s:contact": closed(VIEWS.views["contact"].digest, heartbeats=2)}))
    (about,) = [s for s in facts.shards[0].scopes if s.view == "contact"]
    assert (about.open, about.closed_at, about.heartbeats) == (False, 31, 2)
    assert (about.position, about.stamps, about.exact) == (None, None, None)
    assert facts.sum.closed_scopes == 1
    assert facts.doubts[0].text == (
        "view contact is closed; 2 of 3 heartbeats counted since control offset 31:"
        " it opens by itself while capture and the workers run"
    )


def test_what_is_not_known_of_a_row_is_none():
    (row,) = verdict(header(**{"t:shop.public.contacts/0": Row(next_offset=4).text})).shards[0].rows
    assert (row.next_offset, row.leader_epoch, row.topic_id, row.digest_matches) == (4, None, None, None)


def test_a_position_is_shown_as_postgres_writes_it():
    assert place_text(AT) == "16/600 of epoch 5"
    assert place_text("0" * 32) == "the beginning"
