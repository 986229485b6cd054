"""A region on a Cluster, and one that Sentinel watches: the path from commit to cache, and each answer of a moving slot."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest
import redis
from pydantic import SecretStr
from redis.backoff import NoBackoff
from redis.retry import Retry

from cdc.errors import ConfigError, TransientError
from consumers.redis_users import Form, Role, lines
from consumers.regions import open_region, read_views, redis_connection
from consumers.settings import RegionSettings
from infra.redis_cluster import LocalCluster, Member
from infra.redis_sentinel import WatchedServers
from invalidator.async_nodes import connect_async
from invalidator.async_region import AsyncRegion
from invalidator.guard import Batch, KeyChange, Outcome
from invalidator.layout import Layout
from invalidator.node import LIBRARY, Node
from invalidator.nodes import Cluster, Connection, connect, slot_of
from invalidator.redis_errors import UNANSWERED
from invalidator.redis_facts import describe
from invalidator.redis_url import Topology
from invalidator.region import Region
from invalidator.region_faults import RegionFault
from tests.contacts import load_contact
from tests.fix_plain import PlainWorld
from tests.fix_stack import ROOT, MakeSite, Site
from tests.fix_topologies import SHARDS, cluster_region, on_cluster, on_watched, slot_of_shard
from tests.fix_world import VIEWS as WORLD_VIEWS
from tests.fix_world import World
from tests.integration.test_main_path import load_segment, refuse
from tests.waiting import wait_until

T = TypeVar("T")

NODE_TIMEOUT_MS = 15_000
"""Nobody dies here: a member that a busy machine starves must not be replaced by one that has missed something."""

KEYS = [f"contact:{number}" for number in range(60)]


# -- from commit to cache, with the processes that people run --------------------------------------------------------


def test_a_commit_reaches_a_cluster(make_site: MakeSite, cluster: LocalCluster) -> None:
    site = make_site(redis_urls={"eu": cluster.url}, regions={"eu": on_cluster(cluster)})
    main_path(site)
    prefix = site.settings.regions["eu"].prefix
    assert all(list(member.client.scan_iter(match=f"{{{prefix}:*}}:e:*")) for member in cluster.primaries())


def test_a_commit_reaches_servers_that_sentinel_watches(make_site: MakeSite, watched: WatchedServers) -> None:
    main_path(make_site(redis_urls={"eu": watched.url}, regions={"eu": on_watched(watched)}))


def main_path(site: Site) -> None:
    """Fill, change, invalidate, refresh, move, fence; check and selfcheck find nothing wrong."""
    site.database.execute("INSERT INTO contacts SELECT i, 'old', 's' FROM generate_series(1, 30) i")
    site.database.execute("INSERT INTO members VALUES (5, 1)")
    site.start("capture")
    site.start("invalidate", "--region", "eu")
    site.wait_open("eu")
    reader = site.reader("eu")
    for number in range(1, 31):
        assert reader.get("contact", number, load_contact(number)) == {"email": "old", "status": "s"}
        assert reader.get("contact", number, refuse) == {"email": "old", "status": "s"}
    assert reader.get("segment", 1, load_segment(1)) == [5]
    site.database.execute("UPDATE contacts SET email = 'new' WHERE id <= 20")
    site.database.execute("UPDATE members SET segment_id = 2 WHERE contact_id = 5")
    site.database.execute("INSERT INTO templates VALUES (9, 'hello')")
    site.wait_drained("eu")
    for number in range(1, 31):
        expected = {"email": "new" if number <= 20 else "old", "status": "s"}
        assert reader.get("contact", number, load_contact(number) if number <= 20 else refuse) == expected
    assert reader.get("segment", 1, load_segment(1)) == []
    assert reader.get("template", 9, refuse) == {"id": 9, "body": "hello"}
    assert command(site, "selfcheck", "--region", "eu")["ok"]
    assert [f for f in command(site, "check")["findings"] if "region" in f["subject"] and f["level"] != "OK"] == []
    command(site, "fence", "--view", "contact", "--reason", "test", "--yes")
    site.wait_alarm("ordered")
    site.wait_open("eu")
    assert [n for n in range(1, 31) if cached(site, "contact", n)] == []
    assert site.alarms() == ["ordered"]


def command(site: Site, *words: str) -> Any:
    """What a command printed as JSON."""
    config = str(site.directory / "staleproof.yaml")
    ended = subprocess.run(
        [sys.executable, "-m", "consumers.cli", *words, "--json", "--config", config],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def cached(site: Site, view: str, number: int) -> bool:
    region, key = open_region(site.settings, "eu"), f"{view}:{number}"
    digest = read_views(site.settings.views).views[view].digest
    return region.read(region.layout.place(key)[0], key, view, digest).status == "HIT"


# -- one batch, one answer: the stream is in memory, the cluster is real ---------------------------------------------


def fill_all(world: World) -> None:
    for key in KEYS:
        assert world.fill(key).outcome in (Outcome.APPLIED, Outcome.SUPERSEDED)
    assert all(world.read(key) for key in KEYS)


def change_all(world: World) -> None:
    for key in KEYS:
        world.change({"id": int(key.removeprefix("contact:"))})


def other_primary(cluster: LocalCluster, slot: int) -> Member:
    return next(member for member in cluster.primaries() if member is not cluster.owner(slot))


@contextmanager
def slots_not_read_again(region: Region) -> Iterator[None]:
    """As within a moment after they were read: the worker's own checks would learn of a move before its batches do."""
    nodes: Any = region._nodes
    nodes._due_seconds = time.monotonic() + 600
    yield
    nodes._due_seconds = 0.0


