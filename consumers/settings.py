"""Settings: one `staleproof.yaml`, checked before anything starts; every limit carries its unit in its name.

In flows a YAML file, the environment (`STALEPROOF_SOURCE__DSN=…` overrides `source.dsn`) and secret files (`*_file`);
out flows one frozen `Settings`, or one ConfigError that names the place and the remedy.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from cdc.errors import ConfigError
from invalidator.document import Document, YamlPath, nearest, parse_document, path_text
from invalidator.redis_url import Topology, single_urls

DEFAULT_PATH = Path("staleproof.yaml")
PATH_VARIABLE = "STALEPROOF_CONFIG"
PREFIX = "STALEPROOF_"

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,47}$")]
Port = Annotated[int, Field(ge=0, le=65535)]
"""0 = a free port, named in the log."""


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    base = (info.context or {}).get("directory")
    return base / path if base else path


def _readable(path: Path, info: ValidationInfo) -> Path:
    found = _beside_the_file(path, info)
    if info.context and not found.is_file():
        raise ValueError(f"there is no file {found}: correct the path")
    return found


FilePath = Annotated[Path, AfterValidator(_beside_the_file)]
"""A path relative to the settings file; absolute once loaded from there."""

ExistingFile = Annotated[Path, AfterValidator(_readable)]
"""A FilePath that must be there when the settings are loaded: certificates and keys."""


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
    ddl_interval_ms: Annotated[int, Field(ge=100, le=60_000)] = 1_000
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
    ssl_ca_location: ExistingFile | None = None
    ssl_certificate_location: ExistingFile | None = None
    ssl_key_location: ExistingFile | None = None
    request_timeout_seconds: Annotated[int, Field(ge=1, le=300)] = 10

    @model_validator(mode="after")
    def _sasl_is_whole(self) -> KafkaSettings:
        fields = (self.sasl_mechanism, self.sasl_username, self.sasl_password)
        if self.security_protocol.startswith("SASL") and None in fields:
            raise ValueError(
                f"security_protocol {self.security_protocol} needs sasl_mechanism, sasl_username and sasl_password: "
                "add them, or use PLAINTEXT or SSL"
            )
        if not self.security_protocol.startswith("SASL") and any(field is not None for field in fields):
            raise ValueError(
                f"sasl_* has no effect with security_protocol {self.security_protocol}: use SASL_SSL, or remove them"
            )
        return self


class RegionSettings(Section):
    """One region's Redis. `prefix` keeps its keys apart from other applications'.

    `url` names the server; by `host:port,host:port` some nodes of a Cluster, or the Sentinels of `sentinel_master`.
    `reader_username` is the user of the applications, which `check` tries: this process never logs in as it.
    """

    url: SecretStr
    topology: Topology = Topology.SINGLE
    sentinel_master: Annotated[str, StringConstraints(min_length=1)] | None = None
    sentinel_username: str | None = None
    sentinel_password: SecretStr | None = None
    username: str | None = None
    password: SecretStr | None = None
    reader_username: Annotated[str, StringConstraints(pattern=r"^[^\s]+$")] | None = None
    tls_ca_location: ExistingFile | None = None
    tls_certificate_location: ExistingFile | None = None
    tls_key_location: ExistingFile | None = None
    prefix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,32}$")] = "sp"
    shards: Annotated[int, Field(ge=1, le=4_096)] = 1
    stripes: Annotated[int, Field(ge=256, le=65_536)] = 65_536
    timeout_ms: Annotated[int, Field(ge=10, le=60_000)] = 1_000

    @field_validator("url")
    @classmethod
    def _url_names_a_redis(cls, url: SecretStr) -> SecretStr:
        # Never quotes the URL, not even a piece: with an unescaped / or @ the "host" is a piece of the password.
        try:
            good = all(map(_names_a_redis, single_urls(url.get_secret_value())))
        except ValueError:
            good = False
        if not good:
            raise ValueError(
                "is not a Redis URL: write redis://host:6379/0, rediss:// for TLS or unix:///path, "
                "and percent-encode special characters of a password"
            )
        return url

    @model_validator(mode="after")
    def _topology_is_whole(self) -> RegionSettings:
        url, topology = self.url.get_secret_value(), self.topology
        sentinel = (self.sentinel_master, self.sentinel_username, self.sentinel_password)
        if topology is Topology.SINGLE and len(single_urls(url)) > 1:
            raise ValueError("url names several servers: set topology to cluster or sentinel, or name one")
        if topology is not Topology.SINGLE and url.startswith("unix:"):
            raise ValueError(f"topology {topology.value} is reached over the network: write redis:// or rediss://")
        if topology is Topology.SENTINEL and self.sentinel_master is None:
            raise ValueError("topology sentinel needs the primary's name: add sentinel_master")
        if topology is not Topology.SENTINEL and any(value is not None for value in sentinel):
            raise ValueError("sentinel_* has no effect: set topology: sentinel, or remove them")
        if topology is Topology.CLUSTER and urlsplit(url).path.strip("/") not in ("", "0"):
            raise ValueError("a cluster has database 0 only: end url with /0, and use prefix to keep keys apart")
        return self


def _names_a_redis(url: str) -> bool:
    """Raises ValueError too."""
    parts = urlsplit(url)
    whole = bool(parts.path if parts.scheme == "unix" else parts.hostname) and parts.port != 0
    return whole and parts.scheme in ("redis", "rediss", "unix")


class CaptureSettings(Section):
    """Limits of `staleproof capture`."""

    inflight_records: Annotated[int, Field(ge=1_000, le=1_000_000)] = 50_000
    stalled_after_seconds: Annotated[int, Field(ge=1, le=600)] = 15
    http_port: Port = 0
    http_host: str = "127.0.0.1"


class WorkerSettings(Section):
    """Limits of `staleproof invalidate`. A batch of 250 keys holds Redis for about a millisecond."""

    batch_records: Annotated[int, Field(ge=1, le=10_000)] = 1_000
    script_keys: Annotated[int, Field(ge=1, le=2_000)] = 250
    mass_change_keys: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    queued_kilobytes: Annotated[int, Field(ge=256, le=1_000_000)] = 16_384
    stalled_after_seconds: Annotated[int, Field(ge=1, le=600)] = 15
    http_port: Port = 0
    http_host: str = "127.0.0.1"


class Settings(Section):
    """Everything that a process needs to know. `views` is a path, relative to the settings file."""

    source: SourceSettings
    kafka: KafkaSettings
    regions: Annotated[dict[Name, RegionSettings], Field(min_length=1)]
    views: Annotated[FilePath, Field(validate_default=True)] = Path("views.yaml")
    capture: CaptureSettings = CaptureSettings()
    worker: WorkerSettings = WorkerSettings()

    @model_validator(mode="after")
    def _regions_do_not_share_keys(self) -> Settings:
        places = [(r.url.get_secret_value(), r.sentinel_master, r.prefix) for r in self.regions.values()]
        if len(set(places)) != len(places):
            raise ValueError("two regions have the same url and prefix: give each region its own Redis or prefix")
        return self


def load_settings(path: Path | None) -> Settings:
    """The settings of `path`, else of STALEPROOF_CONFIG, else of `staleproof.yaml`. Raises ConfigError."""
    return read_settings(settings_path(path, os.environ), os.environ)


def settings_path(path: Path | None, environment: Mapping[str, str]) -> Path:
    """Where the settings are: the option, else the environment, else the default."""
    return path or Path(environment.get(PATH_VARIABLE) or DEFAULT_PATH)


def read_settings(path: Path, environment: Mapping[str, str]) -> Settings:
    """The settings of a file under an environment's overrides. Raises ConfigError."""
    draft = _Draft(parse_document(_text(path), place=str(path)), path.parent.absolute())
    draft.override(environment)
    draft.fetch_secrets()
    try:
        return Settings.model_validate(draft.data, context={"directory": draft.directory})
    except ValidationError as error:
        raise draft.complaint(error) from None  # pydantic's own text quotes the values


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"there is no settings file {path}: run `staleproof init` to write one, or name yours with --config"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError(f"the settings file {path} cannot be read: {reason}") from None


