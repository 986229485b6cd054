"""One region's Redis, for readers in asyncio: what `Region` does for readers in threads. Door: redis."""

from __future__ import annotations

from collections.abc import Sequence

import redis

from invalidator import reader_commands
from invalidator.async_nodes import AsyncNodes
from invalidator.guard import Fill
from invalidator.layout import Layout
from invalidator.reader_commands import Filled, Looked, Request
from invalidator.region_faults import judging


class AsyncRegion:
    """The readers' functions on one region. `name` appears in errors only. It belongs to one event loop."""

    def __init__(self, name: str, nodes: AsyncNodes, layout: Layout) -> None:
        self.name = name
        self.layout = layout
        self._nodes = nodes

    async def look(self, shard: int, keys: Sequence[str], view: str, digest: str) -> Looked:
        """As `Region.look`."""
        request = reader_commands.read_request(self.layout, shard, keys, view, digest)
        return reader_commands.looked(await self._call("FCALL_RO", request), len(keys))

    async def fill_many(self, shard: int, requests: Sequence[Fill], owner: str = "") -> list[Filled]:
        """As `Region.fill_many`."""
        request = reader_commands.fill_request(self.layout, shard, requests, owner)
        return reader_commands.filled(await self._call("FCALL", request), len(requests))

    async def lease(self, shard: int, fields: Sequence[str], owner: str, lease_ms: int, living_max: int) -> list[str]:
        """As `Region.lease`."""
        request = reader_commands.lease_request(self.layout, shard, fields, owner, lease_ms, living_max)
        return reader_commands.leased(await self._call("FCALL", request))

    async def aclose(self) -> None:
        """Close every connection."""
        await self._nodes.aclose()

    async def _call(self, command: str, request: Request) -> list[bytes]:
        try:
            reply: list[bytes] = await self._nodes.call(str(request[2]), command, *request)
        except (redis.RedisError, OSError):
            with judging(self.name, self._nodes.doubt):
                raise
        return reply
