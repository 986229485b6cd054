"""How fast one worker applies a backlog, beside what bounds it and what it replaces.

The demonstration's events (tests/benchmarks/traffic.py) wait in Kafka, 8 partitions per table as `kafka.partitions: 8`
makes them, with the heartbeats that capture would have published, four per second of the platform's time. The rates
are of Kafka records (changes, and the null records after deletes), from the first that a contestant handled to the
last, so without the start of its process. One contestant runs at a time, each in a process of its own:

- applied: `staleproof invalidate` on a region whose rows stand at offset 0. Its rows in Redis are asked every 20 ms.
  It must leave the region open, and have raised no alarm. `rss_mb` is the peak of its resident memory.
- consume_only: confluent-kafka with the worker's settings takes the messages, and does not look at them.
- decode_only: the worker's stream fetches, and each record is decoded whole: header, envelope, key and row images.
- frame_only: the same, but row images and keys stay unread. A yardstick that nothing which acts on rows can reach: the
  worker reads the columns that views name.
- naive: kafka-python, json.loads, and one DELETE of a plain key per event through redis-py; on the first
  `naive_events` of each run only, as it would take minutes.

Redis is empty of entries, as after a long pause: what is measured is decoding, planning, and the guard.
`--profile` instead runs the worker inside this process, and says on stderr where its time goes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import kafka
import msgspec
import redis

from cdc.envelope import decode_event, decode_header, decode_value
from consumers.kafka import Producer, RecordStream
from consumers.kafka_admin import KEPT, Admin, Topic
from consumers.regions import open_region, read_views
from consumers.settings import Settings as Staleproof
from consumers.settings import load_settings
from consumers.stream import Place
from infra.stack import Stack
from invalidator.guard import ControlStep, Outcome, RowStep
from invalidator.layout import Row, row_field
from tests.benchmarks import worker_profile
from tests.benchmarks.harness import Bench, Results, apart, median_ratio, medians, peak_memory_mb
from tests.benchmarks.traffic import EPOCH, HISTORY, Log

ROOT = Path(__file__).parents[2]
REGION = "eu"
SOURCE = "bench"
POLL_SECONDS = 0.02
FETCH_SECONDS = 0.2
STALLED_SECONDS = 60.0
"""Nothing was applied for so long: the worker is stuck."""

INFLIGHT_RECORDS = 100_000


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Options; counts are of events, without the null records that follow deletes."""

    events: int = 1_000_000
    naive_events: int = 50_000
    partitions: int = 8
    rounds: int = 3
    warm_ups: int = 1
    seed: int = 1
    profile: bool = False


def run(settings: Settings, bench: Bench) -> Results:
    """Medians over the rounds: of the rates, and of each round's ratios."""
    with bench.directory() as directory, bench.stack(directory, [REGION]) as stack:
        config = _write_settings(directory, stack, settings.partitions)
        log = Log(source=SOURCE, partitions=settings.partitions, seed=settings.seed)
        _produce(load_settings(config), log, settings.events, bench)
        counts = {"events": log.events, "records": log.records, "heartbeats": log.heartbeats}
        if settings.profile:
            begin_region(load_settings(config), log)
            return counts | worker_profile.profile(load_settings(config), REGION, log.records, bench)
        rounds = bench.interleave(
            {
                "applied": partial(_apply, config, log),
                "consume_only": lambda: {"per_s": apart(consume_only, config, log.records)},
                "decode_only": lambda: {"per_s": apart(decode_only, config, log.records)},
                "frame_only": lambda: {"per_s": apart(frame_only, config, log.records)},
                "naive": lambda: {"per_s": apart(naive, config, min(settings.naive_events, log.events))},
            },
            rounds=settings.rounds,
            warm_ups=settings.warm_ups,
        )
    medium = {name: medians(results) for name, results in rounds.items()}
    rates = {f"{name}_per_s": round(results["per_s"]) for name, results in medium.items()}
    return {
        **rates,
        "rss_mb": medium["applied"]["rss_mb"],
        "applied_of_decode_only": median_ratio(rounds["applied"], rounds["decode_only"], "per_s"),
        "applied_of_frame_only": median_ratio(rounds["applied"], rounds["frame_only"], "per_s"),
        "applied_of_naive": median_ratio(rounds["applied"], rounds["naive"], "per_s"),
        **counts,
        "rounds": {name: [round(results["per_s"]) for results in measured] for name, measured in rounds.items()},
    }


