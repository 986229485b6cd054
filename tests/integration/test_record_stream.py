"""Reading from a real Kafka: what the worker's stream takes."""

from __future__ import annotations

import os

from consumers.kafka import Producer, RecordStream
from consumers.kafka_admin import KEPT, Admin, Topic
from consumers.settings import KafkaSettings
from consumers.stream import Place
from infra.stack import Stack
from tests.waiting import wait_until

TOPIC = "large.public.texts"
SIZES = (100, 12 << 20, 100)
"""In bytes; the second one is larger than what an answer of the broker usually holds."""


def test_a_record_larger_than_one_answer_of_the_broker_is_read_in_its_place(stack: Stack) -> None:
    settings = KafkaSettings(bootstrap_servers=stack.kafka_bootstrap)
    with Admin(settings) as admin:
        admin.ensure([Topic(TOPIC, 1, KEPT)])
    producer = Producer(settings, inflight_records=10)
    producer.track(TOPIC, [0])
    values = [os.urandom(size) for size in SIZES]
    for value in values:
        assert producer.send(producer.batch(), TOPIC, 0, key=b"k", value=value, header=b"h")
        assert producer.flush(20) == 0
    stream = RecordStream(settings, group="large", queued_kilobytes=16_384)
    try:
        stream.assign({(TOPIC, 0): Place(0)})
        read = []

        def is_read() -> bool:
            read.extend(stream.fetch(10, 0.1))
            return len(read) == len(values)

        wait_until(is_read, "every record is read")
    finally:
        stream.close()
    assert [record.value for record in read] == values
    assert [(record.key, record.header, record.offset) for record in read] == [(b"k", b"h", n) for n in range(3)]
