"""A region's servers: one Redis, the primary that Sentinel names, or the primaries of a Cluster. Door: redis.

In flow requests, each with a key, whose slot decides where it goes; out flow replies, or what redis-py raises. Only a
redirected request is sent again: it did not run. redis-py's own cluster client is not used: it asks a server for the
keys of every FCALL, repeats on TRYAGAIN with sleeps of its own, and reads the whole cluster again inside the call that
failed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

import msgspec
import redis
from redis import sentinel
from redis.backoff import NoBackoff
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as SLOTS
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

from invalidator.node import Node
from invalidator.redis_errors import UNANSWERED, Fault, Remedy
from invalidator.redis_url import Address, Topology, address, at, single_urls

REDIRECTS_MAX = 3
"""So often a single request follows a slot that moves."""

VERIFY_SECONDS = 1.0
"""So often Sentinel is asked whether its primary is still the same."""

VERIFY_AGAIN_SECONDS = 10.0
"""And so often while no Sentinel answers, which takes time."""

LOOK_SECONDS_MIN = 0.1
"""The slots of a Cluster are not read more often."""

UNLIMITED = 2**31
"""Connections: each thread has one at a time. redis-py fails beyond 100, which would count as a fault of the region."""

HUNG_NODES_MAX = 2
"""So many nodes that do not answer in time are waited for when the slots are read; the next time begins with others."""


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """How a region's Redis is reached. The URL may carry user and password; TLS is `rediss://`.

    With `sentinel` it names Sentinels, which have a login of their own, and with `cluster` some of the nodes; user,
    password and TLS files hold for all servers.
    """

    url: str
    topology: Topology = Topology.SINGLE
    sentinel_master: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = None
    username: str | None = None
    password: str | None = None
    tls_ca: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    timeout_seconds: float = 1.0


Route: TypeAlias = Generator[tuple[Node, bool], None, None]
"""Servers to ask, one after the other, and whether the slot is only on its way to that server."""


class Nodes(Protocol):
    """The servers of a region. All of it raises what redis-py raises."""

    def serving(self, key: str) -> Node:
        """The server that takes requests for `key`, as far as is known."""

    def together(self, keys: Sequence[str]) -> list[Sequence[str]]:
        """The same keys, in parts that one request may name."""

    def call(self, key: str, *command: Any) -> Any:
        """One request that concerns the slot of `key`, and its reply."""

    def ask(self, key: str, *command: Any) -> Any:
        """As `call`, for what may run twice."""

    def route(self, key: str) -> Route:
        """Whom to ask about `key`, and whom next: a Route yields a server, and is thrown its redirection."""

    @property
    def asks_first(self) -> bool:
        """Whether the next question who serves costs requests of its own."""

    def primaries(self) -> Sequence[Node]:
        """Every server that takes writes, as of now."""

    def doubt(self, fault: Fault) -> None:
        """A request failed in this way: look again who serves before the next one, if it may be another."""


class Single:
    """One server, always the same."""

    def __init__(self, client: redis.Redis) -> None:
        self._node = Node(client)

    def serving(self, key: str) -> Node:  # noqa: ARG002 - a Cluster needs it
        """The server."""
        return self._node

    def together(self, keys: Sequence[str]) -> list[Sequence[str]]:
        """All of them."""
        return [keys]

    def call(self, key: str, *command: Any) -> Any:
        """One request and its reply."""
        return self.serving(key).call(*command)

    def ask(self, key: str, *command: Any) -> Any:
        """One request and its reply."""
        return self.serving(key).ask(*command)

    def route(self, key: str) -> Route:
        """The server."""
        yield self.serving(key), False

    @property
    def asks_first(self) -> bool:
        """Never."""
        return False

    def primaries(self) -> Sequence[Node]:
        """The server."""
        return (self._node,)

    def doubt(self, fault: Fault) -> None:
        """Drop the connections where another server may answer at this address now."""
        if fault.remedy is Remedy.RECONNECT:
            self._node.drop()


class Watched(Single):
    """The primary that Sentinel names: every new connection asks for it, and while old ones last it is asked for again.

    A server that was replaced goes on answering until its Sentinels reach it: for seconds, or while it is cut off.
    """

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(client)
        self._due_seconds = 0.0
        self._answers = True

    def serving(self, key: str) -> Node:
        """The primary."""
        if time.monotonic() >= self._due_seconds:
            self._verify()
        return super().serving(key)

    @property
    def asks_first(self) -> bool:
        """Once a second."""
        return time.monotonic() >= self._due_seconds

    def doubt(self, fault: Fault) -> None:
        """Ask again who is the primary."""
        super().doubt(fault)
        if fault.remedy is Remedy.RECONNECT and self._answers:
            self._due_seconds = 0.0

    def primaries(self) -> Sequence[Node]:
        """The primary, asked for anew."""
        self._verify()
        return super().primaries()

    def _verify(self) -> None:
        """Drop the connections to another. Where no Sentinel answers, nothing is known against the one we have."""
        pool: Any = self._node.client.connection_pool
        self._due_seconds = time.monotonic() + VERIFY_SECONDS  # first: other threads need not ask too
        try:
            pool.proxy.get_master_address()
            self._answers = True
        except MasterNotFoundError:
            self._answers = False
            self._due_seconds = time.monotonic() + VERIFY_AGAIN_SECONDS


class _Slots(msgspec.Struct, frozen=True):
    """A range of slots, its primary, and all who serve it."""

    first: int
    last: int
    primary: Address
    servers: tuple[Address, ...]


class Cluster:
    """The primaries of a Cluster by slot, read from any node. Thread-safe."""

    def __init__(self, seeds: Sequence[Address], reach: Callable[[Address], redis.Redis]) -> None:
        self._seeds = tuple(seeds)
        self._reach = reach
        self._nodes: dict[Address, Node] = {}
        self._slots: list[Node | None] = [None] * SLOTS
        self._known: tuple[Address, ...] = ()
        self._turn = 0
        self._looking = threading.Lock()
        self._doubted = True
        self._due_seconds = 0.0

    def serving(self, key: str) -> Node:
        """The primary of the key's slot. Raises ClusterDownError where none is known."""
        if self._doubted:
            self._look()
        node = self._slots[slot_of(key)]
        if node is None:
            raise ClusterDownError(f"no node serves slot {slot_of(key)}")
        return node

    def together(self, keys: Sequence[str]) -> list[Sequence[str]]:
        """Those of one slot."""
        parts: dict[int, list[str]] = {}
        for key in keys:
            parts.setdefault(slot_of(key), []).append(key)
        return list(parts.values())

    def call(self, key: str, *command: Any) -> Any:
        """One request and its reply, wherever the slot is on its way."""
        return self._routed(key, lambda node, asking: node.call(*command, asking=asking))

    def ask(self, key: str, *command: Any) -> Any:
        """The same, of what may run twice."""
        return self._routed(key, lambda node, asking: node.ask(*command, asking=asking))

    def _routed(self, key: str, send: Callable[[Node, bool], Any]) -> Any:
        route = self.route(key)
        node, asking = next(route)
        while True:
            try:
                return send(node, asking)
            except (MovedError, AskError) as error:
                node, asking = route.throw(error)

    def route(self, key: str) -> Route:
        """The slot's server, and those that redirections name."""
        node, asking = self.serving(key), False
        for _ in range(REDIRECTS_MAX):
            try:
                yield node, asking
            except MovedError as moved:
                node, asking = self._redirected(moved, node), False
                self._slots[moved.slot_id] = node
                self._doubted = True  # where one slot moved, others may have
            except AskError as ask:
                node, asking = self._redirected(ask, node), True
        yield node, asking

    @property
    def asks_first(self) -> bool:
        """After a fault or a redirection."""
        return self._doubted

    def primaries(self) -> Sequence[Node]:
        """Every node that serves a slot."""
        self._doubted = True
        self._look()
        return tuple(dict.fromkeys(node for node in self._slots if node is not None))

    def doubt(self, fault: Fault) -> None:
        """Read the slots again before the next request: a node that is away may have been replaced."""
        if fault.remedy is Remedy.RECONNECT or fault is UNANSWERED:
            self._doubted = True

    def _redirected(self, error: AskError, node: Node) -> Node:
        """An error without a host means that of the node which sent it."""
        return self._node((error.host or str(node.client.connection_pool.connection_kwargs["host"]), error.port))

    def _node(self, place: Address) -> Node:
        return self._nodes.get(place) or self._nodes.setdefault(place, Node(self._reach(place)))

    def _look(self) -> None:
        """Read the slots. While another thread does, and shortly after, the old ones serve."""
        if not self._looking.acquire(blocking=not self._known):
            return
        try:
            if not self._doubted or time.monotonic() < self._due_seconds:
                return
            self._doubted = False
            try:
                self._take(self._read())
            except BaseException:
                self._doubted = True
                raise
            finally:  # from the end on: threads that waited for a look that failed need not look one after the other
                self._due_seconds = time.monotonic() + LOOK_SECONDS_MIN
        finally:
            self._looking.release()

    def _read(self) -> list[_Slots]:
        """From the first node that answers and knows any; each time another is asked first, as one may be cut off."""
        self._turn += 1
        places = tuple(dict.fromkeys((*self._known, *self._seeds)))
        first = self._turn % len(places)
        hung = 0
        failure: Exception = ClusterDownError("no node knows who serves the slots")
        for place in (*places[first:], *places[:first]):
            try:
                found = list(_ranges(self._node(place).call("CLUSTER", "SLOTS"), place[0]))
            except redis.AuthenticationError:
                raise
            except redis.TimeoutError as error:
                failure, hung = error, hung + 1
                if hung == HUNG_NODES_MAX:
                    break
            except (redis.ConnectionError, OSError) as error:
                failure = error
            else:
                if found:
                    return found
        raise failure

    def _take(self, found: list[_Slots]) -> None:
        slots: list[Node | None] = [None] * SLOTS
        for part in found:
            slots[part.first : part.last + 1] = [self._node(part.primary)] * (part.last + 1 - part.first)
        self._slots = slots
        self._known = tuple(dict.fromkeys(place for part in found for place in part.servers))
        for place in self._nodes.keys() - {*self._known, *self._seeds}:
            self._nodes.pop(place).drop()


