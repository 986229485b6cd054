"""What tests rely on, whatever runs the servers: one contract, each backend. (What only processes have: test_stack.py.)"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic
from kafka.errors import KafkaError
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from infra import broker, cache, postgres
from infra.processes import StackError
from infra.servers import Servers
from tests.backends import start_servers


@pytest.fixture(scope="module", params=["processes", "containers"])
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with start_servers(tmp_path_factory.mktemp(request.param), request.param) as servers:
        yield servers


def redis(servers: Servers, region: str) -> Redis:
    return Redis.from_url(servers.redis_urls[region], socket_timeout=0.5, retry=Retry(NoBackoff(), 0))


def run_id(client: Redis) -> str:
    return client.info("server")["run_id"]


def test_every_server_answers_as_the_project_needs_it(servers: Servers) -> None:
    names = [cache.process_name(region) for region in cache.REGIONS]
    assert [*servers.processes] == ["postgres", "kafka", *names]
    assert [*servers.redis_urls] == list(cache.REGIONS)
    assert {"postgres", "kafka", *names} <= servers.ports.keys()
    assert all(handle.name == name and handle.is_alive() for name, handle in servers.processes.items())
    with psycopg.connect(servers.postgres_dsn) as connection:
        assert connection.info.dbname == postgres.DATABASE
        assert connection.info.port == servers.ports["postgres"]
        for name, value in (postgres.SETTINGS | postgres.FAST_SETTINGS).items():
            assert connection.execute("SELECT current_setting(%s)", (name,)).fetchone() == (value,)
        assert connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").fetchone() == (True,)
        order = connection.execute("SELECT string_agg(x, '' ORDER BY x) FROM (VALUES ('a'), ('B'), ('é'), ('z')) v(x)")
        assert order.fetchone() == ("Bazé",)  # by code point, whatever the machine's locale
    for region in cache.REGIONS:
        with redis(servers, region) as client:
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.execute_command("DEBUG", "SLEEP", "0") in (b"OK", True)
    broker.ask(servers.ports["kafka"])


def test_a_topic_that_nobody_created_is_an_error(servers: Servers) -> None:
    producer = KafkaProducer(bootstrap_servers=servers.kafka_bootstrap, max_block_ms=1_000)
    try:
        with pytest.raises(KafkaError):
            producer.send("never-created", b"x").get(timeout=5)
    finally:
        producer.close(timeout=1)


def test_a_paused_region_hangs_alone_and_goes_on_when_it_is_resumed(servers: Servers) -> None:
    handle = servers.processes["redis-eu"]
    with redis(servers, "eu") as client, redis(servers, "ap") as other:
        client.set("k", "before")
        handle.pause()
        try:
            assert handle.is_alive()
            with pytest.raises(RedisTimeoutError):
                client.get("k")
            assert other.ping()
        finally:
            handle.resume()
        handle.wait_ready()
        assert client.get("k") == b"before"
    handle.resume()  # one that runs is left alone: the end of a test resumes whatever the test has touched


def test_a_paused_postgres_answers_nobody_until_it_is_resumed(servers: Servers) -> None:
    handle = servers.processes["postgres"]
    handle.pause()
    try:
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(servers.postgres_dsn, connect_timeout=2)
    finally:
        handle.resume()
    handle.wait_ready()


def test_an_orderly_restart_of_redis_keeps_port_and_data_and_a_kill_falls_back_to_it(servers: Servers) -> None:
    handle = servers.processes["redis-us"]
    with redis(servers, "us") as client:
        client.set("k", "saved")
        before = run_id(client)
        handle.restart()
        assert run_id(client) != before
        assert client.get("k") == b"saved"
        client.set("k", "lost")
        handle.kill()
        assert not handle.is_alive()
        with pytest.raises(RedisConnectionError):
            client.get("k")
        handle.start()
        assert client.get("k") == b"saved"


def test_a_postgres_killed_while_it_was_paused_keeps_what_was_committed(servers: Servers) -> None:
    handle = servers.processes["postgres"]
    with psycopg.connect(servers.postgres_dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS id")
        handle.pause()
        handle.kill()
        assert not handle.is_alive()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    handle.start()
    with psycopg.connect(servers.postgres_dsn, autocommit=True) as connection:
        assert connection.execute("SELECT id FROM kept").fetchall() == [(7,)]
        connection.execute("DROP TABLE kept")


def test_a_restarted_kafka_keeps_its_topics(servers: Servers) -> None:
    admin = KafkaAdminClient(bootstrap_servers=servers.kafka_bootstrap)
    admin.create_topics([NewTopic("kept", 3, 1)])
    admin.close()
    servers.processes["kafka"].restart()
    admin = KafkaAdminClient(bootstrap_servers=servers.kafka_bootstrap)
    assert "kept" in admin.list_topics()
    admin.close()


def test_what_can_not_be_done_to_a_server_is_said(servers: Servers) -> None:
    handle = servers.processes["redis-ap"]
    with pytest.raises(StackError, match="redis-ap runs already"):
        handle.start()
    handle.kill()
    try:
        handle.kill()
        handle.stop()
        for act in (handle.pause, handle.resume):
            with pytest.raises(StackError, match="redis-ap does not run"):
                act()
    finally:
        handle.start()
