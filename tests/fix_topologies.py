"""Fixtures: a Cluster, and servers watched by Sentinel, one of each for a file's tests; a region on a Cluster."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from infra import redis_cluster, redis_sentinel
from infra.processes import Warden
from infra.redis_cluster import LocalCluster
from infra.redis_sentinel import WatchedServers
from invalidator.layout import Layout
from invalidator.nodes import Connection, connect, slot_of
from invalidator.redis_url import Topology
from invalidator.region import Region
from tests.fix_redis import BINARIES
from tests.fix_world import World

SHARDS = 6
_serial = itertools.count()


@pytest.fixture(scope="module", params=["valkey"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three primaries and their replicas; each test gives back what it moved. The file says after how long one is dead."""
    timeout_ms = getattr(request.module, "NODE_TIMEOUT_MS", redis_cluster.NODE_TIMEOUT_MS)
    directory = tmp_path_factory.mktemp("cluster")
    guard = Warden(log=directory / "warden.log")
    with redis_cluster.running(
        program=BINARIES[request.param], directory=directory, guard=guard, node_timeout_ms=timeout_ms
    ) as running:
        yield running
    guard.close()


@pytest.fixture(scope="module", params=["valkey"])
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedServers]:
    """A primary, two replicas, three Sentinels."""
    directory = tmp_path_factory.mktemp("watched")
    guard = Warden(log=directory / "warden.log")
    with redis_sentinel.running(program=BINARIES[request.param], directory=directory, guard=guard) as running:
        yield running
    guard.close()


def on_cluster(cluster: LocalCluster, **extra: Any) -> dict[str, Any]:
    """Settings of a region there, with shards on every primary."""
    return {"url": cluster.url, "topology": "cluster", "prefix": _spread(cluster), "shards": SHARDS, **extra}


def on_watched(watched: WatchedServers) -> dict[str, Any]:
    """Settings of a region there."""
    return {
        "url": watched.url, "topology": "sentinel", "sentinel_master": redis_sentinel.NAME, "prefix": f"w{next(_serial)}",
        "shards": 2,
    }  # fmt: skip


def cluster_region(cluster: LocalCluster, *, prefix: str | None = None) -> Region:
    """A region of its own there, shards on every primary."""
    layout = Layout(prefix=prefix or _spread(cluster), shards=SHARDS, stripes=256)
    return Region("test", connect(Connection(url=cluster.url, topology=Topology.CLUSTER)), layout)


def slot_of_shard(region: Region, shard: int) -> int:
    """Where a shard lies."""
    return slot_of(region.layout.header_key(shard))


def _spread(cluster: LocalCluster) -> str:
    """A prefix that is not used yet, whose shards lie on every primary."""
    while True:
        layout = Layout(prefix=f"c{next(_serial)}", shards=SHARDS)
        owners = {cluster.owner(slot_of(layout.header_key(shard))) for shard in range(SHARDS)}
        if owners == set(cluster.primaries()):
            return layout.prefix


@pytest.fixture
def cluster_world(cluster: LocalCluster) -> World:
    """A stream in memory, applied to a region on a real Cluster; open."""
    region = cluster_region(cluster)
    region.prepare()
    world = World(region)
    world.open()
    return world