# -- what waits in Kafka ---------------------------------------------------------------------------------------------


def _write_settings(directory: Path, stack: Stack, partitions: int) -> Path:
    config = directory / "staleproof.yaml"
    content = {
        "source": {"name": SOURCE, "dsn": stack.postgres_dsn},
        "kafka": {"bootstrap_servers": stack.kafka_bootstrap, "partitions": partitions},
        "regions": {REGION: {"url": stack.redis_urls[REGION]}},
        "views": str(ROOT / "infra" / "demo" / "views.yaml"),
    }
    config.write_text(json.dumps(content), encoding="utf-8")
    return config


def _produce(settings: Staleproof, log: Log, events: int, bench: Bench) -> None:
    """Write the log through capture's own producer. The offsets must be those that the barriers foretold."""
    with Admin(settings.kafka) as admin:
        topics = [Topic(topic, len(ends), KEPT) for topic, ends in log.ends.items()]
        admin.ensure([Topic(log.control_topic, 1, KEPT, exact=True), *topics])
    producer = Producer(settings.kafka, inflight_records=INFLIGHT_RECORDS)
    for topic, ends in log.ends.items():
        producer.track(topic, ends)
    producer.track(log.control_topic, [0])
    batch = producer.batch()
    bench.say(f"writing {events} events")
    for number, record in enumerate(log.take(events), 1):
        topic, partition, key, value, header = record
        while not producer.send(batch, topic, partition, key=key, value=value, header=header):
            producer.poll(0.05)
        if number % 1_000 == 0:
            producer.poll(0)
        if number % 250_000 == 0:
            bench.say(f"{number} records")
    left = producer.flush(settings.kafka.request_timeout_seconds)
    written = {topic: ends for topic, ends in producer.ends.items() if topic != log.control_topic}
    if left or written != log.ends:
        raise RuntimeError(f"kafka holds other records than were written; {left} are not acknowledged")


# -- the worker ------------------------------------------------------------------------------------------------------


def begin_region(settings: Staleproof, log: Log) -> None:
    """Make Redis empty and the region's shard new, its epoch begun, and every row at offset 0."""
    region, views = open_region(settings, REGION), read_views(settings.views)
    with redis.Redis.from_url(settings.regions[REGION].url.get_secret_value()) as client:
        client.flushall()
    region.prepare()
    partitions = [(topic, partition) for topic, ends in log.ends.items() for partition in range(len(ends))]
    rows = [(row_field(*p), Row(next_offset=0, digest=views.digest)) for p in [*partitions, (log.control_topic, 0)]]
    begins = RowStep(row_field(log.control_topic, 0), 0, Row(next_offset=1, digest=views.digest))
    outcomes = {
        region.cold(0, 0, [(view.name, view.digest) for view in views.views.values()], rows),
        region.hear(0, ControlStep(step=begins, epoch=f"{EPOCH:08x}", history=HISTORY)).outcome,
    }
    if outcomes != {Outcome.APPLIED}:
        raise RuntimeError(f"the region's shard cannot be begun: {outcomes}")


def _apply(config: Path, log: Log) -> Results:
    settings = load_settings(config)
    begin_region(settings, log)
    with _worker(config) as process:
        rate = _watch(settings, process, log.records)
        return {"per_s": rate, "rss_mb": peak_memory_mb(process.pid)}


