"""Redis topologies beside a session's servers: a Cluster, or servers watched by Sentinel, started when first asked for.

In flows a topology's name; out flow the servers, with tools to move slots and to fail over, and a region's settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from infra import redis_cluster, redis_sentinel
from infra.prerequisites import find_redis
from infra.processes import StackError, Warden
from infra.redis_cluster import LocalCluster
from infra.redis_sentinel import WatchedServers

CLUSTER: Final = "cluster"
SENTINEL: Final = "sentinel"
CLUSTER_SHARDS: Final = 6

TopologyServers = LocalCluster | WatchedServers


class Topologies:
    """The servers of one session, each kind once; sites share them, apart by the prefix of their keys."""

    def __init__(self, directory: Path, guard: Warden, program: Path | None = None) -> None:
        self._directory = directory
        self._guard = guard
        self._program = program
        self._running: dict[str, TopologyServers] = {}
        self._last = ExitStack()

    def servers(self, kind: str) -> TopologyServers:
        """Those of `cluster` or `sentinel`, started where they are not. Raises StackError, MissingPrerequisite."""
        if kind not in (CLUSTER, SENTINEL):
            raise StackError(f"there is no topology {kind!r}; known are {CLUSTER}, {SENTINEL}: leave out single ones")
        if kind not in self._running:
            place = self._directory / kind
            place.mkdir(exist_ok=True)
            program = self._program or find_redis()
            if kind == CLUSTER:
                started: TopologyServers = self._last.enter_context(
                    redis_cluster.running(program=program, directory=place, guard=self._guard)
                )
            else:
                started = self._last.enter_context(
                    redis_sentinel.running(program=program, directory=place, guard=self._guard)
                )
            self._running[kind] = started
        return self._running[kind]

    def close(self) -> None:
        """End them all."""
        self._last.close()


def settings_of(servers: TopologyServers) -> Mapping[str, Any]:
    """A region's settings there, but for its prefix."""
    if isinstance(servers, LocalCluster):
        return {"url": servers.url, "topology": CLUSTER, "shards": CLUSTER_SHARDS}
    return {"url": servers.url, "topology": SENTINEL, "sentinel_master": redis_sentinel.NAME}
