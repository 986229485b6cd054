"""What an adversarial review of the guard and the worker found: each was wrong once, and must not come back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import msgspec
import pytest

from cdc.control import EpochStarted, Raise, decode_control, encode_control
from cdc.errors import BadRecord, GapError, TransientError
from cdc.events import Position
from consumers.invalidate import Limits, Worker
from consumers.stream import Partition, Place, Record
from invalidator.guard import Outcome
from invalidator.layout import Layout, Row, row_field
from invalidator.reader_commands import Filled
from invalidator.region import Region
from tests.fix_redis import redis_of
from tests.fix_world import HISTORY, TEMPLATES, TOPIC, VIEWS, MemoryStream, World
from tests.integration.test_worker_and_region import CONTACT, other_views, worker_of


def seen_now(world: World) -> str:
    """The proof of a read that saw everything up to now, and nothing of what comes."""
    return f"p{world.stamp + 1:016x}{world.stamp + 1:016x}"


def dump(world: World, *keys: str) -> dict[str, bytes]:
    """What a backup of the region holds."""
    layout, client = world.region.layout, redis_of(world.region)
    names = [layout.header_key(0), layout.fences_key(0), *(layout.entry_key(0, key) for key in keys)]
    return {name: client.dump(name) for name in names}


def restore(world: World, saved: dict[str, bytes]) -> None:
    for name, value in saved.items():
        redis_of(world.region).restore(name, 0, value, replace=True)


# --- R1: that a table is not captured is known to the worker's memory only --------------------------------------------


def test_a_worker_that_starts_again_does_not_open_a_view_at_the_first_heartbeat_that_lists_its_table(
    world: World,
) -> None:
    world.open()
    for _ in range(4):
        world.heartbeat(topics=(TOPIC,))
        world.drain()
    assert world.fill("template:1") == Filled(Outcome.REFUSED, "closed")
    second = world.new_worker()
    world.heartbeat()  # committed before what is lost, published after the table was added
    before = seen_now(world)
    world.stamp += 1  # a change of template 1 that nobody captured
    world.drain(second)
    assert world.fill("template:1", seen=before) == Filled(Outcome.REFUSED, "closed")


def test_a_view_whose_table_is_not_captured_closes_again_after_redis_forgot_that_it_was(world: World) -> None:
    world.open()
    assert world.fill("template:1").outcome is Outcome.APPLIED
    saved = dump(world, "template:1")
    world.heartbeat(topics=(TOPIC,))
    world.drain()
    assert world.read("template:1") is None
    restore(world, saved)
    for _ in range(5):
        world.heartbeat(topics=(TOPIC,))
        world.drain()
    assert world.read("template:1") is None


def test_a_table_that_was_not_captured_for_a_moment_is_not_forgotten_with_the_footing(world: World) -> None:
    world.open()
    assert world.fill("template:1").outcome is Outcome.APPLIED
    world.heartbeat(topics=(TOPIC,))
    world.stamp += 1  # a change of template 1 that nobody captured
    world.heartbeat()
    world.data.fault = TransientError("the broker is away")  # after both were heard, before they passed
    with pytest.raises(TransientError):
        world.drain()
    for _ in range(5):
        world.heartbeat()
        world.drain()
    assert world.read("template:1") is None


# --- R2: what is left out because a transaction is past the limit ------------------------------------------------------


def mass_worker(world: World, region: Region | None = None) -> Worker:
    return Worker(
        source="shop", region=region or world.region, views=VIEWS, data=world.data, control=world.control,
        metrics=world.metrics, limits=Limits(topic_check_seconds=0.0, mass_change_keys=3),
    )  # fmt: skip


def test_a_transaction_id_given_out_again_in_a_new_epoch_is_another_transaction(world: World) -> None:
    """A standby that was promoted before it had replayed the mass change gives its xid to somebody else."""
    world.worker = mass_worker(world)
    world.open()
    mass = world.stamp + 20
    for i in range(8):
        world.change({"id": 10 + i}, stamp=mass)
    world.drain()
    world.epoch, world.lsn = 2, 5
    world.publish(encode_control(EpochStarted(source="shop", history=HISTORY, epoch=2, reason="promoted")))
    world.drain()
    for _ in range(4):
        world.heartbeat()
        world.drain()
    assert world.stamp < mass
    before = seen_now(world)
    assert world.fill("contact:1", seen=before).outcome is Outcome.APPLIED
    world.stamp = mass - 1
    world.change({"id": 1})
    world.drain()
    assert world.read("contact:1") is None


class Interleaved(MemoryStream):
    """Reads the partitions in a given order, so many records of each."""

    def __init__(self, log: dict[Partition, list[Record]]) -> None:
        super().__init__(log)
        self.order: list[tuple[Partition, int]] = []

    def fetch(self, records_max: int, timeout_seconds: float) -> Sequence[Record]:
        if not self.order:
            return super().fetch(records_max, timeout_seconds)
        partition, count = self.order.pop(0)
        at = self.at[partition]
        self.at[partition] = at + count
        return self.log[partition][at : at + count]


def test_a_shard_that_is_ahead_of_the_others_gets_the_raise_that_stands_for_what_is_left_out(region: Region) -> None:
    two = Region("two", region._nodes, Layout(prefix=region.layout.prefix + "two", shards=2, stripes=256))
    world = World(two)
    world.data = Interleaved(world.data.log)
    world.worker = mass_worker(world)
    world.open()
    for _ in range(4):
        world.heartbeat()
        world.drain()
    victim = next(i for i in range(100, 200) if two.layout.place(f"contact:{i}")[0] == 0)
    assert world.fill(f"contact:{victim}").outcome is Outcome.APPLIED
    mass = world.stamp + 1
    for i in range(2):
        world.change({"id": i}, stamp=mass)
    for i in range(2):
        world.change({"id": 10 + i}, partition=(TOPIC, 1), stamp=mass)
    world.change({"id": victim}, stamp=mass)
    world.stamp = mass
    # The second partition's records come first; shard 0 takes them, shard 1 does not answer.
    world.data.order = [((TOPIC, 1), 2)]
    submit = two.submit

    def fail(shard: int, batch: object) -> object:
        if shard == 1:
            two.submit = submit  # type: ignore[method-assign]
            raise TransientError("shard 1 is away")
        return submit(shard, batch)  # type: ignore[arg-type]

    two.submit = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(TransientError):
        world.worker.turn()
    # From the rows: two records of the first partition, then those that shard 0 has, then the rest.
    world.data.order = [((TOPIC, 0), 2), ((TOPIC, 1), 2), ((TOPIC, 0), 1)]
    world.drain()
    assert Row.parse(two.header(0)[row_field(TOPIC, 0)]).next_offset == 3
    assert world.read(f"contact:{victim}") is None


def test_a_body_that_cannot_be_read_is_quarantined_also_in_a_mass_change(world: World) -> None:
    world.worker = mass_worker(world)
    world.open()
    mass = world.stamp + 1
    for i in range(5):
        world.change({"id": i}, stamp=mass)
    world.change({"id": 9}, stamp=mass, body=b"\xff not json")
    world.drain()
    assert world.registry.get_sample_value("staleproof_worker_records_quarantined_total") == 1


# --- R3: partitions that were lost and came back within one fetch ------------------------------------------------------


class Regained(MemoryStream):
    """As RecordStream: what is gained stands at the end until it is assigned, and `owned` tells no difference."""

    regain = False
    regained = 0

    def moves(self) -> int:
        return self.regained

    def fetch(self, records_max: int, timeout_seconds: float) -> Sequence[Record]:
        if self.regain:
            self.regain = False  # on_lost, then on_assign, both inside one poll
            self.regained += 2
            self.at = {partition: len(self.log[partition]) for partition in self.at}
            return []
        return super().fetch(records_max, timeout_seconds)


def test_partitions_lost_and_regained_within_one_fetch_are_read_from_their_rows(world: World) -> None:
    world.data = Regained(world.data.log)
    world.worker = world.new_worker()
    world.open()  # a cold start: the sequence of its rows is not known
    assert world.fill("contact:1").outcome is Outcome.APPLIED
    world.change({"id": 1})
    world.data.regain = True
    world.drain()
    world.change({"id": 2})
    world.heartbeat()
    world.drain()
    assert world.read("contact:1") is None


# --- R4, R5: what never comes to an end --------------------------------------------------------------------------------


class Truncated(MemoryStream):
    """As a broker elected without the last record: the offset is another record's, the leader epoch tells."""

    cut_at: Partition | None = None

    def assign(self, places: dict[Partition, Place]) -> None:
        super().assign(places)
        place = places.get(self.cut_at) if self.cut_at else None
        if place is not None and place.leader_epoch == 0:
            self.fault = GapError("the partition was cut short: leader epoch 0 ended before")


