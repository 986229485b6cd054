"""The send gate: no mail goes to somebody whose unsubscription was acknowledged before the check began, in any region.

    python -m infra.demo.gate --regions eu us ap --seed 1     # environment: DEMO_DSN, DEMO_REDIS_EU, ...

People unsubscribe one after the other; senders in every region check the consent of those around that place, before
each mail. Two rules make it true. The check reads with a bound and fails closed. The endpoint acknowledges once every
region has passed the write's token, and the bound has passed since its commit: a region that is rolled back afterwards
can only be served from a state within the bound, which has the write in it. Until then it answers "pending".
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import psycopg
from psycopg_pool import ConnectionPool

from cdc.errors import TransientError
from infra.demo.caches import demo_views
from infra.demo.child import Orders, Tally, carry_out
from infra.demo.data import GATE_CONTACTS, GATE_FIRST
from infra.demo.objects import contact
from infra.demo.workload import Pace
from invalidator import CacheReader, Layout, Limits, Region, Token
from invalidator.nodes import Connection, connect

CONSENT_SECONDS = 2.0
"""The bound of a check."""

CLOCK_MARGIN = 1.01
"""The endpoint waits a little longer than the bound: two clocks measure it."""

UNSUBSCRIBES_PER_SECOND = 16.0
CHECKS_PER_SECOND = 40.0
"""In each region."""

AHEAD, BEHIND = 160, 60
"""Every other check is of one of so many who will unsubscribe, so that they are cached, the rest of those who just did.

Ten seconds ahead: a region that is rolled back still holds them as they were.
"""

TIMEOUT_SECONDS = 0.3


class Unsubscription(msgspec.Struct, frozen=True):
    """One that is committed: whom it concerns, its token, and when the commit was answered (monotonic seconds)."""

    contact: int
    token: Token
    committed: float


class Endpoint:
    """Where people unsubscribe. `readers`: one of every region."""

    def __init__(self, readers: Sequence[CacheReader], bound_seconds: float, clock: Callable[[], float]) -> None:
        self._readers = readers
        self._wait_seconds = bound_seconds * CLOCK_MARGIN
        self._clock = clock

    def unsubscribe(self, connection: psycopg.Connection[Any], number: int) -> Unsubscription:
        """Commit it; the answer is "pending"."""
        with self._readers[0].write_token(connection) as promised:
            connection.execute("UPDATE contacts SET status = 'unsubscribed' WHERE id = %s", (number,))
        return Unsubscription(number, promised.token, self._clock())

    def is_acknowledged(self, done: Unsubscription) -> bool:
        """Whether the answer is "acknowledged" now."""
        if self._clock() < done.committed + self._wait_seconds:
            return False
        return all(reader.passed(done.token) for reader in self._readers)


class Gate:
    """Before a mail leaves: consent, from one region's cache where that proves enough."""

    def __init__(self, reader: CacheReader, bound_seconds: float) -> None:
        self._reader = reader
        self._bound_seconds = bound_seconds

    def may_send(self, number: int) -> bool:
        """Raises TransientError where nothing proves it: then the mail stays."""
        profile = self._reader.get("contact", number, contact(number), max_staleness=self._bound_seconds)
        return profile is not None and profile["status"] == "subscribed"


class Ledger:
    """Who was acknowledged when, and what was sent in spite of it."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._acknowledged: dict[int, float] = {}

    def acknowledge(self, number: int, at: float) -> None:
        """The person was told."""
        self._acknowledged[number] = at
        self._tally.add({"gate_acknowledged": 1})

    def check(self, number: int, began: float, gate: Gate) -> None:
        """One check, that began at `began`, and the mail if it may leave."""
        told = self._acknowledged.get(number)
        try:
            sent = gate.may_send(number)
        except TransientError:
            self._tally.add({"gate_held_back": 1})
            return
        wrong = sent and told is not None and told < began
        late = told is not None and told < began
        self._tally.add(
            {"gate_checks": 1, "gate_sent": int(sent), "gate_checks_after": int(late), "gate_violations": int(wrong)}
        )


class Frontier:
    """Who unsubscribes next."""

    def __init__(self) -> None:
        self.number = GATE_FIRST + BEHIND

    def around(self, rng: random.Random) -> int:
        """Somebody near it."""
        if rng.random() < 0.5:
            return min(self.number + rng.randrange(AHEAD), GATE_FIRST + GATE_CONTACTS - 1)
        return max(self.number - 1 - rng.randrange(BEHIND), GATE_FIRST)


def unsubscribe_all(
    connection: psycopg.Connection[Any], endpoint: Endpoint, ledger: Ledger, frontier: Frontier, stop: threading.Event
) -> None:
    """One after the other until stopped; who is pending is asked about again and again."""
    pace = Pace(UNSUBSCRIBES_PER_SECOND, stop)
    pending: deque[Unsubscription] = deque()
    while not stop.is_set():
        if frontier.number < GATE_FIRST + GATE_CONTACTS:
            pending.append(endpoint.unsubscribe(connection, frontier.number))
            frontier.number += 1
        while pending and endpoint.is_acknowledged(pending[0]):
            ledger.acknowledge(pending.popleft().contact, time.monotonic())
        pace.spend(1)


def send_all(gate: Gate, ledger: Ledger, frontier: Frontier, rng: random.Random, stop: threading.Event) -> None:
    """Check and send until stopped."""
    pace = Pace(CHECKS_PER_SECOND, stop)
    while not stop.is_set():
        ledger.check(frontier.around(rng), time.monotonic(), gate)
        pace.spend(1)


def open_readers(urls: Mapping[str, str], pool: ConnectionPool[Any]) -> dict[str, CacheReader]:
    """One reader per region; none waits long for its Redis."""
    limits = Limits(loads=pool.max_size, wait_seconds=1.0, breaker_seconds=0.3)
    regions = {
        name: Region(name, connect(Connection(url=url, timeout_seconds=TIMEOUT_SECONDS)), Layout())
        for name, url in urls.items()
    }
    return {name: CacheReader(region, demo_views(), pool.connection, limits=limits) for name, region in regions.items()}


def main() -> int:
    """Unsubscribe, check and send until told to stop; the last line is the final count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--regions", nargs="+", required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    orders, tally = Orders(), Tally()
    kwargs = {"autocommit": True}
    with (
        ConnectionPool(os.environ["DEMO_DSN"], min_size=4, max_size=4, kwargs=kwargs) as pool,
        psycopg.connect(os.environ["DEMO_DSN"], autocommit=True) as connection,
    ):
        readers = open_readers({name: os.environ[f"DEMO_REDIS_{name.upper()}"] for name in options.regions}, pool)
        endpoint = Endpoint(list(readers.values()), CONSENT_SECONDS, time.monotonic)
        ledger, frontier = Ledger(tally), Frontier()
        tasks = {"endpoint": partial(unsubscribe_all, connection, endpoint, ledger, frontier, orders.stop)}
        for name, reader in readers.items():
            rng = random.Random(f"{options.seed}:gate:{name}")
            tasks[name] = partial(send_all, Gate(reader, CONSENT_SECONDS), ledger, frontier, rng, orders.stop)
        return carry_out(orders, tally, tasks)


if __name__ == "__main__":
    sys.exit(main())
