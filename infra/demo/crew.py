"""The demonstration's processes: started together, watched, and stopped together whatever happens.

Two kinds: our own children, which end when their standard input does, and `staleproof`'s processes, which a warden
(infra/warden.py) ends when this one is gone.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from infra.processes import Warden, announced, tail
from infra.warden import STOP_LIMIT_SECONDS

CHILD_STOP_SECONDS = 20.0
SERVICE_STOP_SECONDS = 12.0


class DemoError(Exception):
    """The demonstration can't go on; the message is one line."""


class Child:
    """One of our own processes (child.py): takes orders, tells counts."""

    def __init__(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], logs: Path, *, apart: bool
    ) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        self.latest: dict[str, float] = {}
        self.stopping = False
        with self.log.open("ab") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                env=dict(environment),
                start_new_session=apart,
            )
        self._listener = threading.Thread(target=self._listen, name=name, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.latest = msgspec.json.decode(line)

    def order(self, word: str) -> None:
        """Send an order; one that died meanwhile is noticed by `check`."""
        assert self._process.stdin is not None
        self.stopping = self.stopping or word == "stop"
        try:
            self._process.stdin.write(f"{word}\n".encode())
            self._process.stdin.flush()
            if word == "stop":
                self._process.stdin.close()
        except (BrokenPipeError, ValueError):
            pass

    def check(self) -> None:
        """DemoError when the process ended by itself, or badly."""
        status = self._process.poll()
        if status is not None and (status != 0 or not self.stopping):
            raise DemoError(ending(self.name, status, self.log))

    def finish(self) -> dict[str, float]:
        """Order it to stop, wait until it has, and return its last counts."""
        self.order("stop")
        try:
            self._process.wait(CHILD_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise DemoError(f"{self.name} did not stop within {CHILD_STOP_SECONDS:.0f} s") from None
        self._listener.join(CHILD_STOP_SECONDS)
        self.check()
        return self.latest

    def end(self) -> None:
        """Stop it by force if it still runs."""
        self.order("stop")
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_LIMIT_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


class Service:
    """One `staleproof` process."""

    def __init__(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], logs: Path, warden: Warden
    ) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        with self.log.open("ab") as sink:
            self._process = subprocess.Popen(
                announced((sys.executable, "-m", *arguments), signal.SIGTERM),
                stdin=warden.write_end,
                stdout=sink,
                stderr=sink,
                env=dict(environment),
                start_new_session=True,
            )

    def check(self) -> None:
        """DemoError when it ended: it should run until the end."""
        status = self._process.poll()
        if status is not None:
            raise DemoError(ending(self.name, status, self.log))

    def pause(self) -> None:
        """Freeze it."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def ask_to_stop(self) -> None:
        """SIGTERM."""
        if self._process.poll() is None:
            self._process.terminate()

    def end(self) -> None:
        """Wait for it; kill it at the limit."""
        try:
            self._process.wait(SERVICE_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Crew:
    """Everybody that was started. Leaving `with` ends them all."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self.children: dict[str, Child] = {}
        self.services: dict[str, Service] = {}
        self._logs = logs
        self._environment = environment
        self._warden = Warden(log=logs / "crew-warden.log")

    def child(self, name: str, *arguments: str, apart: bool = False, **environment: str) -> Child:
        """Start one of our own.

        Linux shares processors out by session: those that make the load share one with us, as if they were one process,
        so that they do not crowd out what is measured. `apart` gives a child a session of its own.
        """
        child = Child(name, arguments, {**self._environment, **environment}, self._logs, apart=apart)
        self.children[name] = child
        return child

    def service(self, name: str, *arguments: str) -> None:
        """Start a `staleproof` process."""
        self.services[name] = Service(name, arguments, self._environment, self._logs, self._warden)

    def check(self) -> None:
        """DemoError when anybody ended who should not have."""
        for member in self._members():
            member.check()

    def order(self, word: str) -> None:
        """Tell every child."""
        for child in self.children.values():
            child.order(word)

    def total(self, name: str, *, prefix: str = "") -> int:
        """The sum of a count over the children whose names begin with `prefix`."""
        children = (child for child in self.children.values() if child.name.startswith(prefix))
        return int(sum(child.latest.get(name, 0) for child in children))

    def _members(self) -> list[Child | Service]:
        return [*self.children.values(), *self.services.values()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children.values():
            child.order("stop")
        for service in self.services.values():
            service.ask_to_stop()
        for member in self._members():
            member.end()
        self._warden.close()


def wait_for(crew: Crew, what: str, condition: Any, limit_seconds: float, *, step_seconds: float = 0.05) -> None:
    """Wait until `condition()`; DemoError when the limit passes or somebody ends."""
    deadline = time.monotonic() + limit_seconds
    while not condition():
        crew.check()
        if time.monotonic() > deadline:
            raise DemoError(f"{what}: not within {limit_seconds:.0f} s")
        time.sleep(step_seconds)


def ending(name: str, status: int, log: Path) -> str:
    """How a process ended that should not have."""
    if status < 0:
        return f"{name} was killed by {signal.Signals(-status).name} (see {log})"
    return f"{name} ended with status {status}: {last_line(log)} (see {log})"


def last_line(log: Path) -> str:
    """The last thing that a process said."""
    lines = [line for line in tail(log).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