def test_a_partition_that_was_cut_short_and_grew_again_closes_the_region_once(world: World) -> None:
    world.data = Truncated(world.data.log)
    world.worker = world.new_worker()
    world.open()
    world.change({"id": 1})
    world.drain()
    world.data.cut_at = (TOPIC, 0)
    world.data.fault = GapError("the partition was cut short: leader epoch 0 ended before")
    for _ in range(20):
        world.worker.turn()
    assert world.alarms("gap") == 1
    for _ in range(4):
        world.heartbeat()
        for _ in range(5):
            world.worker.turn()
    assert world.fill("contact:1").outcome is Outcome.APPLIED


def test_a_heartbeat_with_a_barrier_that_never_comes_does_not_stand_before_those_that_pass(world: World) -> None:
    """Capture publishes the old end of a topic that was made again until it has looked; all of them after it are good."""
    world.data.ids = {TOPIC: "a" * 32}
    world.open()
    for i in range(5):
        world.change({"id": 10 + i})
    world.drain()
    old = world.data.log[TOPIC, 0]
    world.data.ids = {TOPIC: "b" * 32}
    world.data.log[TOPIC, 0], world.sequence[TOPIC, 0] = [], 0
    world.drain()  # the gap is found and closed
    new, world.data.log[TOPIC, 0] = world.data.log[TOPIC, 0], old
    world.heartbeat()
    world.data.log[TOPIC, 0] = new
    for _ in range(40):
        world.heartbeat()
        world.drain()
    assert world.fill("contact:1").outcome is Outcome.APPLIED


