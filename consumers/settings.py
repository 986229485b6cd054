"""Settings: one `staleproof.yaml`, checked before anything starts; every limit carries its unit in its name.

In flows a YAML file, the environment (`STALEPROOF_SOURCE__DSN=…` overrides `source.dsn`) and secret files (`*_file`);
out flows one frozen `Settings`, or one ConfigError that names the place and the remedy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,47}$")]
Port = Annotated[int, Field(ge=0, le=65535)]


class Section(BaseModel):
    """A part of the settings: frozen, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceSettings(Section):
    """The database that is captured. `name` prefixes every topic."""

    name: Name
    dsn: SecretStr
    publication: str = "staleproof"
    slot: str = "staleproof"
    heartbeat_interval_ms: Annotated[int, Field(ge=50, le=60_000)] = 250
    status_interval_ms: Annotated[int, Field(ge=100, le=20_000)] = 1_000
    connect_timeout_seconds: Annotated[int, Field(ge=1, le=300)] = 10

    @property
    def control_topic(self) -> str:
        """Heartbeats, epochs and raises; one partition."""
        return f"{self.name}.staleproof.control"

    @property
    def state_topic(self) -> str:
        """Capture's memory of its slot; compacted, one partition."""
        return f"{self.name}.staleproof.state"

    def topic(self, table: str) -> str:
        """The topic of `schema.table`."""
        return f"{self.name}.{table}"


class KafkaSettings(Section):
    """The brokers. SASL and TLS fields map to the clients' settings of the same names."""

    bootstrap_servers: str
    partitions: Annotated[int, Field(ge=1, le=1_000)] = 4
    replication_factor: Annotated[int, Field(ge=1, le=10)] = 1
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_ca_location: Path | None = None
    ssl_certificate_location: Path | None = None
    ssl_key_location: Path | None = None
    request_timeout_seconds: Annotated[int, Field(ge=1, le=300)] = 10


class RegionSettings(Section):
    """One region's Redis. `prefix` keeps its keys apart from other applications'."""

    url: SecretStr
    username: str | None = None
    password: SecretStr | None = None
    tls_ca_location: Path | None = None
    tls_certificate_location: Path | None = None
    tls_key_location: Path | None = None
    prefix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,32}$")] = "sp"
    shards: Annotated[int, Field(ge=1, le=4_096)] = 1
    stripes: Annotated[int, Field(ge=256, le=65_536)] = 65_536
    timeout_ms: Annotated[int, Field(ge=10, le=60_000)] = 1_000


class CaptureSettings(Section):
    """Limits of `staleproof capture`."""

    inflight_records: Annotated[int, Field(ge=1_000, le=1_000_000)] = 50_000
    http_port: Port = 0
    http_host: str = "127.0.0.1"


class WorkerSettings(Section):
    """Limits of `staleproof invalidate`. A batch of 250 keys holds Redis for about a millisecond."""

    batch_records: Annotated[int, Field(ge=1, le=10_000)] = 500
    script_keys: Annotated[int, Field(ge=1, le=2_000)] = 250
    queued_kilobytes: Annotated[int, Field(ge=256, le=1_000_000)] = 16_384
    drain_timeout_seconds: Annotated[int, Field(ge=1, le=60)] = 8
    stalled_after_seconds: Annotated[int, Field(ge=1, le=600)] = 15
    http_port: Port = 0
    http_host: str = "127.0.0.1"


class Settings(Section):
    """Everything that a process needs to know. `views` is a path, relative to the settings file."""

    source: SourceSettings
    kafka: KafkaSettings
    regions: Annotated[dict[Name, RegionSettings], Field(min_length=1)]
    views: Path = Path("views.yaml")
    capture: CaptureSettings = CaptureSettings()
    worker: WorkerSettings = WorkerSettings()

    @model_validator(mode="after")
    def _regions_do_not_share_keys(self) -> Settings:
        places = [(region.url.get_secret_value(), region.prefix) for region in self.regions.values()]
        if len(set(places)) != len(places):
            raise ValueError("two regions have the same url and prefix: give each region its own Redis or prefix")
        return self