def test_shards_of_a_cluster_are_invalidated_on_every_node(cluster_world: World) -> None:
    fill_all(cluster_world)
    change_all(cluster_world)
    cluster_world.drain()
    assert [key for key in KEYS if cluster_world.read(key)] == []
    fill_all(cluster_world)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_batch_that_meets_a_moved_slot_is_applied_where_the_slot_is(
    cluster_world: World, cluster: LocalCluster, at_once: bool
) -> None:
    """The worker learns of the move by the failure of its batch, and goes on from the rows: nothing is lost."""
    world = cluster_world
    fill_all(world)
    slot = slot_of_shard(world.region, 0)
    source = cluster.owner(slot)
    move = cluster.move_slot_at_once if at_once else cluster.move_slot
    move(slot, other_primary(cluster, slot))
    change_all(world)
    with slots_not_read_again(world.region), pytest.raises(RegionFault) as caught:
        world.drain()
    assert caught.value.kind == "MOVED"
    world.drain()
    assert [key for key in KEYS if world.read(key)] == []
    assert world.alarms("rewound") == world.alarms("gap") == world.alarms("lost") == 0
    move(slot, source)


def test_a_single_request_follows_a_moved_slot(cluster_world: World, cluster: LocalCluster) -> None:
    world = cluster_world
    fill_all(world)
    for shard in range(SHARDS):
        slot = slot_of_shard(world.region, shard)
        cluster.move_slot(slot, other_primary(cluster, slot))
    with slots_not_read_again(world.region):
        headers = [world.region.header(shard) for shard in range(SHARDS)]
        assert [shard for shard, header in enumerate(headers) if not header] == []
        assert [(key, world.region.layout.place(key)[0]) for key in KEYS if not world.read(key)] == []


def test_a_slot_on_its_way_refuses_and_loses_nothing(cluster_world: World, cluster: LocalCluster) -> None:
    """Half of its keys are gone, and the header with them: batches fail, the header is read where it is."""
    world = cluster_world
    fill_all(world)
    slot = slot_of_shard(world.region, 0)
    source, target = cluster.owner(slot), other_primary(cluster, slot)
    cluster.begin_move(slot, target)
    header = world.region.layout.header_key(0)
    source.client.execute_command("MIGRATE", "127.0.0.1", target.port, header, 0, 5_000)
    assert world.region.header(0)["v"] == "1"  # ASK, followed
    change_all(world)
    kinds = set()
    for _ in range(3):
        with pytest.raises(RegionFault) as caught:
            world.drain()
        kinds.add(caught.value.kind)
    assert kinds <= {"TRYAGAIN", "ASK"}
    cluster.move_keys(slot, target)
    cluster.finish_move(slot, target)
    with suppress(RegionFault):
        world.drain()  # MOVED, unless the slots were just read again
    world.drain()
    assert [key for key in KEYS if world.read(key)] == []
    assert world.alarms("lost") == 0
    cluster.move_slot(slot, source)


