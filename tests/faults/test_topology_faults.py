"""A Cluster whose slots move and whose primaries die, and servers that Sentinel replaces: under load, and never stale.

Contacts change and are read without pause; in the end nothing is served that differs from the database. Each test shows
that its fault was met.
"""

from __future__ import annotations

import pytest
from redis import Redis
from redis.exceptions import RedisError

from cdc.errors import TransientError
from infra.redis_cluster import LocalCluster, Member
from infra.redis_sentinel import WatchedServers
from invalidator.nodes import slot_of
from tests.contacts import Load
from tests.fix_faults import Stopwatch
from tests.fix_plain import PlainWorld
from tests.fix_stack import MakeSite, Site
from tests.fix_topologies import cluster_region, on_cluster, on_watched, slot_of_shard
from tests.waiting import wait_until

REPLACED_SECONDS = 45
"""So soon a region whose primary died serves nothing wrong any more; the servers themselves need some 4 s to agree."""

MOVING = {"MOVED", "ASK", "TRYAGAIN"}
"""What a batch meets when its slot is elsewhere, or on its way."""

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster_site(make_site: MakeSite, cluster: LocalCluster) -> Site:
    """A region on a Cluster, with capture and one worker, open."""
    return opened(make_site(redis_urls={"eu": cluster.url}, regions={"eu": on_cluster(cluster)}))


@pytest.fixture
def watched_site(make_site: MakeSite, watched: WatchedServers) -> Site:
    """The same behind Sentinels."""
    return opened(make_site(redis_urls={"eu": watched.url}, regions={"eu": on_watched(watched)}))


def opened(site: Site) -> Site:
    site.start("capture")
    site.start("invalidate", "--region", "eu")
    site.wait_open("eu")
    return site


def slots(site: Site) -> list[int]:
    """Of every shard."""
    layout = site.reader("eu").layout
    return [slot_of(layout.header_key(shard)) for shard in range(layout.shards)]


def faults(site: Site) -> set[str]:
    """What the worker met, by code."""
    return {record["fault"] for record in site.logged("alarm") if record["kind"] == "redis"}


def hold_back(replica: Redis) -> None:
    """From here on it misses every write: its primary refuses a login that it does not know."""
    replica.config_set("masterauth", "unknown")
    replica.client_kill_filter(_type="master")
    wait_until(lambda: replica.info("replication")["master_link_status"] == "down", "the replica is cut off")


def let_follow(replica: Redis) -> None:
    replica.config_set("masterauth", "")


@pytest.mark.parametrize("cluster", ["valkey", "redis"], indirect=True)
def test_slots_move_there_and_back(cluster_site: Site, cluster: LocalCluster, stopwatch: Stopwatch) -> None:
    """The worker's batches fail on the way; the slots are read again, and the stream goes on from the rows."""
    moves = 0
    with Load(cluster_site, "eu") as load:
        load.wait_changes(100)
        stopwatch.start()
        for _ in range(2):
            for slot in slots(cluster_site):
                before = cluster.owner(slot)
                cluster.move_slot(slot, next(m for m in cluster.primaries() if m is not before))
                load.wait_changes(20)
                cluster.move_slot(slot, before)
                moves += 2
        stopwatch.converged(cluster_site, load)
    assert moves == 24
    assert faults(cluster_site) & MOVING
    assert set(cluster_site.alarms()) == {"redis"}  # nothing rewound, nothing lost


@pytest.mark.parametrize("cluster", ["valkey"], indirect=True)
def test_slots_move_at_once(cluster_site: Site, cluster: LocalCluster, stopwatch: Stopwatch) -> None:
    """Valkey's own migration: no key is ever between two nodes."""
    with Load(cluster_site, "eu") as load:
        load.wait_changes(100)
        stopwatch.start()
        for _ in range(2):
            for slot in slots(cluster_site):
                before = cluster.owner(slot)
                cluster.move_slot_at_once(slot, next(m for m in cluster.primaries() if m is not before))
                load.wait_changes(20)
                cluster.move_slot_at_once(slot, before)
        stopwatch.converged(cluster_site, load)
    assert faults(cluster_site) & MOVING
    assert set(cluster_site.alarms()) == {"redis"}


