"""What a worker does in doubt, and several workers and shards side by side; on a real Redis and Valkey."""

from __future__ import annotations

import msgspec
import pytest

from cdc.control import EpochStarted, Raise, encode_control
from consumers.stream import Record
from invalidator.guard import Outcome
from invalidator.layout import Row, row_field
from invalidator.reader_commands import Filled
from tests.fix_redis import redis_of
from tests.fix_world import CONTROL, HISTORY, TEMPLATES, TOPIC, World

HALVES = ([(TOPIC, 0)], [(TOPIC, 1), (TEMPLATES, 0)])


def order(world: World, *, view: str | None = None, table: str | None = None, key: str | None = None) -> None:
    if key is not None:
        world.stamp += 1
    record = Raise(
        source="shop", position="", region=None, view=view, table=table, key=key, reason="a test",
        stamp=world.stamp if key else 0,
    )  # fmt: skip
    world.publish(encode_control(record))


def now(world: World) -> str:
    """The proof of a read that sees everything so far."""
    return f"p{world.stamp + 1:016x}{world.stamp + 1:016x}"


def pass_three_heartbeats(world: World, *workers: object) -> None:
    for _ in range(3):
        world.heartbeat()
        for worker in workers or (world.worker,):
            world.drain(worker)  # type: ignore[arg-type]


# -- several workers, several shards


def test_two_workers_share_a_region_and_open_it_together(world: World) -> None:
    first, second = (world.new_worker(*half) for half in HALVES)
    world.drain(first)
    world.drain(second)
    for _ in range(4):
        world.heartbeat()
        world.drain(first)
        world.drain(second)
    for key in ("contact:1", "contact:2", "template:1"):
        assert world.fill(key).outcome is Outcome.APPLIED
    world.change({"id": 1})
    world.change({"id": 2}, partition=(TOPIC, 1))
    world.drain(first)
    assert (world.read("contact:1"), world.read("contact:2")) == (None, b"1")
    world.drain(second)
    assert world.read("contact:2") is None
    assert world.alarm_count() == 0


def test_a_watermark_waits_for_the_slower_of_two_workers(world: World) -> None:
    world.open()
    first, second = (world.new_worker(*half) for half in HALVES)
    world.drain(first)
    world.drain(second)
    before = world.region.header(0)["w"]
    world.change({"id": 2}, partition=(TOPIC, 1))
    world.heartbeat()
    world.drain(first)
    assert world.region.header(0)["w"] == before
    world.drain(second)
    assert world.region.header(0)["w"] > before


def test_a_zombie_that_writes_after_another_took_over_changes_nothing(world: World) -> None:
    world.open()
    zombie = world.new_worker((TOPIC, 0))
    world.drain(zombie)
    world.change({"id": 1})
    world.drain(world.new_worker((TOPIC, 0)))
    assert world.fill(payload=b"2").outcome is Outcome.APPLIED
    world.heartbeat()
    world.drain(zombie)
    assert world.read() == b"2"
    assert world.alarms("displaced") == 1


def test_a_worker_that_gains_a_partition_starts_at_its_row(world: World) -> None:
    world.open()
    worker = world.new_worker((TOPIC, 0))
    world.drain(worker)
    for i in range(3):
        world.change({"id": i}, partition=(TOPIC, 1))
    world.drain()
    worker._data.mine = frozenset({(TOPIC, 0), (TOPIC, 1)})  # type: ignore[attr-defined]
    world.change({"id": 7}, partition=(TOPIC, 1))
    world.drain(worker)
    assert Row.parse(world.region.header(0)[row_field(TOPIC, 1)]).next_offset == 4
    assert world.alarm_count() == 0


def test_shards_of_one_region_are_invalidated_each(sharded_world: World) -> None:
    world = sharded_world
    world.open()
    keys, before = [f"contact:{i}" for i in range(40)], now(world)
    assert len({world.region.layout.place(key)[0] for key in keys}) == 8
    for key in keys:
        assert world.fill(key).outcome is Outcome.APPLIED
    for i in range(40):
        world.change({"id": i}, partition=(TOPIC, i % 2))
    world.drain()
    assert {world.read(key) for key in keys} == {None}
    assert {world.fill(key, seen=before).reason for key in keys} == {"stripe"}


def test_after_a_crash_between_two_shards_each_goes_on_from_its_own_row(sharded_world: World) -> None:
    world = sharded_world
    world.open()
    for i in range(40):
        assert world.fill(f"contact:{i}").outcome is Outcome.APPLIED
        world.change({"id": i})
    submit, sent = world.region.submit, []

    def crash_at_the_fourth(shard: int, batch: object) -> object:
        sent.append(shard)
        if len(sent) == 4:
            raise KeyboardInterrupt
        return submit(shard, batch)  # type: ignore[arg-type]

    world.region.submit = crash_at_the_fourth  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        world.drain()
    world.region.abandon()
    world.region.submit = submit  # type: ignore[method-assign]
    for shard in sent[:3]:
        assert Row.parse(world.region.header(shard)[row_field(TOPIC, 0)]).next_offset == 40
    refilled = next(i for i in range(40) if world.region.layout.place(f"contact:{i}")[0] == sent[0])
    assert world.fill(f"contact:{refilled}", payload=b"2").outcome is Outcome.APPLIED
    world.drain(world.new_worker())
    kept = {i for i in range(40) if world.read(f"contact:{i}") is not None}
    assert kept == {refilled}
    assert world.alarm_count() == 0


