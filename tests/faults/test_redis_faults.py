"""Each silent row of the fault table under Redis and Valkey: safe, and a person hears of it. Processes and servers are real.

Safe: while contacts change and are read without pause, nothing is served in the end that differs from the database.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import redis
from kafka.admin import KafkaAdminClient
from kafka.structs import TopicPartition
from redis.backoff import NoBackoff
from redis.retry import Retry

from consumers.regions import open_region
from infra import cache
from infra.processes import free_port
from infra.proxy import FaultProxy
from infra.redis_faults import RedisFaults
from tests.contacts import PRELOADED, Load, cached_key, load_contact
from tests.fix_faults import Stopwatch
from tests.fix_stack import MakeSite, Site
from tests.waiting import wait_until

ROLLED_BACK_SECONDS = 30
"""So soon a region that was rolled back or promoted serves nothing wrong any more."""

one_kind = pytest.mark.parametrize("mortal_redis", ["valkey"], indirect=True)
"""Where nothing depends on the kind of server."""

both_kinds = pytest.mark.parametrize(
    "mortal_redis", ["valkey", pytest.param("redis", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture
def client(mortal_redis: RedisFaults) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(
        mortal_redis.url, decode_responses=True, socket_timeout=60, retry=Retry(NoBackoff(), 0)
    ) as client:
        yield client


@pytest.fixture
def region_site(make_site: MakeSite, mortal_redis: RedisFaults) -> Site:
    """One region on a server of the test's own, with capture and one worker, open."""
    return opened(make_site(redis_urls={"eu": mortal_redis.url}))


def opened(site: Site) -> Site:
    site.start("capture")
    site.start("invalidate", "--region", "eu")
    site.wait_open("eu")
    return site


@both_kinds
def test_fail_over_to_a_lagging_replica(make_site: MakeSite, mortal_redis: RedisFaults, stopwatch: Stopwatch) -> None:
    """The worker finds older rows in the promoted server, and applies again what that one never heard of."""
    with FaultProxy(mortal_redis.port) as front:
        site = opened(make_site(redis_urls={"eu": cache.url(front.port)}))
        with Load(site, "eu") as load, mortal_redis.replica() as replica:
            load.wait_changes(100)
            replica.hold_back()
            load.wait_changes(300)
            stopwatch.start()
            mortal_redis.process.kill()
            replica.promote()
            front.retarget(replica.port)
            front.reset()
            load.wait_changes(50)
            stopwatch.converged(site, load, within_seconds=ROLLED_BACK_SECONDS)
        assert site.alarms().count("rewound") == 1
        assert set(site.alarms()) <= {"rewound", "redis"}


@both_kinds
def test_restored_from_an_old_dump(region_site: Site, mortal_redis: RedisFaults, stopwatch: Stopwatch) -> None:
    with Load(region_site, "eu") as load:
        load.wait_changes(100)
        dump = mortal_redis.take_dump()
        load.wait_changes(300)
        stopwatch.start()
        mortal_redis.roll_back(dump)
        load.wait_changes(50)
        stopwatch.converged(region_site, load, within_seconds=ROLLED_BACK_SECONDS)
    assert region_site.alarms().count("rewound") == 1
    assert set(region_site.alarms()) <= {"rewound", "redis"}


@one_kind
def test_restored_from_a_dump_that_is_older_than_what_kafka_keeps(
    region_site: Site, mortal_redis: RedisFaults, stopwatch: Stopwatch
) -> None:
    """What the dump missed can't be applied again: the region is closed until heartbeats prove it."""
    with Load(region_site, "eu") as load:
        load.wait_changes(100)
        region_site.wait_drained("eu")
        dump = mortal_redis.take_dump()
        load.wait_changes(300)
        region_site.wait_drained("eu")
        forget_records(region_site)
        stopwatch.start()
        mortal_redis.roll_back(dump)
        region_site.wait_alarm("gap")
        load.wait_changes(50)
        stopwatch.converged(region_site, load, within_seconds=ROLLED_BACK_SECONDS)
    assert {"rewound", "gap"} <= set(region_site.alarms()) <= {"rewound", "gap", "redis"}


def forget_records(site: Site) -> None:
    """Kafka's retention has passed for every contact that is there now."""
    topic = site.settings.source.topic("public.contacts")
    admin = KafkaAdminClient(bootstrap_servers=site.settings.kafka.bootstrap_servers)
    try:
        admin.delete_records({TopicPartition(topic, partition): -1 for partition in range(2)})
    finally:
        admin.close()


