"""The same servers as infra/stack.py's, as containers that testcontainers starts.

    with start_servers(Path(".staleproof/containers"), ["eu", "us"]) as servers:
        servers.postgres_dsn, servers.kafka_bootstrap, servers.redis_urls["eu"], servers.processes["redis-eu"].pause()

Images are the official ones, or those named by STALEPROOF_IMAGE_POSTGRES, _KAFKA and _REDIS, or ones built from Debian
packages where no registry can be reached (infra/images). Ports are chosen here and not by Docker, since Docker would
choose others when a container is started again; they are published on loopback only.
"""

import itertools
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

import docker
from testcontainers.community.postgres import PostgresContainer
from testcontainers.community.redis import RedisContainer
from testcontainers.core.config import ConnectionMode, testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient, get_docker_host
from testcontainers.core.waiting_utils import WaitStrategy, WaitStrategyTarget

from infra import broker, cache, container_warden, postgres, warden
from infra.container_handle import ContainerHandle
from infra.images import engine, roles
from infra.prerequisites import MissingPrerequisite
from infra.processes import Warden, choose_ports
from infra.servers import Servers
from infra.warden import Identity

POSTGRES_PORT: Final = 5432
REDIS_PORT: Final = 6379
KAFKA_CONTROLLER_PORT: Final = 9093

# Every image of PostgreSQL knows this one; it sorts by code point, as the stack's builtin locale (17 and newer) does.
LOCALE: Final = "--encoding=UTF8 --locale=C.UTF-8"
PASSWORD: Final = "postgres"  # noqa: S105  # PostgresContainer insists on one; `trust` never asks for it

# Published on loopback only, but clients reach the server through Docker's network: they are not local to it.
REDIS_SETTINGS: Final[Mapping[str, str]] = {"protected-mode": "no", "enable-debug-command": "yes"}

_serial = itertools.count()


def start_servers(
    directory: Path,
    regions: Sequence[str] = cache.REGIONS,
    *,
    images: Mapping[str, str] | None = None,
) -> AbstractContextManager[Servers]:
    """Start every server. `images` names those for `postgres`, `kafka` and `redis`; logs are left in `directory`."""
    return ContainerServers.start(directory, regions, images=images)


