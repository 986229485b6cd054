"""One server's container: started by testcontainers; from then on stopped, killed, frozen and asked through Docker."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from docker.errors import DockerException, NotFound
from testcontainers.core.container import DockerContainer

from infra.processes import ASK_AGAIN_SECONDS, LOG_TAIL_LINES, NotReady, StackError

START_LIMIT_SECONDS: Final = 120.0
STOP_LIMIT_SECONDS: Final = 20


class ContainerHandle:
    """A handle on one server's container. Restarting keeps its port and its files."""

    def __init__(self, name: str, container: DockerContainer, ask: Callable[[], None]) -> None:
        self._name = name
        self._container = container
        self._ask = ask

    @property
    def name(self) -> str:
        """The server's name in `ContainerServers.processes`."""
        return self._name

    @property
    def container_id(self) -> str:
        """Docker's name of the container."""
        return self._container.get_container_id()

    def is_alive(self) -> bool:
        """Tell whether the container runs (a paused one does)."""
        return self._status() in {"running", "paused"}

    def create(self) -> None:
        """Let testcontainers create and start the container, and wait until the server answers."""
        try:
            self._container.start()
        except DockerException as error:
            raise StackError(self._failed(f"does not start: {error}")) from error
        self.wait_ready()

    def start(self) -> None:
        """Start the stopped container again and wait until the server answers."""
        if self.is_alive():
            raise StackError(f"{self._name} runs already, as container {self.container_id[:12]}")
        self._docker().start()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Ask until the server answers; StackError when its container ends or the limit passes."""
        deadline = time.monotonic() + START_LIMIT_SECONDS
        while True:
            try:
                self._ask()
            except NotReady as error:
                if not self.is_alive():
                    raise StackError(self._failed("ended")) from error
                if time.monotonic() > deadline:
                    raise StackError(self._failed(f"did not answer within {START_LIMIT_SECONDS:.0f} s")) from error
                time.sleep(ASK_AGAIN_SECONDS)
            else:
                return

    def stop(self) -> None:
        """Stop the server by its image's signal; Docker kills it at the limit."""
        if self.is_alive():
            self._docker().stop(timeout=STOP_LIMIT_SECONDS)

    def kill(self) -> None:
        """Kill -9 everything in the container, paused or not, and wait until it is gone."""
        if self.is_alive():
            self._docker().kill()
            self._docker().wait(timeout=STOP_LIMIT_SECONDS)

    def pause(self) -> None:
        """Freeze everything in the container; connections stay open, at Docker's proxy too."""
        self._live().pause()

    def resume(self) -> None:
        """Let a paused container go on; one that is not paused is left alone."""
        container = self._live()
        if self._status() == "paused":
            container.unpause()

    def restart(self) -> None:
        """Stop the server if it runs, start it again on the same port and files, and wait until it answers."""
        self.stop()
        self.start()

    def remove(self, log: Path) -> None:
        """Write the container's output to a file, then remove it, running or not."""
        if self._status() is not None:
            log.write_bytes(self._docker().logs())
        try:
            self._container.stop()
        except NotFound:
            return  # somebody else removed it

    def _docker(self) -> Any:
        return self._container.get_wrapped_container()

    def _live(self) -> Any:
        if not self.is_alive():
            raise StackError(f"{self._name} does not run")
        return self._docker()

    def _status(self) -> str | None:
        if self._container.status == "not_started":
            return None
        try:
            self._container.reload()
        except NotFound:
            return None
        return self._container.status

    def _failed(self, what: str) -> str:
        output = "" if self._status() is None else self._docker().logs(tail=LOG_TAIL_LINES).decode(errors="replace")
        return f"{self._name} {what} ({self._container.image}); the end of its log:\n{output}"