# --- R6: an order to fence one key -------------------------------------------------------------------------------------


def test_a_read_from_before_an_order_cannot_bring_the_fenced_key_back(world: World) -> None:
    world.open()
    before = seen_now(world)  # begins after the newest heartbeat, before the change
    world.stamp += 1  # a change of contact 1 that nobody captured; the audit sees it and orders:
    order = Raise(
        source="shop", position="", region=None, view="contact", key="contact:1", reason="audit", stamp=world.stamp + 1
    )
    world.stamp += 1
    world.publish(encode_control(order))
    world.drain()
    for _ in range(4):
        world.fill("contact:1", seen=before, payload=b"old")
        world.heartbeat()
        world.drain()
    assert world.read("contact:1") is None


def test_an_order_for_a_key_without_a_view_is_not_ignored(world: World) -> None:
    world.open()
    assert world.fill("contact:1").outcome is Outcome.APPLIED
    order = Raise(source="shop", position="", region=None, view=None, key="contact:1", reason="audit")
    world.publish(encode_control(order))
    world.drain()
    assert world.read("contact:1") is None


# --- R7 and after: alarms, health, forged records ----------------------------------------------------------------------


def test_a_worker_whose_heartbeats_are_refused_by_the_region_does_not_look_as_if_they_passed(world: World) -> None:
    world.open()
    world.data.mine = frozenset({(TOPIC, 0), (TEMPLATES, 0)})  # nobody owns the other partition
    world.change({"id": 1}, partition=(TOPIC, 1))
    world.drain()
    watermark, passed = world.region.header(0)["w"], world.worker.passed_at
    for _ in range(3):
        world.heartbeat()
        world.drain()
    assert world.region.header(0)["w"] == watermark
    assert world.worker.passed_at == passed or world.worker.doubt


def test_a_new_view_of_an_old_table_closes_that_view_and_not_the_region(world: World) -> None:
    world.worker = worker_of(world, other_views(CONTACT))
    world.open()
    assert world.fill("contact:1").outcome is Outcome.APPLIED
    assert row_field(TEMPLATES, 0) not in world.region.header(0)
    world.change({"id": 1}, partition=(TEMPLATES, 0))
    world.change({"id": 2}, partition=(TEMPLATES, 0))
    world.data.first[TEMPLATES, 0] = 1  # its oldest record has expired
    world.drain(world.new_worker())
    assert world.alarms("gap") == 0
    assert world.read("contact:1") == b"1"


