"""One server process of the stack, from start to stop, and the pipe to the warden that outlives its owner.

The rule: a server counts as started only when it has answered a question, never because time has passed.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infra import warden
from infra.warden import Identity

ASK_AGAIN_SECONDS = 0.05
LOG_TAIL_LINES = 15

# Below Linux's range for outgoing connections (32768 and up), so that none of them can take a port that was found free.
PORTS = range(20_000, 32_000)
PORT_TRIES = 200


class StackError(Exception):
    """The stack can't do what was asked; the message names the reason and, where there is one, the remedy."""


class NotReady(Exception):
    """The server does not answer yet, or not as it should."""


@dataclass(frozen=True, kw_only=True, slots=True)
class User:
    """An operating system user that a server runs as."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """How one server is started, asked and stopped. `ask` raises NotReady until the server serves."""

    name: str
    command: tuple[str, ...]
    directory: Path
    log: Path
    ask: Callable[[], None]
    user: User | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_signal: signal.Signals = signal.SIGTERM
    abandon_signal: signal.Signals = signal.SIGKILL
    start_limit_seconds: float = 60.0
    stop_limit_seconds: float = 20.0


_write_ends: set[int] = set()


def _close_in_forks() -> None:
    # A fork (multiprocessing) would keep the pipe open after its parent's death, and so the servers alive.
    while _write_ends:
        os.close(_write_ends.pop())


os.register_at_fork(after_in_child=_close_in_forks)


class Warden:
    """The pipe to a running warden (infra/warden.py, or another program that waits for the pipe's end)."""

    def __init__(
        self,
        *,
        log: Path,
        hold: Collection[int] = (),
        program: Sequence[str] = (sys.executable, "-I", "-S", warden.__file__),
    ) -> None:
        """Start a warden; the descriptors in `hold` stay open until it has finished (the stack's lock)."""
        read_end, self._write_end = os.pipe()
        try:
            with log.open("ab") as sink:
                self._process = subprocess.Popen(
                    list(program),
                    stdin=read_end,
                    stdout=sink,
                    stderr=sink,
                    pass_fds=tuple(hold),
                    start_new_session=True,
                )
        finally:
            os.close(read_end)
        _write_ends.add(self._write_end)

    @property
    def write_end(self) -> int:
        """The descriptor on which servers announce themselves."""
        return self._write_end

    @property
    def pid(self) -> int:
        """The warden's own process."""
        return self._process.pid

    def close(self) -> None:
        """Let the warden stop whatever still runs, and wait for it."""
        if self._write_end in _write_ends:
            _write_ends.remove(self._write_end)
            os.close(self._write_end)
        self._process.wait(timeout=3 * warden.STOP_LIMIT_SECONDS)


# The process that becomes the server announces itself: an owner can't die between its start and its announcement.
# Standard input is the pipe to the warden; the server itself must not hold it.
_ANNOUNCE = 'echo "$$ $1" >&0; shift; exec "$@" </dev/null'


def announced(command: tuple[str, ...], abandon_signal: signal.Signals) -> list[str]:
    """Return the command line that announces its pid on standard input and then becomes `command`."""
    return ["/bin/sh", "-c", _ANNOUNCE, "sh", str(int(abandon_signal)), *command]


class ServerProcess:
    """A handle on one server. Restarting keeps its port and its data directory."""

    def __init__(self, server: Server, guard: Warden) -> None:
        self.server = server
        self._guard = guard
        self._process: subprocess.Popen[bytes] | None = None
        self._identity: Identity | None = None

    @property
    def name(self) -> str:
        """The server's name in `Stack.processes`."""
        return self.server.name

    @property
    def pid(self) -> int:
        """The server's process; StackError when it was never started."""
        return self._running().pid

    @property
    def identity(self) -> Identity | None:
        """Pid and start time of the newest process of this server, None before the first start."""
        return self._identity

    def beside(self, server: Server) -> "ServerProcess":
        """Return a handle on another server, not started yet, which the same warden stops."""
        return ServerProcess(server, self._guard)

    def is_alive(self) -> bool:
        """Tell whether the process exists (a paused one does)."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and wait until it answers; StackError with the end of its log otherwise."""
        if self.is_alive():
            raise StackError(f"{self.name} runs already, as pid {self.pid}")
        server = self.server
        user = {"user": server.user.uid, "group": server.user.gid, "extra_groups": []} if server.user else {}
        with server.log.open("ab") as log:
            self._process = subprocess.Popen(
                announced(server.command, server.abandon_signal),
                stdin=self._guard.write_end,
                stdout=log,
                stderr=log,
                cwd=server.directory,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", **server.environment},
                start_new_session=True,  # Ctrl-C belongs to the owner, which then stops the servers in order
                **user,  # type: ignore[call-overload]
            )
        self._identity = warden.identify(self._process.pid)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Ask until the server answers; StackError when it ends or its start limit passes."""
        process = self._running()
        deadline = time.monotonic() + self.server.start_limit_seconds
        while True:
            try:
                self.server.ask()
            except NotReady as error:
                if process.poll() is not None:
                    raise StackError(self._failed(f"ended with status {process.returncode}")) from error
                if time.monotonic() > deadline:
                    limit = f"did not answer within {self.server.start_limit_seconds:.0f} s ({error})"
                    raise StackError(self._failed(limit)) from error
                time.sleep(ASK_AGAIN_SECONDS)
            else:
                return

    def stop(self) -> None:
        """Stop the server in order, so that it saves what it saves; kill it and its children at the stop limit."""
        self._stop(self.server.stop_signal)

    def kill(self) -> None:
        """Kill -9 the server and its children, as a power cut would, and wait until they are gone."""
        if self.is_alive():
            self.pause()  # a paused server can't start children that the kill would miss
        self._stop(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze the server and its children (SIGSTOP): connections stay open and nothing answers."""
        root = self._live()
        warden.send([root], signal.SIGSTOP)
        warden.send(warden.tree(root), signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        warden.send(warden.tree(self._live()), signal.SIGCONT)

    def restart(self) -> None:
        """Stop the server if it runs, start it again on the same port and data, and wait until it answers."""
        self.stop()
        self.start()

    def _stop(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self._identity is not None:
            warden.stop([(self._identity, number)], self.server.stop_limit_seconds)
        self._process.wait(timeout=self.server.stop_limit_seconds)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise StackError(f"{self.name} was not started")
        return self._process

    def _live(self) -> Identity:
        if self._identity is None or not self.is_alive():
            raise StackError(f"{self.name} does not run")
        return self._identity

    def _failed(self, what: str) -> str:
        return f"{self.name} {what}; the end of {self.server.log}:\n{tail(self.server.log)}"


def wait_for(condition: Callable[[], bool], complaint: str, limit_seconds: float) -> None:
    """Ask until the condition holds; StackError with the complaint at the limit."""
    deadline = time.monotonic() + limit_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise StackError(f"{complaint} after {limit_seconds:.0f} s: see its log")
        time.sleep(ASK_AGAIN_SECONDS)


def tail(log: Path) -> str:
    """Return the last lines of a log file."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return "\n".join(lines[-LOG_TAIL_LINES:])


def is_free(port: int) -> bool:
    """Tell whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a closed connection is no tenant
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port(taken: Collection[int] = ()) -> int:
    """Return a free loopback port that is not in `taken`."""
    for port in random.sample(PORTS, PORT_TRIES):
        if port not in taken and is_free(port):
            return port
    raise StackError(f"no free port found in {PORTS.start}..{PORTS.stop} after {PORT_TRIES} tries")


def free_ports(count: int) -> list[int]:
    """Return so many free loopback ports, all different: none of them is taken yet by its server."""
    ports: list[int] = []
    for _ in range(count):
        ports.append(free_port(ports))
    return ports


def choose_ports(names: Collection[str], preferred: Mapping[str, int]) -> dict[str, int]:
    """Give every name a port of its own: its preferred one where that is free."""
    chosen: dict[str, int] = {}
    for name in names:
        wanted = preferred.get(name)
        usable = wanted is not None and wanted not in chosen.values() and is_free(wanted)
        chosen[name] = wanted if wanted is not None and usable else free_port(chosen.values())
    return chosen
