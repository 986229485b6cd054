"""The worker against a real Redis and Valkey; the stream is in memory, so that every interleaving can be written down."""

from __future__ import annotations

import msgspec
import pytest

from cdc.control import EpochStarted, Raise, encode_control
from cdc.errors import GapError, TransientError
from cdc.events import Position
from consumers.invalidate import Limits, Worker
from consumers.stream import Record
from invalidator.entry import encode_tail
from invalidator.guard import Batch, Fill, KeyChange, Outcome
from invalidator.layout import Layout, Row, row_field
from invalidator.reader_commands import Filled
from invalidator.region import Region
from invalidator.views import Views, load_views
from tests.fix_redis import redis_of
from tests.fix_world import CONTROL, HISTORY, TEMPLATES, TOPIC, VIEWS, World


def test_a_cold_region_refuses_fills_until_the_third_heartbeat(world: World) -> None:
    world.drain()
    world.heartbeat()  # tells the epoch
    world.drain()
    for _ in range(2):
        world.heartbeat()
        world.drain()
        assert world.fill() == Filled(Outcome.REFUSED, "closed")
    world.heartbeat()
    world.drain()
    assert world.fill().outcome is Outcome.APPLIED
    assert world.read() == b"1"


def test_a_change_removes_the_entry_and_an_older_read_cannot_bring_it_back(world: World) -> None:
    world.open()
    old_read = f"p{world.stamp + 1:016x}{world.stamp + 1:016x}"
    assert world.fill(seen=old_read).outcome is Outcome.APPLIED
    world.change({"id": 1})
    world.drain()
    assert world.read() is None
    assert world.fill(seen=old_read) == Filled(Outcome.REFUSED, "stripe")
    assert world.fill(payload=b"2").outcome is Outcome.APPLIED


def test_a_read_that_ran_while_the_writer_was_still_invisible_is_refused(world: World) -> None:
    """DESIGN §2: the log has the commit, the snapshot does not, though its xmax is beyond the stamp."""
    world.open()
    stamp = world.change({"id": 1})
    world.drain()
    assert world.fill(seen=f"p{stamp:016x}{stamp + 5:016x}{stamp:016x}") == Filled(Outcome.REFUSED, "stripe")


def test_a_fill_that_saw_the_change_before_it_arrived_stays(world: World) -> None:
    world.open()
    world.change({"id": 1})
    world.fill(payload=b"new")
    world.drain()
    assert world.read() == b"new"


def test_a_moved_row_kills_both_keys(world: World) -> None:
    world.open()
    world.fill("contact:1")
    world.fill("contact:2")
    world.change({"id": 2}, {"id": 1})
    world.drain()
    assert world.read("contact:1") is None
    assert world.read("contact:2") is None


def test_a_refresh_writes_the_row_and_an_older_event_does_not_come_back(world: World) -> None:
    world.open()
    at = (TEMPLATES, 0)
    world.change({"id": 1, "body": "old"}, partition=at)
    world.change({"id": 1, "body": "new"}, partition=at)
    world.drain()
    assert world.read("template:1") == b'{"id":1,"body":"new"}'
    old = world.data.log[at][0]
    header = bytes(old.header or b"")
    last = world.sequence[at]
    again = header[:49] + f"{last + 1:016x}{last:016x}".encode()
    world.data.log[at].append(Record(*at, 2, 0, old.key, old.value, again))
    world.drain()
    assert world.read("template:1") == b'{"id":1,"body":"new"}'


def test_duplicates_change_nothing(world: World) -> None:
    world.open()
    world.change({"id": 1})
    world.drain()
    world.fill(payload=b"2")
    header = world.region.header(0)
    name = row_field(TOPIC, 0)
    row = Row.parse(header[name])
    back = msgspec.structs.replace(row, next_offset=0, sequence=0)
    redis_of(world.region).hset(world.region.layout.header_key(0), name, back.text)
    world.heartbeat()
    world.drain()
    assert world.read() == b"2"
    assert Row.parse(world.region.header(0)[name]).next_offset == 1


def test_truncate_makes_every_entry_of_the_view_unreadable(world: World) -> None:
    world.open()
    old_read = f"p{world.stamp + 1:016x}{world.stamp + 1:016x}"
    world.fill("contact:1")
    world.fill("template:1")
    world.change(None, op="t")
    world.drain()
    assert world.read("contact:1") is None
    assert world.read("template:1") == b"1"
    assert world.fill("contact:1", seen=old_read) == Filled(Outcome.REFUSED, "view")
    assert world.fill("contact:1").outcome is Outcome.APPLIED


