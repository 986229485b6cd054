"""Kafka's data plane: the door to confluent-kafka. Producing, and reading what a process wrote before it stopped.

Failures leave as our errors: what a new connection may cure is Transient, what the operator must mend is Fatal.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from struct import unpack_from
from typing import Any

import confluent_kafka
from confluent_kafka import OFFSET_END, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from cdc.envelope import HEADER_NAME, decode_header
from cdc.errors import BadRecord, FatalError, GapError, StaleproofError, TransientError
from cdc.events import Offset
from consumers.settings import KafkaSettings
from consumers.stream import Extent, Partition, Place, Record

LARGEST_RECORD_BYTES = 16 << 20
"""Kafka's own default of 1 MiB is below one row with a large text; topics that we make allow this much."""

SESSION_TIMEOUT_MS = 6_000
"""A worker that was killed loses its partitions to others after so long: brokers' own lower limit."""

METADATA_REFRESH_MS = 5_000
"""So soon a new topic or partition is noticed."""
_FETCH_BYTES = 4 << 20
"""What one answer of a broker holds, a larger record excepted. With 50 MiB, librdkafka's own, a worker that catches up
takes 130 MB more memory (measured over 48 partitions) and is not faster."""

_LINGER_MS = 3
_64_BITS = (1 << 64) - 1
_DELIVERY_TIMEOUT_MS = 120_000
_QUEUE_KILOBYTES = 128 << 10


def client_config(settings: KafkaSettings) -> dict[str, Any]:
    """What every librdkafka client of ours is told: brokers, TLS, SASL, deadlines. Unset fields stay librdkafka's."""
    password = settings.sasl_password
    config = {
        "bootstrap.servers": settings.bootstrap_servers,
        "client.id": "staleproof",
        "security.protocol": settings.security_protocol,
        "sasl.mechanism": settings.sasl_mechanism,
        "sasl.username": settings.sasl_username,
        "sasl.password": None if password is None else password.get_secret_value(),
        "ssl.ca.location": _path(settings.ssl_ca_location),
        "ssl.certificate.location": _path(settings.ssl_certificate_location),
        "ssl.key.location": _path(settings.ssl_key_location),
        "socket.connection.setup.timeout.ms": settings.request_timeout_seconds * 1000,
        "reconnect.backoff.max.ms": 1_000,
        "allow.auto.create.topics": False,
        "log.connection.close": False,
        "logger": logging.getLogger("staleproof.kafka"),
    }
    return {name: value for name, value in config.items() if value is not None}


@lru_cache(maxsize=65_536)  # a Python murmur2 costs 1-3 us; hot rows are what a cache is about
def partition_of(key: bytes, partitions: int) -> int:
    """The partition of `key` as Java's clients, and so Debezium, choose it."""
    return (_murmur2(key) & 0x7FFFFFFF) % partitions


class Batch:
    """Records that are acknowledged together: `pending` of them are not, yet."""

    __slots__ = ("_ends", "_failures", "pending")

    def __init__(self, ends: dict[str, list[int]], failures: list[StaleproofError]) -> None:
        self._ends = ends
        self._failures = failures
        self.pending = 0

    def delivered(self, error: KafkaError | None, message: Any) -> None:
        """Called by librdkafka for each record."""
        if error is not None:
            self._failures.append(_failure(error, f"a record of topic {message.topic()} was not accepted"))
            return
        self.pending -= 1
        self._ends[message.topic()][message.partition()] = message.offset() + 1


