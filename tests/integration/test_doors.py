"""The two doors of a region, for threads and for asyncio, keep the same promises about their connections."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import pytest
import redis

from cdc.errors import TransientError
from infra.proxy import FaultProxy, Way
from invalidator.async_nodes import CONNECTIONS_MAX, connect_async
from invalidator.async_region import AsyncRegion
from invalidator.entry import decode
from invalidator.nodes import Connection, connect
from invalidator.reader_commands import Looked
from invalidator.redis_errors import UNREACHABLE
from invalidator.region import Region
from invalidator.region_faults import RegionFault
from tests.fix_redis import BINARIES, start_redis
from tests.fix_world import VIEWS, World
from tests.waiting import wait_until

ONE, TWO = "contact:1", "contact:2"
PAYLOADS = {ONE: b"of one", TWO: b"of two"}
OWNER, OTHER = "a" * 16, "b" * 16
SECONDS = 0.3
"""So long a door waits here."""


class Door(Protocol):
    """A region as both doors show it."""

    region: Any

    def call(self, function: str, *arguments: Any) -> Any:
        """One of the readers' functions."""

    def close(self) -> None:
        """Close every connection."""


class Threads:
    """The door for threads."""

    def __init__(self, options: Connection, world: World) -> None:
        self.nodes = connect(options)
        self.region = Region("eu", self.nodes, world.region.layout)

    def call(self, function: str, *arguments: Any) -> Any:
        return getattr(self.region, function)(*arguments)

    def close(self) -> None:
        for node in self.nodes.primaries():
            node.drop()


class Asyncio:
    """The door for asyncio, called as if it were the other."""

    def __init__(self, options: Connection, world: World) -> None:
        self.runner = asyncio.Runner()
        self.region = AsyncRegion("eu", connect_async(options), world.region.layout)

    def call(self, function: str, *arguments: Any) -> Any:
        return self.runner.run(getattr(self.region, function)(*arguments))

    def close(self) -> None:
        self.runner.run(self.region.aclose())
        self.runner.close()


Open = Callable[[int], Door]


@pytest.fixture(params=[Threads, Asyncio])
def open_door(request: pytest.FixtureRequest, filled: World) -> Iterator[Open]:
    """Opens a door to a port."""
    opened: list[Door] = []

    def make(port: int) -> Door:
        opened.append(request.param(options(port), filled))
        return opened[-1]

    yield make
    for door in opened:
        door.close()


@pytest.fixture
def filled(world: World) -> World:
    """Two values that tell whose they are."""
    world.open()
    for key, payload in PAYLOADS.items():
        world.fill(key, payload=payload)
    return world


@pytest.fixture
def port(redis_url: str) -> int:
    return int(redis_url.rsplit(":", 1)[1])


def options(port: int) -> Connection:
    return Connection(url=f"redis://127.0.0.1:{port}", timeout_seconds=SECONDS)


def question(key: str) -> tuple[int, list[str], str, str]:
    """What to look for."""
    view = VIEWS.views["contact"]
    return 0, [key], view.name, view.digest


def payload(looked: Looked) -> bytes | None:
    """The value that was found."""
    (entry,) = looked.entries
    return None if entry is None else decode(entry).payload


def look(door: Door, key: str) -> bytes | None:
    return payload(door.call("look", *question(key)))


def test_both_doors_answer_alike(open_door: Open, port: int) -> None:
    door = open_door(port)
    assert [look(door, key) for key in (ONE, TWO, "contact:3")] == [b"of one", b"of two", None]
    assert door.call("lease", 0, [ONE, TWO], OWNER, 60_000, 1) == ["GRANTED", "FULL"]
    assert door.call("lease", 0, [ONE], OTHER, 60_000, 1) == ["HELD"]
    assert door.call("lease", 0, [ONE], OTHER, 0, 1) == ["RELEASED"]  # not of one's own: nothing happens
    assert door.call("lease", 0, [ONE], OTHER, 60_000, 1) == ["HELD"]
    assert door.call("lease", 0, [ONE], OWNER, 0, 1) == ["RELEASED"]
    assert door.call("lease", 0, [ONE], OTHER, 60_000, 1) == ["GRANTED"]