def test_a_redis_that_restarted_empty_closes_and_opens_again(world: World) -> None:
    world.open()
    world.fill()
    world.change({"id": 1})
    redis_of(world.region).flushdb()
    world.drain()
    assert world.fill() == Filled(Outcome.REFUSED, "closed")
    world.open()
    assert world.fill().outcome is Outcome.APPLIED


def test_a_redis_rolled_back_while_nothing_happens_is_found_by_the_next_heartbeat(world: World) -> None:
    world.open()
    world.fill()
    client, layout = redis_of(world.region), world.region.layout
    names = [layout.header_key(0), layout.fences_key(0), layout.entry_key(0, "contact:1")]
    dumps = [client.dump(name) for name in names]
    world.change({"id": 1})
    world.drain()
    assert world.read() is None
    for name, dump in zip(names, dumps, strict=True):
        client.restore(name, 0, dump, replace=True)
    assert world.read() == b"1"  # what a restored dump serves until the worker looks
    world.heartbeat()
    world.drain()
    assert world.read() is None


def test_a_lost_fence_hash_refuses_and_comes_back_with_every_stamp(world: World) -> None:
    world.open()
    old_read = f"p{world.stamp + 1:016x}{world.stamp + 1:016x}"
    world.change({"id": 1})
    world.drain()
    redis_of(world.region).delete(world.region.layout.fences_key(0))
    assert world.fill() == Filled(Outcome.REFUSED, "lost")
    world.heartbeat()
    world.drain()
    assert world.fill(seen=old_read) == Filled(Outcome.REFUSED, "stripe")
    assert world.fill().outcome is Outcome.APPLIED


def test_a_hole_in_a_partition_closes_the_region_and_raises_an_alarm(world: World) -> None:
    world.open()
    world.change({"id": 1})
    world.drain()
    world.fill("contact:7")
    world.change({"id": 2}, lost=1)
    world.drain()
    assert world.alarms("gap") == 1
    assert world.fill("contact:7") == Filled(Outcome.REFUSED, "closed")
    for _ in range(3):
        world.heartbeat()
        world.drain()
    assert world.read("contact:7") is None


def test_records_that_kafka_no_longer_has_are_a_gap(world: World) -> None:
    world.open()
    world.fill("contact:7")
    world.change({"id": 7})
    world.data.first[TOPIC, 0] = 1
    world.drain(world.new_worker())
    assert world.alarms("gap") == 1
    assert world.read("contact:7") is None


def test_an_unreadable_body_kills_the_key_that_its_record_names_and_the_stream_goes_on(world: World) -> None:
    world.open()
    world.fill("contact:1")
    world.fill("contact:9")
    world.change({"id": 9}, body=b"\xff not json")
    world.change({"id": 2})
    world.drain()
    assert world.read("contact:9") is None
    assert world.read("contact:1") == b"1"
    assert world.alarms("undecodable") == 1
    assert world.registry.get_sample_value("staleproof_worker_records_quarantined_total") == 1
    assert Row.parse(world.region.header(0)[row_field(TOPIC, 0)]).next_offset == 2


def test_an_unreadable_body_under_a_key_that_names_none_of_ours_kills_its_views(world: World) -> None:
    world.open()
    world.fill("contact:1")
    world.fill("template:1")
    world.change({"id": 9}, body=b"\xff not json")
    log = world.data.log[TOPIC, 0]
    log[-1] = msgspec.structs.replace(log[-1], key=b'{"serial":9}')
    world.change({"id": 2})
    world.drain()
    assert world.read("contact:1") is None
    assert world.read("template:1") == b"1"
    assert world.registry.get_sample_value("staleproof_worker_records_quarantined_total") == 1
    assert Row.parse(world.region.header(0)[row_field(TOPIC, 0)]).next_offset == 2


def test_a_record_without_our_header_closes_its_views(world: World) -> None:
    world.open()
    world.fill("contact:1")
    world.change({"id": 9})
    log = world.data.log[TOPIC, 0]
    log[-1] = msgspec.structs.replace(log[-1], header=None)
    world.drain()
    assert world.fill("contact:1") == Filled(Outcome.REFUSED, "closed")
    assert world.alarms("closed") == 1
    for _ in range(3):
        world.heartbeat()
        world.drain()
    assert world.read("contact:1") is None
    assert world.fill("contact:1").outcome is Outcome.APPLIED


