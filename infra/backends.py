"""Who runs the servers of a test session: containers, native processes, or somebody else, to whom it is attached."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from infra.attached import AttachedServers, forget_left_over
from infra.prerequisites import MissingPrerequisite
from infra.servers import Servers
from infra.stack import Stack, State

CONTAINERS: Final = "containers"
PROCESSES: Final = "processes"


class Unavailable(Exception):
    """A backend can't run here; the message is one sentence with the remedy."""

    def __init__(self, backend: str, reason: str) -> None:
        super().__init__(f"backend {backend} is not available: {reason}")
        self.backend = backend


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What a session asks for. `backend`: auto, containers or processes; `running`: where servers run already."""

    backend: str
    regions: tuple[str, ...]
    running: Path | None
    kafka_libs: Path
    """Where Kafka's jars are, or are copied to, once."""
    redis_server: Path | None


@contextmanager
def servers(choice: Choice, directory: Path) -> Iterator[tuple[str, Servers]]:
    """The servers, and who runs them in one word; those that were started here end with the block.

    Raises Unavailable, StackError.
    """
    if choice.running is not None:
        attached = AttachedServers.read(choice.running, choice.regions)
        forget_left_over(attached)
        yield "attached", attached
    elif _backend(choice.backend) == CONTAINERS:
        entered: AbstractContextManager[Servers] = _containers().start_servers(directory, choice.regions)
        with entered as started:
            yield CONTAINERS, started
    else:
        with _processes(choice, directory) as stack:
            yield PROCESSES, stack


def _backend(wanted: str) -> str:
    if wanted == PROCESSES:
        return PROCESSES
    reason = why_no_containers()
    if reason is None:
        return CONTAINERS
    if wanted == CONTAINERS:
        raise Unavailable(CONTAINERS, reason)
    return PROCESSES


def why_no_containers() -> str | None:
    """Why the containers backend can't run here, or None."""
    try:
        module = _containers()
    except ModuleNotFoundError as error:
        return f"there is no module {error.name}: install it with `pip install 'staleproof[testing]'`"
    reason: str | None = module.unavailable()
    return reason


def _containers() -> ModuleType:
    # Only when asked for: the other backend needs neither Docker nor a client of it.
    return importlib.import_module("infra.containers")


@contextmanager
def _processes(choice: Choice, directory: Path) -> Iterator[Stack]:
    try:
        stack = Stack.start(
            directory,
            choice.regions,
            kafka_libs=choice.kafka_libs,
            redis_server=choice.redis_server,
        )
    except MissingPrerequisite as error:
        raise Unavailable(PROCESSES, str(error)) from error
    with stack:
        State.of(stack).write(directory)  # so that other sessions can attach
        yield stack


def summary(kind: str, running: Servers, seconds: float) -> str:
    """One line for a person: what runs, and how long that took."""
    regions: Sequence[str] = list(running.redis_urls)
    caches = f"{len(regions)} Redis ({', '.join(regions)})"
    verb = "attached" if kind == "attached" else f"started as {kind}"
    return f"PostgreSQL, Kafka and {caches} {verb} in {seconds:.1f} s"


def must_run(backend: str, environment: Mapping[str, str]) -> bool:
    """Whether its absence fails the tests instead of skipping them: in CI, unless ALLOW_SKIP names it."""
    in_ci = environment.get("CI", "").lower() not in ("", "0", "false")
    return in_ci and backend not in environment.get("ALLOW_SKIP", "").replace(",", " ").split()