def unavailable(images: Mapping[str, str] | None = None) -> str | None:
    """Return why containers can't be used here, None when they can."""
    complaint = engine.absent()
    if complaint is not None:
        return f"{complaint}: start Docker Engine, or run `python -m infra.images up`"
    if not _is_local():
        return "Docker Engine is not on this machine, or this is a container: servers would be out of reach on loopback"
    with closing(engine.connect()) as client:
        try:
            for role in roles.ROLES.values():
                roles.choose(client, role, images or {})
        except MissingPrerequisite as error:
            return str(error)
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainerServers:
    """Running containers. Whatever ends their owner removes them: `stop`, leaving `with`, an exit, kill -9."""

    directory: Path
    postgres_dsn: str
    kafka_bootstrap: str
    redis_urls: Mapping[str, str]
    ports: Mapping[str, int]
    processes: Mapping[str, ContainerHandle]
    images: Mapping[str, str]
    """Role (`postgres`, `kafka`, `redis`) -> the image that plays it."""
    start_seconds: Mapping[str, float]
    """Name of a server -> how long it took until it answered; they start side by side."""
    _close: Callable[[], None] = field(repr=False)

    @classmethod
    def start(
        cls,
        directory: Path,
        regions: Sequence[str] = cache.REGIONS,
        *,
        images: Mapping[str, str] | None = None,
        postgres_settings: Mapping[str, str] | None = None,
        kafka_settings: Mapping[str, str] | None = None,
        redis_settings: Mapping[str, str] | None = None,
    ) -> Self:
        """Start every server, in parallel, with empty data, and wait until each answers.

        Settings overrule ours, name by name. Raises MissingPrerequisite without a Docker Engine or an image, and
        StackError when a server does not start (nothing is left running then).
        """
        with ExitStack() as undo:
            with closing(_client()) as client:
                remove_orphans(client)
                chosen = {role.name: roles.choose(client, role, images or {}) for role in roles.ROLES.values()}
            (directory / "logs").mkdir(parents=True, exist_ok=True)
            owner = owner_text()
            undo.enter_context(_guarded(directory, owner))
            ports = choose_ports(["postgres", "kafka", *map(cache.process_name, regions)], {})
            with _without_ryuk():
                labels = {container_warden.LABEL: owner}
                handles = [
                    _postgres(chosen["postgres"], labels, ports["postgres"], postgres_settings or {}),
                    _kafka(chosen["kafka"], labels, ports["kafka"], kafka_settings or {}),
                    *(
                        _redis(chosen["redis"], labels, region, ports[cache.process_name(region)], redis_settings or {})
                        for region in regions
                    ),
                ]
                undo.callback(_remove, handles, directory)
                seconds = _create(handles)
            return cls(
                directory=directory,
                postgres_dsn=postgres.dsn(ports["postgres"]),
                kafka_bootstrap=broker.bootstrap(ports["kafka"]),
                redis_urls=MappingProxyType({name: cache.url(ports[cache.process_name(name)]) for name in regions}),
                ports=MappingProxyType(ports),
                processes=MappingProxyType({handle.name: handle for handle in handles}),
                images=MappingProxyType(chosen),
                start_seconds=MappingProxyType(seconds),
                _close=undo.pop_all().close,
            )

    def stop(self) -> None:
        """Remove every container; a second call does nothing."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def remove_orphans(client: docker.DockerClient) -> int:
    """Remove containers whose owner, on this machine, is gone: a warden that could not do it; return how many."""
    listed = client.containers.list(all=True, filters={"label": container_warden.LABEL}, ignore_removed=True)
    owners = {container.labels[container_warden.LABEL] for container in listed}
    return sum(container_warden.remove(client, owner) for owner in owners if is_gone(owner))


def is_gone(owner: str) -> bool:
    """Tell whether the owner in a label was a process of this machine that runs no more."""
    host, boot, pid, ticks, _serial = owner.split("/")
    if host != socket.gethostname():
        return False
    return boot != _boot_id() or not warden.is_alive(Identity(int(pid), int(ticks)))


def owner_text() -> str:
    """Return a new owner that is this process: its machine, boot, pid and start time, and a number."""
    me = warden.identify(os.getpid())
    assert me is not None
    return f"{socket.gethostname()}/{_boot_id()}/{me.pid}/{me.started_ticks}/{next(_serial)}"


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _client() -> docker.DockerClient:
    complaint = engine.absent()
    if complaint is not None:
        raise MissingPrerequisite(f"{complaint}: start Docker Engine, or run `python -m infra.images up`.")
    return engine.connect()


def _is_local() -> bool:
    """Tell whether what Docker Engine publishes on loopback is published on ours."""
    client = DockerClient()
    with closing(client.client):
        if client.client.info()["Name"] == socket.gethostname():
            return True  # whatever testcontainers takes this machine for: sandboxes look like containers
        return client.get_connection_mode() is ConnectionMode.docker_host and client.host() == "localhost"


@contextmanager
def _guarded(directory: Path, owner: str) -> Iterator[None]:
    """Have a warden that removes this owner's containers if we can't."""
    program = (sys.executable, "-P", container_warden.__file__, owner, get_docker_host() or "")
    guard = Warden(log=directory / "logs" / "warden.log", program=program)
    try:
        yield
        os.write(guard.write_end, container_warden.DONE)
    finally:
        guard.close()


_ryuk_lock = threading.Lock()


@contextmanager
def _without_ryuk() -> Iterator[None]:
    """Do without testcontainers' reaper while our servers start: our warden does its work. The switch is global."""
    with _ryuk_lock:
        before = testcontainers_config.ryuk_disabled
        testcontainers_config.ryuk_disabled = True
        try:
            yield
        finally:
            testcontainers_config.ryuk_disabled = before