def test_the_library_is_loaded_on_the_node_that_does_not_know_it(cluster_world: World, cluster: LocalCluster) -> None:
    """Also on one that was no primary of ours when the others were prepared."""
    world = cluster_world
    fill_all(world)
    target = cluster.primaries()[2]
    target.client.function_flush()
    assert all(world.read(key) for key in KEYS)
    assert len(target.client.function_list(library=LIBRARY)) == 1
    target.client.function_flush()
    change_all(world)
    with pytest.raises(RegionFault) as caught:
        world.drain()
    assert caught.value.kind == "NOFUNCTION"
    world.drain()
    assert [key for key in KEYS if world.read(key)] == []
    assert world.alarm_count() == 0


def test_batches_sent_ahead_to_several_nodes_are_answered_each_by_its_own(cluster: LocalCluster) -> None:
    """Six shards on three nodes: replies come in the order of each node, and are asked for in the order of sending."""
    region = cluster_region(cluster)
    region.prepare()
    world = World(region)
    world.open()  # here and not in a fixture: it sends to several nodes as well
    fill_all(world)
    unseen = (f"{world.stamp + 9:016x}",)
    sent: list[Any] = []
    serving = {shard: region._nodes.serving(region.layout.header_key(shard)) for shard in range(SHARDS)}
    assert len(set(serving.values())) == 3
    order = sorted(serving, key=lambda shard: id(serving[shard]), reverse=True)  # whichever node comes first to mind
    for count, shard in enumerate(order, start=1):
        keys = [key for key in KEYS if region.layout.place(key)[0] == shard][:count]
        changes = tuple(KeyChange(key, region.layout.place(key)[1], "0" * 32, unseen) for key in keys)
        sent.append(region.submit(shard, Batch(rows=(), changes=changes)))
    assert [submitted.applied().unlinked for submitted in sent] == [1, 2, 3, 4, 5, 6]


def test_a_worker_that_gives_up_leaves_no_reply_behind(cluster_world: World) -> None:
    """A line with a reply on it would answer the next batch with that of the last."""
    world = cluster_world
    fill_all(world)
    change_all(world)
    world.worker.turn()  # whatever is under way ...
    world.region.abandon()
    world.worker._lose_footing()  # ... is given up
    change_all(world)
    world.drain()
    assert [key for key in KEYS if world.read(key)] == []
    assert world.region._talking == set()


def test_plain_keys_are_removed_on_every_node(cluster: LocalCluster) -> None:
    world = PlainWorld(cluster_region(cluster))
    world.open()
    world.beat()
    numbers = range(200)
    for number in numbers:
        world.set(number)
    assert all(any(m.client.scan_iter(match=world.key("*"))) for m in cluster.primaries())
    for number in numbers[:150]:
        world.change({"id": number})
    world.drain()
    assert [number for number in numbers if world.has(number)] == [*numbers[150:]]
    for number in numbers:
        world.set(number, "old")
    world.beat()
    assert [number for number in numbers if world.has(number)] == [*numbers[150:]]
    world.change(None, op="t")
    world.drain()
    assert not any(world.has(number) for number in numbers)


def test_what_is_owed_for_a_plain_key_lies_beside_it(cluster: LocalCluster) -> None:
    """A fail-over that loses the second removal then loses its payment as well."""
    world = PlainWorld(cluster_region(cluster))
    world.open()
    world.beat()
    for number in range(50):
        world.change({"id": number})
    world.drain()
    region = world.region
    for shard in range(SHARDS):
        there = cluster.owner(slot_of_shard(region, shard))
        assert all(cluster.owner(slot_of(name)) is there for name, _ in region.owed(shard) if not name.startswith("!"))
    assert len(world.owed()) == 50