@both_kinds
def test_restarted_empty(region_site: Site, mortal_redis: RedisFaults, stopwatch: Stopwatch) -> None:
    with Load(region_site, "eu") as load:
        load.wait_changes(100)
        stopwatch.start()
        mortal_redis.restart_empty()
        region_site.wait_alarm("lost")
        load.wait_changes(50)
        stopwatch.converged(region_site, load, within_seconds=ROLLED_BACK_SECONDS)
    assert region_site.alarms().count("lost") == 1
    assert set(region_site.alarms()) <= {"lost", "redis"}


@both_kinds
def test_fence_hash_evicted(region_site: Site, client: redis.Redis, stopwatch: Stopwatch) -> None:
    """Between the eviction and the worker's next script no fill is admitted; then the fence comes back, wide."""
    region = open_region(region_site.settings, "eu")
    fences = region.layout.fences_key(0)
    worker = region_site.processes[1]
    with Load(region_site, "eu") as load:
        load.wait_changes(100)
        worker.send_signal(signal.SIGSTOP)
        stopwatch.start()
        client.delete(fences)
        reader = region_site.reader("eu")
        reader.get("contact", PRELOADED, load_contact(PRELOADED))
        assert reader.counts["refused:lost"] == 1
        worker.send_signal(signal.SIGCONT)
        region_site.wait_alarm("guard_lost")
        assert "*" in client.hgetall(fences)
        load.wait_changes(50)
        stopwatch.converged(region_site, load)
    assert region_site.alarms() == ["guard_lost"]


@both_kinds
def test_guard_metadata_evicted_by_a_policy_that_may_evict_anything(
    region_site: Site, client: redis.Redis, stopwatch: Stopwatch
) -> None:
    """Any of the shard's keys may go: the fences alone, or the header with every row."""
    with Load(region_site, "eu") as load:
        load.wait_changes(100)
        stopwatch.start()
        client.config_set("maxmemory-policy", "allkeys-random")
        client.config_set("maxmemory", client.info("memory")["used_memory"] + (1 << 20))
        number = 0

        def is_noticed() -> bool:
            nonlocal number
            number += 1
            client.set(f"filler:{number}", "x" * 50_000)
            return bool({"guard_lost", "lost"} & set(region_site.alarms()))

        wait_until(is_noticed, "the guard's keys were evicted, and it was noticed", seconds=60)
        client.config_set("maxmemory", 0)
        load.wait_changes(50)
        stopwatch.converged(region_site, load)
    assert set(region_site.alarms()) <= {"guard_lost", "lost"}


@both_kinds
def test_out_of_memory_without_eviction(region_site: Site, client: redis.Redis, stopwatch: Stopwatch) -> None:
    """Fills are refused; stale values are removed all the same, so what is served stays right."""
    with Load(region_site, "eu") as load:
        load.wait_changes(100)
        reader = region_site.reader("eu")
        stopwatch.start()
        for number in range(20):
            client.set(f"filler:{number}", "x" * (1 << 20))
        client.config_set("maxmemory", 10 << 20)
        reader.get("contact", PRELOADED, load_contact(PRELOADED))
        assert reader.counts["down"] == 1  # refused, and returned to the caller all the same
        load.wait_changes(100)
        load.stop_writing()
        region_site.database.execute(
            "INSERT INTO contacts SELECT i, 'new', 's' FROM generate_series(0, %s) i"
            " ON CONFLICT (id) DO UPDATE SET email = excluded.email",
            [PRELOADED - 1],
        )
        region_site.wait_drained("eu")
        assert [n for n in range(PRELOADED) if cached_key(reader, n)] == []  # all removed, none could come
        region_site.wait_alarm("redis")
        client.config_set("maxmemory", 0)
        wait_until(
            lambda: sum(cached_key(reader, n) for n in range(PRELOADED)) > PRELOADED / 2, "fills are taken again"
        )
        stopwatch.converged(region_site, load)
    assert [(record["kind"], record["fault"]) for record in region_site.logged("alarm")] == [("redis", "OOM")]


@both_kinds
def test_timed_out_command_executes_later(region_site: Site, mortal_redis: RedisFaults, stopwatch: Stopwatch) -> None:
    """The worker gave its script up; the server runs it when it wakes. Rows are compared first, so nothing moves twice."""
    with Load(region_site, "eu") as load:
        load.wait_changes(100)
        for outage in (1, 2):
            stopwatch.start()
            mortal_redis.process.pause()
            wait_until(lambda n=outage: region_site.alarms().count("redis") == n, f"outage {outage} is noticed")
            load.wait_changes(1)
            mortal_redis.process.resume()
            load.wait_changes(100)
            region_site.wait_drained("eu")
        stopwatch.converged(region_site, load)
    assert region_site.alarms() == ["redis", "redis"]


