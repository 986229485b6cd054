"""A primary with two replicas, watched by three Sentinels, as processes, and how another takes over.

    with running(program=..., directory=..., guard=...) as watched:
        old = watched.primary()
        old.kill()
        watched.wait_promoted(old)

The rule: whoever changes who is the primary waits until every Sentinel says so.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

from infra import cache
from infra.processes import Server, ServerProcess, Warden, free_ports, wait_for

NAME: Final = "staleproof"
SERVERS: Final = 3
SENTINELS: Final = 3
DOWN_AFTER_MS: Final = 1_500  # a busy machine must not take a slow server for a dead one
FAILOVER_TIMEOUT_MS: Final = 5_000
ANSWER_LIMIT_SECONDS: Final = 10.0
AGREE_LIMIT_SECONDS: Final = 30.0

SETTINGS: Final = {
    "repl-diskless-sync-delay": "0",  # 5 s by default, for further replicas to join in
    "repl-ping-replica-period": "1",
}


class WatchedServers:
    """The servers, first the primary of the beginning, and their Sentinels; each by its port."""

    def __init__(self, servers: dict[int, ServerProcess], sentinels: dict[int, ServerProcess]) -> None:
        self.servers = servers
        self.sentinels = sentinels

    @property
    def url(self) -> str:
        """An address that names every Sentinel."""
        return "redis://" + ",".join(f"127.0.0.1:{port}" for port in self.sentinels) + "/0"

    def primary(self) -> ServerProcess:
        """The server that the Sentinels name."""
        return self.servers[self._named(next(iter(self.sentinels)))]

    def client(self, server: ServerProcess) -> Redis:
        """A client of one server."""
        return _client(next(port for port, known in self.servers.items() if known is server))

    def fail_over(self) -> ServerProcess:
        """Let another take over while the primary is well; returns the old one when every Sentinel knows."""
        old = self.primary()
        wait_for(self._begins_fail_over, "no Sentinel found a replica that can take over", AGREE_LIMIT_SECONDS)
        self.wait_promoted(old)
        return old

    def _begins_fail_over(self) -> bool:
        """Shortly after another one no replica is known to be good yet."""
        try:
            _ask(next(iter(self.sentinels)), "SENTINEL", "FAILOVER", NAME)
        except ResponseError as error:
            if str(error).startswith("NOGOODSLAVE"):
                return False
            raise
        return True

    def wait_promoted(self, old: ServerProcess) -> None:
        """Until every Sentinel names another primary than `old`, and it takes writes."""

        def is_known() -> bool:
            named = {self._named(port) for port in self.sentinels}
            return len(named) == 1 and self.servers[new := named.pop()] is not old and _role(new) == "master"

        wait_for(lambda: cache.told(is_known), f"no other server than {old.name} was promoted", AGREE_LIMIT_SECONDS)

    def wait_following(self, server: ServerProcess) -> None:
        """Until a server that came back was made a replica, and follows."""
        client = self.client(server)
        follows = {"master_link_status": "up", "role": "slave"}.items()
        wait_for(
            lambda: cache.told(lambda: follows <= client.info("replication").items()),
            f"{server.name} does not follow",
            AGREE_LIMIT_SECONDS,
        )

    @staticmethod
    def _named(sentinel: int) -> int:
        return int(_ask(sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)[1])


@contextmanager
def running(*, program: Path, directory: Path, guard: Warden) -> Iterator[WatchedServers]:
    """All of them, replicas in sync and Sentinels that know each other; they end with the block."""
    ports = free_ports(SERVERS + SENTINELS)
    servers = {port: _server(program, directory, guard, n, port) for n, port in enumerate(ports[:SERVERS])}
    sentinels = {
        port: _sentinel(program, directory, guard, number, ports)
        for number, port in enumerate(ports[SERVERS:], SERVERS)
    }
    watched = WatchedServers(servers, sentinels)
    try:
        for process in servers.values():
            process.start()
        for port in ports[1:SERVERS]:
            _ask(port, "REPLICAOF", "127.0.0.1", ports[0])
        for process in list(servers.values())[1:]:
            watched.wait_following(process)
        for process in sentinels.values():
            process.start()
        wait_for(lambda: all(map(_is_ready, sentinels)), "the Sentinels do not agree", AGREE_LIMIT_SECONDS)
        yield watched
    finally:
        for process in (*sentinels.values(), *servers.values()):
            process.kill()


def _server(program: Path, directory: Path, guard: Warden, number: int, port: int) -> ServerProcess:
    name = f"watched-{number}"
    home = directory / cache.process_name(name)
    shutil.rmtree(home, ignore_errors=True)
    log = directory / f"{home.name}.log"
    server = cache.server(program=program, region=name, directory=home, log=log, port=port, extra=SETTINGS)
    return ServerProcess(server, guard)


def _sentinel(program: Path, directory: Path, guard: Warden, number: int, ports: Sequence[int]) -> ServerProcess:
    """It is told of everybody, and need not find them out, which takes seconds."""
    home = directory / f"sentinel-{number}"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    servers, sentinels = ports[:SERVERS], ports[SERVERS:]
    known = [f"sentinel known-replica {NAME} 127.0.0.1 {port}" for port in servers[1:]]
    others = [port for port in sentinels if port != ports[number]]
    known += [f"sentinel known-sentinel {NAME} 127.0.0.1 {port} {port:040x}" for port in others]
    lines = [
        f"port {ports[number]}",
        "bind 127.0.0.1",
        f"dir {home}",
        f"sentinel myid {ports[number]:040x}",
        f"sentinel monitor {NAME} 127.0.0.1 {servers[0]} {SENTINELS // 2 + 1}",
        f"sentinel down-after-milliseconds {NAME} {DOWN_AFTER_MS}",
        f"sentinel failover-timeout {NAME} {FAILOVER_TIMEOUT_MS}",
        *known,
    ]
    file = home / "sentinel.conf"  # rewritten by the server: its memory
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    server = Server(
        name=home.name,
        command=(str(program), str(file), "--sentinel"),
        directory=home,
        log=directory / f"{home.name}.log",
        ask=lambda: cache.ask(ports[number]),
    )
    return ServerProcess(server, guard)


def _is_ready(sentinel: int) -> bool:
    """Whether a failover could be decided and done now."""

    def asked() -> bool:
        state: Any = _client(sentinel).sentinel_master(NAME)
        counts = (state["num-slaves"], state["num-other-sentinels"])
        healthy = not (state["is_sdown"] or state["is_odown"])
        return bool(healthy and counts == (SERVERS - 1, SENTINELS - 1) and _quorum(sentinel))

    return cache.told(asked)


def _quorum(sentinel: int) -> bool:
    return bool(_ask(sentinel, "SENTINEL", "CKQUORUM", NAME))  # an error where it is not reached


def _role(port: int) -> str:
    return str(_client(port).info("replication")["role"])


def _ask(port: int, *command: object) -> Any:
    with _client(port) as client:
        call: Any = client.execute_command
        return call(*command)


def _client(port: int) -> Redis:
    return Redis(port=port, socket_timeout=ANSWER_LIMIT_SECONDS, retry=Retry(NoBackoff(), 0))
