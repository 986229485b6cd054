"""The probe: it measures how long after a commit a region still holds the old value.

    python -m infra.demo.probe --regions eu us ap --seed 1 [--naive]     # environment: DEMO_DSN, DEMO_REDIS_EU, ...

For contacts that nobody else touches: fill every region through its reader, note the stored bytes, commit an UPDATE,
take the time when COMMIT has returned, and read the raw keys until none of them holds the noted bytes any more.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import msgspec
import psycopg
import redis

from infra.demo import objects
from infra.demo.caches import open_cache, raw_key
from infra.demo.child import REPORT_SECONDS, Orders, report
from infra.demo.data import PROBE_CONTACTS, PROBE_FIRST
from infra.demo.readers import Cache

POLL_SECONDS = 0.0003
ROUND_SECONDS = 0.1
FILL_LIMIT_SECONDS = 5.0
GONE_LIMIT_SECONDS = 10.0
SAMPLES_MAX = 100_000


class Place(msgspec.Struct, frozen=True):
    """One region as the probe sees it."""

    cache: Cache
    client: redis.Redis


class Samples(msgspec.Struct):
    """What was measured so far, in milliseconds."""

    milliseconds: list[float] = []
    timeouts: int = 0
    unfilled: int = 0

    def clear(self) -> None:
        """Begin again."""
        self.milliseconds.clear()
        self.timeouts = self.unfilled = 0


def filled(place: Place, number: int, raw: str, deadline: float) -> bytes | None:
    """The bytes that the region holds for a contact, once it holds any; None after the deadline."""
    while time.monotonic() < deadline:
        place.cache.get("contact", number, objects.contact(number))
        stored = place.client.get(raw)
        if stored is not None:
            return bytes(stored)  # type: ignore[arg-type]  # a synchronous client
        time.sleep(0.002)
    return None


def gone_after(places: Mapping[str, Place], raw: str, old: Mapping[str, bytes], start: float) -> dict[str, float]:
    """For each region the milliseconds since `start` after which the old bytes were gone; absent after the limit."""
    found: dict[str, float] = {}
    while len(found) < len(old) and time.perf_counter() - start < GONE_LIMIT_SECONDS:
        for region, noted in old.items():
            if region not in found and places[region].client.get(raw) != noted:
                found[region] = (time.perf_counter() - start) * 1000
        time.sleep(POLL_SECONDS)
    return found


def sample(connection: psycopg.Connection[Any], places: Mapping[str, Place], number: int, turn: int, into: Samples,
           *, naive: bool) -> None:  # fmt: skip
    """One change of one contact, measured in every region."""
    raw = raw_key("contact", number, naive=naive)
    deadline = time.monotonic() + FILL_LIMIT_SECONDS
    old = {region: filled(place, number, raw, deadline) for region, place in places.items()}
    known = {region: stored for region, stored in old.items() if stored is not None}
    into.unfilled += len(old) - len(known)
    connection.execute("BEGIN")
    connection.execute("UPDATE contacts SET city = %s WHERE id = %s", (f"probe {turn}", number))
    connection.execute("COMMIT")
    gone = gone_after(places, raw, known, time.perf_counter())
    into.timeouts += len(known) - len(gone)
    if len(into.milliseconds) < SAMPLES_MAX:
        into.milliseconds += gone.values()


def percentile(values: list[float], percent: int) -> float:
    """The smallest value that `percent` of all do not exceed; 0 where there are none."""
    ordered = sorted(values)
    return round(ordered[max(0, -(-len(ordered) * percent // 100) - 1)], 2) if ordered else 0.0


def summary(samples: Samples) -> dict[str, float]:
    """What the parent is told."""
    values = samples.milliseconds
    return {
        "samples": len(values),
        "timeouts": samples.timeouts,
        "unfilled": samples.unfilled,
        "p50": percentile(values, 50),
        "p99": percentile(values, 99),
    }


def measure(connection: psycopg.Connection[Any], places: Mapping[str, Place], orders: Orders, rng: random.Random,
            *, naive: bool) -> Samples:  # fmt: skip
    """Sample until told to stop."""
    samples, measuring, turn, reported = Samples(), False, 0, time.monotonic()
    while not orders.stop.is_set():
        if orders.measure.is_set() and not measuring:
            measuring = True
            samples.clear()
        started = time.monotonic()
        turn += 1
        sample(connection, places, PROBE_FIRST + turn % PROBE_CONTACTS, turn, samples, naive=naive)
        if time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            report(summary(samples))
        orders.stop.wait(max(0.0, rng.uniform(0.5, 1.5) * ROUND_SECONDS - (time.monotonic() - started)))
    return samples


def main() -> int:
    """Measure until told to stop; the last line is the final summary."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--regions", nargs="+", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--naive", action="store_true")
    options = parser.parse_args()
    orders = Orders()
    dsn = os.environ["DEMO_DSN"]
    with psycopg.connect(dsn, autocommit=True) as writer, psycopg.connect(dsn, autocommit=True) as loader:
        places = {}
        for region in options.regions:
            url = os.environ[f"DEMO_REDIS_{region.upper()}"]
            cache = open_cache(region, url, lambda: nullcontext(loader), naive=options.naive)
            places[region] = Place(cache, redis.Redis.from_url(url, socket_timeout=2.0))
        rng = random.Random(f"{options.seed}:probe")
        samples = measure(writer, places, orders, rng, naive=options.naive)
    report(summary(samples))
    return 0


if __name__ == "__main__":
    sys.exit(main())
