"""The log in memory that unit tests use, and Kafka's own: the same records, the same questions, the same answers."""

from __future__ import annotations

import itertools
import random

import pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient
from kafka.structs import TopicPartition

from cdc.envelope import HEADER_NAME
from cdc.errors import ConfigError, GapError
from consumers.kafka_admin import COMPACTED, KEPT, Admin, Topic
from consumers.kafka_log import KafkaLog
from consumers.kafka_range import Asked, Fixed, Log, fix_range, parse_edge
from consumers.range_reader import RangeReader
from consumers.settings import KafkaSettings
from consumers.stream import Extent
from infra.stack import Stack
from tests.fake_log import FakeLog, Kept
from tests.unit.consumers.test_kafka_range import position
from tests.waiting import wait_until

TOPIC, SQUEEZED = "contract.public.contacts", "contract.public.squeezed"
EXPIRED = 7
BASE_MS = 1_700_000_000_000


def some_log() -> FakeLog:
    """Two epochs, redeliveries, records without a header, an empty partition, and one that has lost its beginning."""
    random_ = random.Random(5)
    partitions: list[list[Kept]] = []
    for _ in range(2):
        lsns = [*range(0, 400, 2), *range(380, 600, 2)]
        records = [(position(lsn * 16), 1) for lsn in lsns] + [(position(lsn, epoch=2), 2) for lsn in range(40)]
        partitions.append(
            [Kept(BASE_MS + 10 * n, None if random_.random() < 0.1 else place) for n, (place, _) in enumerate(records)]
        )
    return FakeLog({TOPIC: [*partitions, []], SQUEEZED: [[]]}, {(TOPIC, 1): EXPIRED}, frozenset({SQUEEZED}))


@pytest.fixture(scope="module")
def logs(stack: Stack):
    """The log in memory, and Kafka with the same in it."""
    fake = some_log()
    settings = KafkaSettings(bootstrap_servers=stack.kafka_bootstrap)
    with Admin(settings) as admin:
        admin.ensure([Topic(TOPIC, 3, KEPT), Topic(SQUEEZED, 1, COMPACTED)])
    producer = KafkaProducer(bootstrap_servers=stack.kafka_bootstrap)
    for number, records in enumerate(fake.topics[TOPIC]):
        for record in records:
            header = None if record.position is None else f"1{record.position}{0:048x}".encode()
            headers = [] if header is None else [(HEADER_NAME, header)]
            producer.send(TOPIC, partition=number, value=b"v", headers=headers, timestamp_ms=record.time_ms)
    producer.flush()
    producer.close()
    client = KafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap)
    client.delete_records({TopicPartition(TOPIC, 1): EXPIRED})
    client.close()
    with KafkaLog(settings, group="contract") as real:
        yield fake, real


def answer(log: Log, start: str, end: str, allow_holes: bool) -> Fixed | str:
    asked = Asked(
        start=parse_edge(start, "--from"), end=parse_edge(end, "--to"), topics=(TOPIC,), allow_holes=allow_holes
    )  # fmt: skip
    try:
        return fix_range(log, asked)
    except (ConfigError, GapError) as error:
        return f"{type(error).__name__}: {error}"


EDGES = [
    "beginning", "end", "offset:0", "offset:9", "offset:300", "offset:99999", f"time:{BASE_MS}", f"time:{BASE_MS + 1_995}",
    f"time:{BASE_MS + 10**9}", "position:00000001@0/0", "position:00000001@0/900", "position:00000001@0/17C1",
    "position:0/14", "position:0/FFFF",
]  # fmt: skip


@pytest.mark.parametrize("start", EDGES)
def test_the_log_in_memory_and_kafka_give_the_same_range(logs, start):
    fake, real = logs
    for end, allow_holes in itertools.product(EDGES[1::4], (False, True)):
        assert answer(real, start, end, allow_holes) == answer(fake, start, end, allow_holes)


def test_aborted_transactions_are_no_part_of_a_range_and_do_not_keep_it_from_ending(stack):
    topic = "contract.public.transactions"
    settings = KafkaSettings(bootstrap_servers=stack.kafka_bootstrap)
    with Admin(settings) as admin:
        admin.ensure([Topic(topic, 1, KEPT)])
    producer = KafkaProducer(bootstrap_servers=stack.kafka_bootstrap, transactional_id="contract")
    producer.init_transactions()
    for value, end in ((b"kept", producer.commit_transaction), (b"aborted", producer.abort_transaction)):
        producer.begin_transaction()
        producer.send(topic, value=value).get(10)
        end()
    producer.begin_transaction()
    producer.send(topic, value=b"open").get(10)
    with KafkaLog(settings, group="t") as log, Admin(settings) as admin:
        ((extent,),) = log.extents([topic]).values()
        ((whole,),) = admin.extents([topic]).values()
    assert (extent, whole) == (Extent(0, 4), Extent(0, 5))
    with RangeReader(settings, group="t", queued_kilobytes=512, extents={(topic, 0): extent}) as reader:
        records: list[bytes | None] = []
        wait_until(lambda: records.extend(r.value for r in reader.fetch(10, 0.2)) or not reader.left, "the range ends")
    assert records == [b"kept"]
    producer.abort_transaction()
    producer.close()


def test_a_range_ends_where_it_was_fixed_and_one_that_the_log_does_not_reach_is_a_gap(logs, stack):
    settings = KafkaSettings(bootstrap_servers=stack.kafka_bootstrap)
    fake, _ = logs
    end = len(fake.topics[TOPIC][0])

    def read(extent: Extent) -> list[int]:
        offsets: list[int] = []
        with RangeReader(settings, group="t", queued_kilobytes=512, extents={(TOPIC, 0): extent}) as reader:
            wait_until(lambda: offsets.extend(r.offset for r in reader.fetch(7, 0.2)) or not reader.left, "it ends")
        return offsets

    assert read(Extent(10, 20)) == list(range(10, 20))
    assert read(Extent(end - 2, end)) == [end - 2, end - 1]
    assert read(Extent(5, 5)) == []
    with pytest.raises(GapError, match=f"{TOPIC}/0 ends at {end}, and its end was {end + 3}"):
        read(Extent(end - 2, end + 3))
    with pytest.raises(GapError, match="is not in Kafka any more"):
        read_expired(settings)


def read_expired(settings: KafkaSettings) -> None:
    with RangeReader(settings, group="t", queued_kilobytes=512, extents={(TOPIC, 1): Extent(1, 20)}) as reader:
        wait_until(lambda: reader.fetch(7, 0.2), "something comes")


def test_they_know_the_same_topics_and_which_are_compacted(logs):
    for log in logs:
        assert log.missing([TOPIC, "contract.none"]) == ["contract.none"]
        assert log.compacted([TOPIC, SQUEEZED]) == {SQUEEZED}


def test_both_look_past_records_without_a_header_but_not_beyond_the_extent(logs):
    fake, real = logs
    nameless = next(n for n, record in enumerate(fake.topics[TOPIC][0]) if record.position is None)
    for upto in (nameless + 1, nameless + 5):
        extent = Extent(nameless, upto)
        assert real.first((TOPIC, 0), extent) == fake.first((TOPIC, 0), extent)
    assert real.first((TOPIC, 2), Extent(0, 1)) is None
