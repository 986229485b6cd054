"""Reading a fixed range of Kafka, outside of every group: a door to confluent-kafka beside kafka.py.

In flow the offsets of each partition; out flow its records in order, or a GapError where they are not there any more.
Nothing is committed and nobody's partitions move.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import confluent_kafka
from confluent_kafka import KafkaError, TopicPartition

from cdc.envelope import decode_header
from cdc.errors import BadRecord, GapError, TransientError
from consumers.kafka import asking, client_config, is_fault, record_of
from consumers.settings import KafkaSettings
from consumers.stream import Extent, Partition, Record

PROBED_RECORDS_MAX = 100
"""A place whose next so many records have no header that can be read tells no position."""

_PROBE_BYTES = 64 << 10
_PROBE_WAIT_MS = 10
"""The client asks for a place only once its question for more of the place before is answered."""

_POLL_SECONDS = 0.2


class RangeReader:
    """The committed records of `extents`, each partition in order. One thread uses it."""

    def __init__(
        self, settings: KafkaSettings, *, group: str, queued_kilobytes: int, extents: Mapping[Partition, Extent]
    ) -> None:
        self._extents = dict(extents)
        self.left = {place for place, extent in extents.items() if extent.begin < extent.end}
        """Partitions whose end is not reached."""
        self._consumer = _consumer(settings, group, {"queued.max.messages.kbytes": queued_kilobytes})
        self._consumer.assign([TopicPartition(*place, extents[place].begin) for place in self.left])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()

    def fetch(self, records_max: int, timeout_seconds: float) -> list[Record]:
        """Records that are there, or the first to come; none within the timeout, or where nothing is `left`.

        Raises TransientError, and GapError where the next record has expired or the log ends before the range.
        """
        with asking("what the range holds"):
            first = self._consumer.poll(timeout_seconds)
            if first is None:
                return []
            messages = (first, *self._consumer.consume(records_max - 1, 0))
        return [record for record in map(self._taken, messages) if record is not None]

    def _taken(self, message: Any) -> Record | None:
        place = (message.topic(), message.partition())
        error = message.error()
        if error is None or error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - the client's name for it
            end = self._extents[place].end
            offset = message.offset()
            if error is not None and offset < end:
                raise GapError(
                    f"{place[0]}/{place[1]} ends at {offset}, and its end was {end} when the range was fixed:"
                    " it was made again, or cut; remove the state file and ask for another range"
                )
            if place in self.left and offset + 1 >= end:
                self.left.discard(place)
                self._consumer.pause([TopicPartition(*place)])
            return record_of(message) if error is None and offset < end else None
        try:
            is_fault(message)  # raises what it means, unless the topic is not known yet
        except GapError as gap:
            raise GapError(f"{gap}: --allow-holes goes on behind it, or rebuild from the database") from gap
        return None


class PositionProbe:
    """Asks a partition for the position of a record, one at a time."""

    def __init__(self, settings: KafkaSettings, *, group: str) -> None:
        self._timeout_seconds = settings.request_timeout_seconds
        small = {"queued.min.messages": 1, "fetch.message.max.bytes": _PROBE_BYTES, "fetch.max.bytes": _PROBE_BYTES}
        soon = {"fetch.wait.max.ms": _PROBE_WAIT_MS, "fetch.queue.backoff.ms": _PROBE_WAIT_MS}
        self._consumer = _consumer(settings, group, small | {"message.max.bytes": _PROBE_BYTES} | soon)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._consumer.close()

    def first(self, partition: Partition, extent: Extent) -> tuple[int, str] | None:
        """Offset and position of the first record of the extent whose header can be read; None where none is near.

        Raises TransientError.
        """
        deadline = time.monotonic() + self._timeout_seconds
        place = f"{partition[0]}/{partition[1]}"
        with asking(f"a record of {place}"):
            self._consumer.assign([TopicPartition(*partition, extent.begin)])
            for _ in range(PROBED_RECORDS_MAX):
                message = self._next(deadline)
                if message is None:
                    raise TransientError(f"cannot read {place} at {extent.begin}: no answer for the request timeout")
                if message.error() is not None or message.offset() >= extent.end:
                    return None
                with suppress(BadRecord):  # the next one may tell
                    return message.offset(), decode_header(record_of(message).header).position
        return None

    def _next(self, deadline: float) -> Any | None:
        while time.monotonic() < deadline:
            message = self._consumer.poll(_POLL_SECONDS)
            if message is not None and (message.error() is None or is_end(message) or is_fault(message)):
                return message
        return None


def is_end(message: Any) -> bool:
    """Whether this only says that a partition has no more records."""
    return bool(message.error().code() == KafkaError._PARTITION_EOF)  # noqa: SLF001 - the client's name for it


def _consumer(settings: KafkaSettings, group: str, options: dict[str, Any]) -> confluent_kafka.Consumer:
    return confluent_kafka.Consumer(
        client_config(settings)
        | {
            "group.id": group,  # required by the client; nothing is committed or subscribed
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
        }
        | options
    )
