import json
import threading

import msgspec
import pytest

from cdc.connectors.base import Progress, SourceMessage
from cdc.connectors.postgres import HEARTBEAT_PREFIX, Fingerprint, Identity, Slot
from cdc.control import EpochStarted, Heartbeat, Raise, decode_control, encode_control
from cdc.envelope import decode_header
from cdc.errors import FatalError, TransientError
from cdc.events import ChangeEvent, Op, Position
from consumers import capture
from consumers.capture import Capture, SlotMemory, break_in_history, decode_memory, epoch_of
from consumers.kafka import Batch
from consumers.service import Pulse
from consumers.settings import Settings
from consumers.stream import Extent

MEMORY = SlotMemory(epoch=5, system_identifier="7", timeline=1, slot="s", slot_lsn=100, acked_lsn=500)
HERE = Identity("7", 1, 900, "app")


def slot(confirmed):
    return Slot(confirmed_lsn=confirmed, active_pid=None, lost=None)


@pytest.mark.parametrize("confirmed", [100, 499, 500])
def test_a_slot_at_or_behind_what_was_acknowledged_continues_the_epoch(confirmed):
    assert break_in_history(MEMORY, HERE, slot(confirmed), "s") is None


@pytest.mark.parametrize(
    "memory, identity, found, name, reason",
    [
        (None, HERE, None, "s", "first start"),
        (None, HERE, slot(500), "s", "nothing is remembered"),
        (MEMORY, Identity("8", 1, 900, "app"), slot(500), "s", "7:1 became 8:1"),
        (MEMORY, Identity("7", 2, 900, "app"), slot(500), "s", "7:1 became 7:2"),
        (MEMORY, HERE, None, "s", "was lost"),
        (MEMORY, HERE, slot(500), "other", "replaced by other"),
        (MEMORY, HERE, slot(501), "s", "past the acknowledged 0/1F4"),
        (MEMORY, Identity("7", 1, 499, "app"), slot(500), "s", "before the acknowledged"),
    ],
)
def test_anything_else_breaks_the_history(memory, identity, found, name, reason):
    assert reason in break_in_history(memory, identity, found, name)


def test_the_memory_survives_the_wire():
    assert decode_memory(msgspec.json.encode(MEMORY)) == MEMORY


@pytest.mark.parametrize("value", [b"", b"{}", b"\xff", msgspec.json.encode(msgspec.structs.replace(MEMORY, v=2))])
def test_a_memory_that_cannot_be_read_stops_the_process(value):
    with pytest.raises(FatalError, match="delete the record"):
        decode_memory(value)


@pytest.mark.parametrize(
    "record, epoch",
    [
        (EpochStarted(source="shop", history="7:1", epoch=5, reason="first start"), 5),
        (Raise(source="shop", position="", region=None, view=None, reason="an operator"), None),
        (Raise(source="shop", position="f" * 32, region=None, view=None, reason="an operator"), None),
    ],
)
def test_an_order_of_a_person_says_nothing_of_the_epoch(record, epoch):
    assert epoch_of(encode_control(record)) == epoch
    assert epoch_of(b"garbage") is None


# -- the open stream, with a source and a Kafka that do what the test says


class Stream:
    def __init__(self):
        self.items, self.acked, self.alive = [], [], 0

    def read(self, timeout_seconds):
        items, self.items = self.items, []
        return items

    def keep_alive(self):
        self.alive += 1

    def ack(self, mark):
        self.acked.append(mark)


class Message:
    def __init__(self, topic, partition, offset):
        self.topic, self.partition, self.offset = (lambda: topic), (lambda: partition), (lambda: offset)


class Kafka:
    """Accepts records; acknowledges only those that the test names."""

    def __init__(self):
        self.ends, self.failures, self.waiting, self.sent, self.room = {}, [], [], [], 1000

    def __len__(self):
        return len(self.waiting)

    def track(self, topic, ends):
        self.ends[topic] = list(ends)

    def batch(self):
        return Batch(self.ends, self.failures)

    def send(self, batch, topic, partition, *, key, value, header):
        if len(self.waiting) >= self.room:
            return False
        batch.pending += 1
        self.waiting.append((batch, topic, partition))
        self.sent.append((topic, partition, key, value, header))
        return True

    def poll(self, timeout_seconds):
        if timeout_seconds:  # somebody waits for room
            self.ack("")

    def flush(self, timeout_seconds):
        self.ack("")

    def ack(self, ending):
        """Acknowledge what waits for topics of this ending."""
        for batch, topic, partition in [w for w in self.waiting if w[1].endswith(ending)]:
            self.waiting.remove((batch, topic, partition))
            batch.delivered(None, Message(topic, partition, self.ends[topic][partition]))

    def to(self, ending):
        return [value for topic, _, _, value, _ in self.sent if topic.endswith(ending)]