@pytest.mark.parametrize("is_greeting", [False, True])
def test_a_late_reply_reaches_nobody(open_door: Open, port: int, *, is_greeting: bool) -> None:
    """Neither that to a request nor those to the greeting of a new connection."""
    with FaultProxy(port) as proxy:
        door = open_door(proxy.port)
        if not is_greeting:
            assert look(door, ONE) == b"of one"
        proxy.delay(Way.REPLIES, SECONDS * 1_500)
        with pytest.raises(RegionFault):
            look(door, ONE)
        wait_until(lambda: proxy.counts().open_connections == 0, "the connection is closed", seconds=5)
        proxy.heal()
        for _ in range(5):
            assert [look(door, key) for key in (TWO, ONE)] == [b"of two", b"of one"]


def test_a_cancelled_look_leaves_no_reply_behind(filled: World, port: int) -> None:
    """Wherever it is cancelled: while it connects, greets, sends or waits."""

    async def run(proxy: FaultProxy) -> int:
        region = AsyncRegion("eu", connect_async(options(proxy.port)), filled.region.layout)
        cancelled = 0
        for step in range(60):
            if step % 2:  # every other time on a connection that was used before
                await region.look(*question(TWO))
            task = asyncio.ensure_future(region.look(*question(ONE)))
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(task), step / 2_000)
            cancelled += task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert payload(await region.look(*question(TWO))) == b"of two"
            if step % 2:
                await region.aclose()
        await region.aclose()
        return cancelled

    with FaultProxy(port) as proxy:
        proxy.delay(Way.REPLIES, 5)
        assert asyncio.run(run(proxy)) > 10
        wait_until(lambda: proxy.counts().open_connections == 0, "no connection is left", seconds=5)


def test_another_server_behind_the_address_is_asked_once_the_old_one_is_a_replica(
    open_door: Open, filled: World, port: int, tmp_path: Path, redis_url: str
) -> None:
    """As behind a virtual address or a load balancer: connections to the old primary last beyond the change."""
    kind = "valkey" if b"valkey" in raw_info(port) else "redis"
    process, other = start_redis(BINARIES[kind], tmp_path)
    try:
        with redis.Redis(port=other) as successor, FaultProxy(port) as proxy:
            Region("eu", connect(options(other)), filled.region.layout).prepare()
            door = open_door(proxy.port)
            assert look(door, ONE) == b"of one"
            with redis.Redis(port=port) as old:
                old.execute_command("CONFIG", "SET", "replica-serve-stale-data", "yes")
                old.execute_command("REPLICAOF", "127.0.0.1", 1)  # of nobody: it keeps what it has, and refuses writes
                proxy.retarget(other)
                try:
                    with pytest.raises(RegionFault, match="is a replica now"):
                        door.call("lease", 0, [ONE], OWNER, 60_000, 1)
                    assert door.call("lease", 0, [ONE], OWNER, 60_000, 1) == ["GRANTED"]
                    assert look(door, ONE) is None  # the other knows nothing of it
                finally:
                    old.execute_command("REPLICAOF", "NO", "ONE")
            assert successor.ping()
    finally:
        process.terminate()
        process.wait(10)


def test_a_connection_that_is_in_use_when_all_are_given_up_is_not_used_again(open_door: Open, port: int) -> None:
    """Its own request is answered; the next one asks whoever is at that address now."""
    with FaultProxy(port) as proxy, ThreadPoolExecutor(1) as thread:
        door = open_door(proxy.port)
        assert thread.submit(look, door, TWO).result(5) == b"of two"
        before = proxy.counts()
        proxy.delay(Way.REPLIES, SECONDS * 500)
        reading = thread.submit(look, door, ONE)
        wait_until(lambda: proxy.counts().requests > before.requests, "the request is on its way", seconds=5)
        door.region._nodes.doubt(UNREACHABLE)
        assert reading.result(5) == b"of one"
        proxy.heal()
        assert proxy.counts().connections == before.connections
        assert thread.submit(look, door, TWO).result(5) == b"of two"
        assert proxy.counts().connections == before.connections + 1
        wait_until(lambda: proxy.counts().open_connections == 1, "the first one is closed", seconds=5)


