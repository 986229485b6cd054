"""The plain cache's worker: DEL on change. What most invalidators do, kept as the "before" picture.

    python -m infra.demo.naive --source demo     # environment: DEMO_KAFKA, DEMO_REDIS

It reads the same topics as staleproof's worker, from their beginning, and loses nothing: its fault is not in what it
deletes but in what a reader may store after it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import confluent_kafka
import msgspec
import redis

from infra.demo.caches import naive_key
from infra.demo.child import REPORT_SECONDS, Orders, report
from infra.demo.data import COLUMNS

TOPICS_LIMIT_SECONDS = 60.0
BATCH_RECORDS = 500
FETCH_SECONDS = 0.05

OBJECTS = {
    "contacts": (("contact", "id"),),
    "templates": (("template", "id"),),
    "segments": (("segment", "id"),),
    "segment_members": (("segment", "segment_id"),),
    "campaigns": (("campaign", "id"),),
    "tracking_events": (("contact_stats", "contact_id"),),
}
"""Table -> objects that its rows are part of, and the column that holds their key."""


def keys_of(table: str, value: Mapping[str, Any]) -> Iterator[str]:
    """The keys of one change: those of the old row and those of the new one."""
    for image in (value.get("before"), value.get("after")):
        for view, column in OBJECTS[table]:
            if image is not None and column in image:
                yield naive_key(view, image[column])


def find_partitions(consumer: Any, topics: Sequence[str]) -> list[Any]:
    """Every partition of the topics, once capture has made them, from its beginning."""
    deadline = time.monotonic() + TOPICS_LIMIT_SECONDS
    while time.monotonic() < deadline:
        known = consumer.list_topics(timeout=5).topics
        if all(topic in known for topic in topics):
            return [
                confluent_kafka.TopicPartition(topic, partition, confluent_kafka.OFFSET_BEGINNING)
                for topic in topics
                for partition in known[topic].partitions
            ]
        time.sleep(0.1)
    raise TimeoutError(f"capture did not create its topics within {TOPICS_LIMIT_SECONDS:.0f} s")


def is_drained(consumer: Any, partitions: Sequence[Any]) -> bool:
    """Whether everything that is in the topics now was read."""
    return all(
        place.offset >= end or end == 0
        for place in consumer.position(partitions)
        for end in [consumer.get_watermark_offsets(place, timeout=5)[1]]
    )


def delete_changed(client: redis.Redis, messages: Sequence[Any]) -> int:
    """DEL the keys of these changes."""
    keys: set[str] = set()
    for message in messages:
        if message.error() is not None:
            raise RuntimeError(message.error().str())
        if message.value() is not None:
            keys.update(keys_of(message.topic().rpartition(".")[2], msgspec.json.decode(message.value())))
    if keys:
        client.delete(*keys)
    return len(messages)


def main() -> int:
    """Delete until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", required=True)
    options = parser.parse_args()
    orders, client = Orders(), redis.Redis.from_url(os.environ["DEMO_REDIS"], socket_timeout=5.0)
    config = {
        "bootstrap.servers": os.environ["DEMO_KAFKA"],
        "group.id": f"naive-{os.getpid()}",
        "enable.auto.commit": False,
    }
    consumer = confluent_kafka.Consumer(config)
    partitions = find_partitions(consumer, [f"{options.source}.public.{table}" for table in COLUMNS])
    consumer.assign(partitions)
    records, reported = 0, 0.0
    while not orders.stop.is_set():
        first = consumer.poll(FETCH_SECONDS)  # consume() alone would wait for a full batch
        messages = [] if first is None else [first, *consumer.consume(BATCH_RECORDS - 1, 0)]
        records += delete_changed(client, messages)
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            drained = orders.drain.is_set() and not messages and is_drained(consumer, partitions)
            report({"ready": 1, "records": records, "drained": int(drained)})
    consumer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