@pytest.mark.parametrize("cluster", ["valkey", "redis"], indirect=True)
def test_a_slot_moves_for_seconds(cluster_site: Site, cluster: LocalCluster, stopwatch: Stopwatch) -> None:
    """Half of a shard is here and half there: its requests are refused, and what it missed is applied afterwards."""
    slot = slots(cluster_site)[0]
    source = cluster.owner(slot)
    target = next(member for member in cluster.primaries() if member is not source)
    with Load(cluster_site, "eu") as load:
        load.wait_filled()
        stopwatch.start()
        cluster.begin_move(slot, target)
        keys = source.ask("GETKEYSINSLOT", slot, 1_000)
        migrate(source, target, keys[::2])
        wait_until(lambda: faults(cluster_site) & {"TRYAGAIN", "ASK"}, "the worker met the move")
        load.wait_changes(300)
        cluster.move_keys(slot, target)
        cluster.finish_move(slot, target)
        load.wait_changes(100)
        stopwatch.converged(cluster_site, load)
    assert set(cluster_site.alarms()) == {"redis"}
    cluster.move_slot(slot, source)


def migrate(source: Member, target: Member, keys: list[bytes]) -> None:
    source.client.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", *keys)


@pytest.mark.parametrize("cluster", ["valkey", "redis"], indirect=True)
def test_a_primary_dies_and_its_late_replica_takes_over(
    cluster_site: Site, cluster: LocalCluster, stopwatch: Stopwatch
) -> None:
    """The shards of that primary go back to what the replica had heard of; those of the others stay where they are."""
    primary = cluster.owner(slots(cluster_site)[0])
    replica = cluster.replica_of(primary)
    with Load(cluster_site, "eu") as load:
        load.wait_changes(100)
        hold_back(replica.client)
        load.wait_changes(300)
        stopwatch.start()
        primary.process.kill()
        cluster.wait_promoted(replica)
        load.wait_changes(100)
        let_follow(replica.client)
        primary.process.start()
        cluster.wait_following(primary)
        load.wait_changes(50)
        stopwatch.converged(cluster_site, load, within_seconds=REPLACED_SECONDS)
    assert replica.is_primary()
    assert cluster.owner(slots(cluster_site)[0]) is replica
    assert "rewound" in cluster_site.alarms()
    assert set(cluster_site.alarms()) <= {"rewound", "redis"}


@pytest.mark.parametrize("lost", ["the first removal", "the second removal"])
@pytest.mark.parametrize("cluster", ["valkey"], indirect=True)
def test_a_late_replica_brings_a_plain_key_back(cluster: LocalCluster, lost: str) -> None:
    """What loses a removal loses the row, or the payment, that was written after it on the same server."""
    world = PlainWorld(cluster_region(cluster))
    world.open()
    world.beat()
    elsewhere = cluster.owner(slot_of_shard(world.region, 0))
    number = next(n for n in range(100) if cluster.owner(slot_of(world.key(n))) is not elsewhere)
    primary = cluster.owner(slot_of(world.key(number)))
    replica = cluster.replica_of(primary)
    world.set(number)
    if lost == "the second removal":
        world.change({"id": number})
        world.drain()
        assert not world.has(number)
        world.set(number, "old")
    primary.client.wait(1, 5_000)
    hold_back(replica.client)
    if lost == "the first removal":
        world.change({"id": number})
        world.drain()
    else:
        world.beat()
    assert not world.has(number)
    primary.process.kill()
    cluster.wait_promoted(replica)
    assert replica.client.exists(world.key(number)), "the key is back"
    world.heartbeat()

    def is_removed() -> bool:
        try:
            world.drain()
            return not world.has(number)
        except (TransientError, RedisError):
            return False

    wait_until(is_removed, "it is removed again", seconds=REPLACED_SECONDS)
    if lost == "the first removal":
        assert world.alarms("rewound")
    let_follow(replica.client)
    primary.process.start()
    cluster.wait_following(primary)


