"""What Kafka says of the topics that a range is of: `kafka_range.Log`, by the doors that know."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from cdc.events import Offset
from consumers.kafka_admin import Admin
from consumers.kafka_facts import describe_cluster
from consumers.range_reader import PositionProbe
from consumers.settings import KafkaSettings
from consumers.stream import Extent, Partition


class KafkaLog:
    """The topics as Kafka has them now. Positions are read record by record, by a consumer of no group's members."""

    def __init__(self, settings: KafkaSettings, *, group: str) -> None:
        self._settings = settings
        self._group = group
        self._end = ExitStack()
        self._admin = self._end.enter_context(Admin(settings))
        self._probe: PositionProbe | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.close()

    def missing(self, topics: Sequence[str]) -> list[str]:
        """See kafka_range.Log."""
        return self._admin.missing(topics)

    def compacted(self, topics: Sequence[str]) -> frozenset[str]:
        """See kafka_range.Log."""
        return describe_cluster(self._settings, topics).compacted

    def extents(self, topics: Sequence[str]) -> dict[str, list[Extent]]:
        """See kafka_range.Log."""
        return self._admin.extents(topics, committed=True)

    def at_time(self, partitions: Sequence[Partition], time_ms: int) -> dict[Partition, Offset]:
        """See kafka_range.Log."""
        return self._admin.at_time(partitions, time_ms)

    def first(self, partition: Partition, extent: Extent) -> tuple[int, str] | None:
        """See kafka_range.Log."""
        if self._probe is None:
            self._probe = self._end.enter_context(PositionProbe(self._settings, group=self._group))
        return self._probe.first(partition, extent)

    def topic_ids(self, topics: Sequence[str]) -> dict[str, str]:
        """Each topic's identity: one that was made again has another."""
        return self._admin.topic_ids(topics)
