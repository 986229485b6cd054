"""What a review of the rebuild found: each of these once lost a key, removed a right one, hung, or said what it should not."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from cdc.errors import BadRecord, ConfigError, TransientError
from consumers.database import open_database
from consumers.regions import open_region
from consumers.view_rows import SESSION, ViewRows
from invalidator.views import key_parts, load_views
from tests.fix_stack import SCHEMA
from tests.integration.test_replay_database import contacts, emptied, entry, eu, replay, value

VIEWS = """
version: 1
views:
  contact:
    key: "contact:{id}"
    load: SELECT id, jsonb_build_object('id', id, 'email', email) AS value FROM contacts
    tables: {public.contacts: {}}
  segment: {key: "segment:{id}", tables: {public.members: {parts: {id: segment_id}}}}
  flag:
    key: "flag:{name}"
    load: SELECT name, jsonb_build_object('f', f) AS value FROM flags
    tables: {public.flags: {}}
  listed: {key: "listed:{id}", mode: refresh, tables: {public.listed: {}}}
  strange: {key: "strange:{Day}/{b}", mode: refresh, tables: {public.strange: {}}}
"""

STRANGE = """
CREATE TYPE "sta{te 5%" AS ENUM ('on', 'o%ff');
CREATE DOMAIN small AS int CHECK (VALUE < 1000);
CREATE TABLE strange ("Day" date, b bytea, "per%cent {x}" text, state "sta{te 5%", n small, i interval,
    twice int GENERATED ALWAYS AS (1 + 1) STORED, PRIMARY KEY ("Day", b));
CREATE TABLE listed (id int PRIMARY KEY, a text, hidden text);
CREATE TABLE flags (name text PRIMARY KEY, f bool);
ALTER PUBLICATION staleproof ADD TABLE strange, flags, listed (id, a);
"""


@pytest.fixture(scope="module")
def shared(staleproof_factory, tmp_path_factory):
    """A site with capture and a worker in each of two regions, which are laid out differently; all open."""
    layouts = {"eu": {"shards": 3}, "us": {"shards": 2, "stripes": 256, "prefix": "other"}}
    site = staleproof_factory.make(
        schema=SCHEMA + STRANGE, views=VIEWS, regions=layouts, start=False, directory=tmp_path_factory.mktemp("review")
    )
    site.start("capture")
    for region in ("eu", "us"):
        site.start("invalidate", "--region", region)
    for region in ("eu", "us"):
        site.wait_open(region)
    yield site
    site.end()


@pytest.fixture
def place(shared):
    """The site without rows and entries."""
    return emptied(shared, "contacts", "flags", "listed", "strange")


@contextmanager
def rows_of(site, load, key="x:{id}"):
    """The objects that a `load` selects."""
    text = f"version: 1\nviews:\n  x:\n    key: '{key}'\n    tables: {{public.contacts: {{}}}}\n    load: |\n"
    text += "".join(f"      {line}\n" for line in load.splitlines())
    with open_database(site.dsn, timeout_seconds=5, session=SESSION) as database:
        rows = ViewRows(database, load_views(text, place="v").views["x"])
        yield rows, database


def all_pages(rows, database, limit):
    """The keys of every page."""
    keys, after = [], None
    while True:
        objects = rows.page(database, after, limit)
        keys += objects.values
        if objects.last is None:
            return keys
        after = objects.last


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_a_page_that_ends_with_a_missing_part_is_not_the_last(place, limit):
    load = """SELECT * FROM (VALUES (1, 1, 1), (1, NULL, 1), (1, NULL, 1), (2, 1, NULL), (2, 2, 1), (NULL, 1, 1))
        AS v(a, b, c) CROSS JOIN (VALUES (1)) AS w(value)"""
    with rows_of(place, load, key="x:{a}:{b}:{c}") as (rows, database):
        assert all_pages(rows, database, limit) == ["x:1:1:1", "x:2:2:1"]


def test_an_object_is_found_by_the_key_under_which_the_worker_knows_it(place):
    """A day is a number in a key, as in the stream; so are times, and bytes are base64."""
    load = """SELECT * FROM (VALUES
        ('2026-01-02'::date, '2026-01-02 03:04:05.000678'::timestamp, '03:04:05.5'::time, '\\x00ff3e'::bytea,
         '2026-01-02 03:04:05.6+01'::timestamptz, true),
        ('-infinity', '1912-01-01 23:59:59.999999', '24:00', '', 'infinity', false),
        ('12026-02-28', '-infinity', '00:00', '\\x61', '0044-03-15 12:00+00 BC', false),
        ('0044-03-15 BC', '0044-03-15 12:00 BC', '00:00:00.000001', 'ab', '1812-01-01', false),
        ('0001-01-01', '20260-01-01 00:00:01', '00:00', 'abc', '1970-01-01', false))
        AS v(d, t, c, y, z, b) CROSS JOIN (VALUES (1)) AS w(value)"""
    with rows_of(place, load, key="x:{d}|{t}|{c}|{y}|{z}|{b}") as (rows, database):
        everything = rows.page(database, None, 10).values
        assert len(everything) == 5
        for key in everything:
            assert list(rows.of(database, [key_parts(rows.view.key, key)]).values) == [key]
    with rows_of(place, "SELECT '2026-01-02 03:04'::timestamp(3) AS id, 1 AS value") as (rows, database):
        (key,) = rows.page(database, None, 10).values
        assert list(rows.of(database, [key_parts(rows.view.key, key)]).values) == [key]
    assert key == "x:1767323040000"


def test_names_may_hold_what_statements_give_a_meaning_to(place):
    load = """SELECT 1 AS id, 'on'::"sta{te 5%" AS state, '{"a": "5%s"}'::json AS value -- the last word"""
    with rows_of(place, load, key="x:{id}:{state}") as (rows, database):
        assert rows.page(database, None, 10).values == {"x:1:on": b'{"a": "5%s"}'}
        assert rows.page(database, ("0", "o%ff"), 10).values == rows.of(database, [("1", "on")]).values != {}


def test_a_key_that_no_text_can_be_is_of_no_object(place):
    with rows_of(place, "SELECT email AS id, 1 AS value FROM contacts") as (rows, database):
        (part,) = key_parts(rows.view.key, "x:%ED%A0%80")
        with pytest.raises(BadRecord):
            rows.of(database, [(part,)])


def test_a_load_that_fails_is_no_word_about_its_keys(place):
    """Taken for "no such object", it would empty the cache; and the server's words quote values."""
    place.database.execute("INSERT INTO contacts VALUES (1, 'top secret', 's')")
    with rows_of(place, "SELECT id, email::int AS value FROM contacts") as (rows, database):
        for ask in (lambda: rows.of(database, [("1",)]), lambda: rows.page(database, None, 10)):
            with pytest.raises(ConfigError, match="view x: its load cannot be read") as caught:
                ask()
            assert "secret" not in str(caught.value)


