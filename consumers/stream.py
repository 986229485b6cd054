"""What a worker reads: records of partitions that it chooses. Types only; `kafka.py` and the tests provide them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec

from cdc.events import Offset

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


class Place(msgspec.Struct, frozen=True):
    """Where to read on: the next offset, and the leader epoch of the record before it (-1: unknown).

    A broker that was elected without that record has given the offset to another one: its leader epoch tells.
    """

    offset: int
    leader_epoch: int = -1


class Extent(msgspec.Struct, frozen=True):
    """What a partition holds, or what of it is meant: offsets from `begin` up to, not including, `end`."""

    begin: Offset
    end: Offset


class Stream(Protocol):
    """Records of the partitions that this process owns, from places that it knows."""

    def owned(self) -> frozenset[Partition]:
        """The partitions that are this process's now; those of a group move between its members."""

    def moves(self) -> int:
        """How often partitions came or went: those that went and came back are read from nowhere until `assign`."""

    def assign(self, places: Mapping[Partition, Place]) -> None:
        """Read exactly these partitions, from these places."""

    def before_loss(self, settle: Callable[[], None]) -> None:
        """Call `settle` before partitions go to another member: what is under way must be answered first."""

    def fetch(self, records_max: int, timeout_seconds: float) -> Sequence[Record]:
        """Records that are there, or the first to come. Raises TransientError, GapError."""

    def bounds(self, partition: Partition) -> tuple[int, int]:
        """First offset that exists and end offset."""

    def cut(self, places: Mapping[Partition, Place]) -> frozenset[Partition]:
        """Those partitions that have lost records before their place, even where others have taken the offsets since.

        A place whose leader epoch is not known counts as whole. Raises TransientError.
        """

    def partitions(self, topics: Iterable[str]) -> list[Partition]:
        """Partitions of those topics that exist."""

    def topic_ids(self, topics: Iterable[str]) -> dict[str, str]:
        """Identity (32 hexadecimal digits) of those topics that exist; one made again has another."""

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Tell Kafka, for lag displays only."""