class Beats:
    instance = "e" * 16

    def __init__(self):
        self.asked, self.failures = [], []

    def commit(self, number):
        self.asked.append(number)

    def failed(self):
        return self.failures.pop() if self.failures else None

    def stop(self):
        pass


class Watch:
    def __init__(self):
        self.seen = None

    def newest(self):
        seen, self.seen = self.seen, None
        return seen

    def stop(self):
        pass


class Topics:
    def extents(self, topics):
        return {topic: [Extent(0, 0), Extent(0, 0)] for topic in topics}

    def ensure(self, topics):
        pass


class World:
    def __init__(self, monkeypatch, memory=MEMORY):
        monkeypatch.setattr(capture, "read_sequences", lambda _, extents: {t: [0] * len(e) for t, e in extents.items()})
        monkeypatch.setattr(capture.time, "monotonic", lambda: self.now)
        source = {"name": "shop", "dsn": "x", "heartbeat_interval_ms": 250, "status_interval_ms": 1000}
        settings = Settings.model_validate(
            {"source": source, "kafka": {"bootstrap_servers": "x"}, "regions": {"eu": {"url": "redis://x"}}}
        )
        self.now, self.stop = 100.0, threading.Event()
        self.stream, self.kafka, self.beats, self.watch = Stream(), Kafka(), Beats(), Watch()
        for topic in ("control", "state"):
            self.kafka.track(f"shop.staleproof.{topic}", [0])
        self.capture = Capture(
            settings=settings,
            stop=self.stop,
            stream=self.stream,
            producer=self.kafka,
            admin=Topics(),
            heartbeats=self.beats,
            watch=self.watch,
            identity=HERE,
            memory=memory,
        )
        self.capture.add_tables(["public.a", "public.b"])

    def step(self, *items, seconds=0.0):
        self.now += seconds
        self.stream.items = list(items)
        self.capture.step()

    def remembered(self):
        return [json.loads(value)["acked_lsn"] for value in self.kafka.to("state")]

    def heartbeats(self):
        return [decode_control(value) for value in self.kafka.to("control")]


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


def change(table, lsn, key=1, op=Op.CREATE, order=0):
    row = {"id": key}
    return ChangeEvent(
        source="shop",
        table=f"public.{table}",
        op=op,
        key=None if op is Op.TRUNCATE else row,
        before=row if op is Op.DELETE else None,
        after=row if op is Op.CREATE else None,
        position=Position(5, lsn, order),
        stamp=9,
        committed_at_ms=1,
    )


def beat(number, lsn, instance="e" * 16):
    content = {"source": "shop", "instance": instance, "number": number, "stamp": 9, "snapshot": "9:9:", "time_ms": 1}
    return SourceMessage(HEARTBEAT_PREFIX, json.dumps(content).encode(), Position(5, lsn, 0), 9)


def test_a_transaction_is_acknowledged_only_with_all_before_it(world):
    world.step(change("a", 600), Progress(610, 1), change("b", 700), Progress(710, 1))
    world.kafka.ack("public.b")
    world.step(seconds=2)
    assert world.remembered() == []
    world.kafka.ack("public.a")
    world.step(seconds=2)
    assert world.remembered() == [710]


def test_a_transaction_is_not_acknowledged_before_its_last_record(world):
    world.step(change("a", 600), change("b", 600, order=1), Progress(610, 1))
    world.kafka.ack("public.b")
    world.step(seconds=2)
    world.kafka.ack("public.a")
    assert world.remembered() == []


def test_the_slot_hears_only_what_the_state_topic_knows(world):
    world.step(change("a", 600), Progress(610, 1))
    world.kafka.ack("public.a")
    world.step(seconds=2)
    world.step(seconds=2)
    assert (world.remembered(), world.stream.acked) == ([610], [])
    world.kafka.ack("state")
    world.step()
    assert world.stream.acked == [610]


def test_progress_without_records_waits_for_those_before_it(world):
    world.step(change("a", 600), Progress(610, 1), Progress(800))
    world.step(seconds=2)
    assert world.remembered() == []
    world.kafka.ack("public.a")
    world.step(seconds=2)
    assert world.remembered() == [800]


def test_progress_with_nothing_under_way_counts_at_once(world):
    world.step(Progress(800), seconds=2)
    assert world.remembered() == [800]


