"""Records once more, without rows, on a real Redis and Valkey: what a replay may remove and write, and what it may not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

from cdc.control import EpochStarted, encode_control
from cdc.errors import ConfigError, TransientError
from consumers.replay_planning import RangePlanner
from consumers.replay_regions import Target, begin, finish
from consumers.stream import Record
from invalidator.guard import Outcome
from invalidator.reader_commands import Filled
from invalidator.region import Region
from invalidator.views import Views, load_views
from tests.fix_redis import redis_of
from tests.fix_world import HISTORY, TEMPLATES, TOPIC, VIEWS, World
from tests.integration.test_guard_clauses import AT, proof
from tests.integration.test_worker_doubts import now, order, pass_three_heartbeats

TABLES = {TOPIC: "public.contacts", TEMPLATES: "public.templates"}


def replay(world: World, records: Iterable[Record], views: Views = VIEWS, *, since: str = "00000000") -> Counter[str]:
    """Apply them once more; what came of it."""
    target = Target(world.region, views)
    target.prepare()
    planner = RangePlanner(views, TABLES, since_epoch=since, wave_keys=3)
    for wave in planner.waves(list(records)):
        finish(begin(wave, [target]), [target], lambda: False)
    return target.counts


def records_of(world: World) -> list[Record]:
    return [record for log in world.data.log.values() for record in log]


def everything(region: Region) -> dict[bytes, object]:
    """Every key of the region and what is in it."""
    client = redis_of(region)
    names = list(client.scan_iter(f"{{{region.layout.prefix}:*"))
    return {name: client.get(name) if client.type(name) == b"string" else client.hgetall(name) for name in names}


def some_traffic(world: World) -> None:
    """Contacts and templates that changed several times, each with its readable entry."""
    world.open()
    for body in ("a", "b", "c"):
        for identity in range(6):
            world.change({"id": identity, "body": body})
            world.change({"id": identity, "body": body}, partition=AT)
        world.heartbeat()
        world.drain()
    world.change(None, {"id": 5}, op="d", partition=AT)
    world.change({"id": 5, "body": "d"}, partition=AT)
    world.change(None, {"id": 4}, op="d", partition=AT)
    world.drain()
    for identity in range(6):
        assert world.fill(f"contact:{identity}").outcome is Outcome.APPLIED


@pytest.mark.parametrize("shuffle", [list, reversed, lambda records: sorted(records, key=lambda r: hash(r.header))])
def test_whatever_the_order_a_replayed_range_changes_nothing_in_redis(world, shuffle):
    some_traffic(world)
    before = everything(world.region)
    for _ in range(2):
        counts = replay(world, shuffle(records_of(world)))
        assert everything(world.region) == before
        assert (counts["unlinked"], counts["written"]) == (0, 0)
        assert counts["kept"] >= 10
    assert world.read("template:5") is not None
    assert world.read("template:4") is None


def test_over_eight_shards_it_changes_nothing_either(sharded_world):
    some_traffic(sharded_world)
    before = everything(sharded_world.region)
    assert replay(sharded_world, records_of(sharded_world))["kept"] >= 10
    assert everything(sharded_world.region) == before


def test_a_replay_makes_no_fence_grow(world):
    """An interval from an old stamp on would refuse every fill while any transaction since then is open."""
    world.open()
    for _ in range(12):
        world.change({"id": 1})
        world.heartbeat()
        world.drain()
    open_since = world.stamp - 5
    seen = proof(open_since, world.stamp + 1, [open_since])
    assert world.fill(seen=seen).outcome is Outcome.APPLIED
    replay(world, records_of(world))
    world.region.unlink(0, ["contact:1"])
    assert world.fill(seen=seen).outcome is Outcome.APPLIED


def test_a_fill_that_saw_one_of_two_changes_of_a_wave_is_removed(world):
    world.open()
    first = world.change({"id": 1})
    second = world.change({"id": 1})
    assert world.fill(seen=proof(first, second + 1, [first])).outcome is Outcome.APPLIED
    assert replay(world, records_of(world))["unlinked"] == 1
    assert world.read() is None


def test_an_entry_that_missed_a_change_is_removed(world):
    world.open()
    assert world.fill("contact:1").outcome is Outcome.APPLIED
    world.change({"id": 1})  # the worker has not come so far
    assert replay(world, records_of(world))["unlinked"] == 1
    assert world.read("contact:1") is None


def test_a_replay_ahead_of_the_worker_writes_no_value(world):
    world.open()
    world.change({"id": 1, "body": "new"}, partition=AT)
    assert replay(world, records_of(world))["written"] == 0
    assert world.read("template:1") is None
    world.drain()
    assert world.read("template:1") is not None


def test_ahead_of_the_worker_an_older_value_does_not_follow_a_newer_one(world):
    """No fence remembers what the worker has not applied: once the newer entry is evicted, nothing would tell."""
    world.open()
    for body in ("older", "newer"):
        world.change({"id": 1, "body": body}, partition=AT)
    older, newer = world.data.log[AT][-2:]
    replay(world, [newer])
    world.region.unlink(0, ["template:1"])
    replay(world, [older])
    assert world.read("template:1") is None


def test_under_a_lost_fence_only_the_newest_of_all_is_written(world):
    world.open()
    for identity in (1, 2):
        world.change({"id": identity, "body": "a"}, partition=AT)
    world.drain()
    first, newest = world.data.log[AT][-2:]
    world.region.unlink(0, ["template:1", "template:2"])
    for record, written in ((first, 0), (newest, 1)):
        redis_of(world.region).delete(world.region.layout.fences_key(0))
        assert replay(world, [record])["written"] == written


def test_an_evicted_entry_is_written_again_where_it_is_the_newest(world):
    world.open()
    for body in ("older", "newest"):
        world.change({"id": 1, "body": body}, partition=AT)
    world.drain()
    older, newest = world.data.log[AT][-2:]
    there = world.read("template:1")
    world.region.unlink(0, ["template:1"])
    assert replay(world, [older])["written"] == 0
    assert world.read("template:1") is None
    assert replay(world, [newest])["written"] == 1
    assert world.read("template:1") == there
    assert replay(world, [older]) == Counter(unlinked=0, kept=1, written=0)
    assert world.read("template:1") == there


def test_an_older_delete_leaves_the_entry_of_a_newer_event(world):
    world.open()
    world.change(None, {"id": 1}, op="d", partition=AT)
    world.change({"id": 1, "body": "again"}, partition=AT)
    world.drain()
    assert replay(world, [world.data.log[AT][0]]) == Counter(unlinked=0, kept=1, written=0)
    assert world.read("template:1") is not None


def test_the_delete_of_now_removes_the_entry_of_an_older_event(world):
    world.open()
    world.change({"id": 1, "body": "a"}, partition=AT)
    world.drain()
    world.change(None, {"id": 1}, op="d", partition=AT)
    assert replay(world, [world.data.log[AT][-1]])["unlinked"] == 1
    assert world.read("template:1") is None


def test_a_replayed_truncate_leaves_what_was_filled_since(world):
    world.open()
    world.change(None, op="t")
    world.drain()
    assert world.fill("contact:1").outcome is Outcome.APPLIED
    before = everything(world.region)
    replay(world, records_of(world))
    assert everything(world.region) == before


def test_a_record_without_a_header_closes_nothing_again(world):
    world.open()
    before = everything(world.region)
    world.change({"id": 1})
    record = world.data.log[TOPIC, 0][-1]
    replay(world, [Record(*(getattr(record, f) for f in record.__struct_fields__[:-1]), None)])
    assert everything(world.region) == before


def test_a_record_that_claims_what_cannot_exist_removes_at_most_its_key(world):
    world.open()
    assert world.fill("contact:2").outcome is Outcome.APPLIED
    before = everything(world.region)
    world.lsn, real = 1 << 60, world.lsn
    world.change({"id": 1}, stamp=1 << 60)
    world.change({"id": 1, "body": "x"}, partition=AT, stamp=1 << 60)
    replay(world, records_of(world))
    world.lsn = real
    assert everything(world.region) == before


def test_while_the_region_is_closed_nothing_is_written_and_nothing_comes_back_when_it_opens(world):
    world.open()
    world.change({"id": 1, "body": "old"}, partition=AT)
    world.drain()
    order(world)
    world.drain()
    assert replay(world, records_of(world))["written"] == 0
    pass_three_heartbeats(world)
    assert replay(world, records_of(world))["written"] == 0
    assert world.read("template:1") is None


def test_what_is_of_an_earlier_epoch_is_passed_over(world):
    world.open()
    world.change({"id": 1})
    world.change({"id": 1, "body": "old"}, partition=AT)
    world.drain()
    old = records_of(world)
    world.epoch, world.lsn = 2, 5
    world.publish(encode_control(EpochStarted(source="shop", history=HISTORY, epoch=2, reason="a test")))
    world.drain()
    pass_three_heartbeats(world)
    assert world.fill("contact:1", seen=now(world)).outcome is Outcome.APPLIED
    before = everything(world.region)
    assert Target(world.region, VIEWS).prepare() == "00000002"
    replay(world, old, since="00000002")
    assert everything(world.region) == before
    assert replay(world, old)["written"] == 0  # and where it is not passed over it costs an entry, no more
    assert world.read("template:1") is None


def test_a_fill_from_a_read_of_before_the_change_stays_refused_after_a_replay(world):
    world.open()
    early = now(world)
    world.change({"id": 1})
    world.drain()
    replay(world, records_of(world))
    assert world.fill(seen=early) == Filled(Outcome.REFUSED, "stripe")


def test_a_shard_that_is_not_there_ends_it_at_the_start_and_is_counted_later(world):
    with pytest.raises(TransientError, match="shard 0 is not there"):
        Target(world.region, VIEWS).prepare()
    world.open()
    world.change({"id": 1})
    target = Target(world.region, VIEWS)
    target.prepare()
    redis_of(world.region).delete(world.region.layout.header_key(0))
    planner = RangePlanner(VIEWS, TABLES, wave_keys=9)
    for wave in planner.waves(records_of(world)):
        finish(begin(wave, [target]), [target], lambda: False)
    assert target.counts == Counter(unlinked=0, kept=0, written=0, lost=1)
    assert list(target.alarms) == ["lost"]


def test_a_lost_fence_hash_is_made_again_and_told(world):
    world.open()
    late = world.change({"id": 1})
    world.drain()
    redis_of(world.region).delete(world.region.layout.fences_key(0))
    target = Target(world.region, VIEWS)
    planner = RangePlanner(VIEWS, TABLES, wave_keys=9)
    for wave in planner.waves(records_of(world)):
        finish(begin(wave, [target]), [target], lambda: False)
    assert list(target.alarms) == ["guard_lost"]
    assert world.fill(seen=proof(late, late)) == Filled(Outcome.REFUSED, "stripe")


def test_a_library_that_is_lost_is_loaded_again_and_the_wave_repeated(world):
    world.open()
    assert world.fill("contact:1").outcome is Outcome.APPLIED
    world.change({"id": 1})
    target = Target(world.region, VIEWS)
    target.prepare()
    redis_of(world.region).function_flush()
    for wave in RangePlanner(VIEWS, TABLES, wave_keys=9).waves(records_of(world)):
        finish(begin(wave, [target]), [target], lambda: False)
    assert target.counts["unlinked"] == 1


def test_a_connection_that_breaks_costs_no_more_than_a_repetition(world):
    world.open()
    for identity in range(8):
        assert world.fill(f"contact:{identity}").outcome is Outcome.APPLIED
        world.change({"id": identity})
    target = Target(world.region, VIEWS)
    target.prepare()
    for wave in RangePlanner(VIEWS, TABLES, wave_keys=3).waves(records_of(world)):
        begun = begin(wave, [target])
        serving = world.region._nodes.serving(world.region.layout.header_key(0))
        serving._line.disconnect()  # before the answers
        finish(begun, [target], lambda: False)
    assert [world.read(f"contact:{identity}") for identity in range(8)] == [None] * 8


@pytest.mark.parametrize(
    "text",
    [
        'version: 1\nviews: {template: {key: "template:{id}", mode: refresh, tables: {public.templates: {columns: [id]}}}}',
        'version: 1\nviews: {other: {key: "other:{id}", tables: {public.templates: {}}}}',
    ],
)
def test_views_that_are_not_the_regions_own_are_refused(world, text):
    """What is written would be read as an entry of the definition that readers have."""
    world.open()
    with pytest.raises(ConfigError, match="by another definition than the views file here"):
        Target(world.region, load_views(text, place="v")).prepare()
