"""What can befall one Redis or Valkey server, on purpose: rolled back, emptied, replaced by a late replica.

    faults = RedisFaults(stack.processes["redis-eu"])
    dump = faults.take_dump()
    ...
    faults.roll_back(dump)              # as if an old backup had been restored

    with faults.replica() as replica:   # in sync
        replica.hold_back()             # from here on it misses every write
        ...
        replica.promote()               # and is now the primary, at replica.url

Dead and frozen servers are `ServerProcess`'s own: kill, pause, resume.
"""

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from infra import cache
from infra.processes import ServerProcess, StackError, free_port, wait_for
from infra.proxy import FaultProxy

ANSWER_LIMIT_SECONDS: Final = 30.0
SYNC_LIMIT_SECONDS: Final = 30.0

_DUMP_FILE: Final = "dump.rdb"  # the servers' default, which the stack leaves alone
_PLACE: Final = frozenset({"bind", "port", "dir", "daemonize"})

_serial = itertools.count()


class RedisFaults:
    """Faults of one region's server. Whatever it loses is found on the same port afterwards."""

    def __init__(self, process: ServerProcess) -> None:
        self.process = process
        self._values = _values(process.server.command)
        self.port = int(self._values["port"])
        self._directory = process.server.directory

    @property
    def url(self) -> str:
        """The server's address."""
        return cache.url(self.port)

    def take_dump(self) -> Path:
        """Write everything that the server holds now to a file of its own, for `roll_back`."""
        self._refuse_append_only()
        with _client(self.port) as client:
            client.save()
        dump = self._directory / f"dump-{next(_serial)}.rdb"
        shutil.copyfile(self._directory / _DUMP_FILE, dump)
        return dump

    def roll_back(self, dump: Path) -> None:
        """Kill the server and start it on an earlier dump; returns when it serves it."""
        self._refuse_append_only()
        self.process.kill()
        shutil.copyfile(dump, self._directory / _DUMP_FILE)
        self.process.start()

    def restart_empty(self) -> None:
        """Kill the server and start it without data; returns when it serves."""
        self._refuse_append_only()
        self.process.kill()
        (self._directory / _DUMP_FILE).unlink(missing_ok=True)
        self.process.start()

    @contextmanager
    def replica(self) -> Iterator["Replica"]:
        """A replica of the same kind with the same settings, in sync, on a port of its own; it ends with the block."""
        name = f"{self.process.name.removeprefix(cache.process_name(''))}-replica"
        directory = self._directory.with_name(cache.process_name(name))
        shutil.rmtree(directory, ignore_errors=True)
        port = free_port()
        server = cache.server(
            program=Path(self.process.server.command[0]),
            region=name,
            directory=directory,
            log=self.process.server.log.with_name(f"{directory.name}.log"),
            port=port,
            extra={name: value for name, value in self._values.items() if name not in _PLACE},
        )
        process = self.process.beside(server)
        with FaultProxy(self.port) as link:
            try:
                process.start()
                replica = Replica(process, primary_port=self.port, link=link)
                replica.follow()
                yield replica
            finally:
                process.kill()

    def _refuse_append_only(self) -> None:
        # Such a server starts from its log, and what it finds in a dump counts for nothing.
        if self._values["appendonly"] != "no":
            raise StackError(f"{self.process.name} keeps an append-only file: start the stack without appendonly")


class Replica:
    """A server that follows another over a link of its own; made by `RedisFaults.replica`."""

    def __init__(self, process: ServerProcess, *, primary_port: int, link: FaultProxy) -> None:
        self.process = process
        self.port = int(_values(process.server.command)["port"])
        self._primary_port = primary_port
        self._link = link

    @property
    def url(self) -> str:
        """The replica's address."""
        return cache.url(self.port)

    @property
    def faults(self) -> RedisFaults:
        """The same faults for this server, e.g. once it was promoted."""
        return RedisFaults(self.process)

    def follow(self) -> None:
        """Become a replica and wait until in sync."""
        with _client(self._primary_port) as primary:
            primary.config_set("repl-diskless-sync-delay", 0)  # 5 s by default, for further replicas to join in
        with _client(self.port) as client:
            client.replicaof("127.0.0.1", self._link.port)
        self.wait_in_sync()

    def wait_in_sync(self) -> None:
        """Wait until every write that the primary has done by now is here as well."""
        with _client(self._primary_port) as primary:
            wanted = primary.info("replication")["master_repl_offset"]
        with _client(self.port) as client:

            def is_there() -> bool:
                state = client.info("replication")
                return bool(state.get("master_link_status") == "up" and state["slave_repl_offset"] >= wanted)

            wait_for(is_there, f"{self.process.name} is not in sync", SYNC_LIMIT_SECONDS)

    def hold_back(self) -> None:
        """Let every write up to now arrive, and none after it: a replica that lags, whose primary does not know."""
        self.wait_in_sync()
        self._link.half_open()

    def catch_up(self) -> None:
        """End `hold_back` and wait until in sync again."""
        self._link.heal()
        self.wait_in_sync()

    def promote(self) -> None:
        """Become a primary with what is here. The old one is left alone: kill it, or let it go on unheard."""
        with _client(self.port) as client:
            client.replicaof("NO", "ONE")
            wait_for(
                lambda: bool(client.info("replication")["role"] == "master"),
                f"{self.process.name} was not promoted",
                SYNC_LIMIT_SECONDS,
            )
        self._link.reset()


def _values(command: tuple[str, ...]) -> dict[str, str]:
    """The settings on a server's command line, as `cache.server_command` writes them."""
    return {name.removeprefix("--"): value for name, value in zip(command[1::2], command[2::2], strict=True)}


def _client(port: int) -> Redis:
    return Redis.from_url(cache.url(port), socket_timeout=ANSWER_LIMIT_SECONDS, retry=Retry(NoBackoff(), 0))