def raw_info(port: int) -> bytes:
    with redis.Redis(port=port) as client:
        return str(client.info("server")).encode()


def test_threads_whose_region_is_doubted_meet_faults_of_the_region_only(filled: World, port: int) -> None:
    """A fault that one of them meets drops connections, while the others use theirs."""
    door = Threads(options(port), filled)
    stop, wrong = threading.Event(), list[Any]()

    def read(key: str) -> int:
        right = 0
        while not stop.is_set():
            try:
                found = look(door, key)
            except TransientError:
                continue
            except Exception as error:  # noqa: BLE001 - the test is about what else may come
                wrong.append(error)
            else:
                right += 1
                if found != PAYLOADS[key]:
                    wrong.append((key, found))
        return right

    with ThreadPoolExecutor(4) as threads:
        reads = [threads.submit(read, key) for key in (ONE, TWO, ONE, TWO)]
        end = time.monotonic() + 2
        while time.monotonic() < end:
            door.nodes.doubt(UNREACHABLE)
        stop.set()
        assert all(reading.result(10) for reading in reads)
    assert wrong == []
    door.close()


def test_a_child_process_talks_on_connections_of_its_own(filled: World, port: int) -> None:
    door = Threads(options(port), filled)
    assert look(door, ONE) == b"of one"
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()
    child = fork.Process(target=lambda: answers.put({look(door, TWO) for _ in range(300)}))
    child.start()
    mine = {look(door, ONE) for _ in range(300)}
    child.join(10)
    assert child.exitcode == 0
    assert (mine, answers.get()) == ({b"of one"}, {b"of two"})
    door.close()


MANY = 150


def test_many_threads_read_at_once(filled: World, port: int) -> None:
    """More than redis-py's pool would lend, each with its own connection."""
    door, together = Threads(Connection(url=f"redis://127.0.0.1:{port}", timeout_seconds=10), filled), []
    gate = threading.Barrier(MANY)

    def read(key: str) -> bytes | None:
        gate.wait(20)
        connection, _ = door.nodes.serving(key)._kept_connection()
        gate.wait(20)  # all have one
        together.append(connection)
        door.nodes.serving(key)._kept.append(connection)
        return look(door, key)

    keys = [ONE, TWO] * (MANY // 2)
    with ThreadPoolExecutor(MANY) as threads:
        assert list(threads.map(read, keys)) == [PAYLOADS[key] for key in keys]
    assert len(set(map(id, together))) == MANY
    door.close()


def test_many_tasks_read_at_once_and_wait_for_a_free_connection(filled: World, port: int) -> None:
    async def run(proxy: FaultProxy) -> list[bytes | None]:
        given = Connection(url=f"redis://127.0.0.1:{proxy.port}", timeout_seconds=10)
        region = AsyncRegion("eu", connect_async(given), filled.region.layout)
        found = await asyncio.gather(*(region.look(*question(key)) for key in (ONE, TWO) * MANY))
        await region.aclose()
        return [payload(looked) for looked in found]

    with FaultProxy(port) as proxy:
        assert asyncio.run(run(proxy)) == [b"of one", b"of two"] * MANY
        assert proxy.counts().connections <= CONNECTIONS_MAX


def test_a_task_that_gets_no_free_connection_in_time_is_told_so(filled: World, port: int) -> None:
    async def run(proxy: FaultProxy) -> None:
        region = AsyncRegion("eu", connect_async(options(proxy.port)), filled.region.layout)
        proxy.blackhole(Way.REPLIES)
        reads = [region.look(*question(ONE)) for _ in range(2 * CONNECTIONS_MAX)]
        failed = await asyncio.gather(*reads, return_exceptions=True)
        assert {fault.kind if isinstance(fault, RegionFault) else fault for fault in failed} == {"UNANSWERED"}
        proxy.heal()
        found = await asyncio.gather(*(region.look(*question(TWO)) for _ in range(2 * CONNECTIONS_MAX)))
        assert {payload(looked) for looked in found} == {b"of two"}  # every turn was given back
        await region.aclose()

    with FaultProxy(port) as proxy:
        asyncio.run(run(proxy))
