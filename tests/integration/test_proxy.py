"""What a Redis client meets behind the fault proxy, on a real Redis and Valkey."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from cdc.errors import TransientError
from infra.proxy import FaultProxy, Then, Way
from invalidator.layout import Layout
from invalidator.nodes import Connection, connect
from invalidator.region import Region
from tests.waiting import wait_until

TIMEOUT_SECONDS = 0.3


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    """A client past the proxy: the truth."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        client.delete("n", "big")
        yield client


@pytest.fixture
def proxy(redis_url: str) -> Iterator[FaultProxy]:
    with FaultProxy(urlsplit(redis_url).port or 0) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[redis.Redis]:
    """A client behind the proxy, connected, without retries of its own."""
    with redis.Redis(port=proxy.port, socket_timeout=TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 0)) as client:
        assert client.ping()
        yield client


def test_a_command_is_one_round_trip(proxy: FaultProxy, client: redis.Redis) -> None:
    before = proxy.counts().requests
    for _ in range(5):
        client.incr("n")
    assert proxy.counts().requests - before == 5


def test_a_delay_within_the_timeout_is_waited_for_and_one_beyond_it_is_a_timeout(
    proxy: FaultProxy, client: redis.Redis
) -> None:
    proxy.delay(Way.REPLIES, 150)
    began = time.monotonic()
    assert client.ping()
    assert time.monotonic() - began >= 0.15
    proxy.delay(Way.REPLIES, 60_000)
    with pytest.raises(RedisTimeoutError):
        client.ping()
    proxy.heal()
    assert client.ping()


def test_a_command_whose_reply_is_swallowed_was_executed_and_its_caller_times_out(
    proxy: FaultProxy, client: redis.Redis, server: redis.Redis
) -> None:
    proxy.swallow_replies(1)
    with pytest.raises(RedisTimeoutError):
        client.incr("n")
    assert server.get("n") == "1"
    assert proxy.counts().swallowed == 1
    assert client.incr("n") == 2  # on a connection of its own; exactly one reply was swallowed


def test_the_reply_of_one_function_call_is_swallowed_wherever_the_client_stands(
    proxy: FaultProxy, server: redis.Redis
) -> None:
    proxy.swallow_replies(1, containing=b"INCR", then=Then.RESET)
    with redis.Redis(port=proxy.port, socket_timeout=TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 0)) as client:
        assert client.ping()  # greets first: those replies arrive
        with pytest.raises(RedisConnectionError):
            client.incr("n")
        assert server.get("n") == "1"
        assert client.incr("n") == 2


def test_a_region_behind_a_swallowed_reply_says_try_again_and_has_loaded_its_functions(
    proxy: FaultProxy, server: redis.Redis
) -> None:
    region = Region(
        "far", connect(Connection(url=f"redis://127.0.0.1:{proxy.port}", timeout_seconds=0.3)), Layout(prefix="proxied")
    )
    server.function_flush()
    proxy.swallow_replies(1, containing=b"LOAD")
    with pytest.raises(TransientError, match=r"region far: .*redis does not answer"):
        region.prepare()
    wait_until(lambda: len(server.function_list()) == 1, "the functions are there")


def test_a_command_in_a_blackhole_of_requests_is_never_executed(
    proxy: FaultProxy, client: redis.Redis, server: redis.Redis
) -> None:
    proxy.blackhole(Way.REQUESTS)
    with pytest.raises(RedisTimeoutError):
        client.incr("n")
    proxy.heal()
    assert client.incr("n") == 1


def test_a_command_held_by_a_half_open_connection_executes_after_its_caller_has_given_up(
    proxy: FaultProxy, client: redis.Redis, server: redis.Redis
) -> None:
    proxy.half_open()
    with pytest.raises(RedisTimeoutError):
        client.incr("n")
    assert server.get("n") is None
    proxy.heal()
    wait_until(lambda: server.get("n") == "1", "the late command executes")


def test_a_reset_under_a_waiting_command_is_a_connection_error_and_the_next_one_connects_again(
    proxy: FaultProxy,
) -> None:
    with (
        redis.Redis(port=proxy.port, socket_timeout=20, retry=Retry(NoBackoff(), 0)) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        assert client.ping()
        before = proxy.counts().requests
        waiting = pool.submit(client.blpop, ["nothing"], 15)
        wait_until(lambda: proxy.counts().requests > before, "the command is under way")
        proxy.reset()
        with pytest.raises(RedisConnectionError):
            waiting.result(10)
        assert client.ping()


def test_a_reply_cut_in_the_middle_is_a_connection_error(
    proxy: FaultProxy, client: redis.Redis, server: redis.Redis
) -> None:
    server.set("big", "x" * 100_000)
    proxy.cut_after(Way.REPLIES, 50_000)
    with pytest.raises(RedisConnectionError):
        client.get("big")
    proxy.heal()
    assert client.get("big") == b"x" * 100_000


def test_a_large_value_takes_its_time_at_a_limited_rate(
    proxy: FaultProxy, client: redis.Redis, server: redis.Redis
) -> None:
    server.set("big", "x" * 20_000)
    proxy.limit_rate(Way.REPLIES, 200_000)
    began = time.monotonic()
    assert len(client.get("big") or b"") == 20_000
    assert time.monotonic() - began >= 0.08


def test_a_region_that_refuses_connections_is_a_connection_error_until_it_is_back(
    proxy: FaultProxy, client: redis.Redis
) -> None:
    proxy.refuse()
    proxy.reset()
    for _ in range(2):
        with pytest.raises(RedisConnectionError):
            client.ping()
    proxy.heal()
    assert client.ping()
