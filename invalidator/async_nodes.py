"""A region's servers, for asyncio. Door: redis.

Who serves is found out by `nodes.py`, the same code as for threads: mostly it knows, and where it has to ask first it
does so in a thread. Here requests are sent, on connections of our own: one that timed out or was cancelled is closed.

One deadline holds for a request with its reply, and one for a new connection with its greeting. redis-py's own, one for
sending and one for reading, costs a task per request.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

import hiredis
import redis.asyncio
from redis.asyncio.connection import Connection as TcpConnection
from redis.asyncio.connection import ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AskError, MovedError

from invalidator.node import Node
from invalidator.nodes import UNLIMITED, Connection, Nodes, connect
from invalidator.redis_errors import LIBRARY_MISSING, Fault, judge

_SHARED = ("db", "username", "password", "socket_connect_timeout", "path", "driver_info")
_ASKING = hiredis.pack_command(("ASKING",))
CONNECTIONS_MAX = 64
"""So many a server is lent at a time; further requests wait for one, as long as for a reply."""

Place: TypeAlias = tuple[Any, Any, Any]


class AsyncNodes:
    """The servers of a region. All of it raises what redis-py raises. It belongs to one event loop."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._servers: dict[Place, _Server] = {}

    async def call(self, key: str, *command: Any) -> Any:
        """One request that concerns the slot of `key`, and its reply."""
        route = self._nodes.route(key)
        node, asking = await asyncio.to_thread(next, route) if self._nodes.asks_first else next(route)
        while True:
            try:
                return await self._call(node, command, asking=asking)
            except (MovedError, AskError) as error:
                node, asking = route.throw(error)

    def doubt(self, fault: Fault) -> None:
        """As of `Nodes`: whose connections it gives up, of those ours are given up too, before the next request."""
        self._nodes.doubt(fault)

    async def aclose(self) -> None:
        """Close every connection."""
        servers, self._servers = list(self._servers.values()), {}
        for server in servers:
            await server.aclose()

    async def _call(self, node: Node, command: tuple[Any, ...], *, asking: bool) -> Any:
        server = self._server(node)
        await server.enter()
        try:
            return await self._send(server, node, command, asking=asking)
        finally:
            server.leave()

    async def _send(self, server: _Server, node: Node, command: tuple[Any, ...], *, asking: bool) -> Any:
        connection, is_kept = await server.connection(node.drops)
        try:
            return await server.exchange(connection, command, asking=asking)
        except redis.TimeoutError:
            raise
        except (redis.ConnectionError, OSError):
            if not is_kept:
                raise  # a kept one may have been closed long ago, as by a restart
        except redis.ResponseError as error:
            if judge(str(error)) is not LIBRARY_MISSING or not await asyncio.to_thread(node.load_if_allowed):
                raise
        return await server.exchange(await server.new_connection(), command, asking=asking)

    def _server(self, node: Node) -> _Server:
        """What is behind a node now: of Sentinel's primary the address changes."""
        place = node.place
        if place == (None, None, None):
            raise redis.ConnectionError("no Sentinel has named the primary yet")
        server = self._servers.get(place)
        if server is None:
            seconds = node.client.connection_pool.connection_kwargs["socket_timeout"]
            server = self._servers[place] = _Server(_pool(node, place), seconds, node.drops)
        return server


class _Server:
    """One server, and the connections to it that nobody uses now. All that is sent may run twice."""

    def __init__(self, pool: Any, seconds: float, drops: int) -> None:
        self._pool = pool
        self._seconds = seconds
        self._drops = drops
        self._kept: list[Any] = []
        self._turns = asyncio.Semaphore(CONNECTIONS_MAX)

    async def enter(self) -> None:
        """Wait until a connection is free, or one more may be opened. Then `leave` must be called."""
        if not self._turns.locked():
            await self._turns.acquire()
            return
        try:
            async with asyncio.timeout(self._seconds):
                await self._turns.acquire()
        except TimeoutError as error:
            raise redis.TimeoutError(f"no connection was free within {self._seconds} s") from error

    def leave(self) -> None:
        """Let another one have its turn."""
        self._turns.release()

    async def connection(self, drops: int) -> tuple[Any, bool]:
        """A connection that this task alone has, and whether it was used before; none from before the last drop."""
        if drops != self._drops:
            self._drops = drops
            await self._pool.update_active_connections_for_reconnect()
        while self._kept:
            connection = self._kept.pop()
            if not connection.should_reconnect():
                return connection, True
            await self._close(connection)
        return await self.new_connection(), False

    async def _close(self, connection: Any) -> None:
        await connection.disconnect(nowait=True)
        await self._pool.release(connection)

    async def new_connection(self) -> Any:
        """One that has just been opened."""
        try:
            async with asyncio.timeout(self._seconds):
                return await self._pool.get_connection()
        except TimeoutError as error:
            raise redis.TimeoutError(f"no connection within {self._seconds} s") from error

    async def exchange(self, connection: Any, command: tuple[Any, ...], *, asking: bool) -> Any:
        """One request and its reply. A connection whose reply did not come is closed: no other caller gets it."""
        try:
            async with asyncio.timeout(self._seconds):
                if asking:
                    await connection.send_packed_command(_ASKING, check_health=False)
                    await connection.read_response()
                await connection.send_packed_command(hiredis.pack_command(command), check_health=False)
                reply = await connection.read_response()
        except redis.ResponseError:
            self._kept.append(connection)
            raise
        except BaseException as error:
            await self._close(connection)
            if isinstance(error, TimeoutError):
                raise redis.TimeoutError(f"no reply within {self._seconds} s") from error
            raise
        self._kept.append(connection)
        return reply

    async def aclose(self) -> None:
        """Close every connection."""
        self._kept.clear()
        await self._pool.aclose()


def connect_async(options: Connection) -> AsyncNodes:
    """As `connect`, for asyncio. Raises ValueError for a URL that is none."""
    return AsyncNodes(connect(options))


def _pool(node: Node, place: Place) -> ConnectionPool:
    given = node.client.connection_pool.connection_kwargs
    kwargs = {name: value for name, value in given.items() if name in _SHARED or name.startswith("ssl_")}
    host, port, path = place
    kind: Any = UnixDomainSocketConnection if path else SSLConnection if node.encrypted else TcpConnection
    if not path:
        kwargs |= {"host": host, "port": port}
    kwargs |= {"socket_timeout": None, "max_connections": UNLIMITED}  # both are ours to watch
    return ConnectionPool(connection_class=kind, retry=Retry(NoBackoff(), 0), **kwargs)
