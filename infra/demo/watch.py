"""Beside a rebuild: rows that change and go while they are rebuilt, and a recorder that looks whether a key moves back.

    python -m infra.demo.watch --region eu --keys 1000000 --seed 1      # environment: DEMO_DSN, DEMO_REDIS

The writer gives some of the sleeping contacts one version after the other, and deletes others; a reader competes with
the rebuild for the same keys. The recorder asks the region for these entries over and over: a version below one that
it saw before is a key that moved back.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import msgspec
import psycopg

from infra.demo import objects
from infra.demo.caches import demo_views
from infra.demo.child import Orders, Tally, carry_out
from infra.demo.data import SLEEPERS_FIRST
from invalidator import CacheReader
from invalidator import entry as entries
from invalidator.layout import Layout
from invalidator.nodes import Connection, connect
from invalidator.region import Region

RECORDED = 200
DELETED = 2_000
WRITE_SECONDS = 0.004
READ_SECONDS = 0.002


def recorded(keys: int) -> list[int]:
    """The contacts that get versions, spread over all."""
    return [SLEEPERS_FIRST + number * (keys // RECORDED) for number in range(RECORDED)]


def doomed(keys: int) -> list[int]:
    """The contacts that are deleted, spread over all, none of them recorded."""
    chosen = {SLEEPERS_FIRST + 1 + number * (keys // DELETED) for number in range(DELETED)}
    return sorted(chosen - set(recorded(keys)))


class Watch:
    """The three that share the recorded contacts."""

    def __init__(self, region: str, keys: int, seed: int, orders: Orders, tally: Tally) -> None:
        self._orders = orders
        self._tally = tally
        self._seed = seed
        self._recorded = recorded(keys)
        self._doomed = doomed(keys)
        nodes = connect(Connection(url=os.environ["DEMO_REDIS"], timeout_seconds=5.0))
        self._region = Region(region, nodes, Layout())

    def write(self) -> None:
        """Versions that grow, and deletions."""
        rng = random.Random(f"{self._seed}:watch")
        doomed_left, version = list(self._doomed), 0
        rng.shuffle(doomed_left)
        with psycopg.connect(os.environ["DEMO_DSN"], autocommit=True) as connection:
            while not self._orders.stop.wait(WRITE_SECONDS):
                if doomed_left and rng.random() < 0.3:
                    connection.execute("DELETE FROM contacts WHERE id = %s", (doomed_left.pop(),))
                    self._tally.add({"deleted": 1})
                    continue
                version += 1
                connection.execute(
                    "UPDATE contacts SET attributes = jsonb_build_object('version', %s::int) WHERE id = %s",
                    (version, rng.choice(self._recorded)),
                )
                self._tally.add({"versions": 1})

    def read(self) -> None:
        """Fill what the rebuild fills as well."""
        rng = random.Random(f"{self._seed}:reader")
        with psycopg.connect(os.environ["DEMO_DSN"], autocommit=True) as connection:
            reader = CacheReader(self._region, demo_views(), lambda: nullcontext(connection))
            while not self._orders.stop.wait(READ_SECONDS):
                number = rng.choice(self._recorded)
                reader.get("contact", number, objects.contact(number))

    def record(self) -> None:
        """Look at every recorded entry, over and over."""
        view = demo_views().views["contact"]
        keys = [view.key.render([number]) for number in self._recorded]
        last = dict.fromkeys(keys, 0)
        while not self._orders.stop.is_set():
            found = self._region.look(0, keys, view.name, view.digest).entries
            for key, version in versions(keys, found):
                if version != last[key]:
                    self._tally.add({"moved_back" if version < last[key] else "moved_on": 1})
                    last[key] = version


def versions(keys: Sequence[str], found: Sequence[bytes | None]) -> list[tuple[str, int]]:
    """The version that each entry shows; 0 for a contact that had none yet."""
    shown = []
    for key, data in zip(keys, found, strict=True):
        if data is not None:
            value = msgspec.json.decode(entries.decode(data).payload)
            shown.append((key, value["attributes"].get("version", 0)))
    return shown


def main() -> int:
    """Watch until told to stop; the last line is the final count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--region", required=True)
    parser.add_argument("--keys", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    orders, tally = Orders(), Tally()
    watch = Watch(options.region, options.keys, options.seed, orders, tally)
    return carry_out(orders, tally, {"write": watch.write, "read": watch.read, "record": watch.record})


if __name__ == "__main__":
    sys.exit(main())
