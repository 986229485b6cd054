"""One clause of the guard each, on a real Redis and Valkey: the interleaving that it closes, written down."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cdc.control import EpochStarted, encode_control
from cdc.events import stamp_text
from consumers.stream import Record
from invalidator.guard import Outcome
from invalidator.reader_commands import Filled
from tests.fix_redis import redis_of
from tests.fix_world import HISTORY, TEMPLATES, TOPIC, World
from tests.integration.test_worker_doubts import now, order, pass_three_heartbeats

AT = (TEMPLATES, 0)
OTHER = (TEMPLATES, 1)


def proof(xmin: int, xmax: int, running: Sequence[int] = ()) -> str:
    return "p" + "".join(map(stamp_text, (xmin, xmax, *running)))


def redeliver(world: World, record: Record, partition: tuple[str, int]) -> None:
    """The same change once more at the end of a partition, as after a restart of capture."""
    log = world.data.log.setdefault(partition, [])
    last = world.sequence.get(partition, 0)
    world.sequence[partition] = last + 1
    header = (record.header or b"")[:49] + f"{last + 1:016x}{last:016x}".encode()
    again = msgspec.structs.replace(record, topic=partition[0], partition=partition[1], offset=len(log), header=header)
    log.append(again)


def test_a_fence_keeps_every_stamp_until_a_heartbeat_has_covered_it(world: World) -> None:
    world.open()
    first = world.change({"id": 1})
    second = world.change({"id": 1})
    world.drain()
    sees_the_second_only = proof(first, second + 1, [first])
    assert world.fill(seen=sees_the_second_only) == Filled(Outcome.REFUSED, "stripe")
    third = world.change({"id": 1})
    world.drain()
    assert world.fill(seen=proof(first, third + 1, [first])) == Filled(Outcome.REFUSED, "stripe")


def test_a_heartbeat_that_has_not_seen_a_stamp_drops_it_from_no_fence(world: World) -> None:
    world.open()
    late = world.change({"id": 1})
    world.drain()
    world.heartbeat(snapshot=f"{late}:{world.stamp + 2}:{late}")  # the change is in the log and not visible yet
    world.drain()
    world.change({"id": 1})
    world.drain()
    assert world.fill(seen=proof(late, world.stamp + 1, [late])) == Filled(Outcome.REFUSED, "stripe")


def test_a_heartbeat_that_covers_a_stamp_lets_it_go(world: World) -> None:
    """Without this a stripe of busy keys would refuse fills for ever."""
    world.open()
    for _ in range(20):
        world.change({"id": 1})
        world.heartbeat()
        world.drain()
    last = world.change({"id": 1})
    world.drain()
    _, stripe = world.region.layout.place("contact:1")
    fence = redis_of(world.region).hget(world.region.layout.fences_key(0), stripe).decode()
    assert (fence[0], fence[33:]) == ("=", stamp_text(last))


def test_a_record_from_before_a_heartbeat_does_not_shrink_a_fence(world: World) -> None:
    """Redelivery: what the heartbeat saw says nothing about who sees a change of before it."""
    world.open()
    world.change({"id": 1})
    old = world.data.log[TOPIC, 0][-1]
    newer = world.change({"id": 1})
    world.heartbeat()
    world.drain()
    redeliver(world, old, (TOPIC, 0))
    world.drain()
    assert world.fill(seen=proof(newer, newer)) == Filled(Outcome.REFUSED, "stripe")


def test_a_fill_that_saw_one_of_two_coalesced_changes_dies(world: World) -> None:
    world.open()
    first = world.change({"id": 1})
    second = world.change({"id": 1})
    assert world.fill(seen=proof(first, second + 1, [first])).outcome is Outcome.APPLIED
    world.drain()
    assert world.read() is None


def test_an_older_read_does_not_replace_a_newer_one(world: World) -> None:
    world.open()
    old = now(world)
    world.heartbeat()  # a transaction that touched nothing of ours
    world.drain()
    assert world.fill(payload=b"new").outcome is Outcome.APPLIED
    assert world.fill(seen=old, payload=b"old").outcome is Outcome.SUPERSEDED
    assert world.read() == b"new"


def test_an_older_row_image_is_not_written_after_a_newer_delete(world: World) -> None:
    world.open()
    world.change({"id": 1, "body": "old"}, partition=AT)
    old = world.data.log[AT][-1]
    world.change(None, {"id": 1}, op="d", partition=AT)
    world.drain()
    redeliver(world, old, AT)
    world.drain()
    assert world.read("template:1") is None


def test_an_older_row_image_is_not_written_after_a_newer_truncate(world: World) -> None:
    world.open()
    world.change({"id": 1, "body": "old"}, partition=AT)
    old = world.data.log[AT][-1]
    world.data.log[AT].clear()
    world.sequence[AT] = 0
    world.change(None, op="t", partition=AT)
    world.drain()
    redeliver(world, old, AT)
    world.drain()
    assert world.read("template:1") is None


def test_an_older_row_image_is_not_written_after_the_region_was_closed(world: World) -> None:
    world.open()
    world.change({"id": 1, "body": "old"}, partition=AT)
    world.drain()
    old = world.data.log[AT][-1]
    order(world)
    world.drain()
    pass_three_heartbeats(world)
    redeliver(world, old, AT)
    world.drain()
    assert world.read("template:1") is None


def test_a_row_image_of_an_older_epoch_is_not_written(world: World) -> None:
    world.open()
    world.change({"id": 1, "body": "old"}, partition=AT)
    old = world.data.log[AT][-1]
    world.drain()
    world.epoch, world.lsn = 2, 5
    world.publish(encode_control(EpochStarted(source="shop", history=HISTORY, epoch=2, reason="a test")))
    world.drain()
    pass_three_heartbeats(world)
    redeliver(world, old, AT)
    world.drain()
    assert world.read("template:1") is None


def test_a_fill_that_a_refresh_outdates_is_removed_and_not_overwritten(world: World) -> None:
    world.open()
    assert world.fill("template:1").outcome is Outcome.APPLIED
    world.change({"id": 1, "body": "new"}, partition=AT)
    world.drain()
    assert world.read("template:1") is None


def test_a_fill_that_saw_the_refresh_before_it_arrived_stays(world: World) -> None:
    world.open()
    world.change({"id": 1, "body": "new"}, partition=AT)
    assert world.fill("template:1", payload=b"new").outcome is Outcome.APPLIED
    world.drain()
    assert world.read("template:1") == b"new"


def test_a_lost_fence_comes_back_with_the_highest_stamp_ever_not_the_last(world: World) -> None:
    world.open()
    high = world.change({"id": 1}, stamp=world.stamp + 10)
    world.drain()
    world.change({"id": 2}, stamp=high - 5)
    world.drain()
    redis_of(world.region).delete(world.region.layout.fences_key(0))
    world.stamp = high
    world.heartbeat()
    world.drain()
    assert world.fill(seen=proof(high, high)) == Filled(Outcome.REFUSED, "stripe")


def test_a_redis_rolled_back_is_found_by_the_next_batch(world: World) -> None:
    world.open()
    assert world.fill().outcome is Outcome.APPLIED
    client, layout = redis_of(world.region), world.region.layout
    names = [layout.header_key(0), layout.fences_key(0), layout.entry_key(0, "contact:1")]
    dumps = [client.dump(name) for name in names]
    world.change({"id": 1})
    world.drain()
    for name, dump in zip(names, dumps, strict=True):
        client.restore(name, 0, dump, replace=True)
    world.change({"id": 2})
    world.drain()
    assert world.read() is None
    assert world.alarms("rewound") == 1


def test_entries_that_outlive_a_lost_header_are_never_served_again(world: World) -> None:
    world.open()
    assert world.fill().outcome is Outcome.APPLIED
    redis_of(world.region).delete(world.region.layout.header_key(0))
    world.change({"id": 1})
    world.heartbeat()
    world.drain()
    pass_three_heartbeats(world)
    world.heartbeat()
    world.drain()
    assert world.read() is None
    assert world.fill(payload=b"2").outcome is Outcome.APPLIED


def test_heartbeats_that_several_replaced_captures_publish_late_open_nothing(world: World) -> None:
    """Found by the model: each of them, and the running one's own, was committed before the closing."""
    world.open()
    world.change({"id": 5})
    world.drain()
    late = [world.commit_heartbeat(instance=name * 16) for name in "ab"]
    late.append(world.commit_heartbeat())
    lost = world.change({"id": 2}, lost=1)  # what was lost may have been contact 1
    world.drain()
    for value in late:
        world.publish(value)
        world.drain()
    assert world.fill("contact:1", seen=proof(lost, lost)) == Filled(Outcome.REFUSED, "closed")
    world.heartbeat()
    world.drain()
    world.heartbeat()
    world.drain()
    assert world.fill("contact:1", seen=proof(lost, lost)) == Filled(Outcome.REFUSED, "region")
    assert world.fill("contact:1").outcome is Outcome.APPLIED


def test_heartbeats_that_were_published_before_a_cold_start_do_not_open_it(world: World) -> None:
    """They are heard, since one of them tells the epoch; but what was jumped over may have come after them."""
    for _ in range(5):
        world.heartbeat()
    world.drain()
    assert world.region.header(0)["e"][:8] == "00000001"
    assert world.fill() == Filled(Outcome.REFUSED, "closed")
    pass_three_heartbeats(world)
    assert world.fill().outcome is Outcome.APPLIED


def test_a_stale_view_definition_reads_and_fills_nothing(world: World) -> None:
    world.open()
    assert world.fill().outcome is Outcome.APPLIED
    shard, _ = world.region.layout.place("contact:1")
    assert world.region.read(shard, "contact:1", "contact", "0" * 15 + "1").status == "MISS"


def test_a_watermark_never_goes_back(world: World) -> None:
    world.open()
    before = world.region.header(0)["w"]
    late = [record for log in world.control.log.values() for record in log][1]
    world.publish(late.value or b"")
    world.drain()
    assert world.region.header(0)["w"] >= before