@one_kind
def test_swallowed_reply(make_site: MakeSite, mortal_redis: RedisFaults, stopwatch: Stopwatch) -> None:
    """The batch is applied and nobody says so: sent again, it is found to be in already."""
    with FaultProxy(mortal_redis.port) as front:
        site = opened(make_site(redis_urls={"eu": cache.url(front.port)}))
        with Load(site, "eu") as load:
            load.wait_changes(100)
            stopwatch.start()
            front.swallow_replies(1, containing=b"sp1_apply")
            wait_until(lambda: front.counts().swallowed == 1, "a reply was swallowed")
            site.wait_alarm("redis")
            load.wait_changes(50)
            stopwatch.converged(site, load)
        assert site.alarms() == ["redis"]
        assert site.logged("alarm")[0]["fault"] == "UNANSWERED"


Outage = Callable[[redis.Redis, RedisFaults], AbstractContextManager[None]]


@contextmanager
def is_replica(client: redis.Redis, faults: RedisFaults) -> Iterator[None]:
    client.replicaof("127.0.0.1", free_port())
    yield
    client.replicaof("NO", "ONE")


@contextmanager
def too_few_replicas(client: redis.Redis, faults: RedisFaults) -> Iterator[None]:
    client.config_set("min-replicas-to-write", 1)
    yield
    client.config_set("min-replicas-to-write", 0)


@contextmanager
def cannot_save(client: redis.Redis, faults: RedisFaults) -> Iterator[None]:
    obstacle = faults.process.server.directory / "dump.rdb"
    obstacle.mkdir()  # nothing can be renamed to it
    client.config_set("save", "3600 1")
    client.bgsave()
    wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "saving failed")
    yield
    obstacle.rmdir()
    client.config_set("save", "")


@contextmanager
def busy_with_a_script(client: redis.Redis, faults: RedisFaults) -> Iterator[None]:
    client.config_set("busy-reply-threshold", 100)

    def run() -> None:
        with pytest.raises(redis.ResponseError, match="killed by user"), redis.Redis(port=faults.port) as other:
            other.eval("while true do end", 0)

    busy = threading.Thread(target=run)
    busy.start()
    yield
    client.script_kill()
    busy.join(10)
    assert not busy.is_alive()


@contextmanager
def loading(client: redis.Redis, faults: RedisFaults) -> Iterator[None]:
    """Slow enough to be met: each key takes a while, and clients are answered after every few."""
    client.config_set("key-load-delay", 20_000)
    client.config_set("loading-process-events-interval-bytes", 1_024)
    reload = threading.Thread(target=lambda: client.execute_command("DEBUG", "RELOAD"))
    reload.start()
    yield
    reload.join(60)
    assert not reload.is_alive()
    client.config_set("key-load-delay", 0)


OUTAGES: dict[str, Outage] = {
    "READONLY": is_replica,
    "NOREPLICAS": too_few_replicas,
    "MISCONF": cannot_save,
    "BUSY": busy_with_a_script,
    "LOADING": loading,
}


@both_kinds
def test_error_replies(region_site: Site, mortal_redis: RedisFaults, client: redis.Redis, stopwatch: Stopwatch) -> None:
    """One alarm each; the worker waits, and goes on by itself."""
    with Load(region_site, "eu") as load:
        load.wait_changes(100)
        for number, (code, outage) in enumerate(OUTAGES.items(), 1):
            stopwatch.start()
            with outage(client, mortal_redis):
                wait_until(lambda n=number: len(region_site.alarms()) == n, f"{code} raises an alarm")
                load.wait_changes(50)
            region_site.wait_drained("eu")
            load.wait_changes(50)
        stopwatch.converged(region_site, load)
    assert [record["fault"] for record in region_site.logged("alarm")] == list(OUTAGES)
    assert set(region_site.alarms()) == {"redis"}


@one_kind
def test_an_outage_while_nothing_changes_is_one_alarm_too(region_site: Site, client: redis.Redis) -> None:
    """Only heartbeats, four a second, meet the error; turns without any must not look like its end."""
    client.config_set("min-replicas-to-write", 1)
    region_site.wait_alarm("redis")
    beats = len(region_site.logged("worker_waits"))
    wait_until(lambda: len(region_site.logged("worker_waits")) >= beats + 4, "the worker tried again and again")
    client.config_set("min-replicas-to-write", 0)
    region_site.wait_drained("eu")
    assert region_site.alarms() == ["redis"]


@both_kinds
def test_function_library_flushed(region_site: Site, client: redis.Redis, stopwatch: Stopwatch) -> None:
    """It is loaded again and the same script sent again: nothing is lost, and nobody need hear of it."""
    with Load(region_site, "eu") as load:
        for _ in range(3):
            load.wait_changes(100)
            stopwatch.start()
            client.function_flush()
            wait_until(client.function_list, "the library is there again")
        stopwatch.converged(region_site, load)
    assert region_site.alarms() == []