def test_a_new_epoch_closes_every_region_once(world: World) -> None:
    world.open()
    world.fill()
    world.epoch, world.lsn = 2, 5  # a promoted standby: the LSN goes down
    world.publish(encode_control(EpochStarted(source="shop", history=HISTORY, epoch=2, reason="slot was re-created")))
    world.change({"id": 3})
    world.drain()
    assert world.read() is None
    assert world.fill() == Filled(Outcome.REFUSED, "closed")
    for _ in range(3):
        world.heartbeat()
        world.drain()
    assert world.fill().outcome is Outcome.APPLIED
    world.change({"id": 1})
    world.drain()
    assert world.read() is None


def test_a_read_of_another_server_history_is_refused(world: World) -> None:
    world.open()
    view = VIEWS.views["contact"]
    tail = encode_tail(view="contact", key="contact:1", seen=f"p{9999:016x}{9999:016x}", payload=b"", as_of_ms=1)
    _, stripe = world.region.layout.place("contact:1")
    request = Fill(
        key="contact:1", stripe=stripe, view="contact", digest=view.digest, history="78:1", lead="1fvj", tail=tail,
        ttl_ms=0,
    )  # fmt: skip
    assert world.region.fill(0, request) == Filled(Outcome.REFUSED, "history")


def test_a_proof_beyond_what_can_exist_is_refused_as_forged(world: World) -> None:
    world.open()
    assert world.fill(seen=f"p{1 << 40:016x}{1 << 40:016x}") == Filled(Outcome.REFUSED, "forged")


def test_a_worker_that_starts_again_goes_on_where_the_region_stands(world: World) -> None:
    world.open()
    world.change({"id": 1})
    world.drain()
    world.fill(payload=b"2")
    second = world.new_worker()
    world.change({"id": 5})
    world.drain(second)
    assert world.read() == b"2"
    assert Row.parse(world.region.header(0)[row_field(TOPIC, 0)]).next_offset == 2


def test_a_worker_left_behind_by_another_steps_back(world: World) -> None:
    world.open()
    second = world.new_worker()
    for i in range(3):
        world.change({"id": i})
    world.drain(second)
    world.change({"id": 4})
    world.drain()
    assert Row.parse(world.region.header(0)[row_field(TOPIC, 0)]).next_offset == 4


def test_a_swallowed_reply_is_not_applied_twice_nor_lost(world: World) -> None:
    world.open()
    world.change({"id": 1})
    send = world.region.submit

    def swallow(shard: int, batch: object) -> object:
        send(shard, batch).applied()  # type: ignore[arg-type]
        world.region.submit = send  # type: ignore[method-assign]
        raise TransientError("the reply was lost")

    world.region.submit = swallow  # type: ignore[method-assign, assignment]
    with pytest.raises(TransientError):
        world.drain()
    world.fill(payload=b"2")
    world.drain()
    assert world.read() == b"2"


def test_a_changed_view_begins_closed(world: World) -> None:
    world.open()
    world.fill()
    changed = load_views(
        """
version: 1
views:
  contact: {key: "contact:{id}", mode: invalidate, tables: {public.contacts: {columns: [email]}}}
  template: {key: "template:{id}", mode: refresh, tables: {public.templates: {}}}
""",
        place="views.yaml",
    )
    world.fill("template:1")
    worker = Worker(
        source="shop", region=world.region, views=changed, data=world.data, control=world.control,
        metrics=world.metrics, limits=Limits(),
    )  # fmt: skip
    world.drain(worker)
    assert world.read("contact:1") is None
    assert world.read("template:1") == b"1"
    for _ in range(3):
        world.heartbeat()
        world.drain(worker)
    assert world.read("contact:1") is None


def test_no_alarm_without_a_fault(world: World) -> None:
    world.open()
    for i in range(50):
        world.change({"id": i % 7}, partition=(TOPIC, i % 2))
        if i % 10 == 0:
            world.heartbeat()
            world.drain()
    world.drain()
    samples = [s for metric in world.registry.collect() for s in metric.samples if s.name.endswith("_alarms_total")]
    assert sum(sample.value for sample in samples) == 0


