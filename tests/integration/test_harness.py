"""What the pytest plugin gives to those who test their own views, on real servers, with right and with wrong views."""

from __future__ import annotations

import re
import signal
from collections.abc import Collection, Iterator
from typing import Any

import psycopg
import pytest

from cdc.errors import ConfigError
from infra import attached
from infra.attached import AttachedServers, forget_left_over
from infra.processes import StackError
from infra.site import Site
from infra.site_maker import SiteMaker
from infra.stack import Stack
from infra.testing import MakeSite
from invalidator.nodes import slot_of
from invalidator.reader import CacheReader
from tests.adopter import EXAMPLE

SCHEMA = (EXAMPLE / "schema.sql").read_text() + "ALTER TABLE products ADD maker text, REPLICA IDENTITY FULL;"

# The same object by right views, and by wrong ones: each is wrong in a way of its own.
VIEWS = """
version: 1
views:
  product:
    key: "product:{id}"
    mode: invalidate
    tables: {public.products: {}, public.prices: {parts: {id: product_id}}}
  forgetful: {key: "forgetful:{id}", mode: invalidate, tables: {public.products: {}}}
  narrow:
    key: "narrow:{id}"
    mode: invalidate
    tables: {public.products: {columns: [name]}, public.prices: {parts: {id: product_id}}}
  row: {key: "row:{id}", mode: refresh, tables: {public.products: {}}}
  pair: {key: "pair:{currency}:{id}", mode: invalidate, tables: {public.prices: {parts: {id: product_id}}}}
  elsewhere: {key: "elsewhere:{id}", mode: invalidate, tables: {public.products: {}}}
  restless: {key: "restless:{id}", mode: invalidate, tables: {public.products: {}}}
  unloaded: {key: "unloaded:{id}", mode: invalidate, tables: {public.products: {}}}
"""


def load_product(connection: psycopg.Connection[Any], key: object) -> object:
    row = connection.execute("SELECT name, maker FROM products WHERE id = %s", [key]).fetchone()
    if row is None:
        return None
    prices = connection.execute("SELECT currency, cents FROM prices WHERE product_id = %s ORDER BY 1", [key]).fetchall()
    return {"name": row[0], "maker": row[1], "prices": dict(prices)}


def load_row(connection: psycopg.Connection[Any], key: object) -> object:
    row = connection.execute("SELECT id, name, maker FROM products WHERE id = %s", [key]).fetchone()
    return None if row is None else {"id": row[0], "name": row[1], "maker": row[2]}


def load_pair(connection: psycopg.Connection[Any], key: Any) -> object:
    row = connection.execute(
        "SELECT cents FROM prices WHERE product_id = %(id)s AND currency = %(currency)s", key
    ).fetchone()
    return None if row is None else row[0]


def load_after_a_commit(connection: psycopg.Connection[Any], key: object) -> object:
    if not connection._num_transactions:  # in a reader, not in an assertion
        connection.execute("COMMIT")
        connection.execute("SELECT pg_current_xact_id()")
        connection.execute("BEGIN")
    return load_row(connection, key)


@pytest.fixture(scope="module")
def site(staleproof_factory: SiteMaker, stack: Stack) -> Iterator[Site]:
    def load_elsewhere(connection: object, key: object) -> object:
        with psycopg.connect(made[0].dsn) as other:
            return load_row(other, key)

    loaders = {
        **dict.fromkeys(("product", "forgetful", "narrow"), load_product),
        "row": load_row, "pair": load_pair, "elsewhere": load_elsewhere, "restless": load_after_a_commit,
    }  # fmt: skip
    made: list[Site] = []
    with staleproof_factory.make(
        schema=SCHEMA, views=VIEWS, loaders=loaders, regions=["eu", "us"], proxied=True
    ) as site:
        made.append(site)
        yield site


@pytest.fixture
def product(site: Site) -> int:
    """A new product; nothing of it is cached."""
    statement = "INSERT INTO products SELECT coalesce(max(id), 0) + 1, 'lamp' FROM products RETURNING id"
    (identity,) = site.database.execute(statement).fetchone() or (0,)
    return int(identity)


def failure(call: Any, *arguments: object, **options: object) -> str:
    with pytest.raises(AssertionError) as caught:
        call(*arguments, **options)
    return str(caught.value)


