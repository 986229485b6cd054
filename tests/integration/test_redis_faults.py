"""Redis servers that lose writes on purpose: the faults themselves, on a real Redis and Valkey."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from infra import cache, warden
from infra.processes import ServerProcess, StackError, Warden, free_port
from infra.proxy import FaultProxy
from infra.redis_faults import RedisFaults
from invalidator.layout import Layout
from invalidator.node import LIBRARY
from invalidator.nodes import Connection, connect
from invalidator.region import Region
from tests.fix_redis import BINARIES
from tests.waiting import wait_until


def client_of(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, decode_responses=True, socket_timeout=5, retry=Retry(NoBackoff(), 0))


@pytest.fixture
def client(mortal_redis: RedisFaults) -> Iterator[redis.Redis]:
    with client_of(mortal_redis.url) as client:
        yield client


def test_a_roll_back_brings_an_earlier_moment_back_on_the_same_port_with_its_functions(
    mortal_redis: RedisFaults, client: redis.Redis
) -> None:
    Region("eu", connect(Connection(url=mortal_redis.url)), Layout(prefix="x")).prepare()
    client.set("k", "old")
    old = mortal_redis.take_dump()
    client.set("k", "newer")
    newer = mortal_redis.take_dump()
    client.set("k", "newest")
    before = mortal_redis.process.pid
    mortal_redis.roll_back(old)
    assert client.get("k") == "old"
    assert mortal_redis.process.pid != before
    assert len(client.function_list(LIBRARY)) == 1
    mortal_redis.roll_back(newer)
    assert client.get("k") == "newer"


def test_a_kill_falls_back_to_the_newest_dump_and_no_further(mortal_redis: RedisFaults, client: redis.Redis) -> None:
    client.set("k", "dumped")
    mortal_redis.take_dump()
    client.set("k", "lost")
    mortal_redis.process.kill()
    mortal_redis.process.start()
    assert client.get("k") == "dumped"


def test_a_restart_without_data_forgets_everything_functions_included(
    mortal_redis: RedisFaults, client: redis.Redis
) -> None:
    Region("eu", connect(Connection(url=mortal_redis.url)), Layout(prefix="x")).prepare()
    client.set("k", "v")
    mortal_redis.take_dump()
    mortal_redis.restart_empty()
    assert client.dbsize() == 0
    assert client.function_list() == []


def test_a_replica_held_back_is_promoted_without_what_it_missed(mortal_redis: RedisFaults, client: redis.Redis) -> None:
    client.set("k", "before")
    with mortal_redis.replica() as replica, client_of(replica.url) as other:
        assert other.get("k") == "before"
        client.set("k", "copied")
        replica.hold_back()
        client.set("k", "missed")
        with pytest.raises(redis.ReadOnlyError):
            other.set("k", "x")
        mortal_redis.process.kill()
        replica.promote()
        assert other.get("k") == "copied"
        other.set("k", "after")
        assert replica.process.pid != mortal_redis.process.pid


def test_the_replica_is_of_the_same_kind_and_ends_with_its_block(
    mortal_redis: RedisFaults, client: redis.Redis
) -> None:
    with mortal_redis.replica() as replica, client_of(replica.url) as other:
        kinds = [c.info("server").get("server_name", "redis") for c in (client, other)]
        assert kinds[0] == kinds[1]
        identity = replica.process.identity
        assert identity is not None
    assert not warden.is_alive(identity)


def test_a_replica_that_catches_up_has_what_it_missed(mortal_redis: RedisFaults, client: redis.Redis) -> None:
    with mortal_redis.replica() as replica, client_of(replica.url) as other:
        replica.hold_back()
        client.set("k", "late")
        assert other.get("k") is None
        replica.catch_up()
        assert other.get("k") == "late"


def test_behind_one_address_a_promoted_replica_takes_over_and_the_old_primary_goes_on_unheard(
    mortal_redis: RedisFaults, client: redis.Redis
) -> None:
    with (
        FaultProxy(mortal_redis.port) as front,
        client_of(cache.url(front.port)) as user,
        mortal_redis.replica() as replica,
    ):
        user.set("k", "copied")
        replica.hold_back()
        user.set("k", "missed")
        replica.promote()
        front.retarget(replica.port)
        assert user.get("k") == "missed"  # an open connection still reaches the old one
        front.reset()
        wait_until(lambda: user.get("k") == "copied", "the new primary answers")
        assert client.get("k") == "missed"


def test_a_server_with_an_append_only_file_is_not_rolled_back(tmp_path: Path) -> None:
    guard = Warden(log=tmp_path / "warden.log")
    server = cache.server(
        program=BINARIES["redis"],
        region="eu",
        directory=tmp_path / "redis-eu",
        log=tmp_path / "redis-eu.log",
        port=free_port(),
        extra={"appendonly": "yes"},
    )
    faults = RedisFaults(ServerProcess(server, guard))
    with pytest.raises(StackError, match="redis-eu keeps an append-only file"):
        faults.roll_back(tmp_path / "dump.rdb")
    guard.close()


def test_a_replica_whose_owner_forgets_it_is_stopped_by_the_warden(tmp_path: Path) -> None:
    guard = Warden(log=tmp_path / "warden.log")
    servers = [
        cache.server(
            program=BINARIES["redis"],
            region=region,
            directory=tmp_path / region,
            log=tmp_path / f"{region}.log",
            port=free_port(),
            extra={},
        )
        for region in ("eu", "eu-replica")
    ]
    first = ServerProcess(servers[0], guard)
    second = first.beside(servers[1])
    second.start()
    assert second.identity is not None
    guard.close()
    assert not warden.is_alive(second.identity)
    second.kill()  # reaps it