def test_a_table_that_is_not_captured_closes_its_views_until_three_heartbeats_after_it_is(world: World) -> None:
    world.open()
    for key in ("template:1", "contact:1"):
        assert world.fill(key).outcome is Outcome.APPLIED
    for _ in range(4):
        world.heartbeat(topics=(TOPIC,))
        world.drain()
        assert world.fill("template:1") == Filled(Outcome.REFUSED, "closed")
    assert world.alarms("closed") == 1
    assert world.read("contact:1") == b"1"
    lost = f"p{world.stamp + 1:016x}{world.stamp + 1:016x}"
    world.heartbeat()
    world.drain()
    for _ in range(2):  # the second and the third that list it
        assert world.fill("template:1") == Filled(Outcome.REFUSED, "closed")
        world.heartbeat()
        world.drain()
    assert world.read("template:1") is None
    assert world.fill("template:1", seen=lost) == Filled(Outcome.REFUSED, "view")
    assert world.fill("template:1").outcome is Outcome.APPLIED


# Found by an adversarial review of the first version; each was stale for ever, or a false alarm.


def close_view(world: World, view: str = "contact") -> None:
    world.publish(encode_control(Raise(source="shop", position="", region=None, view=view, reason="a test")))
    world.drain()


def test_a_truncate_that_meets_a_closed_view_is_not_forgotten_when_it_opens(world: World) -> None:
    world.open()
    close_view(world)
    for _ in range(2):
        world.heartbeat()
        world.drain()
    world.heartbeat()  # committed before the truncate, heard after it
    before = f"p{world.stamp + 1:016x}{world.stamp + 1:016x}"
    world.change(None, op="t")
    control, world.control.log[CONTROL, 0] = world.control.log[CONTROL, 0], world.control.log[CONTROL, 0][:-1]
    world.drain()
    world.control.log[CONTROL, 0] = control
    world.drain()
    assert world.fill("contact:1", seen=before) == Filled(Outcome.REFUSED, "view")
    assert world.fill("contact:1").outcome is Outcome.APPLIED


def test_a_raise_logged_earlier_and_applied_later_still_kills(world: World) -> None:
    world.open()
    late = world.change(None, op="t", partition=(TOPIC, 1))
    held, world.data.log[TOPIC, 1] = world.data.log[TOPIC, 1], []
    world.change(None, op="t")
    world.drain()
    seen = f"p{late:016x}{world.stamp + 1:016x}{late:016x}"  # sees the second truncate, not yet the first
    assert world.fill("contact:1", seen=seen).outcome is Outcome.APPLIED
    world.data.log[TOPIC, 1] = held
    world.drain()
    assert world.read("contact:1") is None


def other_views(text: str) -> Views:
    return load_views("version: 1\nviews:\n" + text, place="views.yaml")


CONTACT = '  contact: {key: "contact:{id}", mode: invalidate, tables: {public.contacts: {}}}\n'
TEMPLATE = '  template: {key: "template:{id}", mode: refresh, tables: {public.templates: {}}}\n'
TEMPLATE_2 = (
    '  template: {key: "template:{id}", mode: invalidate, tables: {public.templates: {}, public.contacts: {}}}\n'
)


def worker_of(world: World, views: Views) -> Worker:
    return Worker(
        source="shop", region=world.region, views=views, data=world.data, control=world.control,
        metrics=world.metrics, limits=Limits(),
    )  # fmt: skip


def test_a_view_that_was_gone_for_a_while_comes_back_closed(world: World) -> None:
    world.open()
    assert world.fill("contact:1").outcome is Outcome.APPLIED
    without = worker_of(world, other_views(TEMPLATE_2))
    world.drain(without)
    world.change({"id": 1})
    world.drain(without)
    for _ in range(3):
        world.heartbeat()
        world.drain(without)
    assert world.read("contact:1") is None
    world.drain(world.new_worker())
    assert world.read("contact:1") is None


def test_a_row_moved_by_a_worker_with_other_views_is_not_taken_as_applied(world: World) -> None:
    world.open()
    old = worker_of(
        world, other_views(CONTACT.replace("{public.contacts: {}}", "{public.contacts: {columns: [email]}}") + TEMPLATE)
    )
    world.drain(old)
    world.drain(world.new_worker())
    newer = world.new_worker()
    world.drain(newer)
    for _ in range(3):
        world.heartbeat()
        world.drain(newer)
    assert world.fill("contact:1").outcome is Outcome.APPLIED
    world.change({"id": 1, "email": "a", "name": "new"}, {"id": 1, "email": "a", "name": "old"})
    world.drain(old)  # finds rows of other views: closes, or plans the change by its own
    world.drain(newer)
    assert world.read("contact:1") is None


