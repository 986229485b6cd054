"""Topics in memory, as `consumers.kafka_range.Log` tells of them; tests/integration/test_kafka_log.py holds it to Kafka."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cdc.events import Offset
from consumers.stream import Extent, Partition


class Kept(msgspec.Struct, frozen=True):
    """One record: Kafka's time stamp, and its position, None where its header cannot be read."""

    time_ms: int
    position: str | None


class FakeLog:
    """`topics`: per partition its records. `begins`: the first offset that has not expired."""

    def __init__(
        self, topics: dict[str, list[list[Kept]]], begins: dict[Partition, int] | None = None,
        compact: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        self.topics = topics
        self.begins = begins or {}
        self.compact = compact
        self.probed = 0

    def missing(self, topics: Sequence[str]) -> list[str]:
        return [topic for topic in topics if topic not in self.topics]

    def compacted(self, topics: Sequence[str]) -> frozenset[str]:
        return self.compact & frozenset(topics)

    def extents(self, topics: Sequence[str]) -> dict[str, list[Extent]]:
        return {
            topic: [
                Extent(Offset(self.begins.get((topic, number), 0)), Offset(len(records)))
                for number, records in enumerate(self.topics[topic])
            ]
            for topic in topics
        }

    def at_time(self, partitions: Sequence[Partition], time_ms: int) -> dict[Partition, Offset]:
        found = {}
        for topic, number in partitions:
            begin = self.begins.get((topic, number), 0)
            for offset, record in enumerate(self.topics[topic][number]):
                if offset >= begin and record.time_ms >= time_ms:
                    found[topic, number] = Offset(offset)
                    break
        return found

    def first(self, partition: Partition, extent: Extent) -> tuple[int, str] | None:
        self.probed += 1
        topic, number = partition
        for offset in range(extent.begin, extent.end):
            position = self.topics[topic][number][offset].position
            if position is not None:
                return offset, position
        return None