class Producer:
    """Idempotent, acknowledged by all replicas, bounded. One thread uses it.

    `ends` is the end offset of every partition of every tracked topic, as far as acknowledgements tell.
    """

    def __init__(self, settings: KafkaSettings, *, inflight_records: int) -> None:
        self.ends: dict[str, list[int]] = {}
        self._failures: list[StaleproofError] = []
        self._producer = confluent_kafka.Producer(
            client_config(settings)
            | {
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": _LINGER_MS,
                "compression.type": "lz4",
                "batch.size": 512 << 10,
                "message.max.bytes": LARGEST_RECORD_BYTES,
                "delivery.timeout.ms": _DELIVERY_TIMEOUT_MS,
                "queue.buffering.max.messages": inflight_records,
                "queue.buffering.max.kbytes": _QUEUE_KILOBYTES,
            }
        )

    def __len__(self) -> int:
        """Records that are not acknowledged yet."""
        return len(self._producer)

    def track(self, topic: str, ends: Sequence[int]) -> None:
        """A topic that will be written to, and its end offsets at this moment. Comes before the first send."""
        self.ends[topic] = list(ends)

    def batch(self) -> Batch:
        """A new, empty batch."""
        return Batch(self.ends, self._failures)

    def send(
        self, batch: Batch, topic: str, partition: int, *, key: bytes | None, value: bytes | None, header: bytes | None
    ) -> bool:
        """Queue one record; False when the queue is full (poll, then try again).

        Raises TransientError or FatalError.
        """
        headers: list[tuple[str, str | bytes | None]] = [] if header is None else [(HEADER_NAME, header)]
        try:
            self._producer.produce(topic, value, key, partition=partition, on_delivery=batch.delivered, headers=headers)
        except BufferError:
            return False
        except KafkaException as error:
            raise _failure(error.args[0], f"a record of topic {topic} was not accepted") from error
        batch.pending += 1
        return True

    def poll(self, timeout_seconds: float) -> None:
        """Take acknowledgements for up to that long. Raises the first failure of any record."""
        self._producer.poll(timeout_seconds)
        if self._failures:
            raise self._failures[0]

    def flush(self, timeout_seconds: float) -> int:
        """Wait for acknowledgements; how many records are still without one. Raises the first failure."""
        left: int = self._producer.flush(timeout_seconds)
        if self._failures:
            raise self._failures[0]
        return left

    def close(self) -> None:
        """Give up what is not acknowledged, at once: whoever starts again sends it again."""
        self._producer.purge()
        self._producer.flush(1.0)


def read_sequences(settings: KafkaSettings, extents: Mapping[str, Sequence[Extent]]) -> dict[str, list[int]]:
    """The sequence of the last record of each partition (list index = partition), 0 in one never written to.

    Where the last record has expired or has no header of ours, the end offset stands in: never less than the
    sequence was, as each record has raised both.
    """
    sequences = {topic: [int(extent.end) for extent in partitions] for topic, partitions in extents.items()}
    last = {
        (topic, partition): Extent(Offset(extent.end - 1), extent.end)
        for topic, partitions in extents.items()
        for partition, extent in enumerate(partitions)
        if extent.begin < extent.end
    }
    for message in _records(settings, last):
        header = dict(message.headers() or ()).get(HEADER_NAME)
        try:
            sequences[message.topic()][message.partition()] = decode_header(header).sequence
        except BadRecord:
            continue
    return sequences


def read_newest(settings: KafkaSettings, topic: str, extent: Extent, key: bytes) -> bytes | None:
    """The newest value under `key` in partition 0 of a compacted topic; None when there is none."""
    newest: bytes | None = None
    for message in _records(settings, {(topic, 0): extent}):
        if message.key() == key:
            newest = message.value()
    return newest


def _records(settings: KafkaSettings, wanted: Mapping[tuple[str, int], Extent]) -> Iterator[Any]:
    """Every record of the extents, each partition in order. Raises TransientError when nothing comes for too long."""
    left = {place for place, extent in wanted.items() if extent.begin < extent.end}
    if not left:
        return
    with _reader(settings) as consumer:
        consumer.assign([TopicPartition(topic, partition, wanted[topic, partition].begin) for topic, partition in left])
        deadline = time.monotonic() + settings.request_timeout_seconds
        while left:
            message: Any
            for message in consumer.consume(500, 0.2):
                place = (message.topic(), message.partition())
                error = message.error()
                if error is None:
                    deadline = time.monotonic() + settings.request_timeout_seconds
                    yield message
                elif error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001 - the client's name for it
                    raise _failure(error, f"cannot read {place[0]}")
                if error is not None or message.offset() + 1 >= wanted[place].end:
                    left.discard(place)
            if time.monotonic() > deadline:
                raise TransientError(f"cannot read {min(left)[0]}: no answer for the request timeout")


@contextmanager
def _reader(settings: KafkaSettings) -> Iterator[confluent_kafka.Consumer]:
    consumer = confluent_kafka.Consumer(
        client_config(settings)
        | {
            "group.id": "staleproof-unused",  # required by the client; nothing is committed or subscribed
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "isolation.level": "read_uncommitted",
        }
    )
    try:
        yield consumer
    except KafkaException as error:
        raise _failure(error.args[0], "cannot read from Kafka") from error
    finally:
        consumer.close()


