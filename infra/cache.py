"""The local caches: one Redis (or Valkey) server per region, and how it is asked."""

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from infra.processes import NotReady, Server

REGIONS: Final = ("eu", "us", "ap")
IMAGE: Final = "redis:8"  # Docker only: the native server is whichever Redis or Valkey the machine has

# infra/compose.yaml repeats these; tests/unit/infra/test_compose.py keeps the two equal.
SETTINGS: Final[Mapping[str, str]] = {
    "save": "",  # a cache: nothing is written while it runs ...
    "appendonly": "no",
    "shutdown-on-sigterm": "save",  # ... but an orderly restart keeps its data, and a kill falls back to the last one
    "maxmemory-policy": "noeviction",
    "enable-debug-command": "local",  # fault tests use DEBUG SLEEP and the like; Docker's clients are not local
}

ASK_LIMIT_SECONDS: Final = 2.0


def settings(*, directory: Path, port: int, extra: Mapping[str, str]) -> dict[str, str]:
    """Return every setting of a native server; `extra` wins (maxmemory, appendonly, ...)."""
    place = {"bind": "127.0.0.1", "port": str(port), "dir": str(directory), "daemonize": "no"}
    return {**SETTINGS, **place, **extra}


def server_command(program: Path, values: Mapping[str, str]) -> tuple[str, ...]:
    """Return a server's command line."""
    options = [word for name, value in values.items() for word in (f"--{name}", value)]
    return (str(program), *options)


def url(port: int) -> str:
    """Return a server's address."""
    return f"redis://127.0.0.1:{port}/0"


def process_name(region: str) -> str:
    """Return the name under which a region's server is found in `Stack.processes`."""
    return f"redis-{region}"


def server(*, program: Path, region: str, directory: Path, log: Path, port: int, extra: Mapping[str, str]) -> Server:
    """Describe a region's server."""
    directory.mkdir(exist_ok=True)
    return Server(
        name=process_name(region),
        command=server_command(program, settings(directory=directory, port=port, extra=extra)),
        directory=directory,
        log=log,
        ask=lambda: ask(port),
        stop_signal=signal.SIGTERM,
    )


def told(question: Callable[[], bool]) -> bool:
    """The answer to a question to servers, or no while one of them cannot say."""
    try:
        return question()
    except RedisError:
        return False


def ask(port: int) -> None:
    """Ask for PONG; NotReady when there is none, also while the server loads its data."""
    with Redis.from_url(
        url(port),
        socket_timeout=ASK_LIMIT_SECONDS,
        socket_connect_timeout=ASK_LIMIT_SECONDS,
        retry=Retry(NoBackoff(), 0),
    ) as client:
        try:
            client.ping()
        except RedisError as error:
            raise NotReady(str(error)) from error