def test_a_plain_key_whose_slot_moves_is_removed_where_it_is(cluster: LocalCluster) -> None:
    world = PlainWorld(cluster_region(cluster))
    world.open()
    world.beat()
    slot = slot_of(world.key(1))
    target = next(m for m in cluster.primaries() if m is not cluster.owner(slot))
    source = cluster.owner(slot)
    world.set(1)
    cluster.begin_move(slot, target)
    cluster.move_keys(slot, target)
    for number in (1, 2, 3):
        world.change({"id": number})
    world.drain()
    cluster.finish_move(slot, target)
    assert not world.has(1)
    world.set(1)
    for number in (1, 2, 3):
        world.change({"id": number})
    world.drain()
    assert not world.has(1)
    cluster.move_slot(slot, source)


def test_a_reader_whose_primary_is_gone_looks_who_serves_now(cluster: LocalCluster) -> None:
    """Nobody prepares a reader's region anew, as a worker does: it must find the promoted one by itself."""
    region = cluster_region(cluster)
    assert region.header(0) == {}
    nodes: Any = region._nodes
    slot = slot_of_shard(region, 0)
    nodes._slots[slot] = Node(redis.Redis(port=1, retry=Retry(NoBackoff(), 0)))
    nodes._due_seconds = 0.0
    with pytest.raises(RegionFault):
        region.header(0)
    assert region.header(0) == {}


def test_a_server_without_a_cluster_is_named_so(redis_url: str) -> None:
    region = Region("eu", connect(Connection(url=redis_url, topology=Topology.CLUSTER)), Layout())
    with pytest.raises(Exception, match="topology: single"):
        region.header(0)


def test_check_names_what_is_wrong_with_a_topology(redis_url: str, watched: WatchedServers) -> None:
    with pytest.raises(ConfigError, match="not part of a cluster: set the region's topology: single"):
        describe(Connection(url=redis_url, topology=Topology.CLUSTER))
    other = Connection(url=watched.url, topology=Topology.SENTINEL, sentinel_master="other")
    with pytest.raises(TransientError, match="no Sentinel of url knows a primary other"):
        describe(other)


def test_check_asks_every_primary_of_a_cluster(cluster: LocalCluster) -> None:
    facts = describe(Connection(url=cluster.url, topology=Topology.CLUSTER))
    assert sorted(f.server for f in facts) == sorted(f"127.0.0.1:{member.port}" for member in cluster.primaries())
    assert all(f.is_cluster and not f.is_replica and f.refusal is None for f in facts)


def test_a_node_of_a_cluster_behind_a_single_url_is_named_so(cluster: LocalCluster) -> None:
    layout = cluster_region(cluster).layout
    single = Region("eu", connect(Connection(url=cluster.url.split(",", maxsplit=1)[0])), layout)
    with pytest.raises(RegionFault, match="topology: cluster"):
        [single.header(shard) for shard in range(SHARDS)]


def test_seeds_that_are_away_are_passed_over(cluster: LocalCluster) -> None:
    url = "redis://127.0.0.1:1," + cluster.url.removeprefix("redis://")
    region = Region("eu", connect(Connection(url=url, topology=Topology.CLUSTER)), Layout(prefix="seed", shards=SHARDS))
    assert [region.header(shard) for shard in range(SHARDS)] == [{}] * SHARDS


def test_a_cluster_that_is_away_is_unreachable_and_asked_again(cluster: LocalCluster) -> None:
    region = Region("eu", connect(Connection(url="redis://127.0.0.1:1", topology=Topology.CLUSTER)), Layout())
    for _ in range(2):
        with pytest.raises(RegionFault) as caught:
            region.header(0)
        assert caught.value.kind in ("UNREACHABLE", "CLUSTERDOWN")