_FATAL = {
    KafkaError.MSG_SIZE_TOO_LARGE: "raise max.message.bytes of the topic, and message.max.bytes of the broker",
    KafkaError.RECORD_LIST_TOO_LARGE: "raise max.message.bytes of the topic, and message.max.bytes of the broker",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "grant the user WRITE, READ and DESCRIBE on the topic",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "grant the user IDEMPOTENT_WRITE on the cluster",
    KafkaError._AUTHENTICATION: "check kafka.sasl_* and kafka.ssl_*",  # noqa: SLF001 - the client's name for it
}


def _failure(error: KafkaError, what: str) -> StaleproofError:
    remedy = _FATAL.get(error.code())
    if remedy is None:
        return TransientError(f"{what}: {error.str()}")
    return FatalError(f"{what}: {error.str()}; {remedy}")


def _path(path: object | None) -> str | None:
    return None if path is None else str(path)


def _murmur2(data: bytes) -> int:
    """Austin Appleby's MurmurHash2 with Kafka's seed, by whole words."""
    length = len(data)
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ length
    whole = length // 4
    for word in unpack_from(f"<{whole}I", data):
        k = word * m & mask
        k = (k ^ k >> 24) * m & mask
        h = h * m & mask ^ k
    if length & 3:
        h = (h ^ int.from_bytes(data[whole * 4 :], "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


class RecordStream:
    """Records of partitions from places that the caller knows (the rows in Redis).

    With `shared` topics Kafka's group splits their partitions among its members; else the caller chooses partitions.
    Kafka's group offsets are for lag displays only; where an offset does not exist any more is an error, never a jump.
    """

    def __init__(
        self, settings: KafkaSettings, *, group: str, queued_kilobytes: int, shared: Sequence[str] = (),
        epoch_ends: Callable[[KafkaSettings, Mapping[Partition, int]], Mapping[Partition, Offset]] = lambda *_: {},
    ) -> None:  # fmt: skip
        self._settings = settings
        self._epoch_ends = epoch_ends
        self._timeout_seconds = settings.request_timeout_seconds
        self._admin = AdminClient(client_config(settings))
        self._owned: frozenset[Partition] = frozenset()
        self._moves = 0
        self._settle: Callable[[], None] = lambda: None
        self._consumer = confluent_kafka.Consumer(
            client_config(settings)
            | {
                "group.id": group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "queued.max.messages.kbytes": queued_kilobytes,
                "fetch.queue.backoff.ms": 10,
                "fetch.wait.max.ms": 100,
                # The classic protocol: with the newer one the broker alone says when a member counts as dead, after
                # 45 s unless its operator changed that; here we say so ourselves.
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": SESSION_TIMEOUT_MS,
                "heartbeat.interval.ms": SESSION_TIMEOUT_MS // 6,
                "topic.metadata.refresh.interval.ms": METADATA_REFRESH_MS,
                "fetch.max.bytes": _FETCH_BYTES,
            }
        )
        self._shared = bool(shared)
        if shared:
            self._consumer.subscribe(list(shared), on_assign=self._gained, on_revoke=self._losing, on_lost=self._losing)

    def owned(self) -> frozenset[Partition]:
        """The partitions that are this process's now."""
        return self._owned

    def moves(self) -> int:
        """See Stream."""
        return self._moves

    def before_loss(self, settle: Callable[[], None]) -> None:
        """See Stream."""
        self._settle = settle

    def assign(self, places: Mapping[Partition, Place]) -> None:
        """Read exactly these partitions, from these places."""
        parts = [_placed(partition, place) for partition, place in places.items()]
        with asking("us its partitions"):
            if not self._shared:
                self._consumer.assign(parts)
                self._owned = frozenset(places)
                return
            before = self._consumer.assignment()
            if before:
                self._consumer.incremental_unassign(before)
            if parts:
                self._consumer.incremental_assign(parts)

    def _gained(self, consumer: Any, gained: Sequence[TopicPartition]) -> None:
        """Nothing useful is read before `assign` says from where; what comes until then is dropped by the caller."""
        self._moves += 1
        self._owned |= {(part.topic, part.partition) for part in gained}
        consumer.incremental_assign([TopicPartition(part.topic, part.partition, OFFSET_END) for part in gained])

    def _losing(self, consumer: Any, lost: Sequence[TopicPartition]) -> None:
        try:
            self._settle()
        finally:
            self._moves += 1
            self._owned -= {(part.topic, part.partition) for part in lost}
            consumer.incremental_unassign(lost)

    def fetch(self, records_max: int, timeout_seconds: float) -> list[Record]:
        """Records that are there, or the first to come within the timeout. Raises TransientError, GapError."""
        with asking("what is new"):
            first = self._consumer.poll(timeout_seconds)  # consume() would wait for a full batch
            if first is None:
                return []
            messages = (first, *self._consumer.consume(records_max - 1, 0))
        return [record_of(message) for message in messages if message.error() is None or is_fault(message)]

    def bounds(self, partition: tuple[str, int]) -> tuple[int, int]:
        """First offset that exists and end offset. Raises TransientError."""
        with asking(f"bounds of {partition[0]}/{partition[1]}"):
            first, end = self._consumer.get_watermark_offsets(
                TopicPartition(*partition), timeout=self._timeout_seconds, cached=False
            )
        return first, end

    def cut(self, places: Mapping[Partition, Place]) -> frozenset[Partition]:
        """See Stream.

        librdkafka sees a cut log itself (KIP-320), but only where it learns of the election: neither in partitions that
        a group gives it, which it has known from before it is told the place, nor when it is given the place again.
        """
        known = {p: place for p, place in places.items() if place.offset > 0 and place.leader_epoch >= 0}
        if not known:
            return frozenset()
        ends = self._epoch_ends(self._settings, {p: place.leader_epoch for p, place in known.items()})
        return frozenset(p for p, end in ends.items() if end < known[p].offset)

    def partitions(self, topics: Iterable[str]) -> list[tuple[str, int]]:
        """Partitions of those topics that exist. Raises TransientError."""
        with asking("the list of topics"):
            known = self._consumer.list_topics(timeout=self._timeout_seconds).topics
        return [
            (topic, partition) for topic in topics if topic in known for partition in sorted(known[topic].partitions)
        ]

    def topic_ids(self, topics: Iterable[str]) -> dict[str, str]:
        """Identity of those topics that exist, 32 hexadecimal digits. Raises TransientError."""
        found = {}
        with asking("the identities of topics"):
            asked = self._admin.describe_topics(TopicCollection(list(topics)), request_timeout=self._timeout_seconds)
            for topic, future in asked.items():
                try:
                    identity = future.result().topic_id
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                        raise
                    continue
                high, low = identity.get_most_significant_bits(), identity.get_least_significant_bits()
                found[topic] = f"{high & _64_BITS:016x}{low & _64_BITS:016x}"
        return found

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Tell Kafka, for lag displays only: nothing waits for it, and nothing depends on it."""
        if offsets:
            parts = [TopicPartition(*partition, offset) for partition, offset in offsets.items()]
            with asking("a commit for lag displays"):
                self._consumer.commit(offsets=parts, asynchronous=True)

    def close(self) -> None:
        """Leave at once."""
        self._consumer.close()


def is_fault(message: Any) -> bool:
    """False where a topic that we asked for does not exist, yet or any more: the rows are compared for what it held.

    Raises what any other error means.
    """
    error = message.error()
    if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):  # noqa: SLF001 - its name for it
        return False
    place = f"{message.topic()}/{message.partition()}"
    if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):  # noqa: SLF001 - its name for it
        raise GapError(f"{place}: the next record is not in Kafka any more: {error.str()}")
    raise _failure(error, f"cannot read {place}")


def _placed(partition: Partition, place: Place) -> TopicPartition:
    if place.leader_epoch < 0:
        return TopicPartition(*partition, place.offset)
    return TopicPartition(*partition, place.offset, leader_epoch=place.leader_epoch)


def record_of(message: Any) -> Record:
    """The message as ours."""
    leader_epoch = message.leader_epoch()
    return Record(  # by place: faster than by name, and this runs once per record
        message.topic(),
        message.partition(),
        message.offset(),
        -1 if leader_epoch is None else leader_epoch,
        message.key(),
        message.value(),
        _header(message.headers()),
    )


def _header(headers: list[tuple[str, bytes]] | None) -> bytes | None:
    for name, value in headers or ():
        if name == HEADER_NAME:
            return value
    return None


@contextmanager
def asking(what: str) -> Iterator[None]:
    """What the client raises becomes TransientError, or FatalError where only a person can mend it."""
    try:
        yield
    except KafkaException as error:
        raise _failure(error.args[0], f"Kafka does not tell {what}") from error