def test_a_topic_that_was_made_again_is_a_gap_even_at_the_same_offset(world: World) -> None:
    world.data.ids = {TOPIC: "a" * 32}
    world.open()
    for i in range(5):
        world.change({"id": 10 + i})
    world.drain()
    assert world.fill("contact:1").outcome is Outcome.APPLIED
    world.data.ids = {TOPIC: "b" * 32}
    world.data.log[TOPIC, 0] = []
    world.sequence[TOPIC, 0] = 0
    world.change({"id": 1})
    for i in range(6):
        world.change({"id": 20 + i})
    world.drain()
    assert world.alarms("gap") >= 1
    assert world.read("contact:1") is None
    assert world.fill("contact:1") == Filled(Outcome.REFUSED, "closed")


def test_a_heartbeat_that_a_paused_capture_publishes_late_opens_nothing(world: World) -> None:
    world.open()
    world.change({"id": 5})
    world.drain()
    old_position, old_stamp = Position(world.epoch, world.lsn + 1, 0).text, world.stamp
    old_read = f"p{world.stamp + 1:016x}{world.stamp + 1:016x}"
    world.lsn += 10
    world.change({"id": 2}, lost=1)  # what was lost may have been contact 1
    world.drain()
    for _ in range(2):
        world.heartbeat()
        world.drain()
    log = world.control.log[CONTROL, 0]
    latest = msgspec.json.decode(log[-1].value or b"")
    late = latest | {"position": old_position, "stamp": old_stamp, "snapshot": f"{old_stamp}:{old_stamp}:"}
    world.publish(msgspec.json.encode(late))
    world.drain()
    assert world.fill("contact:1", seen=old_read) == Filled(Outcome.REFUSED, "closed")
    world.heartbeat()
    world.drain()
    assert world.fill("contact:1", seen=old_read) == Filled(Outcome.REFUSED, "region")


def test_a_gap_that_kafka_reports_closes_the_region(world: World) -> None:
    world.open()
    assert world.fill("contact:1").outcome is Outcome.APPLIED
    world.data.fault = GapError("a partition was cut short")
    world.drain()
    assert world.alarms("gap") == 1
    assert world.fill("contact:1") == Filled(Outcome.REFUSED, "closed")


def test_a_passing_fault_on_a_new_partition_is_no_gap(world: World) -> None:
    world.open()
    world.data.log[TOPIC, 2], world.sequence[TOPIC, 2] = [], 0
    world.change({"id": 1}, partition=(TOPIC, 2))
    world.heartbeat()
    send = world.region.submit

    def fail_once(shard: int, batch: object) -> object:
        world.region.submit = send  # type: ignore[method-assign]
        raise TransientError("redis is away")

    world.region.submit = fail_once  # type: ignore[method-assign, assignment]
    with pytest.raises(TransientError):
        world.drain()
    world.drain()
    assert world.alarms("gap") == 0
    assert Row.parse(world.region.header(0)[row_field(TOPIC, 2)]).next_offset == 1


def test_a_record_after_one_without_a_header_is_no_gap(world: World) -> None:
    world.open()
    world.change({"id": 8})
    world.change({"id": 9})
    log = world.data.log[TOPIC, 0]
    log[-1] = msgspec.structs.replace(log[-1], header=None)
    world.change({"id": 10})
    world.drain()
    assert world.alarms("gap") == 0


def test_more_keys_than_one_redis_call_takes_are_applied(world: World) -> None:
    world.open()
    layout, stamp = world.region.layout, f"{1:016x}"
    changes = tuple(
        KeyChange(f"contact:{i}", layout.place(f"contact:{i}")[1], "0" * 32, (stamp,)) for i in range(9_000)
    )
    wide = Region("wide", world.region._nodes, Layout(prefix=layout.prefix))
    changes = tuple(msgspec.structs.replace(c, stripe=wide.layout.place(c.key)[1]) for c in changes)
    assert wide.apply(0, Batch(rows=(), changes=changes)).outcome is Outcome.APPLIED


def test_a_record_of_another_table_kills_the_views_of_its_topic(world: World) -> None:
    world.open()
    assert world.fill("contact:1").outcome is Outcome.APPLIED
    source = {"name": "shop", "schema": "public", "table": "unknown", "ts_ms": 1}
    body = msgspec.json.encode({"op": "u", "before": None, "after": {"id": 1}, "source": source, "ts_ms": 1})
    world.change({"id": 1}, body=body)
    world.drain()
    assert world.read("contact:1") is None
    assert world.registry.get_sample_value("staleproof_worker_records_quarantined_total") == 1