def test_slots_are_read_by_one_thread_while_others_go_on(cluster: LocalCluster) -> None:
    """A node that hangs would otherwise hold every reader of a process."""
    nodes = connect(Connection(url=cluster.url, topology=Topology.CLUSTER))
    assert isinstance(nodes, Cluster)
    served = nodes.serving("{a}")
    held, go_on = threading.Event(), threading.Event()
    read = nodes._read

    def slowly() -> Any:
        held.set()
        assert go_on.wait(20)
        return read()

    nodes._read = slowly  # type: ignore[method-assign]
    nodes._due_seconds = 0.0
    nodes.doubt(UNANSWERED)
    looking = threading.Thread(target=nodes.serving, args=("{a}",))
    looking.start()
    assert held.wait(20)
    nodes.doubt(UNANSWERED)  # another thread met the fault as well
    assert nodes.serving("{a}") is served
    go_on.set()
    looking.join(20)
    assert not looking.is_alive()


def test_a_cluster_serves_the_users_that_acl_prints_also_while_a_slot_moves(
    cluster: LocalCluster, cluster_world: World
) -> None:
    layout = cluster_world.region.layout
    connections = users_on([member.client for member in cluster.members], layout, topology="cluster", url=cluster.url)
    region = Region("test", connect(connections[Role.READER]), layout)
    cluster_world.worker = World(Region("test", connect(connections[Role.WORKER]), layout)).worker
    cluster_world.region = region
    assert [cluster_world.fill(key).outcome for key in KEYS] == [Outcome.APPLIED] * len(KEYS)
    assert [cluster_world.read(key) for key in KEYS] == [b"1"] * len(KEYS)
    slot = slot_of_shard(region, layout.place(KEYS[0])[0])
    source, target = cluster.owner(slot), next(p for p in cluster.primaries() if p is not cluster.owner(slot))
    cluster.begin_move(slot, target)
    cluster.move_keys(slot, target)
    assert cluster_world.read(KEYS[0]) == b"1"  # by ASK
    cluster.finish_move(slot, target)
    assert cluster_world.read(KEYS[0]) == b"1"  # by MOVED
    cluster.move_slot(slot, source)
    for member in cluster.primaries():
        assert member.client.acl_log() == []
    facts = describe(connections[Role.OPERATOR], {"staleproof-reader": [("FLUSHALL",), ("CLUSTER", "SLOTS")]})
    assert [fact.rights["staleproof-reader"].allowed for fact in facts if fact.rights] == [{("CLUSTER", "SLOTS")}] * 3


def test_a_server_behind_sentinels_serves_the_users_that_acl_prints(watched: WatchedServers) -> None:
    region = RegionSettings.model_validate(on_watched(watched))
    layout = Layout(prefix=region.prefix, shards=region.shards, stripes=256)
    client = watched.client(watched.primary())
    connections = users_on([client], layout, topology="sentinel", url=watched.url, sentinel_master="staleproof")
    worker = Region("test", connect(connections[Role.WORKER]), layout)
    worker.prepare()
    world = World(worker)
    world.open()
    world.region = Region("test", connect(connections[Role.READER]), layout)
    assert world.fill().outcome is Outcome.APPLIED
    assert world.read() == b"1"
    assert client.acl_log() == []


def users_on(clients: list[redis.Redis], layout: Layout, **settings: Any) -> dict[Role, Connection]:
    """The users of these servers, as by hand, and how each logs in."""
    region = RegionSettings.model_validate({**settings, "prefix": layout.prefix, "shards": layout.shards})
    passwords = {role: f"{role}-secret" for role in Role}
    for client in clients:
        client.acl_log_reset()
        for line in lines(region, list(Role), passwords, form=Form.COMMAND):
            client.execute_command(*line.split())
    return {
        role: redis_connection(
            region.model_copy(update={"username": f"staleproof-{role}", "password": SecretStr(passwords[role])})
        )
        for role in Role
    }


def test_a_primary_that_sentinel_replaced_is_left_though_it_still_answers(watched: WatchedServers) -> None:
    """Between the decision and the old one's demotion pass seconds, and longer where it is cut off."""
    settings = on_watched(watched)
    options = Connection(url=watched.url, topology=Topology.SENTINEL, sentinel_master=settings["sentinel_master"])
    region = Region("eu", connect(options), Layout(prefix=settings["prefix"]))
    region.prepare()

    def port() -> int:
        info = region._nodes.call("", "INFO", "server")
        return int(info["tcp_port"])

    before = port()
    old = watched.fail_over()
    assert watched.client(old).ping()
    wait_until(lambda: port() != before, "another primary is asked", seconds=5)


