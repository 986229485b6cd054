"""The local Kafka: one process that is broker and controller (KRaft), its files, and how it is asked."""

import base64
import signal
import socket
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from infra.processes import NotReady, Server, StackError

VERSION: Final = "4.3.1"
HEAP_MB: Final = 320

# The serial collector: with a heap this small the others only cost threads and start time. The first compiler only:
# the second one takes more than a processor for the first minute, which is longer than most of our brokers live.
JAVA_OPTIONS: Final = ("-XX:+UseSerialGC", "-XX:+ExitOnOutOfMemoryError", "-XX:TieredStopAtLevel=1")

# infra/compose.yaml repeats these; tests/unit/infra/test_compose.py keeps the two equal.
SETTINGS: Final[Mapping[str, str]] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "PLAINTEXT",
    # A mistyped topic must be an error, and a captured one is created with the partitions that its owner chose.
    "auto.create.topics.enable": "false",
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",  # 50, the default, make the first consumer wait
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    # A broker that was killed may register again only when its last session has ended: 9 s by default.
    "broker.session.timeout.ms": "4000",
    "broker.heartbeat.interval.ms": "1000",
    # Groups form at once, and a killed member's partitions move within seconds instead of 45.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "3000",
    "group.consumer.min.heartbeat.interval.ms": "500",
    "group.consumer.heartbeat.interval.ms": "500",
    "group.consumer.min.session.timeout.ms": "3000",
    "group.consumer.session.timeout.ms": "6000",
}

CONNECT_LIMIT_SECONDS: Final = 1.0
ASK_LIMIT_MS: Final = 5_000
FORMAT_LIMIT_SECONDS: Final = 60.0

_LOGGING: Final = """\
# Kafka's log goes to its standard output, which is the log file.
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %m (%c)%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
"""


def settings(*, data: Path, port: int, controller_port: int, extra: Mapping[str, str]) -> dict[str, str]:
    """Return every setting of the native broker; `extra` wins."""
    listeners = f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}"
    return {
        **SETTINGS,
        "listeners": listeners,
        "advertised.listeners": listeners,
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller_port}",
        "log.dirs": str(data),
        **extra,
    }


def config_text(values: Mapping[str, str]) -> str:
    """Return a Java properties file."""
    return "".join(f"{name}={value.replace(chr(92), chr(92) * 2)}\n" for name, value in values.items())


def java_command(*, java: Path, libs: Path, directory: Path, options: tuple[str, ...]) -> tuple[str, ...]:
    """Return the start of every call: the program, its logging and its class path."""
    logging = f"-Dlog4j2.configurationFile={directory / 'log4j2.properties'}"
    return (str(java), *options, "-Djava.awt.headless=true", logging, "-cp", f"{libs}/*")


def broker_command(*, java: Path, libs: Path, directory: Path) -> tuple[str, ...]:
    """Return the broker's command line."""
    options = (f"-Xms{HEAP_MB}m", f"-Xmx{HEAP_MB}m", *JAVA_OPTIONS)
    start = java_command(java=java, libs=libs, directory=directory, options=options)
    return (*start, "kafka.Kafka", str(directory / "server.properties"))


def format_command(*, java: Path, libs: Path, directory: Path, cluster_id: str) -> tuple[str, ...]:
    """Return the call that formats the broker's data directory."""
    options = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
    start = java_command(java=java, libs=libs, directory=directory, options=options)
    return (
        *(*start, "kafka.tools.StorageTool", "format", "--standalone"),
        *("--cluster-id", cluster_id, "--config", str(directory / "server.properties")),
    )


def bootstrap(port: int) -> str:
    """Return the broker's address."""
    return f"127.0.0.1:{port}"


def prepare(*, java: Path, libs: Path, directory: Path, log: Path, values: Mapping[str, str]) -> None:
    """Write the broker's files on every start and format its data directory on the first."""
    directory.mkdir(exist_ok=True)
    (directory / "log4j2.properties").write_text(_LOGGING, encoding="utf-8")
    (directory / "server.properties").write_text(config_text(values), encoding="utf-8")
    if (directory / "data" / "meta.properties").exists():
        return
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode("ascii").rstrip("=").replace("-", "x")
    with log.open("ab") as sink:
        done = subprocess.run(
            format_command(java=java, libs=libs, directory=directory, cluster_id=cluster_id),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            timeout=FORMAT_LIMIT_SECONDS,
            check=False,
        )
    if done.returncode != 0:
        raise StackError(f"Kafka's StorageTool ended with status {done.returncode}: see {log}")


def server(*, java: Path, libs: Path, directory: Path, log: Path, port: int) -> Server:
    """Describe the broker on prepared data."""
    return Server(
        name="kafka",
        command=broker_command(java=java, libs=libs, directory=directory),
        directory=directory,
        log=log,
        ask=lambda: ask(port),
        stop_signal=signal.SIGTERM,
    )


def ask(port: int) -> None:
    """Ask for the cluster's metadata; NotReady until it lists a broker, which it does once the broker is unfenced."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=CONNECT_LIMIT_SECONDS):
            pass  # spares the client's own, slower, attempts while nothing listens
    except OSError as error:
        raise NotReady(str(error)) from error
    try:
        client = KafkaAdminClient(
            bootstrap_servers=bootstrap(port), bootstrap_timeout_ms=ASK_LIMIT_MS, request_timeout_ms=ASK_LIMIT_MS
        )
        try:
            brokers = client.describe_cluster()["brokers"]
        finally:
            client.close()
    except KafkaError as error:
        raise NotReady(f"{type(error).__name__}: {error}") from error
    if not brokers:
        raise NotReady("the metadata lists no broker yet")