def test_an_older_mark_never_moves_the_slot_back(world):
    world.step(Progress(400), seconds=2)
    assert world.remembered() == []


def test_a_heartbeat_waits_for_every_record_before_it_and_carries_their_end(world):
    world.step()
    world.step(change("a", 600), change("b", 600, key=2, order=1), Progress(610, 1), beat(1, 700), Progress(710, 1))
    world.kafka.ack("public.b")
    world.step()
    assert world.heartbeats() == []
    world.kafka.ack("public.a")
    world.step()
    (heartbeat,) = world.heartbeats()
    assert heartbeat.position == Position(5, 700, 0).text
    assert {topic: sum(ends) for topic, ends in heartbeat.barriers.items()} == {"shop.public.a": 1, "shop.public.b": 1}


def test_a_heartbeat_does_not_wait_for_records_after_it(world):
    world.step()
    world.step(beat(1, 600), Progress(610, 1), change("a", 700), Progress(710, 1))
    assert len(world.heartbeats()) == 1
    assert sum(world.heartbeats()[0].barriers["shop.public.a"]) == 0


def test_the_next_heartbeat_is_committed_only_after_the_one_before_is_in_the_control_topic(world):
    world.step()
    world.step(seconds=10)
    assert world.beats.asked == [1]
    world.step(beat(1, 600), Progress(610, 1), seconds=10)
    assert len(world.heartbeats()) == 1
    world.step(seconds=10)
    assert world.beats.asked == [1]
    world.kafka.ack("control")
    world.step(seconds=10)
    assert world.beats.asked == [1, 2]


def test_heartbeats_of_other_processes_and_unknown_notes_are_left_out(world):
    world.step()
    other = SourceMessage("app", b"1", Position(5, 620, 0), 9)
    broken = SourceMessage(HEARTBEAT_PREFIX, b"{", Position(5, 630, 0), 9)
    world.step(beat(1, 600, instance="other"), Progress(610, 1), other, Progress(625, 1), broken, Progress(635, 1))
    assert world.heartbeats() == []
    world.step(seconds=2)
    assert world.remembered() == [635]


def test_a_heartbeat_given_up_is_never_published_even_if_it_was_committed(world):
    world.step()
    world.beats.failures.append((1, TransientError("lost reply")))
    world.step()
    world.step(seconds=5)
    assert world.beats.asked == [1, 2]
    world.step(beat(1, 600), Progress(610, 1), beat(2, 700), Progress(710, 1))
    assert [heartbeat.number for heartbeat in world.heartbeats()] == [2]


def test_a_failure_that_comes_after_the_heartbeat_was_seen_changes_nothing(world):
    world.step()
    world.step(beat(1, 600), Progress(610, 1))
    world.beats.failures.append((1, TransientError("lost reply")))
    world.step(seconds=5)
    world.step(seconds=5)
    assert world.beats.asked == [1]
    world.kafka.ack("control")
    world.step(seconds=5)
    assert world.beats.asked == [1, 2]


def test_a_delete_is_followed_by_a_null_record_with_a_sequence_of_its_own(world):
    world.step(change("a", 600, op=Op.DELETE), Progress(610, 1))
    (event, null) = [record for record in world.kafka.sent if record[0] == "shop.public.a"]
    assert (event[:3], null[3]) == (null[:3], None)
    headers = decode_header(event[4]), decode_header(null[4])
    assert headers[0].position == headers[1].position
    assert [(h.sequence, h.previous) for h in headers] == [(1, 0), (2, 1)]


def test_a_truncate_goes_to_partition_0_without_a_key(world):
    world.step(change("a", 600, op=Op.TRUNCATE), Progress(610, 1))
    (record,) = [record for record in world.kafka.sent if record[0] == "shop.public.a"]
    assert record[1:3] == (0, None)


def test_the_source_hears_from_us_while_kafka_has_no_room(world):
    world.kafka.room = 1
    world.step(change("a", 600), change("a", 600, key=2, order=1), Progress(610, 1))
    assert world.stream.alive > 0
    assert len(world.kafka.to("public.a")) == 2


def test_a_stop_does_not_wait_for_a_kafka_that_has_no_room(world):
    world.kafka.room = 0
    world.stop.set()
    with pytest.raises(TransientError, match="sent again"):
        world.step(change("a", 600), Progress(610, 1))


def test_an_orderly_stop_tells_the_slot_what_kafka_has(world):
    world.step(change("a", 600), Progress(610, 1), change("b", 700))
    world.stop.set()
    world.capture.run(Pulse(stalled_after_seconds=1))
    assert world.stream.acked == [610]


