"""A Cluster of Redis or Valkey servers as processes, and what can befall it: a slot that moves, a primary that dies.

    with running(program=..., directory=..., guard=...) as cluster:
        source, target, _ = cluster.primaries()
        cluster.move_slot(slot, target)            # classic: key by key
        cluster.move_slot_at_once(slot, target)    # Valkey 9 and later

        replica = cluster.replica_of(target)
        target.process.kill()
        cluster.wait_promoted(replica)
        target.process.start()                     # comes back empty, as the replica of its successor

The rule: whoever changes the cluster waits until every living member says so.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from infra import cache
from infra.processes import ServerProcess, StackError, Warden, free_ports, wait_for

PRIMARIES: Final = 3
SLOTS: Final = 16_384
NODE_TIMEOUT_MS: Final = 2_000  # a busy machine must not take a slow member for a dead one
ANSWER_LIMIT_SECONDS: Final = 10.0
AGREE_LIMIT_SECONDS: Final = 30.0
KEYS_AT_A_TIME: Final = 50

SETTINGS: Final = {
    "cluster-enabled": "yes",
    "cluster-replica-validity-factor": "0",  # a replica is promoted however long it has not heard of its primary
    "cluster-allow-replica-migration": "no",
    "repl-diskless-sync-delay": "0",  # 5 s by default, for further replicas to join in
    "repl-ping-replica-period": "1",  # 10 s by default, and Redis lists no replica that has not heard anything
}


class Member:
    """One server of a cluster."""

    def __init__(self, process: ServerProcess, port: int) -> None:
        self.process = process
        self.port = port
        self.client = Redis(port=port, socket_timeout=ANSWER_LIMIT_SECONDS, retry=Retry(NoBackoff(), 0))
        self._id = ""

    @property
    def id(self) -> str:
        """The name that the cluster gives it; restarts keep it."""
        self._id = self._id or self.ask("MYID").decode()
        return self._id

    def ask(self, *command: object) -> Any:
        """One CLUSTER command."""
        call: Any = self.client.execute_command
        return call("CLUSTER", *command)

    def slot_ports(self) -> list[tuple[int, int, list[int]]]:
        """First slot, last slot, ports of primary and replicas, as this member sees it."""
        return [(first, last, [server[1] for server in servers]) for first, last, *servers in self.ask("SLOTS")]

    def is_primary(self) -> bool:
        """Whether it takes writes."""
        return bool(self.client.info("replication")["role"] == "master")

    def is_in_sync(self) -> bool:
        """Whether it is a replica that follows."""
        return bool(self.client.info("replication").get("master_link_status") == "up")


class LocalCluster:
    """The members, in the order in which they were started: first the primaries of the beginning."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = tuple(members)

    @property
    def url(self) -> str:
        """An address that names every member."""
        return "redis://" + ",".join(f"127.0.0.1:{member.port}" for member in self.members)

    def living(self) -> list[Member]:
        """Members whose process is there."""
        return [member for member in self.members if member.process.is_alive()]

    def primaries(self) -> list[Member]:
        """Those that serve slots, by first slot."""
        ports = dict.fromkeys(ports[0] for _, _, ports in sorted(self.living()[0].slot_ports()))
        return [self._at(port) for port in ports]

    def owner(self, slot: int) -> Member:
        """The primary of a slot."""
        return self._at(self._ports(self.living()[0], slot)[0])

    def replica_of(self, primary: Member) -> Member:
        """Its replica."""
        for _, _, ports in self.living()[0].slot_ports():
            if ports[0] == primary.port and len(ports) > 1:
                return self._at(ports[1])
        raise StackError(f"{primary.process.name} has no replica now")

    # -- slots that move -----------------------------------------------------------------------------------------------

    def move_slot(self, slot: int, target: Member) -> None:
        """Key by key, as `redis-cli --cluster reshard` does; returns when every member knows."""
        self.begin_move(slot, target)
        self.move_keys(slot, target)
        self.finish_move(slot, target)

    def begin_move(self, slot: int, target: Member) -> None:
        """From here on the source answers ASK for keys that it does not have, and TRYAGAIN for some of several."""
        source = self.owner(slot)
        target.ask("SETSLOT", slot, "IMPORTING", source.id)
        source.ask("SETSLOT", slot, "MIGRATING", target.id)

    def move_keys(self, slot: int, target: Member) -> int:
        """Move every key of the slot that the source has now; how many."""
        source, moved = self.owner(slot), 0
        call: Any = source.client.execute_command
        while keys := source.ask("GETKEYSINSLOT", slot, KEYS_AT_A_TIME):
            moved += len(keys)
            call("MIGRATE", "127.0.0.1", target.port, "", 0, int(ANSWER_LIMIT_SECONDS * 1_000), "KEYS", *keys)
        return moved

    def finish_move(self, slot: int, target: Member) -> None:
        """Give the slot to the target; returns when every member knows."""
        source = self.owner(slot)
        for member in (target, source, *self.primaries()):
            with suppress(RedisError):  # the source refuses while a key was made meanwhile: it is moved, and told again
                member.ask("SETSLOT", slot, "NODE", target.id)
        self._wait_owner(slot, target)

    def move_slot_at_once(self, slot: int, target: Member) -> None:
        """By the server's own atomic migration; returns when every member knows. Valkey 9 and later."""
        self.owner(slot).ask("MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target.id)
        self._wait_owner(slot, target)

    # -- members that die ----------------------------------------------------------------------------------------------

    def wait_promoted(self, replica: Member) -> None:
        """Until a replica has taken over, and every member knows."""

        def is_known() -> bool:
            return replica.is_primary() and all(
                replica.port in {ports[0] for _, _, ports in member.slot_ports()} for member in self.living()
            )

        wait_for(lambda: cache.told(is_known), f"{replica.process.name} was not promoted", AGREE_LIMIT_SECONDS)
        self.wait_whole()

    def wait_following(self, member: Member) -> None:
        """Until a member that came back follows a primary."""
        wait_for(lambda: cache.told(member.is_in_sync), f"{member.process.name} does not follow", AGREE_LIMIT_SECONDS)

    def wait_whole(self) -> None:
        """Until every living member serves."""

        def is_whole() -> bool:
            return all(b"cluster_state:ok" in _raw(member.ask("INFO")) for member in self.living())

        wait_for(lambda: cache.told(is_whole), "the cluster does not serve", AGREE_LIMIT_SECONDS)

    def _wait_owner(self, slot: int, owner: Member) -> None:
        def is_known() -> bool:
            return all(self._ports(member, slot)[0] == owner.port for member in self.living())

        wait_for(lambda: cache.told(is_known), f"slot {slot} did not move to {owner.process.name}", AGREE_LIMIT_SECONDS)

    def _at(self, port: int) -> Member:
        return next(member for member in self.members if member.port == port)

    @staticmethod
    def _ports(member: Member, slot: int) -> list[int]:
        return next((ports for first, last, ports in member.slot_ports() if first <= slot <= last), [0])


@contextmanager
def running(
    *, program: Path, directory: Path, guard: Warden, node_timeout_ms: int = NODE_TIMEOUT_MS
) -> Iterator[LocalCluster]:
    """Three primaries with a replica each, all slots covered and every replica in sync; they end with the block."""
    settings = {**SETTINGS, "cluster-node-timeout": str(node_timeout_ms)}
    ports = free_ports(4 * PRIMARIES)  # two of each member's: one for clients, one for the others
    members = [
        _member(program, directory, guard, f"cluster-{n}", settings, *ports[2 * n : 2 * n + 2])
        for n in range(2 * PRIMARIES)
    ]
    try:
        for member in members:
            member.process.start()
        _join(members)
        cluster = LocalCluster(members)
        cluster.wait_whole()
        for member in members[PRIMARIES:]:
            cluster.wait_following(member)
        yield cluster
    finally:
        for member in members:
            member.process.kill()
            member.client.close()


def _member(
    program: Path, directory: Path, guard: Warden, name: str, settings: Mapping[str, str], port: int, bus: int
) -> Member:
    home = directory / cache.process_name(name)
    shutil.rmtree(home, ignore_errors=True)
    server = cache.server(
        program=program,
        region=name,
        directory=home,
        log=directory / f"{home.name}.log",
        port=port,
        extra={**settings, "cluster-port": str(bus)},  # the default, port + 10000, may be anybody's
    )
    return Member(ServerProcess(server, guard), port)


def _join(members: Sequence[Member]) -> None:
    primaries, replicas = members[:PRIMARIES], members[PRIMARIES:]
    for number, primary in enumerate(primaries):
        primary.ask("ADDSLOTSRANGE", number * SLOTS // PRIMARIES, (number + 1) * SLOTS // PRIMARIES - 1)
    for number, member in enumerate(members, 1):
        member.ask("SET-CONFIG-EPOCH", number)
        bus = int(str(member.client.config_get("cluster-port")["cluster-port"]))
        members[0].ask("MEET", "127.0.0.1", member.port, bus)
    wait_for(lambda: all(_knows(m) == len(members) for m in members), "members do not meet", AGREE_LIMIT_SECONDS)
    for primary, replica in zip(primaries, replicas, strict=True):
        replica.ask("REPLICATE", primary.id)

    def all_know() -> bool:
        return all(sorted(len(ports) for _, _, ports in m.slot_ports()) == [2] * PRIMARIES for m in members)

    wait_for(all_know, "not every member knows every replica", AGREE_LIMIT_SECONDS)


def _knows(member: Member) -> int:
    return len([line for line in _raw(member.ask("NODES")).splitlines() if b"handshake" not in line])


def _raw(reply: Any) -> bytes:
    return reply if isinstance(reply, bytes) else bytes(reply)
