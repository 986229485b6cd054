"""The real servers that a test runs on, whatever runs them.

Processes (infra/stack.py) or containers (infra/containers.py): tests/integration/test_servers.py holds both to this.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class ServerHandle(Protocol):
    """One server: what can be done to it from outside. A restarted one keeps its port and its data."""

    @property
    def name(self) -> str:
        """`postgres`, `kafka` or `redis-<region>`."""

    def is_alive(self) -> bool:
        """Tell whether it exists (a paused one does)."""

    def start(self) -> None:
        """Start it after `stop` or `kill`, and wait until it answers."""

    def stop(self) -> None:
        """Stop it in order, so that it saves what it saves; one that does not run is left alone."""

    def kill(self) -> None:
        """Kill -9, paused or not, and wait until it is gone; one that does not run is left alone."""

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers."""

    def resume(self) -> None:
        """Let a paused one go on; one that is not paused is left alone."""

    def restart(self) -> None:
        """`stop`, then `start`."""

    def wait_ready(self) -> None:
        """Ask until it answers; StackError when it ends or its limit passes."""


class Servers(Protocol):
    """PostgreSQL, Kafka and one Redis per region, on loopback, open to everybody on this machine."""

    @property
    def directory(self) -> Path:
        """Where logs are kept."""

    @property
    def postgres_dsn(self) -> str:
        """Superuser's libpq URI; the database is `app`."""

    @property
    def kafka_bootstrap(self) -> str:
        """The broker's address."""

    @property
    def redis_urls(self) -> Mapping[str, str]:
        """Region -> URL."""

    @property
    def ports(self) -> Mapping[str, int]:
        """Name of a server -> its loopback port."""

    @property
    def processes(self) -> Mapping[str, ServerHandle]:
        """Name of a server -> the handle on it."""
