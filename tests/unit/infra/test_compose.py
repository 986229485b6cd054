"""compose.yaml and the native stack describe the same servers; each setting is compared, so that none can drift."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml

import infra
from infra import broker, cache, postgres, prerequisites
from infra.stack import DEFAULT_PORTS

HOME = Path(infra.__file__).parent
# What Docker's network demands, instead of what the native broker's `settings` adds for loopback.
DOCKER_ONLY = {
    "KAFKA_HEAP_OPTS",
    "KAFKA_LISTENERS",
    "KAFKA_ADVERTISED_LISTENERS",
    "KAFKA_CONTROLLER_QUORUM_VOTERS",
}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return yaml.safe_load((HOME / "compose.yaml").read_text(encoding="utf-8"))["services"]


def options(command: list[str]) -> dict[str, str]:
    return dict(zip(command[1::2], command[2::2], strict=True))


def test_it_has_the_same_servers(services):
    assert set(services) == {"postgres", "kafka", *map(cache.process_name, cache.REGIONS)}


def test_versions_are_the_native_ones(services):
    assert services["postgres"]["image"] == f"postgres:{prerequisites.POSTGRES_MAJOR}"
    assert services["kafka"]["image"] == f"apache/kafka:{broker.VERSION}"
    for region in cache.REGIONS:
        assert services[cache.process_name(region)]["image"] == cache.IMAGE


def test_the_pom_has_the_same_kafka():
    space = "{http://maven.apache.org/POM/4.0.0}"
    properties = ET.parse(prerequisites.POM).getroot().find(f"{space}properties")
    assert properties is not None
    assert properties.findtext(f"{space}kafka.version") == broker.VERSION


def test_ports_are_the_default_ones_on_loopback(services):
    inside = {"postgres": 5432, "kafka": DEFAULT_PORTS["kafka"]}
    for name, service in services.items():
        assert service["ports"] == [f"127.0.0.1:{DEFAULT_PORTS[name]}:{inside.get(name, 6379)}"]


def test_kafka_listens_and_is_advertised_on_the_published_port(services):
    environment = services["kafka"]["environment"]
    port, controller = DEFAULT_PORTS["kafka"], DEFAULT_PORTS["kafka-controller"]
    assert environment["KAFKA_LISTENERS"] == f"PLAINTEXT://:{port},CONTROLLER://:{controller}"
    assert environment["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://127.0.0.1:{port}"
    assert environment["KAFKA_CONTROLLER_QUORUM_VOTERS"] == f"{broker.SETTINGS['node.id']}@127.0.0.1:{controller}"


def test_postgres_settings_are_the_native_ones(services):
    service = services["postgres"]
    flags, values = service["command"][1::2], service["command"][2::2]
    assert set(flags) == {"-c"}
    assert dict(value.split("=", 1) for value in values) == postgres.SETTINGS
    assert service["environment"]["POSTGRES_DB"] == postgres.DATABASE
    assert service["environment"]["POSTGRES_INITDB_ARGS"].split() == list(postgres.LOCALE)


def test_kafka_settings_are_the_native_ones(services):
    environment = services["kafka"]["environment"]
    settings = {name: value for name, value in environment.items() if name not in DOCKER_ONLY}
    assert settings == {f"KAFKA_{name.upper().replace('.', '_')}": value for name, value in broker.SETTINGS.items()}
    assert environment["KAFKA_HEAP_OPTS"] == f"-Xms{broker.HEAP_MB}m -Xmx{broker.HEAP_MB}m"


@pytest.mark.parametrize("region", cache.REGIONS)
def test_redis_settings_are_the_native_ones(services, region):
    command = services[cache.process_name(region)]["command"]
    assert options(command) == {f"--{name}": value for name, value in cache.SETTINGS.items()}