# -- orders


def test_an_ordered_key_is_fenced_and_an_older_read_cannot_bring_it_back(world: World) -> None:
    world.open()
    before = now(world)  # sees the newest heartbeat, and not yet what the operator wants read
    for key in ("contact:1", "contact:2"):
        assert world.fill(key, seen=before).outcome is Outcome.APPLIED
    order(world, view="contact", key="contact:1")
    world.drain()
    assert (world.read("contact:1"), world.read("contact:2")) == (None, b"1")
    assert world.fill("contact:1", seen=before) == Filled(Outcome.REFUSED, "stripe")
    assert world.fill("contact:1", payload=b"2").outcome is Outcome.APPLIED
    assert world.alarms("ordered") == 1


def test_an_order_for_a_table_closes_the_views_that_it_feeds(world: World) -> None:
    world.open()
    for key in ("contact:1", "template:1"):
        assert world.fill(key).outcome is Outcome.APPLIED
    order(world, table="public.templates")
    world.drain()
    assert world.fill("template:1") == Filled(Outcome.REFUSED, "closed")
    assert world.read("contact:1") == b"1"
    pass_three_heartbeats(world)
    assert world.read("template:1") is None
    assert world.fill("template:1").outcome is Outcome.APPLIED


def test_a_redis_that_lost_an_order_hears_it_again(world: World) -> None:
    """Closing and moving the control row are one step: no fail-over can keep the one and lose the other."""
    world.open()
    assert world.fill().outcome is Outcome.APPLIED
    client, name = redis_of(world.region), world.region.layout.header_key(0)
    before = client.dump(name)
    order(world, view="contact")
    world.drain()
    assert world.fill() == Filled(Outcome.REFUSED, "closed")
    client.restore(name, 0, before, replace=True)
    world.heartbeat()
    world.drain()
    assert world.fill() == Filled(Outcome.REFUSED, "closed")
    assert world.alarms("rewound") == 1


def test_a_redis_that_lost_a_record_without_a_header_closes_its_views_again(world: World) -> None:
    world.open()
    client, name = redis_of(world.region), world.region.layout.header_key(0)
    before = client.dump(name)
    world.change({"id": 9})
    log = world.data.log[TOPIC, 0]
    log[-1] = msgspec.structs.replace(log[-1], header=None)
    world.drain()
    client.restore(name, 0, before, replace=True)
    assert world.fill(payload=b"2").outcome is Outcome.APPLIED  # what a late replica would admit
    world.heartbeat()
    world.drain()
    assert world.read() is None
    assert world.fill() == Filled(Outcome.REFUSED, "closed")


# -- what cannot be, what is too much


def test_a_stamp_that_cannot_exist_closes_its_views_and_poisons_no_fence(world: World) -> None:
    world.open()
    assert world.fill("template:1").outcome is Outcome.APPLIED
    world.change({"id": 1}, stamp=1 << 60)
    world.drain()
    assert world.alarms("forged") == 1
    assert world.fill("contact:1") == Filled(Outcome.REFUSED, "closed")
    assert world.read("template:1") == b"1"
    pass_three_heartbeats(world)
    assert world.fill("contact:1").outcome is Outcome.APPLIED


def test_a_place_in_the_log_that_cannot_exist_is_not_believed(world: World) -> None:
    world.open()
    lsn, world.lsn = world.lsn, 1 << 62
    world.change({"id": 1})
    world.lsn = lsn
    world.drain()
    assert world.alarms("forged") == 1
    row = Row.parse(world.region.header(0)[row_field(TOPIC, 0)])
    assert (row.next_offset, int(row.position[8:24], 16) < 1 << 40) == (1, True)


def test_an_epoch_that_nobody_announced_is_not_begun(world: World) -> None:
    world.open()
    world.epoch = 9
    world.change({"id": 1})
    world.epoch = 1
    world.drain()
    assert world.alarms("forged") == 1
    assert world.region.header(0)["e"][:8] == "00000001"
    pass_three_heartbeats(world)
    assert world.fill("contact:1").outcome is Outcome.APPLIED


def test_records_of_a_new_epoch_wait_for_the_record_that_begins_it(world: World) -> None:
    """The control topic is read up to its end before a record is taken for forged."""
    world.open()
    for _ in range(60):  # more than are read ahead of the data
        world.heartbeat()
    world.publish(encode_control(EpochStarted(source="shop", history=HISTORY, epoch=2, reason="a test")))
    world.epoch, world.lsn = 2, 5
    world.change({"id": 1})
    world.drain()
    assert (world.alarms("forged"), world.alarms("epoch")) == (0, 1)
    assert Row.parse(world.region.header(0)[row_field(TOPIC, 0)]).position[:8] == "00000002"


