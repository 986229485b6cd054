"""A region's servers, for asyncio. Door: redis.

Who serves is found out by `nodes.py`, the same code as for threads: mostly it knows, and where it has to ask first it
does so in a thread. Here requests are sent, on connections of our own: one that timed out or was cancelled is closed.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

import redis.asyncio
from redis.asyncio.connection import Connection as TcpConnection
from redis.asyncio.connection import ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AskError, MovedError

from invalidator.node import Node
from invalidator.nodes import Connection, Nodes, connect
from invalidator.redis_errors import LIBRARY_MISSING, Fault, judge

_SHARED = ("db", "username", "password", "socket_timeout", "socket_connect_timeout", "path")
Place: TypeAlias = tuple[Any, Any, Any]


class AsyncNodes:
    """The servers of a region. All of it raises what redis-py raises. It belongs to one event loop."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._clients: dict[Place, redis.asyncio.Redis] = {}

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
        """As of `Nodes`."""
        self._nodes.doubt(fault)

    async def aclose(self) -> None:
        """Close every connection."""
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.aclose()

    async def _call(self, node: Node, command: tuple[Any, ...], *, asking: bool) -> Any:
        client = self._client(node)
        try:
            return await self._send(client, command, asking=asking)
        except redis.ResponseError as error:
            if judge(str(error)) is not LIBRARY_MISSING:
                raise
        await asyncio.to_thread(node.load)
        return await self._send(client, command, asking=asking)

    async def _send(self, client: Any, command: tuple[Any, ...], *, asking: bool) -> Any:
        if not asking:
            return await client.execute_command(*command)
        async with client.pipeline(transaction=False) as both:
            both.execute_command("ASKING").execute_command(*command)
            reply = (await both.execute(raise_on_error=False))[1]  # raising would put the command in the message
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _client(self, node: Node) -> redis.asyncio.Redis:
        """Of the server that is behind a node now: of Sentinel's primary the address changes."""
        place = node.place
        if place == (None, None, None):
            raise redis.ConnectionError("no Sentinel has named the primary yet")
        client = self._clients.get(place)
        if client is None:
            client = self._clients[place] = redis.asyncio.Redis(connection_pool=_pool(node, place))
        return client


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
    return ConnectionPool(connection_class=kind, retry=Retry(NoBackoff(), 0), **kwargs)
