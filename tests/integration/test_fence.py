"""`staleproof fence` as a person runs it, on real PostgreSQL, Kafka and Redis: what it hits, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consumers.regions import open_region, read_views
from invalidator.layout import Row, row_field
from tests.fix_stack import Site
from tests.waiting import wait_until


def load(connection: psycopg.Connection[Any]) -> list[Any]:
    return [row[0] for row in connection.execute("SELECT 'from the database'")]


def cached(site: Site, region: str, view: str, identity: int) -> bool:
    digest = read_views(site.settings.views).views[view].digest
    return open_region(site.settings, region).read(0, f"{view}:{identity}", view, digest).status == "HIT"


def cache(site: Site, region: str, view: str, identity: int) -> None:
    """Read through until the entry is there: a fill may be refused as long as a fence is young."""
    reader = site.reader(region)

    def is_cached() -> bool:
        site.check_processes()
        assert reader.get(view, identity, load) == ["from the database"]
        return cached(site, region, view, identity)

    wait_until(is_cached, f"{view}:{identity} is cached in {region}")


def order(site: Site, *arguments: str) -> dict[str, Any]:
    """Run `staleproof fence … --yes --json` to its end; what it printed."""
    process = site.start("fence", *arguments, "--yes", "--json")
    assert process.wait(60) == 0, last_log(site)
    (line,) = [text for text in last_log(site).splitlines() if text.startswith('{"topic"')]
    printed: dict[str, Any] = json.loads(line)
    return printed


def last_log(site: Site) -> str:
    return max(site.directory.glob("fence-*.log"), key=lambda path: int(path.stem.split("-")[1])).read_text()


def wait_heard(site: Site, region: str, offset: int) -> None:
    """Until the region's first shard has the control record at `offset`."""
    known, field = open_region(site.settings, region), row_field(site.settings.source.control_topic, 0)
    wait_until(
        lambda: Row.parse(known.header(0)[field]).next_offset > offset, f"{region} has heard control record {offset}"
    )


def ordered(site: Site, region: str) -> list[str]:
    """Reasons of the alarms of kind `ordered` of that region's worker."""
    return [a["reason"] for a in site.logged("alarm") if (a["region"], a["kind"]) == (region, "ordered")]


@pytest.fixture
def running(site: Site) -> Site:
    """A capture, and workers of two regions that are open."""
    site.start("capture")
    for region in ("eu", "us"):
        site.start("invalidate", "--region", region)
    for region in ("eu", "us"):
        site.wait_open(region)
    return site


def test_a_fenced_view_is_unreadable_until_heartbeats_open_it_and_other_views_stay(running: Site) -> None:
    for region in ("eu", "us"):
        cache(running, region, "contact", 1)
        cache(running, region, "segment", 1)
    printed = order(running, "--view", "contact", "--reason", "bad import")
    assert printed | {"offset": 0} == {
        "topic": running.settings.source.control_topic,
        "offset": 0,
        "source": running.settings.source.name,
        "region": None,
        "view": "contact",
        "key": None,
        "reason": "bad import",
    }
    for region in ("eu", "us"):
        wait_heard(running, region, printed["offset"])
        assert not cached(running, region, "contact", 1)
        assert cached(running, region, "segment", 1)
        wait_until(lambda region=region: ordered(running, region), "the worker raised an alarm")
        assert ordered(running, region) == ["view contact: bad import"]
        running.wait_open(region)
        assert not cached(running, region, "contact", 1)  # what was there before stays unreadable
        cache(running, region, "contact", 1)


def test_a_fenced_key_dies_alone_and_only_where_it_was_ordered(running: Site) -> None:
    for region in ("eu", "us"):
        cache(running, region, "contact", 1)
        cache(running, region, "contact", 2)
    offset = order(running, "--view", "contact", "--key", "contact:1", "--region", "eu")["offset"]
    for region in ("eu", "us"):
        wait_heard(running, region, offset)
    assert [cached(running, "eu", "contact", 1), cached(running, "eu", "contact", 2)] == [False, True]
    assert [cached(running, "us", "contact", 1), cached(running, "us", "contact", 2)] == [True, True]
    cache(running, "eu", "contact", 1)
    offset = order(running, "--view", "contact", "--key", "contact:2")["offset"]
    for region in ("eu", "us"):
        wait_heard(running, region, offset)
        assert [cached(running, region, "contact", 1), cached(running, region, "contact", 2)] == [True, False]
    wait_until(lambda: len(ordered(running, "eu")) == 2, "the worker raised an alarm for each order")
    wait_until(lambda: ordered(running, "us"), "the worker raised an alarm for the one that concerns it")
    assert ordered(running, "us") == ["a key of view contact: fence command"]


def test_a_fenced_region_loses_every_view_and_leaves_the_other_region_alone(running: Site) -> None:
    for region in ("eu", "us"):
        cache(running, region, "contact", 1)
        cache(running, region, "segment", 1)
    offset = order(running, "--all", "--region", "eu")["offset"]
    for region in ("eu", "us"):
        wait_heard(running, region, offset)
    assert [cached(running, "eu", view, 1) for view in ("contact", "segment")] == [False, False]
    assert [cached(running, "us", view, 1) for view in ("contact", "segment")] == [True, True]
    running.wait_open("eu")
    cache(running, "eu", "contact", 1)
    assert ordered(running, "eu") == ["the region: fence command"]
    assert ordered(running, "us") == []


def test_without_a_control_topic_the_order_is_refused_with_the_remedy(site: Site) -> None:
    process = site.start("fence", "--view", "contact", "--yes")
    assert process.wait(60) == 2
    topic = site.settings.source.control_topic
    assert f"staleproof: there is no topic {topic} at" in last_log(site)
    assert "start `staleproof capture` once, or check source.name" in last_log(site)
    site.processes.remove(process)  # it ended by itself, and should have


def test_a_broker_that_is_away_is_one_line_and_exit_1(site: Site) -> None:
    path = Path(site.directory / "staleproof.yaml")
    settings = json.loads(path.read_text())
    settings["kafka"] |= {"bootstrap_servers": "127.0.0.1:1", "request_timeout_seconds": 1}
    path.write_text(json.dumps(settings))
    process = site.start("fence", "--view", "contact", "--yes")
    assert process.wait(60) == 1
    assert "staleproof: cannot reach Kafka at 127.0.0.1:1" in last_log(site)
    site.processes.remove(process)