def test_a_stamp_far_ahead_after_a_long_pause_is_reached_record_by_record(world: World) -> None:
    world.open()
    for step in range(1, 5):
        world.change({"id": step}, stamp=world.stamp + step * ((1 << 24) - 1))
    world.drain()
    assert world.alarm_count() == 0


def test_a_transaction_of_many_keys_raises_its_view_once(world: World) -> None:
    world.open()
    before = now(world)
    for i in range(10):
        assert world.fill(f"contact:{i}").outcome is Outcome.APPLIED
    worker = world.new_worker(mass_change_keys=4)
    stamp = world.change({"id": 0})
    for i in range(1, 10):
        world.change({"id": i}, stamp=stamp)
    world.drain(worker)
    assert world.alarms("mass_change") == 1
    assert {world.read(f"contact:{i}") for i in range(10)} == {None}
    assert {world.fill(f"contact:{i}", seen=before).reason for i in range(10)} <= {"stripe", "view"}
    assert world.fill("contact:9").outcome is Outcome.APPLIED
    assert world.registry.get_sample_value("staleproof_worker_invalidations_total") == 4


def test_a_mass_change_whose_raise_was_not_applied_is_raised_again(world: World) -> None:
    world.open()
    for i in range(10):
        assert world.fill(f"contact:{i}").outcome is Outcome.APPLIED
    worker = world.new_worker(mass_change_keys=4)
    world.drain(worker)
    client, name = redis_of(world.region), world.region.layout.header_key(0)
    before = client.dump(name)
    stamp = world.change({"id": 0})
    for i in range(1, 8):
        world.change({"id": i}, stamp=stamp)
    world.drain(worker)
    client.restore(name, 0, before, replace=True)  # the raise is lost, the entries of before are readable again
    for i in range(8, 10):
        world.change({"id": i}, stamp=stamp)
    world.drain(worker)
    assert {world.read(f"contact:{i}") for i in range(10)} == {None}


# -- losses


def test_a_lost_fence_hash_is_an_alarm(world: World) -> None:
    world.open()
    redis_of(world.region).delete(world.region.layout.fences_key(0))
    world.heartbeat()
    world.drain()
    assert world.alarms("guard_lost") == 1


def test_a_shard_that_is_gone_is_an_alarm_and_a_first_start_is_none(world: World) -> None:
    world.open()
    assert world.alarm_count() == 0
    redis_of(world.region).flushdb()
    world.heartbeat()
    world.drain()
    assert world.alarms("lost") == 1


def test_a_region_that_starts_cold_behind_the_record_of_its_epoch_still_learns_it(world: World) -> None:
    world.publish(encode_control(EpochStarted(source="shop", history=HISTORY, epoch=1, reason="first start")))
    world.heartbeat()
    world.drain()
    assert world.region.header(0)["e"][:8] == "00000001"
    world.change({"id": 1})
    world.drain()
    assert world.alarm_count() == 0
    pass_three_heartbeats(world)
    assert world.fill().outcome is Outcome.APPLIED


def test_a_control_topic_that_was_made_again_closes_the_region_and_it_opens_by_the_new_one(world: World) -> None:
    world.control.ids = world.data.ids = {CONTROL: "a" * 32}
    world.open()
    order(world, view="template")  # a closed view, counting from an offset that the new topic will not reach for long
    world.drain()
    world.control.log[CONTROL, 0] = []
    world.control.ids = world.data.ids = {CONTROL: "b" * 32}
    world.drain()
    assert world.alarms("gap") == 1
    for _ in range(3):
        world.heartbeat()
        world.drain()
    for key in ("contact:1", "template:1"):
        assert world.fill(key).outcome is Outcome.APPLIED


def test_a_scope_that_stays_closed_is_an_alarm(world: World) -> None:
    world.worker = world.new_worker(closed_alarm_seconds=0)
    world.drain()
    assert world.alarms("stuck") > 0
    world.open()
    stuck = world.alarms("stuck")
    world.heartbeat()
    world.drain()
    assert world.alarms("stuck") == stuck


def test_a_control_record_that_cannot_be_read_closes_the_region(world: World) -> None:
    world.open()
    assert world.fill().outcome is Outcome.APPLIED
    world.control.log[CONTROL, 0].append(Record(CONTROL, 0, len(world.control.log[CONTROL, 0]), 0, b"shop", b"?", None))
    world.drain()
    assert world.alarms("gap") == 1
    assert world.fill() == Filled(Outcome.REFUSED, "closed")
    pass_three_heartbeats(world)
    assert world.read() is None
    assert world.fill().outcome is Outcome.APPLIED
