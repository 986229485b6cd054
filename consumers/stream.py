"""What a worker reads: records of partitions that it chooses. Types only; `kafka.py` and the tests provide them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

Partition = tuple[str, int]


class Record(msgspec.Struct, frozen=True, gc=False):
    """One Kafka record. `header` is the connector's; `leader_epoch` -1 when the broker did not say."""

    topic: str
    partition: int
    offset: int
    leader_epoch: int
    key: bytes | None
    value: bytes | None
    header: bytes | None


class Stream(Protocol):
    """Records of partitions that the caller chooses, from offsets that the caller knows."""

    def assign(self, offsets: dict[Partition, int]) -> None:
        """Read exactly these partitions from these offsets."""

    def fetch(self, records_max: int, timeout_seconds: float) -> Sequence[Record]:
        """Records that are there, or the first to come. Raises TransientError, GapError."""

    def bounds(self, partition: Partition) -> tuple[int, int]:
        """First offset that exists and end offset."""

    def partitions(self, topics: Iterable[str]) -> list[Partition]:
        """Partitions of those topics that exist."""

    def topic_ids(self, topics: Iterable[str]) -> dict[str, str]:
        """Identity (32 hexadecimal digits) of those topics that exist; one made again has another."""

    def commit(self, offsets: dict[Partition, int]) -> None:
        """Tell Kafka, for lag displays only."""