@contextmanager
def _worker(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real worker; whatever it raised an alarm for ends the benchmark."""
    log = config.with_name("worker.log")
    command = [sys.executable, "-m", "consumers.cli", "invalidate", "--region", REGION, "--config", str(config)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with log.open("wb") as sink:
        process = subprocess.Popen(command, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT, env=environment)
    try:
        yield process
    except BaseException:
        print(log.read_text(encoding="utf-8")[-3_000:], file=sys.stderr)
        raise
    finally:
        process.terminate()
        process.wait(30)
    alarms = [line for line in log.read_text(encoding="utf-8").splitlines() if '"alarm"' in line]
    if alarms:
        raise RuntimeError(f"the worker raised an alarm without a fault: {alarms[0]}")


def _watch(settings: Staleproof, process: subprocess.Popen[bytes], records: int) -> float:
    """Records per second from the first applied one to the last; then waits until the region is open."""
    region = open_region(settings, REGION)
    first = last = (0.0, 0)
    moved = time.monotonic()
    while True:
        header, now = region.header(0), time.monotonic()
        done = sum(Row.parse(text).next_offset for name, text in header.items() if _is_data_row(name))
        if done > last[1]:
            first, last, moved = first if first[1] else (now, done), (now, done), now
        closed = [name for name, text in header.items() if name.startswith("s:") and not text.startswith("o")]
        if done == records and not closed:
            return (last[1] - first[1]) / (last[0] - first[0])
        if process.poll() is not None or now - moved > STALLED_SECONDS:
            state = f"{done} of {records} records applied, closed scopes: {closed}"
            raise RuntimeError(f"the worker stopped or is stuck ({process.poll()}): {state}")
        time.sleep(POLL_SECONDS)


def _is_data_row(name: str) -> bool:
    return name.startswith(f"t:{SOURCE}.public.")


# -- the others ------------------------------------------------------------------------------------------------------


def consume_only(config: Path, records: int) -> float:
    """Records per second that the worker's client can take."""

    def take(stream: RecordStream, records_max: int) -> int:
        first = stream._consumer.poll(FETCH_SECONDS)  # as `fetch` does, without its look at each message
        return 0 if first is None else 1 + len(stream._consumer.consume(records_max - 1, 0))

    return _rate(_counts(config, records, take))


def decode_only(config: Path, records: int) -> float:
    """Records per second with everything in each record decoded."""

    def take(stream: RecordStream, records_max: int) -> int:
        fetched = stream.fetch(records_max, FETCH_SECONDS)
        for record in fetched:
            header = decode_header(record.header)
            if record.value is not None:
                decode_event(record.key, record.value, header)
        return len(fetched)

    return _rate(_counts(config, records, take))


def frame_only(config: Path, records: int) -> float:
    """Records per second with each header and each envelope decoded."""

    def take(stream: RecordStream, records_max: int) -> int:
        fetched = stream.fetch(records_max, FETCH_SECONDS)
        for record in fetched:
            decode_header(record.header)
            if record.value is not None:
                decode_value(record.value)
        return len(fetched)

    return _rate(_counts(config, records, take))


def naive(config: Path, events: int) -> float:
    """Events per second of a straightforward consumer, over the first `events`."""
    settings = load_settings(config)
    topics = [settings.source.topic(table) for table in read_views(settings.views).by_table]
    client = redis.Redis.from_url(settings.regions[REGION].url.get_secret_value())
    consumer = kafka.KafkaConsumer(
        *topics,
        bootstrap_servers=settings.kafka.bootstrap_servers,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )

    def counts() -> Iterator[int]:
        done = 0
        for message in consumer:
            if message.value is None:
                continue
            event = json.loads(message.value)
            row = event["after"] or event["before"]
            client.delete(f"{event['source']['table']}:{row.get('id', row.get('segment_id'))}")
            yield 1
            done += 1
            if done == events:
                return

    try:
        return _rate(counts())
    finally:
        consumer.close()


def _counts(config: Path, records: int, take: Callable[[RecordStream, int], int]) -> Iterator[int]:
    """How many records each `take` of at most the worker's batch took, until all are taken."""
    settings = load_settings(config)
    stream = RecordStream(settings.kafka, group="bench", queued_kilobytes=settings.worker.queued_kilobytes)
    try:
        topics = [settings.source.topic(table) for table in read_views(settings.views).by_table]
        stream.assign(dict.fromkeys(stream.partitions(topics), Place(0)))
        left = records
        while left:
            taken = take(stream, settings.worker.batch_records)
            left -= taken
            if taken:
                yield taken
    finally:
        stream.close()


def _rate(counts: Iterator[int]) -> float:
    """What comes after the first count, per second from there."""
    next(counts)
    began = time.perf_counter()
    total = sum(counts)
    return total / (time.perf_counter() - began)