# -- what DDL changed

A, B = Fingerprint("a", "v", "f"), Fingerprint("b", "v", "f")
TABLES = {"public.a": A, "public.b": B}
CHANGED = TABLES | {"public.b": Fingerprint("b'", "v", "f")}


@pytest.fixture
def watched(monkeypatch):
    """A capture that remembers the definitions of its two tables."""
    return World(monkeypatch, msgspec.structs.replace(MEMORY, tables=TABLES))


def raised(world):
    records = [decode_control(value) for value in world.kafka.to("control")]
    return [record.table for record in records if isinstance(record, Raise)]


def look(world, seen, *items):
    world.watch.seen = seen
    world.step(*items, seconds=2)


def tables_remembered(world):
    return [decode_memory(value).tables for value in world.kafka.to("state")]


def test_a_changed_definition_is_raised_once_and_for_its_table_only(watched):
    look(watched, CHANGED)
    watched.kafka.ack("control")
    look(watched, CHANGED)
    look(watched, CHANGED)
    assert raised(watched) == ["public.b"]


def test_a_raise_stands_where_a_new_epoch_can_read_it(watched):
    look(watched, CHANGED, Progress(800))
    (order,) = [r for r in map(decode_control, watched.kafka.to("control")) if isinstance(r, Raise)]
    assert Position.parse(order.position) == Position(5, 800, 0)


def test_definitions_are_remembered_only_after_kafka_has_the_raise(watched):
    look(watched, CHANGED, Progress(700))
    watched.kafka.ack("state")
    watched.step(Progress(800), seconds=2)
    watched.step(seconds=2)
    watched.kafka.ack("state")
    assert tables_remembered(watched) == [TABLES, TABLES]
    watched.kafka.ack("control")
    watched.step(Progress(900), seconds=2)
    watched.step(seconds=2)
    assert tables_remembered(watched)[-1] == CHANGED


def test_a_look_during_a_raise_under_way_waits_for_it(watched):
    look(watched, CHANGED)
    look(watched, TABLES)
    assert raised(watched) == ["public.b"]
    watched.kafka.ack("control")
    watched.step()
    assert raised(watched) == ["public.b", "public.b"]


def test_an_orderly_stop_remembers_what_it_raised(watched):
    look(watched, CHANGED, Progress(800))
    watched.stop.set()
    watched.capture.run(Pulse(stalled_after_seconds=1))
    assert tables_remembered(watched)[-1] == CHANGED


def test_new_definitions_without_progress_never_move_the_slot_back(watched):
    look(watched, TABLES | {"public.c": A}, Progress(400))
    watched.step(seconds=2)
    assert watched.remembered() == [500]


def test_a_state_without_definitions_raises_every_table(world):
    look(world, TABLES)
    assert sorted(raised(world)) == ["public.a", "public.b"]


def barriers(world, number, lsn):
    world.step(seconds=2)
    world.step(beat(number, lsn), Progress(lsn + 10, 1))
    world.kafka.ack("control")
    world.step()
    newest = [r for r in map(decode_control, world.kafka.to("control")) if isinstance(r, Heartbeat)][-1]
    assert newest.number == number
    return sorted(newest.barriers)


def test_a_table_enters_the_barriers_when_the_watch_sees_it(watched):
    look(watched, TABLES | {"public.c": A})
    assert barriers(watched, 1, 700) == ["shop.public.a", "shop.public.b", "shop.public.c"]
    assert raised(watched) == []


def test_a_withdrawn_table_is_raised_and_leaves_the_barriers_though_its_records_still_come(watched):
    look(watched, {"public.a": A})
    watched.kafka.ack("control")
    watched.step(change("b", 600), Progress(610, 1))
    watched.kafka.ack("public.b")
    assert raised(watched) == ["public.b"]
    assert barriers(watched, 1, 700) == ["shop.public.a"]
    look(watched, TABLES)
    assert barriers(watched, 2, 800) == ["shop.public.a", "shop.public.b"]
    assert raised(watched) == ["public.b"]


def test_definitions_survive_the_wire_and_an_older_release_reads_past_them():
    class Older(msgspec.Struct):
        epoch: int

    memory = msgspec.structs.replace(MEMORY, tables=TABLES)
    assert decode_memory(msgspec.json.encode(memory)) == memory
    assert msgspec.json.decode(msgspec.json.encode(memory), type=Older).epoch == 5
    old = json.loads(msgspec.json.encode(memory))
    del old["tables"]
    assert decode_memory(json.dumps(old).encode()).tables is None
