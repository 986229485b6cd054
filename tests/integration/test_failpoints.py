"""Capture killed at each of its failpoints, on real servers: nothing is missing, and the epoch goes on where it can."""

from __future__ import annotations

import signal

import msgspec
import pytest
from kafka import KafkaConsumer, TopicPartition

from cdc.control import EpochStarted, decode_control
from cdc.envelope import HEADER_NAME, decode_header
from tests.fix_stack import Site
from tests.waiting import wait_until

ROWS = 30


def records(site: Site, topic: str) -> list:
    """Everything in a topic, by an independent client."""
    consumer = KafkaConsumer(bootstrap_servers=site.settings.kafka.bootstrap_servers, enable_auto_commit=False)
    try:
        found = consumer.partitions_for_topic(topic) or set()
        places = [TopicPartition(topic, number) for number in sorted(found)]
        consumer.assign(places)
        consumer.seek_to_beginning(*places)
        ends = consumer.end_offsets(places)
        read: list = []
        while any(consumer.position(place) < ends[place] for place in places):
            for batch in consumer.poll(timeout_ms=1_000).values():
                read += batch
        return read
    finally:
        consumer.close()


def captured(site: Site) -> list:
    return records(site, site.settings.source.topic("public.contacts"))


def has_slot(site: Site) -> bool:
    question = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s AND confirmed_flush_lsn IS NOT NULL"
    return site.database.execute(question, [site.settings.source.slot]).fetchone() == (1,)


@pytest.mark.parametrize(
    ("text", "epochs"),
    [
        ("capture.after_announce=kill@1", 2),  # the announced epoch was never remembered: another one starts
        ("capture.after_produce=kill@4", 1),
        ("capture.after_memory=kill@2", 1),
        ("capture.before_heartbeat=kill@3", 1),
    ],
)
def test_kill_9_at_a_failpoint_of_capture_loses_no_change(
    site: Site, monkeypatch: pytest.MonkeyPatch, text: str, epochs: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("STALEPROOF_FAILPOINTS", text)
        first = site.start("capture")
    wait_until(lambda: has_slot(site), "capture has its slot")
    for number in range(ROWS):
        site.database.execute("INSERT INTO contacts VALUES (%s, '', '')", [number])
    first.wait(30)
    assert first.returncode == -signal.SIGKILL
    assert [line["point"] for line in site.logged("failpoint")] == [text.partition("=")[0]]
    site.database.execute("INSERT INTO contacts VALUES (%s, '', '')", [ROWS])
    site.start("capture")
    wanted = set(range(ROWS + 1))
    wait_until(
        lambda: wanted == {msgspec.json.decode(record.value)["after"]["id"] for record in captured(site)},
        "every change is in Kafka",
    )
    numbers: dict[int, int] = {}
    for record in captured(site):
        header = decode_header(dict(record.headers)[HEADER_NAME])
        assert header.previous == numbers.get(record.partition, 0)
        numbers[record.partition] = header.sequence
    control = [decode_control(record.value) for record in records(site, site.settings.source.control_topic)]
    assert sum(isinstance(record, EpochStarted) for record in control) == epochs
    assert site.logged("capture_gap") == []
