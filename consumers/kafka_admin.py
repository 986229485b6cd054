"""Kafka's control plane: the door to kafka-python. Topics, their identities and their extents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import msgspec
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient, OffsetSpec
from kafka.errors import (
    AuthorizationError,
    InvalidReplicationFactorError,
    InvalidTopicError,
    KafkaError,
    NoError,
    SaslAuthenticationFailedError,
    TopicAlreadyExistsError,
    for_code,
)
from kafka.protocol.consumer import IsolationLevel, OffsetForLeaderEpochRequest

from cdc.errors import ConfigError, TransientError
from cdc.events import Offset
from consumers.kafka import LARGEST_RECORD_BYTES
from consumers.settings import KafkaSettings
from consumers.stream import Extent, Partition

_SEVEN_DAYS_MS = 7 * 24 * 3600 * 1000

KEPT = {"cleanup.policy": "delete", "retention.ms": str(_SEVEN_DAYS_MS), "retention.bytes": "-1"}
"""A worker that was away longer than this finds a gap: data and control records must last equally long."""

COMPACTED = {"cleanup.policy": "compact", "segment.ms": "3600000", "min.cleanable.dirty.ratio": "0.1"}


_AskedTopic = OffsetForLeaderEpochRequest.OffsetForLeaderTopic


class Topic(msgspec.Struct, frozen=True):
    """A topic that must exist. `exact` refuses an existing one that has another number of partitions."""

    name: str
    partitions: int
    config: Mapping[str, str]
    exact: bool = False


class Admin:
    """One connection to the cluster. Every call ends within the request timeout, in an answer or in our error."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        with self._failures("cannot reach Kafka"):
            self._client = KafkaAdminClient(**_config(settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def ensure(self, topics: Sequence[Topic]) -> None:
        """Make the topics that are missing. Raises ConfigError when one cannot be as it must."""
        missing = self.missing([topic.name for topic in topics])
        if missing:
            self._create([topic for topic in topics if topic.name in missing])
        known = self._described([topic.name for topic in topics])
        for topic in topics:
            found = len(known[topic.name]["partitions"])
            if topic.exact and found != topic.partitions:
                raise ConfigError(
                    f"topic {topic.name} has {found} partitions and must have {topic.partitions}:"
                    " delete it, or choose another source.name"
                )

    def missing(self, topics: Sequence[str]) -> list[str]:
        """Those topics that are not there."""
        with self._failures("cannot list topics"):
            existing = set(self._client.list_topics())
        return [name for name in topics if name not in existing]

    def extents(self, topics: Sequence[str], *, committed: bool = False) -> dict[str, list[Extent]]:
        """What each partition holds now; list index = partition. `committed`: up to the first open transaction."""
        counts = {name: len(topic["partitions"]) for name, topic in self._described(topics).items()}
        places = [TopicPartition(name, p) for name, count in counts.items() for p in range(count)]
        begins = self._offsets(dict.fromkeys(places, OffsetSpec.EARLIEST))
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        ends = self._offsets(dict.fromkeys(places, OffsetSpec.LATEST), level)
        return {
            name: [
                Extent(Offset(begins[place].offset), Offset(ends[place].offset))
                for place in (TopicPartition(name, p) for p in range(count))
            ]
            for name, count in counts.items()
        }

    def at_time(self, partitions: Sequence[Partition], time_ms: int) -> dict[Partition, Offset]:
        """The first record of each partition that Kafka stamped at or after that time; none where there is none.

        Capture's clock gave the stamps, milliseconds since 1970.
        """
        found = self._offsets({TopicPartition(*partition): time_ms for partition in partitions})
        return {(tp.topic, tp.partition): Offset(place.offset) for tp, place in found.items() if place.offset >= 0}

    def topic_ids(self, topics: Sequence[str]) -> dict[str, str]:
        """Each topic's identity, which a topic of the same name made later does not have."""
        return {name: str(topic["topic_id"]) for name, topic in self._described(topics).items()}

    def epoch_ends(self, epochs: Mapping[Partition, int]) -> dict[Partition, Offset]:
        """Where the records of each partition's leader epoch, or of the last one before it, end now; -1: not known.

        A log that was cut by an unclean election ends them earlier than a reader of that epoch had come.
        """
        with self._failures("cannot tell whether logs were cut"):
            answer: dict[Partition, Offset] = self._client._manager.run(self._ask_epoch_ends, epochs)  # noqa: SLF001 - the client has no public call for this request
            return answer

    async def _ask_epoch_ends(self, epochs: Mapping[Partition, int]) -> dict[Partition, Offset]:
        client = self._client
        leaders = await client._async_get_leader_for_partitions({TopicPartition(*place) for place in epochs})  # noqa: SLF001 - as above
        ends = {}
        for leader, places in leaders.items():
            by_topic: dict[str, list[Any]] = {}
            for topic, partition in places:
                asked = _AskedTopic.OffsetForLeaderPartition(
                    partition=partition, current_leader_epoch=-1, leader_epoch=epochs[topic, partition]
                )
                by_topic.setdefault(topic, []).append(asked)
            topics = [_AskedTopic(topic=topic, partitions=asked) for topic, asked in by_topic.items()]
            request = OffsetForLeaderEpochRequest(replica_id=-1, topics=topics)
            response = await client._manager.send(request, node_id=leader)  # noqa: SLF001 - as above
            for told in response.topics:
                for part in told.partitions:
                    error = for_code(part.error_code)
                    if error is not NoError:
                        raise error(f"{told.topic}/{part.partition}")
                    ends[told.topic, part.partition] = Offset(part.end_offset)
        return ends

    def _create(self, topics: Sequence[Topic]) -> None:
        wanted = {
            topic.name: {
                "num_partitions": topic.partitions,
                "replication_factor": self._settings.replication_factor,
                "configs": {**topic.config, "max.message.bytes": str(LARGEST_RECORD_BYTES)},
            }
            for topic in topics
        }
        with self._failures("cannot create topics"):
            try:
                self._client.create_topics(wanted)
            except TopicAlreadyExistsError:  # another process was faster; the rest may be missing still
                for name, options in wanted.items():
                    self._create_one(name, options)
            timeout_ms = self._settings.request_timeout_seconds * 1000
            self._client.wait_for_topics(list(wanted), timeout_ms=timeout_ms)

    def _create_one(self, name: str, options: dict[str, Any]) -> None:
        try:
            self._client.create_topics({name: options})
        except TopicAlreadyExistsError:
            return

    def _described(self, topics: Sequence[str]) -> dict[str, dict[str, Any]]:
        with self._failures("cannot describe topics"):
            described = {topic["name"]: topic for topic in self._client.describe_topics(list(topics))}
        absent = [name for name in topics if not described.get(name, {}).get("partitions")]
        if absent:
            raise TransientError(f"topic {absent[0]} is not there, or has no leader yet")
        return described

    def _offsets(
        self, asked: Mapping[TopicPartition, int], level: IsolationLevel = IsolationLevel.READ_UNCOMMITTED
    ) -> dict[TopicPartition, Any]:
        with self._failures("cannot read offsets"):
            found: dict[TopicPartition, Any] = self._client.list_partition_offsets(asked, level)
            return found

    @contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        settings = self._settings
        where = f"{what} at {settings.bootstrap_servers} (kafka.bootstrap_servers)"
        try:
            yield
        except SaslAuthenticationFailedError as error:
            raise ConfigError(f"{where}: {error}; check kafka.sasl_* and kafka.ssl_*") from error
        except AuthorizationError as error:
            raise ConfigError(f"{where}: {error}; grant the user CREATE and DESCRIBE on the topics") from error
        except InvalidReplicationFactorError as error:
            raise ConfigError(f"{where}: {error}; lower kafka.replication_factor or add brokers") from error
        except InvalidTopicError as error:
            raise ConfigError(f"{where}: {error}; Kafka allows letters, digits, `.`, `_`, `-`: rename table") from error
        except (KafkaError, OSError) as error:
            raise TransientError(f"{where} within {settings.request_timeout_seconds} s: {error}") from error


def epoch_ends(settings: KafkaSettings, epochs: Mapping[Partition, int]) -> dict[Partition, Offset]:
    """Answer one question of `Admin.epoch_ends`, on a connection of its own."""
    with Admin(settings) as admin:
        return admin.epoch_ends(epochs)


def _config(settings: KafkaSettings) -> dict[str, Any]:
    timeout_ms = settings.request_timeout_seconds * 1000
    password = settings.sasl_password
    config = {
        "bootstrap_servers": settings.bootstrap_servers,
        "client_id": "staleproof",
        "request_timeout_ms": timeout_ms,
        "bootstrap_timeout_ms": timeout_ms,
        "reconnect_backoff_max_ms": 1_000,
        "security_protocol": settings.security_protocol,
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": None if password is None else password.get_secret_value(),
        "ssl_cafile": _path(settings.ssl_ca_location),
        "ssl_certfile": _path(settings.ssl_certificate_location),
        "ssl_keyfile": _path(settings.ssl_key_location),
    }
    return {name: value for name, value in config.items() if value is not None}


def _path(path: object | None) -> str | None:
    return None if path is None else str(path)