# testcontainers' own waiting for PostgreSQL and Redis goes on to its limit when the server has ended long ago, and asks
# once a second. ContainerHandle asks often, from where the clients will be, and sees the end.


class _Postgres(PostgresContainer):
    def _connect(self) -> None:
        pass


class _AskedByHandle(WaitStrategy):
    def wait_until_ready(self, container: WaitStrategyTarget) -> None:
        pass


def _postgres(image: str, labels: Mapping[str, str], port: int, extra: Mapping[str, str]) -> ContainerHandle:
    values = {**postgres.SETTINGS, **postgres.FAST_SETTINGS, **extra}
    options = [word for name, value in values.items() for word in ("-c", f"{name}={value}")]
    container = _Postgres(
        image, username=postgres.SUPERUSER, password=PASSWORD, dbname=postgres.DATABASE, labels=dict(labels)
    )
    container.with_envs(POSTGRES_HOST_AUTH_METHOD="trust", POSTGRES_INITDB_ARGS=LOCALE)
    container.with_command(["postgres", *options])
    _publish(container, POSTGRES_PORT, port)
    return ContainerHandle("postgres", container, partial(postgres.ask, port))


def _kafka(image: str, labels: Mapping[str, str], port: int, extra: Mapping[str, str]) -> ContainerHandle:
    # Not testcontainers' KafkaContainer: it drives Confluent's image by paths inside of it. The broker listens on the
    # published port, so that the address which it tells its clients holds inside and outside.
    values = {
        **broker.SETTINGS,
        "listeners": f"PLAINTEXT://:{port},CONTROLLER://:{KAFKA_CONTROLLER_PORT}",
        "advertised.listeners": f"PLAINTEXT://{broker.bootstrap(port)}",
        "controller.quorum.voters": f"{broker.SETTINGS['node.id']}@127.0.0.1:{KAFKA_CONTROLLER_PORT}",
        **extra,
    }
    container = DockerContainer(image, labels=dict(labels))
    container.with_envs(**{f"KAFKA_{name.upper().replace('.', '_')}": value for name, value in values.items()})
    container.with_envs(
        KAFKA_HEAP_OPTS=f"-Xms{broker.HEAP_MB}m -Xmx{broker.HEAP_MB}m",
        KAFKA_JVM_PERFORMANCE_OPTS=" ".join(broker.JAVA_OPTIONS),
    )
    _publish(container, port, port)
    return ContainerHandle("kafka", container, partial(broker.ask, port))


def _redis(image: str, labels: Mapping[str, str], region: str, port: int, extra: Mapping[str, str]) -> ContainerHandle:
    container = RedisContainer(image, port=REDIS_PORT, labels=dict(labels)).waiting_for(_AskedByHandle())
    values = {**cache.SETTINGS, **REDIS_SETTINGS, **extra}
    container.with_command(list(cache.server_command(Path("redis-server"), values)))
    _publish(container, REDIS_PORT, port)
    return ContainerHandle(cache.process_name(region), container, partial(cache.ask, port))


def _publish(container: DockerContainer, inside: int, port: int) -> None:
    # testcontainers' own with_bind_ports publishes on every address of the machine; Docker's client takes a pair.
    container.ports = {str(inside): ("127.0.0.1", port)}  # type: ignore[dict-item]


def _create(handles: Sequence[ContainerHandle]) -> dict[str, float]:
    def create(handle: ContainerHandle) -> float:
        began = time.monotonic()
        handle.create()
        return time.monotonic() - began

    with ThreadPoolExecutor(len(handles)) as pool:
        return dict(zip((handle.name for handle in handles), pool.map(create, handles), strict=True))


def _remove(handles: Sequence[ContainerHandle], directory: Path) -> None:
    with ThreadPoolExecutor(len(handles)) as pool:
        list(pool.map(lambda handle: handle.remove(directory / "logs" / f"{handle.name}.log"), handles))
