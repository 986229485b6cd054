"""Plain views on real PostgreSQL, Kafka and Redis: an application that knows nothing of us does GET, SELECT, SET."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from cdc.errors import ConfigError
from consumers.regions import open_region
from invalidator import CacheReader
from tests.fix_redis import redis_of
from tests.fix_stack import DEFAULT_HEARTBEAT, SCHEMA, Site
from tests.integration.test_main_path import invisible_commit
from tests.waiting import wait_until

VIEWS = """
version: 1
views:
  contact: {key: "crm:contact:{id}", layout: plain, tables: {public.contacts: {}}}
  segment: {key: "segment:{id}", tables: {public.members: {parts: {id: segment_id}}}}
"""

STRANGERS = ["crm:contact:1:lock", "crm:contacts", "crm:campaign:1", "crm:contact:not encoded by us"]


class Shop:
    """The application: it reads through the cache as they all do."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.cache = redis_of(open_region(site.settings, "eu"))

    def select(self, number: int) -> str | None:
        with psycopg.connect(self.site.dsn, autocommit=True) as connection:
            row = connection.execute("SELECT email FROM contacts WHERE id = %s", (number,)).fetchone()
            return None if row is None else row[0]

    def store(self, number: int, value: str | None) -> None:
        self.cache.set(f"crm:contact:{number}", value or "")

    def cached(self, number: int) -> str | None:
        found = self.cache.get(f"crm:contact:{number}")
        return None if found is None else found.decode()

    def insert(self, *numbers: int) -> None:
        for number in numbers:
            self.site.database.execute("INSERT INTO contacts VALUES (%s, 'old', '')", (number,))
        self.settle()

    def settle(self) -> None:
        """Until everything committed is applied, and two heartbeats more: nothing is owed for it."""
        self.site.wait_drained("eu")
        self.site.wait_drained("eu")
        region = open_region(self.site.settings, "eu")
        wait_until(lambda: not [n for n, _ in region.owed(0) if not n.startswith("!")], "nothing is owed")


@pytest.fixture(scope="module")
def site(staleproof_factory: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with staleproof_factory.make(
        schema=SCHEMA,
        views=VIEWS,
        regions=("eu",),
        source=DEFAULT_HEARTBEAT,
        directory=tmp_path_factory.mktemp("plain"),
    ) as made:
        yield made


@pytest.fixture
def shop(site: Site) -> Shop:
    return Shop(site)


def restart(site: Site, *, failpoints: str = "") -> Any:
    return site.start("invalidate", "--region", "eu", failpoints=failpoints)


def kill(site: Site) -> None:
    for worker in site.running("invalidate", "--region", "eu"):
        worker.send_signal(signal.SIGKILL)
        worker.wait(10)


def test_a_change_removes_the_key_under_its_own_name(shop: Shop) -> None:
    shop.insert(1, 2)
    shop.store(1, shop.select(1))
    shop.store(2, shop.select(2))
    shop.site.change_and_wait("UPDATE contacts SET email = 'new' WHERE id = 1")
    assert shop.cached(1) is None
    assert shop.cached(2) == "old"
    shop.site.change_and_wait("DELETE FROM contacts WHERE id = 2")
    assert shop.cached(2) is None


def test_a_filler_that_read_before_the_change_was_visible_is_healed(shop: Shop) -> None:
    shop.insert(3)
    shop.store(3, "to be removed")
    with invisible_commit(shop.site, "UPDATE contacts SET email = 'new' WHERE id = 3"):
        wait_until(lambda: shop.cached(3) is None, "the key is removed for the first time")
        value = shop.select(3)
        assert value == "old", "the commit is in the log, and nobody sees it"
        shop.store(3, value)
        shop.site.wait_drained("eu")  # heartbeats come and go that have not seen it
        assert shop.cached(3) == "old"
    wait_until(lambda: shop.cached(3) is None, "the key is removed once more")
    shop.settle()
    shop.store(3, shop.select(3))
    shop.settle()
    assert shop.cached(3) == "new"


def test_a_worker_killed_between_the_two_removals_leaves_the_second_to_the_next(shop: Shop) -> None:
    shop.insert(4)
    shop.store(4, "to be removed")
    with invisible_commit(shop.site, "UPDATE contacts SET email = 'new' WHERE id = 4"):
        wait_until(lambda: shop.cached(4) is None, "the key is removed for the first time")
        shop.site.wait_drained("eu")  # and the row has moved on: no record comes again
        kill(shop.site)
        shop.store(4, shop.select(4))
    dying = restart(shop.site, failpoints="plain.before_pay=kill@1")
    assert dying.wait(30) == -signal.SIGKILL
    assert shop.cached(4) == "old"
    restart(shop.site)
    wait_until(lambda: shop.cached(4) is None, "another worker removed it once more")
    assert shop.site.alarms() == []


def test_truncate_sweeps_the_view_and_nobody_elses_keys(shop: Shop) -> None:
    shop.insert(5)
    for name in STRANGERS:
        shop.cache.set(name, "ours")
    keys = [f"crm:contact:{number}" for number in range(3_000)]
    shop.cache.mset(dict.fromkeys(keys, "old"))
    shop.site.database.execute("TRUNCATE contacts")
    wait_until(lambda: not shop.cache.exists(*keys), "the keys of the view are gone")
    assert [shop.cache.get(name) for name in STRANGERS] == [b"ours"] * len(STRANGERS)
    shop.settle()


def test_readers_and_rebuilds_name_the_layout(shop: Shop) -> None:
    region = open_region(shop.site.settings, "eu")
    reader = CacheReader(region, shop.site.views, lambda: psycopg.connect(shop.site.dsn, autocommit=True))
    with pytest.raises(ConfigError, match="layout: plain"):
        reader.get("contact", 1, lambda _: None)
    with pytest.raises(ConfigError, match="layout: plain"):
        reader.view("contact", lambda *_: None)