def test_a_value_that_is_no_json_is_refused(place):
    load = "SELECT 1 AS id, 'top secret'::text AS value"
    with rows_of(place, load) as (rows, database), pytest.raises(ConfigError, match="is no JSON") as caught:
        rows.page(database, None, 10)
    assert "secret" not in str(caught.value)


def test_a_strange_row_is_rebuilt_as_the_worker_writes_it_and_survives_a_sweep(place):
    place.database.execute("""INSERT INTO strange VALUES ('2026-01-02', '\\x00ff', 'p', 'o%ff', 7, '1 day 2 hours')""")
    place.wait_drained("eu")
    key = "strange:20455/AP8%3D"
    written = value(place, key)
    assert eu(place, "--view", "strange", "--sweep")["strange"].items() >= {"read": 1, "swept": 1}.items()
    assert value(place, key) == written
    counts = eu(place, "--key", key)["strange"]
    assert (counts["read"], counts.get("absent"), value(place, key)) == (1, None, written)


def test_a_view_that_cannot_be_rebuilt_is_not_fenced(place):
    header = place.header("eu")["s:segment"]
    options = ("--view", "contact", "--view", "segment", "--region", "eu", "--fence-first", "--yes")
    _, err = replay(place, *options, code=2)
    assert "view segment has no `load`" in err
    assert place.header("eu")["s:segment"] == header


def test_a_dry_run_tells_true_from_one_and_looks_at_keys_that_hold_a_hash(place):
    long = "x" * 300
    place.database.execute("INSERT INTO flags VALUES ('a', true), ('b', false), (%s, true)", [long])
    place.wait_drained("eu")
    reader = place.reader("eu")
    for name, flag in (("a", 1), ("b", False), (long, 1)):
        assert reader.get("flag", name, lambda _, flag=flag: {"f": flag}) == {"f": flag}
    counts = eu(place, "--view", "flag", "--dry-run")["flag"]
    assert (counts["differs eu"], counts["same eu"]) == (2, 1)


def test_a_column_that_is_not_published_is_in_no_rebuilt_row(place):
    place.database.execute("INSERT INTO listed VALUES (1, 'x', 'secret')")
    place.wait_drained("eu")
    written = value(place, "listed:1")
    opened = open_region(place.settings, "eu")
    assert opened.unlink(opened.layout.place("listed:1")[0], ["listed:1"]) == 1
    assert eu(place, "--view", "listed")["listed"]["filled eu"] == 1
    assert value(place, "listed:1") == written == {"id": 1, "a": "x"}


def test_a_load_that_takes_too_long_is_told_with_a_remedy(place):
    with rows_of(place, "SELECT 1 AS id, pg_sleep(60)::text AS value") as (rows, database):
        database.execute("SET statement_timeout = 50")
        with pytest.raises(
            TransientError, match="takes too long: canceling statement due to statement timeout: let an"
        ):
            rows.page(database, None, 10)


def test_regions_that_are_laid_out_differently_are_fenced_filled_warmed_and_swept(place):
    contacts(place, 300)
    place.wait_drained("us")
    us = place.reader("us")
    for number in (3, 5, 7, 999):
        us.get("contact", number, lambda _: {"from": "a loader"})
    warmed, _ = replay(place, "--view", "contact", "--warm-from", "us", "--into", "eu", "--json")
    assert warmed["views"]["contact"].items() >= {"read": 3, "absent": 1, "filled eu": 3}.items()
    assert sorted(open_region(place.settings, "eu").keys("")) == ["contact:3", "contact:5", "contact:7"]
    whole, _ = replay(place, "--view", "contact", "--fence-first", "--yes", "--batch", "70", "--json")
    assert whole["views"]["contact"] == {"read": 300, "filled eu": 300, "filled us": 300}
    us.get("contact", 1_000, lambda _: {"from": "a loader"})
    swept, _ = replay(place, "--view", "contact", "--sweep", "--json")
    assert swept["views"]["contact"]["removed us"] == 2
    for region in ("eu", "us"):
        assert [n for n in (*range(1, 302), 999, 1_000) if entry(place, f"contact:{n}", region)] == list(range(1, 301))
        assert value(place, "contact:5", region) == {"id": 5, "email": "5@x"}