def _ranges(reply: Any, asked: str) -> Iterator[_Slots]:
    """What CLUSTER SLOTS tells. A host that the cluster does not tell (null, empty, `?`) is the one that was asked."""

    def place(server: list[Any]) -> Address:
        host = (server[0] or b"").decode()
        return (asked if host in ("", "?") else host), int(server[1])

    for first, last, *servers in reply:
        places = tuple(map(place, servers))
        yield _Slots(first, last, places[0], places)


def connect(options: Connection) -> Nodes:
    """The servers, with deadlines and without retries of redis-py's own: a repeated script is ours to decide.

    Nothing is sent yet. Raises ValueError for a URL that is none.
    """
    urls = single_urls(options.url)
    limits: dict[str, Any] = {
        "socket_timeout": options.timeout_seconds,
        "socket_connect_timeout": options.timeout_seconds,
        "max_connections": UNLIMITED,
        "driver_info": None,  # CLIENT SETINFO, which no user of ours may: its rule has no name in Redis 7.0
    }
    tls: dict[str, Any] = {}
    if options.url.startswith("rediss://"):
        tls["ssl_ca_certs"] = options.tls_ca
        tls["ssl_certfile"], tls["ssl_keyfile"] = options.tls_certificate, options.tls_key
    login = {"username": options.username, "password": options.password}
    if options.topology is Topology.SENTINEL:
        return _watched(options, urls, limits, tls, login)
    chosen = _given(tls | login)

    def reach(url: str) -> redis.Redis:
        return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **limits, **chosen)

    if options.topology is Topology.CLUSTER:
        return Cluster([address(url) for url in urls], lambda place: reach(at(urls[0], place)))
    return Single(reach(options.url))


def _watched(
    options: Connection, urls: Sequence[str], limits: dict[str, Any], tls: dict[str, Any], login: dict[str, Any]
) -> Watched:
    in_url = redis.ConnectionPool.from_url(urls[0]).connection_kwargs
    in_url = {name: value for name, value in in_url.items() if name in ("username", "password", "db")}
    shared = {**limits, **_given(tls | {"ssl": options.url.startswith("rediss://") or None})}
    sentinel_login = _given({"username": options.sentinel_username, "password": options.sentinel_password})
    sentinels = sentinel.Sentinel(  # type: ignore[no-untyped-call]  # untyped in redis-py
        [address(url) for url in urls],
        sentinel_kwargs={**shared, **sentinel_login, "retry": Retry(NoBackoff(), 0)},
    )
    server = {**shared, **_given(login), **in_url, "retry": Retry(NoBackoff(), 0)}
    primary = sentinels.master_for(options.sentinel_master, **server)  # type: ignore[no-untyped-call]  # as above
    return Watched(primary)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


@lru_cache(maxsize=16_384)  # a region asks for its shards' headers, of which there are at most 4,096
def slot_of(key: str) -> int:
    """The slot of `key` in a Cluster."""
    return int(key_slot(key.encode()))