def test_an_address_with_a_login_reaches_a_primary_behind_sentinels(watched: WatchedServers) -> None:
    """User and password are those of the servers; the Sentinels here ask for none."""
    with watched.client(watched.primary()) as client:
        client.acl_setuser("app", enabled=True, passwords=["+hunter2"], commands=["+@all"], keys=["*"], channels=["*"])
    url = watched.url.replace("redis://", "redis://app:hunter2@")
    nodes = connect(Connection(url=url, topology=Topology.SENTINEL, sentinel_master="staleproof"))
    assert nodes.call("", "ACL", "WHOAMI") == b"app"


# --- readers in asyncio, which ask the same code who serves -----------------------------------------------------------


def look_at_all(world: World, region: AsyncRegion) -> dict[str, bool]:
    """Which of the keys are there, for a reader in asyncio."""

    async def look() -> dict[str, bool]:
        found = {}
        for key in KEYS:
            view = WORLD_VIEWS.views["contact"]
            looked = await region.look(region.layout.place(key)[0], [key], view.name, view.digest)
            found[key] = looked.entries[0] is not None
        return found

    return asyncio.run(_closing(look(), region))


async def _closing(work: Coroutine[Any, Any, T], region: AsyncRegion) -> T:
    try:
        return await work
    finally:
        await region.aclose()


def test_a_reader_in_asyncio_follows_a_moved_slot(cluster_world: World, cluster: LocalCluster) -> None:
    world = cluster_world
    fill_all(world)
    nodes = connect_async(Connection(url=cluster.url, topology=Topology.CLUSTER))
    region = AsyncRegion("eu", nodes, world.region.layout)
    assert all(look_at_all(world, region).values())
    for shard in range(SHARDS):
        slot = slot_of_shard(world.region, shard)
        cluster.move_slot(slot, other_primary(cluster, slot))
    with slots_not_read_again(cast("Any", SimpleNamespace(_nodes=nodes._nodes))):
        assert all(look_at_all(world, region).values())


def test_a_reader_in_asyncio_is_told_to_ask_for_a_slot_on_its_way(cluster_world: World, cluster: LocalCluster) -> None:
    """A lease is one key: it is given where the slot goes."""
    world = cluster_world
    slot = slot_of_shard(world.region, 0)
    source, target = cluster.owner(slot), other_primary(cluster, slot)
    cluster.begin_move(slot, target)
    region = AsyncRegion(
        "eu", connect_async(Connection(url=cluster.url, topology=Topology.CLUSTER)), world.region.layout
    )
    leased = asyncio.run(_closing(region.lease(0, ["contact:1"], "a" * 16, 60_000, 1), region))
    assert leased == ["GRANTED"]
    cluster.move_keys(slot, target)
    cluster.finish_move(slot, target)
    assert world.region.lease(0, ["contact:1"], "b" * 16, 60_000, 1) == ["HELD"]
    cluster.move_slot(slot, source)


def port_of(info: bytes) -> bytes:
    return info.partition(b"tcp_port:")[2].split()[0]


def test_a_reader_in_asyncio_leaves_a_primary_that_sentinel_replaced(watched: WatchedServers) -> None:
    settings = on_watched(watched)
    options = Connection(url=watched.url, topology=Topology.SENTINEL, sentinel_master=settings["sentinel_master"])
    nodes = connect_async(options)

    async def run() -> None:
        before = port_of(await nodes.call("", "INFO", "server"))
        old = await asyncio.to_thread(watched.fail_over)
        assert watched.client(old).ping()
        deadline = time.monotonic() + 5
        while port_of(await nodes.call("", "INFO", "server")) == before:
            assert time.monotonic() < deadline, "the old primary is still asked"
            await asyncio.sleep(0.05)  # asked again until the deadline
        await nodes.aclose()

    asyncio.run(run())