@pytest.mark.parametrize("cluster", ["valkey"], indirect=True)
def test_a_primary_restarts_empty_before_anybody_takes_over(
    cluster_site: Site, cluster: LocalCluster, stopwatch: Stopwatch
) -> None:
    """Its shards start cold; its replica forgets with it."""
    primary = cluster.owner(slots(cluster_site)[0])
    with Load(cluster_site, "eu") as load:
        load.wait_changes(100)
        stopwatch.start()
        primary.process.kill()
        primary.process.start()
        cluster_site.wait_alarm("lost")
        load.wait_changes(50)
        stopwatch.converged(cluster_site, load, within_seconds=REPLACED_SECONDS)
    assert cluster.owner(slots(cluster_site)[0]) is primary
    assert set(cluster_site.alarms()) <= {"lost", "redis"}


@pytest.mark.parametrize("cluster", ["valkey"], indirect=True)
def test_a_cluster_without_a_majority(cluster_site: Site, cluster: LocalCluster, stopwatch: Stopwatch) -> None:
    """Two of three primaries hang: the third refuses as well, until they are back. Nobody can be promoted meanwhile."""
    left, *hung = cluster.primaries()
    with Load(cluster_site, "eu") as load:
        load.wait_changes(100)
        stopwatch.start()
        for member in hung:
            member.process.pause()
        wait_until(lambda: b"cluster_state:fail" in left.ask("INFO"), "the cluster is down")
        cluster_site.wait_alarm("redis")
        load.wait_changes(50)
        for member in hung:
            member.process.resume()
        cluster.wait_whole()
        load.wait_changes(50)
        stopwatch.converged(cluster_site, load, within_seconds=REPLACED_SECONDS)
    assert set(cluster_site.alarms()) <= {"redis", "rewound"}


@pytest.mark.parametrize("watched", ["valkey", "redis"], indirect=True)
def test_sentinel_promotes_a_late_replica(watched_site: Site, watched: WatchedServers, stopwatch: Stopwatch) -> None:
    old = watched.primary()
    replicas = [server for server in watched.servers.values() if server is not old]
    with Load(watched_site, "eu") as load:
        load.wait_changes(100)
        for replica in replicas:
            hold_back(watched.client(replica))
        load.wait_changes(300)
        stopwatch.start()
        old.kill()
        watched.wait_promoted(old)
        for replica in replicas:
            let_follow(watched.client(replica))
        load.wait_changes(100)
        stopwatch.converged(watched_site, load, within_seconds=REPLACED_SECONDS)
    assert watched.primary() in replicas
    assert "rewound" in watched_site.alarms()
    assert set(watched_site.alarms()) <= {"rewound", "redis"}
    old.start()
    watched.wait_following(old)


@pytest.mark.parametrize("watched", ["valkey"], indirect=True)
def test_sentinel_replaces_a_primary_that_lives(
    watched_site: Site, watched: WatchedServers, stopwatch: Stopwatch
) -> None:
    """The old one goes on answering for seconds: the worker leaves it when it asks Sentinel the next time."""
    with Load(watched_site, "eu") as load:
        load.wait_changes(100)
        stopwatch.start()
        old = watched.fail_over()
        wait_until(lambda: "rewound" in watched_site.alarms(), "the worker found the new one", seconds=8)
        assert watched.client(old).info("replication")["role"] == "master"  # nobody had told it
        load.wait_changes(50)
        watched.wait_following(old)
        load.wait_changes(50)
        stopwatch.converged(watched_site, load, within_seconds=REPLACED_SECONDS)
    assert watched.primary() is not old
    assert set(watched_site.alarms()) <= {"rewound", "redis"}
