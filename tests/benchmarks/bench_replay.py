"""What a rebuild from the database costs: `staleproof replay database` beside blind SETs of the same values.

The rebuild is the command itself, from its first query to its last fill: capture and a worker run, every batch has its
own snapshot, every key passes the guard. The bare SETs have their keys and values in memory already, and go through
redis-py's pipeline in batches of as many keys; they read no database and prove nothing. Each in a process of its own,
taking turns, into the same Redis, which is emptied of entries before.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import msgspec
import psycopg
import redis

from infra.site import Site
from infra.site_maker import SiteMaker
from tests.benchmarks.harness import Bench, Results, apart, median_ratio, medians
from tests.fix_stack import ROOT, SCHEMA

VIEWS = """
version: 1
views:
  contact:
    key: "contact:{id}"
    load: SELECT id, to_jsonb(c) AS value FROM contacts AS c
    tables: {public.contacts: {}}
"""

ATTRIBUTES = """
ALTER TABLE contacts ADD COLUMN city text, ADD COLUMN attributes jsonb;
INSERT INTO contacts SELECT n, 'contact' || n || '@example.org', 'subscribed', 'City ' || mod(n, 1000),
    jsonb_build_object('plan', 'gold', 'score', mod(n, 100), 'tags', jsonb_build_array('a', 'b', mod(n, 7)))
FROM generate_series(1, %d) n;
ANALYZE contacts
"""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Options."""

    keys: int = 300_000
    rounds: int = 3
    batch: int = 1_000
    parallel: int = 3


def run(settings: Settings, bench: Bench) -> Results:
    """Keys per second of each, and the ratio of each round's own."""
    with (
        bench.directory() as directory,
        bench.stack(directory) as stack,
        SiteMaker.open(stack, directory) as maker,
        maker.make(schema=SCHEMA, views=VIEWS, start=False) as site,
    ):
        site.start_all()
        bench.say(f"{settings.keys} rows through the stream")
        site.database.execute(ATTRIBUTES % settings.keys)
        site.wait_drained("eu", seconds=300)
        site.wait_open("eu")
        url = stack.redis_urls["eu"]

        def rebuild() -> Results:
            empty(url)
            return rebuilt(site, settings)

        def bare() -> Results:
            empty(url)
            return apart(bare_sets, site.dsn, url, settings.batch)

        measured = bench.interleave({"rebuild": rebuild, "bare": bare}, rounds=settings.rounds)
    ratio = median_ratio(
        [{"rate": one["rebuild_keys_per_s"]} for one in measured["rebuild"]],
        [{"rate": one["bare_set_per_s"]} for one in measured["bare"]],
        "rate",
    )
    return {**medians(measured["rebuild"]), **medians(measured["bare"]), "ratio": ratio}


def rebuilt(site: Site, settings: Settings) -> Results:
    """One run of the command, by its own count of keys and seconds."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "consumers.cli", "replay", "database", "--config", "staleproof.yaml"),
            *("--view", "contact", "--region", "eu", "--json"),
            *("--batch", str(settings.batch), "--parallel", str(settings.parallel)),
        ],
        cwd=site.directory, env={"PYTHONPATH": str(ROOT)}, check=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    summary = json.loads(done.stdout)
    counts = summary["views"]["contact"]
    if counts != {"read": settings.keys, "filled eu": settings.keys}:
        raise RuntimeError(f"not every key was filled: {counts}")
    return {"rebuild_keys_per_s": summary["keys_per_second"]}


def bare_sets(dsn: str, url: str, batch: int) -> Results:
    """The same keys and values, as an application without a guard would write them."""
    with psycopg.connect(dsn) as database:
        rows = database.execute("SELECT 'contact:' || id, to_jsonb(c)::text FROM contacts AS c").fetchall()
    began = time.perf_counter()
    with redis.Redis.from_url(url) as client:
        for start in range(0, len(rows), batch):
            pipeline = client.pipeline(transaction=False)
            for key, value in rows[start : start + batch]:
                pipeline.set(key, value)
            pipeline.execute()
    return {"bare_set_per_s": len(rows) / (time.perf_counter() - began)}


def empty(url: str) -> None:
    """Remove every entry, and nothing of the guard's."""
    with redis.Redis.from_url(url) as client:
        names = [name for name in client.scan_iter(count=10_000) if not name.endswith((b"}:h", b"}:f", b"}:l"))]
        for start in range(0, len(names), 10_000):
            client.unlink(*names[start : start + 10_000])
