"""A range replayed over a region in use: capture, a worker, a writer and a reader never stop. Twice, and shuffled.

The long one is left to `pytest tests/integration/test_replay_live.py -m slow -s`: a million records, some minutes.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from consumers.kafka import Producer
from consumers.kafka_admin import KEPT, Admin, Topic
from consumers.range_reader import RangeReader
from tests.contacts import PRELOADED, Load, load_contact, stale_entries
from tests.fix_stack import ROOT, MakeSite, Site

TRANSACTION_ROWS = 5_000
FIRST = 1_000
"""Contacts of the range's own begin here; those before are of the live load."""

FILLED = 400
TEMPLATES = 200
SHUFFLED_AT_ONCE = 50_000
COPIES = 5


@pytest.mark.parametrize("records", [4_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_replayed_twice_and_shuffled_over_a_region_in_use_the_end_state_is_the_same(
    make_site: MakeSite, records: int
) -> None:
    site = make_site()
    site.start("capture")
    site.start("invalidate", "--region", "eu")
    site.wait_open("eu")
    write(site, records)
    site.wait_drained("eu", seconds=600)
    fill(site)
    with Load(site, "eu") as load:
        load.wait_changes(20)
        before = quiet_entries(site)
        assert len(before) >= FILLED // 2 + TEMPLATES
        for prefix in ("", shuffled_copy(site)):
            for _ in range(2):
                changes = load.changes
                with timed(f"{records} records{' shuffled' if prefix else ''}"):
                    result = replay(site, *(["--topic-prefix", prefix] if prefix else []))
                assert result["records"] >= records
                assert result["alarms"] == {}
                assert load.changes > changes
                assert quiet_entries(site) == before
        load.stop_writing()
        site.wait_drained("eu")
        assert stale_entries(site, "eu", at_least=1) == []
        load.wait_filled()
    assert load.errors == []
    assert stale_entries(site, "eu") == []
    assert quiet_entries(site) == before
    assert site.alarms() == []


def write(site: Site, records: int) -> None:
    """So many changes of contacts, in transactions below the mass-change limit; and templates that change twice."""
    contacts = min(20_000, records // 2)
    site.database.execute("INSERT INTO templates SELECT i, 'a' FROM generate_series(1, %s) i", (TEMPLATES,))
    done = 0
    while done < records:
        for first in range(FIRST, FIRST + contacts, TRANSACTION_ROWS):
            last = min(first + TRANSACTION_ROWS, FIRST + contacts) - 1
            site.database.execute(
                "INSERT INTO contacts SELECT i, %s, 'subscribed' FROM generate_series(%s::int, %s) i"
                " ON CONFLICT (id) DO UPDATE SET email = excluded.email",
                (f"{done}@example.org", first, last),
            )
            done += last + 1 - first
    site.database.execute("UPDATE templates SET body = 'b'")


def fill(site: Site) -> None:
    """Contacts of the range are read until most are cached: a fence may be young."""
    reader = site.reader("eu")
    for _ in range(3):
        for identity in range(FIRST, FIRST + FILLED):
            reader.get("contact", identity, load_contact(identity))


def quiet_entries(site: Site) -> dict[bytes, bytes]:
    """Every entry but those that the live load changes, as it lies there."""
    settings = site.settings.regions["eu"]
    with redis.Redis.from_url(settings.url.get_secret_value()) as client:
        names = [name for name in client.scan_iter(f"{{{settings.prefix}:0}}:e:*", count=1_000) if not is_loads(name)]
        return dict(zip(names, client.mget(names), strict=True))


def is_loads(name: bytes) -> bool:
    kind, _, identity = name.rpartition(b":")
    return kind.endswith(b"contact") and int(identity) < PRELOADED


def shuffled_copy(site: Site) -> str:
    """The prefix of topics that hold the records so far in another order, each in any partition."""
    prefix = f"{site.settings.source.name}.shuffled"
    names = {site.settings.source.topic(table): f"{prefix}.{table}" for table in (
        "public.contacts", "public.members", "public.templates"
    )}  # fmt: skip
    with Admin(site.settings.kafka) as admin:
        admin.ensure([Topic(name, COPIES, KEPT) for name in names.values()])
        held = admin.extents(list(names))
    extents = {(topic, number): extent for topic, parts in held.items() for number, extent in enumerate(parts)}
    producer = Producer(site.settings.kafka, inflight_records=200_000)
    for name in names.values():
        producer.track(name, [0] * COPIES)
    batch, anywhere = producer.batch(), random.Random(1)
    with RangeReader(site.settings.kafka, group="test", queued_kilobytes=8_192, extents=extents) as reader:
        pool: list[Any] = []
        while reader.left or pool:
            if reader.left:
                pool += reader.fetch(1_000, 0.2)
            if len(pool) >= SHUFFLED_AT_ONCE or not reader.left:
                anywhere.shuffle(pool)
                for record in pool[len(pool) // 2 if reader.left else 0 :]:
                    while not producer.send(
                        batch, names[record.topic], anywhere.randrange(COPIES),
                        key=record.key, value=record.value, header=record.header,
                    ):  # fmt: skip
                        producer.poll(0.05)
                del pool[len(pool) // 2 if reader.left else 0 :]
                producer.poll(0)
    assert producer.flush(60) == 0
    producer.close()
    return prefix


def replay(site: Site, *arguments: str) -> dict[str, Any]:
    """As a person runs it; the summary."""
    done = subprocess.run(
        [sys.executable, "-m", "consumers.cli", "replay", "kafka", "--from", "beginning", "--region", "eu", "--json",
         "--state", str(site.directory / "replay.json"), "--config", str(site.directory / "staleproof.yaml"), *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False, env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    print(f"{result['records_per_second']} records/s; {result['regions']}")  # noqa: T201 - what the long run is for
    return result


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - began:.1f} s")  # noqa: T201 - as above