@dataclass(frozen=True, slots=True)
class _Override:
    variable: str
    path: YamlPath
    value: str


class _Draft:
    """Settings on their way: the file's data, changed by the environment and by secret files, and who said what."""

    def __init__(self, document: Document, directory: Path) -> None:
        self.directory = directory
        self._document = document
        self._variables: dict[YamlPath, str] = {}
        if document.data is not None and not isinstance(document.data, dict):
            raise document.error(
                (), "should be a mapping of source, kafka, regions: run `staleproof init` for an example"
            )
        self.data: dict[str, Any] = document.data or {}

    def override(self, environment: Mapping[str, str]) -> None:
        """Lay the environment's values over the file's; `x_file` replaces `x` and the other way round."""
        overrides = [
            self._override(variable, value) for variable, value in sorted(environment.items()) if is_override(variable)
        ]
        said = {override.path: override.variable for override in overrides}
        for override in overrides:
            *parents, name = override.path
            twin = (*parents, _twin(str(name)))
            if twin in said:
                raise ConfigError(f"{override.variable} and {said[twin]} say the same: unset one of them")
            section = self._section(tuple(parents), override.variable)
            section.pop(_twin(str(name)), None)
            section[str(name)] = override.value
            self._variables[override.path] = override.variable

    def fetch_secrets(self) -> None:
        """Replace every `x_file` by `x`, the stripped content of that file."""
        for path, section, name in list(_secrets(Settings, self.data, ())):
            file_path = (*path, f"{name}_file")
            file = section.pop(f"{name}_file", None)
            if file is None:
                continue
            if name in section:
                raise self.error(file_path, f"{name} is given too: keep one of {name} and {name}_file")
            section[name] = self._secret(file_path, file)

    def complaint(self, error: ValidationError) -> ConfigError:
        """The first complaint in the order of the file, and how many follow.

        Unknown names come first: a name that is missing is usually one that was misspelt.
        """
        details = error.errors(include_url=False)
        first = min(details, key=lambda d: (d["type"] != "extra_forbidden", self._document.line(_path(d))))
        more = f" (and {len(details) - 1} more to mend)" if len(details) > 1 else ""
        return self.error(_path(first), _explanation(first) + more)

    def error(self, path: YamlPath, complaint: str) -> ConfigError:
        """The complaint at its place: a line of the file, or a variable."""
        variable = self._variables.get(path)
        if variable is None:
            return self._document.error(path, complaint)
        return ConfigError(f"environment variable {variable}: {path_text(path)}: {complaint}")

    def _override(self, variable: str, value: str) -> _Override:
        """`STALEPROOF_REGIONS__EU_WEST__URL` means `regions.eu-west.url` where the file knows `eu-west`."""
        path: tuple[str, ...] = ()
        here: Any = self.data
        for word in variable.removeprefix(PREFIX).lower().split("__"):
            names = here if isinstance(here, dict) else {}
            name = next((name for name in names if name.lower().replace("-", "_") == word), word)
            here = names.get(name)
            path = (*path, name)
        return _Override(variable, path, value)

    def _section(self, path: YamlPath, variable: str) -> dict[str, Any]:
        here = self.data
        for step in path:
            child = here.get(str(step))
            if child is None:
                child = here[str(step)] = {}
                self._variables.setdefault(path, variable)
            if not isinstance(child, dict):
                raise self._document.error(path, f"should be a mapping, as {variable} sets a value in it")
            here = child
        return here

    def _secret(self, path: YamlPath, file: object) -> str:
        if not isinstance(file, str):
            raise self.error(path, "should be the path of a file that holds the secret")
        place = self.directory / file
        try:
            secret = place.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise self.error(
                path, f"the secret file {place} cannot be read ({reason}): correct the path or its rights"
            ) from None
        if not secret:
            raise self.error(path, f"the secret file {place} is empty: write the secret into it")
        return secret