def test_a_change_has_reached_every_region_when_the_call_returns(site: Site, product: int) -> None:
    site.assert_fresh("product", product)
    assert all(site.is_cached("product", product, region=region) for region in ("eu", "us"))
    assert site.change_and_wait("UPDATE products SET maker = %s WHERE id = %s RETURNING maker", ["a", product]) == [
        ("a",)
    ]
    assert not any(site.is_cached("product", product, region=region) for region in ("eu", "us"))
    site.assert_fresh("product", product)
    assert site.read("product", product, region="us") == {"name": "lamp", "maker": "a", "prices": {}}


def test_what_does_not_exist_and_keys_of_several_parts_are_compared_too(site: Site, product: int) -> None:
    site.assert_fresh("pair", {"id": product, "currency": "EUR"})
    assert site.is_cached("pair", {"id": product, "currency": "EUR"}, region="eu")
    site.change_and_wait("INSERT INTO prices VALUES (%s, 'EUR', 1900)", [product])
    site.assert_fresh("pair", {"id": product, "currency": "EUR"})
    assert site.read("pair", {"id": product, "currency": "EUR"}, region="eu") == 1900


def test_a_change_that_nobody_waited_for_is_waited_for_by_the_assertion(
    site: Site, product: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.assert_fresh("product", product)
    (worker,) = site.running("invalidate", "--region", "us")
    drain = site._freshness._drain

    def let_it_go_on(regions: Collection[str]) -> None:
        worker.send_signal(signal.SIGCONT)
        drain(regions)

    monkeypatch.setattr(site._freshness, "_drain", let_it_go_on)
    worker.send_signal(signal.SIGSTOP)
    try:
        site.database.execute("UPDATE products SET maker = 'late' WHERE id = %s", [product])
        site.assert_fresh("product", product)
    finally:
        worker.send_signal(signal.SIGCONT)


def test_a_view_that_forgets_a_table_fails_with_the_fields_and_the_table(site: Site, product: int) -> None:
    site.assert_fresh("forgetful", product)
    site.change_and_wait("INSERT INTO prices VALUES (%s, 'EUR', 1900)", [product])
    said = failure(site.assert_fresh, "forgetful", product)
    for region in ("eu", "us"):
        assert (
            f"forgetful {product} is stale in region {region}:\n  prices.EUR: not served, the database says 1900"
            in said
        )
    assert "view forgetful is invalidated by public.products (id; every column)" in said
    assert "its loader also reads public.prices, which the view does not name" in said
    assert "Name it under `tables:` in views.yaml" in said
    assert "the last change_and_wait changed public.prices: INSERT INTO prices" in said
    assert failure(site.assert_covered, "forgetful", product).startswith("view forgetful does not cover its loader")
    site.assert_covered("forgetful", product, besides=["public.prices"])
    site.assert_covered("product", product)


def test_a_view_with_too_few_columns_fails_and_says_which_it_has(site: Site, product: int) -> None:
    site.assert_fresh("narrow", product)
    site.change_and_wait("UPDATE products SET maker = 'b' WHERE id = %s", [product])
    said = failure(site.assert_fresh, "narrow", product)
    assert "maker: served nothing (no such object), the database says 'b'" in said
    assert "public.products (id; only name); public.prices (id from product_id; every column)" in said
    assert "its loader also reads" not in said


def test_every_entry_is_compared_and_only_the_region_where_it_is_stale_is_named(site: Site, product: int) -> None:
    site.clear()
    assert "region eu serves 0 entries, fewer than 1" in failure(site.assert_all_fresh)
    site.change_and_wait("INSERT INTO products VALUES (%s, 'lamp')", [product])
    site.read("forgetful", product, region="eu")
    site.read("product", product, region="us")
    site.assert_all_fresh()
    site.change_and_wait("INSERT INTO prices VALUES (%s, 'SEK', 1)", [product])
    said = failure(site.assert_all_fresh)
    assert re.match(r"\d+ of \d+ entries are stale", said)
    assert f"forgetful {product} is stale in region eu" in said
    assert f"forgetful {product} is stale in region us" not in said
    assert not re.search(rf"^product {product} is stale", said, re.MULTILINE)
    site.read("product", product, region="us")
    site.assert_all_fresh(regions=["us"])


def test_entries_that_no_reader_of_the_site_asked_for_are_compared_by_the_text_of_their_key(site: Site) -> None:
    site.clear()
    site.change_and_wait("INSERT INTO products VALUES (900, 'refreshed')")  # the worker writes row:900 by itself
    site.assert_all_fresh()
    assert site.is_cached("row", 900, region="us")


def test_a_loader_that_reads_on_another_connection_is_found(site: Site, product: int) -> None:
    said = failure(site.assert_fresh, "elsewhere", product)
    assert "the loader of elsewhere reads no table through the connection that it is given" in said


def test_a_value_that_is_never_cached_is_a_failure_with_its_reason(
    site: Site, product: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.freshness.SETTLE_LIMIT_SECONDS", 0.5)
    said = failure(site.assert_fresh, "restless", product)
    assert f"restless {product} is never cached in region eu: the loader left the reader's transaction" in said


def test_a_row_that_never_stands_still_is_a_failure_that_says_so(
    site: Site, product: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drain(regions: object) -> None:
        site.database.execute("UPDATE products SET maker = maker || 'x' WHERE id = %s", [product])

    site.database.execute("UPDATE products SET maker = '' WHERE id = %s", [product])
    monkeypatch.setattr("infra.freshness.SETTLE_LIMIT_SECONDS", 0.2)
    monkeypatch.setattr(site._freshness, "_served", lambda *_: None)  # how long a fill takes is another test's matter
    monkeypatch.setattr(site._freshness, "_drain", drain)
    assert "changes all the time" in failure(site.assert_fresh, "product", product)


def test_views_without_a_loader_and_unknown_ones_are_named(site: Site) -> None:
    with pytest.raises(ConfigError, match="view unloaded has no loader: make the site with loaders="):
        site.assert_fresh("unloaded", 1)
    with pytest.raises(ConfigError, match="there is no view 'nothing'"):
        site.assert_fresh("nothing", 1)


def test_a_network_that_swallows_everything_is_one_of_the_tools(site: Site, product: int) -> None:
    site.assert_fresh("product", product)
    site.faults.proxy("us").half_open()
    site.database.execute("UPDATE products SET maker = 'unheard' WHERE id = %s", [product])
    site.wait_drained("eu")
    site.assert_fresh("product", product, regions=["eu"])
    site.faults.proxy("us").heal()
    site.assert_fresh("product", product)


# -- sites that start nothing, or end with their test


@pytest.fixture
def idle(staleproof: MakeSite, stack: Stack) -> Site:
    return staleproof(schema=EXAMPLE / "schema.sql", views=EXAMPLE / "views.yaml", regions=["us"], start=False)


def test_overrides_in_the_environment_reach_neither_the_site_nor_its_processes(
    staleproof: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may name a production database."""
    monkeypatch.setenv("STALEPROOF_SOURCE__DSN", "postgresql://production.invalid/shop")
    monkeypatch.setenv("STALEPROOF_KAFKA__BOOTSTRAP_SERVERS", "production.invalid:9092")
    site = staleproof(schema=EXAMPLE, views=EXAMPLE / "views.yaml", regions=["eu"])
    assert site.settings.source.dsn.get_secret_value() == site.dsn
    assert site.logged("capture_started")


def test_what_check_finds_wrong_is_said_with_its_remedy_and_nothing_runs(staleproof: MakeSite) -> None:
    schema = (EXAMPLE / "schema.sql").read_text().replace("ALTER TABLE reviews REPLICA IDENTITY FULL", "")
    with pytest.raises(StackError, match=r"public.reviews(.|\n)*fix: ALTER TABLE .*reviews.* REPLICA IDENTITY FULL"):
        staleproof(schema=schema, views=EXAMPLE / "views.yaml", regions=["eu"])


def test_a_process_that_dies_by_itself_fails_a_wait_at_once_with_its_log(idle: Site) -> None:
    process = idle.start("invalidate", "--region", "mars")
    assert "there is no region 'mars' in the settings" in failure(idle.wait_open)
    idle.processes.remove(process)


def test_whatever_a_test_broke_serves_again_when_its_site_ends(idle: Site, stack: Stack) -> None:
    idle.faults.server("redis-us").kill()
    idle.faults.redis("us")
    idle.faults.server("kafka").pause()
    idle.end()
    assert stack.processes["redis-us"].is_alive()
    stack.processes["kafka"].wait_ready()


def test_faults_of_what_is_not_there_say_what_to_do(idle: Site, staleproof_factory: SiteMaker) -> None:
    with pytest.raises(StackError, match="there is no server 'redis-mars' to break; there are postgres, kafka"):
        idle.faults.redis("mars")
    with pytest.raises(StackError, match="make the site with proxied=True"):
        idle.faults.proxy("us")
    with pytest.raises(StackError, match="a worker of region 'us' does not run"):
        idle.faults.kill_worker("us")
    with pytest.raises(StackError, match="the servers have no region 'mars'"):
        staleproof_factory.make(schema="", views="", regions=["mars"])


def test_a_schema_may_be_a_callable_that_migrates(staleproof: MakeSite) -> None:
    def migrate(dsn: str) -> None:
        with psycopg.connect(dsn) as connection:
            connection.execute((EXAMPLE / "schema.sql").read_bytes())

    site = staleproof(schema=migrate, views=EXAMPLE / "views.yaml", start=False)
    published = site.database.execute("SELECT tablename FROM pg_publication_tables ORDER BY 1").fetchall()
    assert published == [("prices",), ("products",), ("reviews",)]


def test_what_a_killed_session_left_on_servers_of_others_is_removed_and_living_sites_stay(
    stack: Stack, idle: Site, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = AttachedServers.read(stack.directory, ["us"])
    with monkeypatch.context() as patch:
        patch.setattr(attached, "site_name", lambda owner, number: f"sp{owner.pid}x1x{number}")  # nobody alive
        with SiteMaker.open(servers, tmp_path) as maker:
            dead = maker.make(schema=EXAMPLE, views=EXAMPLE / "views.yaml")
            with pytest.raises(StackError, match="leave out --staleproof-servers"):
                dead.faults.server("kafka")
            dead.stop()
            dead.resources.pop_all()  # what a killed session does not come to
            maker.living.clear()
    assert left_of(stack, dead.name) == {"database", "slot", "topics", "keys"}
    assert forget_left_over(servers) == [dead.name]
    dead.database.close()
    assert left_of(stack, dead.name) == set()
    assert "database" in left_of(stack, idle.name)


def left_of(stack: Stack, name: str) -> set[str]:
    from kafka import KafkaAdminClient
    from redis import Redis

    found = set()
    with psycopg.connect(stack.postgres_dsn) as admin:
        if admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
            found.add("database")
        if admin.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", [name]).fetchone():
            found.add("slot")
    kafka = KafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap)
    if any(topic.startswith(f"{name}.") for topic in kafka.list_topics()):
        found.add("topics")
    kafka.close()
    with Redis.from_url(stack.redis_urls["us"]) as client:
        if list(client.scan_iter(match=f"{{{name}:*")):
            found.add("keys")
    return found


def test_a_site_reader_is_the_reader_that_applications_use(site: Site, product: int) -> None:
    reader = site.reader("eu")
    assert isinstance(reader, CacheReader)
    assert reader.get("product", product, lambda connection: load_product(connection, product)) == {
        "name": "lamp", "maker": None, "prices": {},
    }  # fmt: skip
    assert site.is_cached("product", product, region="eu")


def test_a_region_on_several_servers_is_a_region_like_any_other(staleproof: MakeSite) -> None:
    site = staleproof(
        schema=SCHEMA, views=VIEWS, loaders={"product": load_product}, topology={"eu": "cluster", "us": "sentinel"},
        regions=["eu", "us"],
    )  # fmt: skip
    site.database.execute("INSERT INTO products VALUES (1, 'pen', 'a')")
    site.assert_fresh("product", 1)
    before = {region: site.reader(region).layout.shards for region in ("eu", "us")}
    cluster, watched = site.topologies["eu"], site.topologies["us"]
    assert before == {"eu": 6, "us": 1}
    layout = site.reader("eu").layout
    slot = slot_of(layout.header_key(layout.place("product:1")[0]))
    source = cluster.owner(slot)
    cluster.move_slot(slot, next(member for member in cluster.primaries() if member is not source))
    old = watched.primary()
    watched.fail_over()
    assert watched.primary() is not old
    site.change_and_wait("UPDATE products SET name = 'pencil'")
    site.assert_fresh("product", 1)
    assert site.read("product", 1, region="us")["name"] == "pencil"


def test_an_unknown_topology_is_named(staleproof: MakeSite) -> None:
    with pytest.raises(StackError, match="there is no topology 'ring'; known are cluster, sentinel"):
        staleproof(schema=SCHEMA, views=VIEWS, topology={"eu": "ring"})
    with pytest.raises(StackError, match="topology names region 'asia', and the site has only eu, us, ap"):
        staleproof(schema=SCHEMA, views=VIEWS, topology={"asia": "cluster"})
