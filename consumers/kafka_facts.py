"""What Kafka says about itself: brokers, version, topics. Door: kafka-python, beside kafka_admin.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.errors import AuthorizationError, KafkaError, SaslAuthenticationFailedError, UnsupportedSaslMechanismError

from cdc.errors import ConfigError, TransientError
from consumers.settings import KafkaSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class KafkaFacts:
    """One cluster: how many brokers there are, the version they speak, and those of the asked topics that exist."""

    brokers: int
    version: str
    partitions: Mapping[str, int]
    """Topic to how many partitions it has."""
    compacted: frozenset[str]
    """Topics whose old records may be compacted away."""


def describe_cluster(settings: KafkaSettings, topics: Sequence[str] = ()) -> KafkaFacts:
    """Ask the cluster about itself and `topics`. Raises TransientError, or ConfigError where it refuses us."""
    with _admin(settings) as admin:
        cluster = admin.describe_cluster()
        brokers = cluster["brokers"]
        existing = sorted(set(topics) & set(admin.list_topics()))
        described = admin.describe_topics(existing) if existing else []
        partitions = {topic["name"]: len(topic["partitions"]) for topic in described}
        version = admin.get_broker_version_data(brokers[0]["broker_id"]).broker_version
        compacted = frozenset(
            name for name, policy in _cleanup_policies(admin, existing).items() if "compact" in policy
        )
    return KafkaFacts(
        brokers=len(brokers), version=".".join(map(str, version)), partitions=partitions, compacted=compacted
    )


@contextmanager
def _admin(settings: KafkaSettings) -> Iterator[Any]:
    place = f"Kafka at {settings.bootstrap_servers}"
    remedy = "start it, or correct kafka.bootstrap_servers or security_protocol"
    try:
        admin = KafkaAdminClient(**_client_options(settings))
        try:
            yield admin
        finally:
            admin.close()
    except (AuthorizationError, SaslAuthenticationFailedError, UnsupportedSaslMechanismError) as error:
        raise ConfigError(
            f"{place} refuses us ({type(error).__name__}): correct kafka.sasl_* or the cluster's ACLs"
        ) from None
    except KafkaError as error:
        wait = f"within {settings.request_timeout_seconds} s"
        raise TransientError(f"{place} cannot be reached {wait} ({type(error).__name__}): {remedy}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{place} cannot be asked ({type(error).__name__}): correct the kafka settings") from None


def _client_options(settings: KafkaSettings) -> dict[str, Any]:
    limit_ms = settings.request_timeout_seconds * 1_000
    password = settings.sasl_password
    return {
        "bootstrap_servers": settings.bootstrap_servers.split(","),
        "client_id": "staleproof",
        "request_timeout_ms": limit_ms,
        "bootstrap_timeout_ms": limit_ms,
        "security_protocol": settings.security_protocol,
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": None if password is None else password.get_secret_value(),
        "ssl_cafile": _text(settings.ssl_ca_location),
        "ssl_certfile": _text(settings.ssl_certificate_location),
        "ssl_keyfile": _text(settings.ssl_key_location),
    }


def _text(path: object) -> str | None:
    return None if path is None else str(path)


def _cleanup_policies(admin: Any, topics: Sequence[str]) -> dict[str, str]:
    if not topics:
        return {}
    asked = [ConfigResource(ConfigResourceType.TOPIC, topic, {"cleanup.policy": None}) for topic in topics]
    answered = admin.describe_configs(asked, config_filter="all")
    return {
        topic: str(values.get("cleanup.policy", {}).get("value", ""))
        for by_name in answered.values()
        for topic, values in by_name.items()
    }