def is_override(variable: str) -> bool:
    """Whether this environment variable sets a setting. Sections are set with a double underscore; others are not."""
    name = variable.removeprefix(PREFIX)
    if variable in (name, PATH_VARIABLE):
        return False
    return "__" in name or name.lower() in Settings.model_fields


def _twin(name: str) -> str:
    return name.removesuffix("_file") if name.endswith("_file") else f"{name}_file"


def _secrets(model: type[BaseModel], data: Any, path: YamlPath) -> Iterator[tuple[YamlPath, dict[str, Any], str]]:
    """Each place where a secret belongs: path and data of its section, and its name."""
    if not isinstance(data, dict):
        return
    for name, annotation in ((name, info.annotation) for name, info in model.model_fields.items()):
        if _is_secret(annotation):
            yield path, data, name
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _secrets(annotation, data.get(name), (*path, name))
        elif get_origin(annotation) is dict and isinstance(data.get(name), dict):
            for key, child in data[name].items():
                yield from _secrets(get_args(annotation)[1], child, (*path, name, key))


_EXAMPLES = {
    "dsn": "dsn: postgresql://user@host:5432/database, or dsn_file",
    "bootstrap_servers": "bootstrap_servers: host:9092",
    "url": "url: redis://host:6379/0, or url_file",
    "name": "name: shop (it begins every topic)",
    "regions": "regions: {eu: {url: redis://host:6379/0}}",
}

_SHOWABLE = frozenset(
    {
        "int_parsing",
        "int_type",
        "int_from_float",
        "enum",
        "literal_error",
        "string_pattern_mismatch",
        "greater_than_equal",
        "less_than_equal",
    }
)
"""Kinds of complaint that only fields without secrets can cause; elsewhere the value is never quoted."""


def _path(detail: ErrorDetails) -> YamlPath:
    return tuple(step for step in detail["loc"] if step != "[key]")


def _explanation(detail: ErrorDetails) -> str:
    kind, name = detail["type"], str(detail["loc"][-1]) if detail["loc"] else ""
    if kind == "extra_forbidden":
        return f"unknown setting; {nearest(name, _known(_path(detail)[:-1]))}"
    if kind == "missing":
        return f"is missing: add `{_EXAMPLES.get(name, name + ':')}`"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return "should be a mapping of names to values: run `staleproof init` for an example"
    if kind == "too_short":
        return f"should not be empty: add `{_EXAMPLES.get(name, name)}`"
    if kind == "string_type":
        return "should be text: put the value in quotes"
    message = (
        detail["msg"].removeprefix("Value error, ").replace("Input should", "should").replace("String should", "should")
    )
    return message + (f", not {detail['input']!r:.60}" if kind in _SHOWABLE else "")


def _known(path: YamlPath) -> list[str]:
    """The names that a section knows, secret files included."""
    model: type[BaseModel] = Settings
    steps = iter(path)
    for step in steps:
        annotation = model.model_fields[str(step)].annotation
        if get_origin(annotation) is dict:
            next(steps, None)  # the region's own name
            annotation = get_args(annotation)[1]
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    secrets = [name for name, info in model.model_fields.items() if _is_secret(info.annotation)]
    return [*model.model_fields, *(f"{name}_file" for name in secrets)]


def _is_secret(annotation: Any) -> bool:
    return annotation is SecretStr or SecretStr in get_args(annotation)
