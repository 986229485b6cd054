"""Reads that are cancelled anywhere leave nothing behind: no flight, no turn, no lease."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager, suppress
from typing import Any

from cdc.errors import TransientError
from invalidator.async_reader import AsyncCacheReader
from invalidator.herd import Limits
from invalidator.near import Near
from tests.unit.invalidator.scripted import VIEWS, Database, ScriptedRegion, _AsyncConnection


class SlowRegion:
    """Takes its time, fails now and then, and has real leases."""

    def __init__(self, order: random.Random) -> None:
        self._region = ScriptedRegion(shards=2)
        self._order = order
        self.layout = self._region.layout
        self.leases: set[str] = set()

    async def _take_time(self, failing: float = 0.05) -> None:
        for _ in range(self._order.randrange(4)):
            await asyncio.sleep(0)  # lets the other tasks go one step
        if self._order.random() < failing:
            raise TransientError("away")

    async def look(self, *args: Any) -> Any:
        await self._take_time()
        return self._region.look(*args)

    async def fill_many(self, shard: int, fills: Any, owner: str) -> Any:
        await self._take_time(failing=0)  # a lease of a fill that failed is left to its end
        self.leases -= {fill.key for fill in fills}
        return self._region.fill_many(shard, fills, owner)

    async def lease(self, shard: int, fields: Any, owner: str, lease_ms: int, living_max: int) -> list[str]:
        del shard, owner, living_max
        if not lease_ms:
            self.leases -= set(fields)
        else:
            await self._take_time()
        answers = ["HELD" if field in self.leases else "GRANTED" for field in fields]
        if lease_ms:
            self.leases |= set(fields)
            await asyncio.sleep(0)  # lets the other tasks go one step
        return answers


def test_cancelled_reads_leave_nothing_behind() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - to play it again
    order = random.Random(seed)
    loads = most = 0

    async def load(_: Any, number: int) -> str:
        nonlocal loads, most
        loads += 1
        most = max(most, loads)
        try:
            for _ in range(order.randrange(5)):
                await asyncio.sleep(0)  # lets the other tasks go one step
            if order.random() < 0.1:
                raise ZeroDivisionError
            return f"value {number}"
        finally:
            loads -= 1

    async def run() -> None:
        region, database = SlowRegion(order), Database()

        @asynccontextmanager
        async def lend() -> Any:
            yield _AsyncConnection(database)

        limits = Limits(loads=3, wait_seconds=5, breaker_failures=1_000)
        reader: Any = AsyncCacheReader(region, VIEWS, lend, limits=limits, near=Near())  # type: ignore[arg-type]  # scripted
        view = reader.view("contact", load, max_staleness=60)

        async def read() -> None:
            needs = order.choice([{}, {"strong": True}, {"max_staleness": 1}])
            keys = order.sample(range(6), order.randint(1, 3))
            with suppress(ZeroDivisionError):
                found = await view.get_many(keys, **needs)
                assert found == {key: f"value {key}" for key in keys}

        tasks = [asyncio.create_task(read()) for _ in range(600)]
        for task in tasks:
            if order.random() < 0.5:
                task.cancel()
            if order.random() < 0.5:
                await asyncio.sleep(0)  # lets the other tasks go one step
            if order.random() < 0.3:
                order.choice(tasks).cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError), repr(result)
        await asyncio.gather(*reader._aside, return_exceptions=True)
        reading = reader.reading
        assert (reading._gate._inside, len(reading._gate._line), reading._flights._flying) == (0, 0, {})
        assert reading._renewed == set()
        assert most <= limits.loads
        assert region.leases == set()

    asyncio.run(asyncio.wait_for(run(), 30))
