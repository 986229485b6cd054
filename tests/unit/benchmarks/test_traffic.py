"""The benchmarks' traffic: what capture would have written, without a hole."""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest

from cdc.control import decode_control
from cdc.envelope import decode_event, decode_header, decode_value, is_unavailable
from cdc.events import Op
from infra.demo.caches import demo_views
from infra.demo.data import COLUMNS, Sizes
from invalidator.plan import Planner
from tests.benchmarks.traffic import IMPORTER_SHARE, LAST_HEARTBEATS, MOVED, Log

SMALL = Sizes(contacts=2_400, templates=20, campaigns=40, segments=20, members=4_000, events=2_000)
EVENTS = 12_000
SOURCE = "bench"


def log(seed: int = 1) -> Log:
    return Log(source=SOURCE, partitions=8, seed=seed, sizes=SMALL)


@pytest.fixture(scope="module")
def taken():
    traffic = log()
    return traffic, list(traffic.take(EVENTS))


@pytest.fixture(scope="module")
def data(taken):
    traffic, records = taken
    return [record for record in records if record.topic != traffic.control_topic]


@pytest.fixture(scope="module")
def events(data):
    return [decode_event(r.key, r.value, decode_header(r.header)) for r in data if r.value is not None]


@pytest.fixture(scope="module")
def beats(taken):
    traffic, records = taken
    return [decode_control(record.value) for record in records if record.topic == traffic.control_topic]


def test_the_same_seed_gives_the_same_records_and_another_one_others(taken):
    assert list(log().take(EVENTS)) == taken[1]
    assert list(log(2).take(200)) != taken[1][: len(list(log(2).take(200)))]


def test_every_record_decodes_and_every_event_has_its_table_and_key(taken, data, events):
    traffic, _ = taken
    assert len(events) == traffic.events >= EVENTS
    assert len(data) == traffic.records
    for record, event in zip((r for r in data if r.value is not None), events, strict=True):
        assert record.topic == f"{SOURCE}.{event.table}"
        image = event.after or event.before
        assert event.key == {name: image[name] for name in event.key}


def test_sequences_of_each_partition_have_no_hole_and_are_the_offsets(taken, data):
    traffic, _ = taken
    last = defaultdict(int)
    for record in data:
        header = decode_header(record.header)
        assert header.previous == last[record.topic, record.partition]
        assert header.sequence == header.previous + 1
        last[record.topic, record.partition] = header.sequence
    assert last == {
        (topic, partition): end for topic, ends in traffic.ends.items() for partition, end in enumerate(ends) if end
    }


def test_one_key_stays_in_one_partition_and_contacts_fill_all_of_them(data):
    places = defaultdict(set)
    for record in data:
        places[record.topic, record.key].add(record.partition)
    assert all(len(partitions) == 1 for partitions in places.values())
    assert {r.partition for r in data if r.topic == f"{SOURCE}.public.contacts"} == set(range(8))


def test_positions_rise_and_one_transaction_has_one_stamp(events):
    assert [e.position for e in events] == sorted({e.position for e in events})
    stamps = defaultdict(set)
    for event in events:
        stamps[event.position.lsn].add(event.stamp)
    assert all(len(found) == 1 for found in stamps.values())
    assert len({stamp for found in stamps.values() for stamp in found}) == len(stamps)


def test_transactions_do_not_all_commit_in_the_order_of_their_stamps(events):
    stamps = [event.stamp for event in events]
    assert stamps != sorted(stamps)


def test_a_delete_is_followed_by_a_null_record_of_the_same_key_position_and_stamp(data):
    deletes = 0
    for record, following in itertools.pairwise(data):
        if record.value is not None and b'"op":"d"' in record.value:
            deletes += 1
            assert following.value is None
            assert (following.topic, following.key) == (record.topic, record.key)
            assert decode_header(following.header).position == decode_header(record.header).position
    assert deletes == sum(record.value is None for record in data) > 0


def test_images_are_what_the_replica_identity_gives(events):
    for event in events:
        table = event.table.removeprefix("public.")
        if table in ("contacts", "tracking_events"):
            assert (event.before is None) == (event.op is Op.CREATE)
            assert event.before is None or set(COLUMNS[table]) < event.before.keys()
        else:
            assert event.before is None or event.before.keys() == event.key.keys()
            assert (event.before is not None) == (event.op is Op.DELETE)
        assert (event.after is None) == (event.op is Op.DELETE)


def test_an_image_before_is_the_image_after_of_the_change_before(events):
    newest = {}
    for event in events:
        if event.table == "public.contacts":
            key = event.key["id"]
            if event.before is not None and key in newest:
                assert newest[key] == event.before
            newest[key] = event.after


def test_an_unchanged_large_text_is_not_sent(events):
    bodies = [event.after["body"] for event in events if event.table == "public.templates"]
    assert any(is_unavailable(body) for body in bodies)
    assert any(len(body) > 1_900 for body in bodies)


def test_all_kinds_of_changes_happen(events):
    assert {(event.table.removeprefix("public."), event.op) for event in events} == {
        *(("contacts", op) for op in (Op.CREATE, Op.UPDATE, Op.DELETE)),
        *(("tracking_events", op) for op in (Op.CREATE, Op.UPDATE, Op.DELETE)),
        *(("segment_members", op) for op in (Op.CREATE, Op.DELETE)),
        *((table, Op.UPDATE) for table in ("templates", "segments", "campaigns")),
    }
    numbers = [event.key["id"] for event in events if event.table == "public.contacts"]
    assert any(number > MOVED for number in numbers)
    assert any(number % IMPORTER_SHARE == 0 for number in numbers)


def test_heartbeats_know_the_ends_and_who_was_running(taken, events, beats):
    traffic, records = taken
    assert len(beats) == traffic.heartbeats > LAST_HEARTBEATS
    assert [beat.at for beat in beats] == sorted({beat.at for beat in beats})
    assert beats[-1].barriers == traffic.ends
    ends = {topic: [0] * len(partitions) for topic, partitions in traffic.ends.items()}
    committed: set[int] = set()
    heard = iter(beats)
    for record in records:
        if record.topic != traffic.control_topic:
            ends[record.topic][record.partition] += 1
            committed.add(int(decode_header(record.header).stamp, 16))
            continue
        beat = next(heard)
        assert beat.barriers == ends
        assert all(beat.seen.covers(stamp) for stamp in committed)
        later = {event.stamp for event in events if event.position > beat.at}
        assert not any(beat.seen.covers(stamp) for stamp in later)
    assert any(len(beat.seen.text) > len("p") + 2 * 16 for beat in beats)  # some transaction was running


def test_every_event_can_be_planned_and_the_same_keys_change_again_and_again(data):
    planner, keys = Planner(demo_views()), []
    for record in data:
        if record.value is not None:
            header = decode_header(record.header)
            envelope = decode_value(record.value)
            planned = planner.plan(envelope.table, envelope, header, record.key)
            assert all(invalidation.key is not None and not invalidation.fault for invalidation in planned)
            keys += [invalidation.key for invalidation in planned]
    assert len(set(keys)) < len(keys) / 2