def test_a_control_record_nested_too_deep_is_one_that_cannot_be_read() -> None:
    with pytest.raises(BadRecord):
        decode_control(b'{"kind":"raise","x":' + b"[" * 200_000)


@pytest.mark.parametrize("epoch", [-1, 1 << 32])
def test_an_epoch_that_does_not_fit_is_one_that_cannot_be_read(epoch: int) -> None:
    value = encode_control(EpochStarted(source="shop", history=HISTORY, epoch=epoch, reason="a test"))
    with pytest.raises(BadRecord):
        decode_control(value)


def test_a_raise_at_the_last_place_of_a_transaction_leaves_a_scope_that_can_be_read(world: World) -> None:
    world.open()
    world.change(None, op="t")
    log = world.data.log[TOPIC, 0]
    header = bytes(log[-1].header or b"")
    log[-1] = msgspec.structs.replace(log[-1], header=header[:25] + b"f" * 8 + header[33:])
    world.drain()
    world.change(None, op="t", partition=(TOPIC, 1))
    log = world.data.log[TOPIC, 1]
    early = Position(world.epoch, 50, 0).text.encode()
    header = bytes(log[-1].header or b"")
    log[-1] = msgspec.structs.replace(log[-1], header=b"1" + early + header[33:])
    world.drain()
    assert world.registry.get_sample_value("staleproof_worker_records_quarantined_total") == 1
    for _ in range(3):
        world.heartbeat()
        world.drain()
    assert world.fill("contact:1").outcome is Outcome.APPLIED


def test_a_hole_is_seen_by_the_shard_that_knows_the_sequence_though_another_started_cold(region: Region) -> None:
    two = Region("two", region._nodes, Layout(prefix=region.layout.prefix + "two", shards=2, stripes=256))
    world = World(two)
    world.open()
    world.change({"id": 1})
    world.drain()
    world.heartbeat()
    world.drain()
    redis_of(two).delete(two.layout.header_key(0), two.layout.fences_key(0))
    world.open()
    victim = next(i for i in range(100, 200) if two.layout.place(f"contact:{i}")[0] == 1)
    assert world.fill(f"contact:{victim}").outcome is Outcome.APPLIED
    world.change({"id": 2}, lost=1)  # what was lost may have been the victim's
    world.drain()
    assert world.read(f"contact:{victim}") is None


def test_a_connection_that_redis_closed_because_nothing_was_sent_is_no_alarm(world: World) -> None:
    world.open()
    world.change({"id": 1})
    world.drain()
    redis_of(world.region).client_kill_filter(
        _type="normal", skipme=True
    )  # as `timeout` in redis.conf does to idle ones
    world.change({"id": 2})
    with suppress(TransientError):
        world.drain()
    assert world.alarms("redis") == 0


class Together(MemoryStream):
    """A fetch brings records of every partition, as Kafka's does; the last partition's first."""

    def fetch(self, records_max: int, timeout_seconds: float) -> Sequence[Record]:
        records = [
            record
            for partition in sorted(self.at, reverse=True)
            for record in self.log[partition][self.at[partition] :]
        ]
        self.at = {partition: len(self.log[partition]) for partition in self.at}
        return records


def test_a_shard_that_jumped_is_not_believed_to_stand_where_the_others_do(region: Region) -> None:
    """One shard of several started cold at the end of one partition: what the others still need moves it nowhere."""
    two = Region("two", region._nodes, Layout(prefix=region.layout.prefix + "two", shards=2, stripes=256))
    world = World(two)
    world.data = Together(world.data.log)
    world.worker = world.new_worker()
    world.open()
    for identity in range(4):
        world.change({"id": identity}, partition=(TOPIC, 0))
    redis_of(two).delete(two.layout.header_key(0), two.layout.fences_key(0))
    world.worker = world.new_worker(script_keys=2)
    world.worker._find_rows()  # shard 0 is gone and starts at the ends, shard 1 stands before the four
    world.change({"id": 5}, partition=(TOPIC, 1))  # in one script with the first of the four, which shard 0 has
    world.drain()
    assert world.alarms("displaced") == 0
