"""The rebuild from the database, on real servers, beside capture, a worker and readers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import contextmanager

import msgspec
import psycopg
import pytest

from cdc.errors import ConfigError
from consumers.database import open_database
from consumers.regions import open_region, read_views
from consumers.view_rows import SESSION, Objects, ViewRows
from invalidator import entry as entries
from invalidator.views import load_views
from tests.fix_stack import ROOT, SCHEMA
from tests.waiting import wait_until

VIEWS = """
version: 1
views:
  contact:
    key: "contact:{id}"
    load: SELECT id, jsonb_build_object('id', id, 'email', email) AS value FROM contacts
    tables: {public.contacts: {}}
  pair:
    key: "pair:{segment_id}/{contact_id}"
    load: SELECT segment_id, contact_id, 'true' AS value FROM members
    tables: {public.members: {}}
  segment: {key: "segment:{id}", tables: {public.members: {parts: {id: segment_id}}}}
  template: {key: "template:{id}", mode: refresh, tables: {public.templates: {}}}
  odd: {key: "odd:{name}", mode: refresh, tables: {public.odd: {columns: [t, n, d, f, b, y, a, s, u]}}}
"""

ODD = """
CREATE TABLE odd (name text PRIMARY KEY, t timestamptz, n numeric(12, 3), d date, f float8, b bool, y bytea, a int[],
    s timestamp(3), u uuid, hidden text);
ALTER PUBLICATION staleproof ADD TABLE odd;
"""


@pytest.fixture(scope="module")
def shared(staleproof_factory, tmp_path_factory):
    """A site with capture and workers in two regions, all open."""
    site = staleproof_factory.make(
        schema=SCHEMA + ODD, views=VIEWS, start=False, directory=tmp_path_factory.mktemp("replay")
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
    return emptied(shared, "contacts", "members", "templates", "odd")


def emptied(site, *tables):
    """Without rows of these, entries, and a state file."""
    for table in tables:
        site.database.execute(f"DELETE FROM {table}")
    for region in ("eu", "us"):
        site.wait_drained(region)
        opened = open_region(site.settings, region)
        for key in list(opened.keys("")):
            opened.unlink(opened.layout.place(key)[0], [key])
    (site.directory / "staleproof-replay.json").unlink(missing_ok=True)
    return site


def replay(site, *options, code=0, kill=None):
    """What the command said on stdout (JSON where asked for), and on stderr."""
    command = [sys.executable, "-m", "consumers.cli", "replay", "database", "--config", "staleproof.yaml"]
    process = subprocess.Popen(
        [*command, *options], cwd=site.directory, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if kill is not None:
        kill(process)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, out + err
    return json.loads(out) if out.startswith("{") else out, err


def eu(site, *options):
    """The summary's counts per view."""
    return replay(site, "--region", "eu", "--json", *options)[0]["views"]


def entry(site, key, region="eu"):
    """The decoded entry, if one may be served."""
    opened = open_region(site.settings, region)
    view = read_views(site.settings.views).views[key.partition(":")[0]]
    found = opened.read(opened.layout.place(key)[0], key, view.name, view.digest)
    return None if found.entry is None else entries.decode(found.entry)


def value(site, key, region="eu"):
    found = entry(site, key, region)
    return None if found is None else msgspec.json.decode(found.payload)


def unasked(connection):
    raise AssertionError("this should have been a hit")


def contacts(site, count):
    site.database.execute("INSERT INTO contacts SELECT n, n || '@x', 's' FROM generate_series(1, %s) n", [count])


def test_every_object_of_a_view_is_a_hit_afterwards(place):
    contacts(place, 1_234)
    place.wait_drained("eu")
    assert eu(place, "--view", "contact", "--batch", "100", "--parallel", "3") == {
        "contact": {"read": 1_234, "filled eu": 1_234}
    }
    reader = place.reader("eu")
    for number in (1, 99, 100, 101, 1_233, 1_234):
        assert reader.get("contact", number, unasked) == {"id": number, "email": f"{number}@x"}


def test_a_rebuilt_row_is_what_the_worker_stores_of_its_change(place):
    place.database.execute(
        "INSERT INTO odd VALUES ('a:%/b', '2026-01-02 03:04:05.6+01', 12.5, '1999-12-31', 0.1, true, '\\x00ff', '{1,NULL}',"
        " '2026-01-02 03:04:05.678', 'b5cd7e5a-0a0b-4a72-8b6f-000000000000', 'no')"
    )
    place.database.execute("INSERT INTO odd VALUES ('nothing')")
    place.wait_drained("eu")
    for key in ("odd:a%3A%25%2Fb", "odd:nothing"):
        written = entry(place, key)
        assert written.kind is entries.Kind.EVENT
        open_region(place.settings, "eu").unlink(0, [key])
        assert eu(place, "--key", key)["odd"]["filled eu"] == 1
        filled = entry(place, key)
        assert filled.kind is entries.Kind.FILL
        assert msgspec.json.decode(filled.payload) == msgspec.json.decode(written.payload)
        assert set(msgspec.json.decode(filled.payload)) == {"name", "t", "n", "d", "f", "b", "y", "a", "s", "u"}


SLOW = """
  slow:
    key: "slow:{id}"
    load: SELECT id, to_jsonb(email) AS value FROM contacts, (SELECT pg_sleep(1.5)) AS nap
    tables: {public.contacts: {}}
"""


def test_what_changes_between_read_and_fill_is_read_again(make_site):
    """Without the guard the rebuild would put the old value into the place of the change: a blind write."""
    site = make_site()
    (site.directory / "views.yaml").write_text(VIEWS.split("  odd", maxsplit=1)[0] + SLOW)
    site.start("capture")
    site.start("invalidate", "--region", "eu")
    site.wait_open("eu")
    contacts(site, 3)
    site.wait_drained("eu")

    def change_meanwhile(process):
        wait_until(lambda: asleep(site), "the rebuild has its snapshot")
        site.database.execute("UPDATE contacts SET email = 'new' WHERE id = 1")
        site.wait_drained("eu")
        assert asleep(site), "the change came too late: it is no longer between read and fill"

    summary, _ = replay(site, "--region", "eu", "--view", "slow", "--json", kill=change_meanwhile)
    assert summary["views"]["slow"] == {"read": 3, "filled eu": 3}
    assert [value(site, f"slow:{n}") for n in (1, 2, 3)] == ["new", "2@x", "3@x"]


def asleep(site):
    found = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    return site.database.execute(found).fetchone()[0] == 1


def test_what_is_filled_beside_a_running_transaction_dies_of_its_change(place):
    contacts(place, 2)
    place.wait_drained("eu")
    with psycopg.connect(place.dsn) as writer:
        writer.execute("UPDATE contacts SET email = 'new' WHERE id = 1")
        assert eu(place, "--view", "contact")["contact"]["filled eu"] == 2
        assert value(place, "contact:1")["email"] == "1@x"
        writer.commit()
    place.wait_drained("eu")
    assert entry(place, "contact:1") is None
    assert value(place, "contact:2")["email"] == "2@x"


def test_keys_of_a_list_are_filled_and_those_that_the_database_lacks_removed(place):
    contacts(place, 3)
    place.database.execute("INSERT INTO members VALUES (1, 10), (2, 10), (3, 11)")
    place.wait_drained("eu")
    place.reader("eu").get("contact", 9, lambda _: {"id": 9})  # a loader that is wrong about contact 9
    assert value(place, "contact:9") == {"id": 9}
    (place.directory / "keys").write_text("contact:9\n\npair:10/2\npair:11/2\ncontact:seven\n")
    counts = eu(place, "--key", "contact:2", "--keys-file", "keys")
    assert counts["contact"] | {"filled eu": 1, "removed eu": 1, "absent": 2, "read": 1} == counts["contact"]
    assert counts["pair"] | {"filled eu": 1, "absent": 1} == counts["pair"]
    assert (value(place, "contact:2"), entry(place, "contact:9"), entry(place, "contact:1")) == (
        {"id": 2, "email": "2@x"}, None, None,
    )  # fmt: skip
    assert value(place, "pair:10/2") is True


def test_a_condition_chooses_objects(place):
    contacts(place, 10)
    place.wait_drained("eu")
    counts = eu(place, "--view", "contact", "--where", "id % 2 = 0 AND value->>'email' LIKE '%@x'")
    assert counts["contact"]["filled eu"] == 5
    assert [n for n in range(1, 11) if entry(place, f"contact:{n}")] == [2, 4, 6, 8, 10]


def test_names_are_taken_from_another_region_and_values_from_the_database(place):
    contacts(place, 4)
    place.wait_drained("us")
    for number in (2, 3):
        place.reader("us").get("contact", number, lambda _: {"a": "value of the other region"})
    counts = replay(place, "--view", "contact", "--warm-from", "us", "--into", "eu", "--json")[0]["views"]
    assert counts["contact"] == {"read": 2, "filled eu": 2}
    assert [value(place, f"contact:{n}") for n in (1, 2, 3)] == [
        None, {"id": 2, "email": "2@x"}, {"id": 3, "email": "3@x"},
    ]  # fmt: skip


def test_a_sweep_removes_what_the_database_does_not_have(place):
    contacts(place, 2)
    place.wait_drained("eu")
    for number in (1, 7, 8):
        place.reader("eu").get("contact", number, lambda _: {"from": "a loader"})
    place.reader("eu").get("contact", 9, lambda _: None)
    counts = eu(place, "--view", "contact", "--sweep")["contact"]
    assert (counts["removed eu"], counts["swept"]) == (2, 5)
    assert [n for n in range(10) if entry(place, f"contact:{n}")] == [1, 2, 9]


def test_a_fence_first_makes_everything_older_unreadable(place):
    contacts(place, 2)
    place.wait_drained("eu")
    for number in (1, 7):
        place.reader("eu").get("contact", number, lambda _: {"from": "a loader"})
    counts = eu(place, "--view", "contact", "--fence-first", "--yes")["contact"]
    assert counts["filled eu"] == 2
    assert [value(place, f"contact:{n}") for n in (1, 2, 7)] == [
        {"id": 1, "email": "1@x"}, {"id": 2, "email": "2@x"}, None,
    ]  # fmt: skip


def test_a_dry_run_names_causes_and_keys_and_changes_nothing(place):
    contacts(place, 4)
    place.wait_drained("eu")
    reader = place.reader("eu")
    reader.get("contact", 1, lambda _: {"email": "1@x", "id": 1})
    reader.get("contact", 2, lambda _: {"email": "secret"})
    reader.get("contact", 3, lambda _: None)
    reader.get("contact", 8, lambda _: {"id": 8})
    reader.get("contact", 9, lambda _: None)
    header, before = place.header("eu"), {n: entry(place, f"contact:{n}") for n in range(10)}
    summary, _ = replay(place, "--region", "eu", "--view", "contact", "--sweep", "--dry-run", "--json")
    counts = summary["views"]["contact"]
    assert {name: counts[f"{name} eu"] for name in ("same", "missing", "differs", "extra")} == {
        "same": 1, "missing": 1, "differs": 2, "extra": 1,
    }  # fmt: skip
    assert summary["samples"] == {
        "missing eu": ["contact:4"], "differs eu": ["contact:2", "contact:3"], "extra eu": ["contact:8"],
    }  # fmt: skip
    assert "secret" not in json.dumps(summary)
    assert {n: entry(place, f"contact:{n}") for n in range(10)} == before
    assert place.header("eu").keys() == header.keys()
    assert not (place.directory / "staleproof-replay.json").exists()


def read_so_far(state):
    """Of contacts, as the state file has it."""
    return json.loads(state.read_text())["progress"]["counts"]["contact"].get("read", 0)


def test_a_killed_rebuild_goes_on_where_it_was(place):
    contacts(place, 3_000)
    place.wait_drained("eu")
    state = place.directory / "staleproof-replay.json"
    options = ("--region", "eu", "--view", "contact", "--batch", "50", "--rate", "900", "--json")

    def kill_when_further(process):
        before = read_so_far(state) if state.exists() else 0

        def further():
            assert process.poll() is None
            return state.exists() and read_so_far(state) > before

        wait_until(further, "the state file says more")
        process.kill()

    replay(place, *options, code=-signal.SIGKILL, kill=kill_when_further)
    first = read_so_far(state)
    replay(place, *options, code=-signal.SIGKILL, kill=kill_when_further)
    done = read_so_far(state)
    assert 0 < first < done < 3_000
    _, complaint = replay(place, "--region", "eu", "--view", "contact", "--sweep", code=2)
    assert "is of another command (sweep was false, is true)" in complaint
    last, _ = replay(place, *(option for option in options if option not in ("--rate", "900")))
    assert last["views"]["contact"]["read"] == 3_000
    assert last["resumed_at"] == done
    assert all(entry(place, f"contact:{n}") for n in range(1, 3_001, 7))
    assert not state.exists()


def test_an_interrupted_rebuild_says_how_to_go_on(place):
    contacts(place, 500)
    place.wait_drained("eu")

    def interrupt(process):
        wait_until(lambda: entry(place, "contact:1") is not None, "the first page is filled")
        process.send_signal(signal.SIGINT)

    out, err = replay(
        place, "--region", "eu", "--view", "contact", "--batch", "10", "--rate", "50", code=130, kill=interrupt
    )
    assert "the same command goes on from staleproof-replay.json" in err
    assert "replay database: stopped" in out
    assert eu(place, "--view", "contact", "--batch", "10")["contact"]["read"] == 500


REFUSED = [
    ([], "nothing to rebuild is named: add --view NAME, --key KEY, or --all"),
    (["--view", "contacts"], "there is no view 'contacts' in the views file; did you mean"),
    (["--view", "segment", "--region", "eu"], "view segment has no `load`"),
    (["--key", "nobody:1"], "'nobody:1' is a key of no view"),
    (["--all", "--where", "true"], "--where is a condition on one view"),
    (
        ["--view", "contact", "--region", "eu", "--where", "nonsense = 1"],
        '--where is no condition on view contact: its load: column "nonsense" does not exist',
    ),
    (["--view", "contact", "--where", "id = 1", "--sweep"], "--sweep is about all keys of a view"),
    (["--view", "contact", "--warm-from", "eu", "--into", "eu"], "--warm-from eu is among the regions to fill"),
    (["--view", "contact", "--fence-first", "--region", "eu"], "not confirmed, and no terminal to ask on: add --yes"),
    (["--keys-file", "nowhere"], "the keys file nowhere cannot be read"),
]


def test_a_region_that_was_never_started_is_named(place):
    _, err = replay(place, "--view", "contact", "--region", "ap", code=1)
    assert "region ap has no shard 0: start `staleproof invalidate --region ap` first" in err


def test_an_order_that_makes_no_sense_is_refused_in_one_line(place):
    for options, complaint in REFUSED:
        _, err = replay(place, *options, code=2)
        assert complaint in err
        assert len(err.strip().splitlines()) == 1


def test_pages_follow_one_another_by_all_parts_of_a_key(place):
    place.database.execute("INSERT INTO members SELECT n, n % 3 FROM generate_series(1, 50) n")
    place.wait_drained("eu")
    assert eu(place, "--view", "pair", "--batch", "7")["pair"] == {"read": 50, "filled eu": 50}
    assert sorted(open_region(place.settings, "eu").keys("pair:")) == sorted(f"pair:{n % 3}/{n}" for n in range(1, 51))


@contextmanager
def rows_of(place, load, key="x:{id}"):
    """The objects that a `load` selects, asked for by page and by key."""
    text = f"version: 1\nviews:\n  x: {{key: '{key}', load: \"{load}\", tables: {{public.contacts: {{}}}}}}"
    with open_database(place.dsn, timeout_seconds=5, session=SESSION) as database:
        rows = ViewRows(database, load_views(text, place="v").views["x"])
        yield lambda after=None, limit=10: rows.page(database, after, limit), lambda keys: rows.of(database, keys)


def test_an_object_without_a_key_is_counted_and_left_out(place):
    with rows_of(place, "SELECT * FROM (VALUES ('a', 1), (NULL, 2)) AS v(id, value)") as (page, _):
        assert page() == Objects({"x:a": b"1"}, None, 1)


def test_a_null_value_says_that_there_is_no_object(place):
    with rows_of(place, "SELECT 1 AS id, NULL::jsonb AS value") as (page, of):
        assert page() == of([("1",)]) == Objects({"x:1": None})


def test_a_key_without_parts_has_one_object(place):
    with rows_of(place, "SELECT '[1]'::json AS value", key="x") as (page, of):
        assert page(limit=1) == of([()]) == Objects({"x": b"[1]"})


def test_parts_of_any_type_come_back_by_their_keys(place):
    """Padded characters, booleans, text with percent signs: what the key says is what the column holds."""
    load = "SELECT * FROM (VALUES ('a '::char(3), true, '5%'), ('b  '::char(3), false, '%s')) AS v(c, b, t) CROSS JOIN (VALUES (1)) AS w(value)"
    with rows_of(place, load, key="x:{c}:{b}:{t}") as (page, of):
        everything = page().values
        assert set(everything) == {"x:a%20%20:true:5%25", "x:b%20%20:false:%25s"}
        assert of([("a  ", "true", "5%"), ("b  ", "true", "%s")]).values == {"x:a%20%20:true:5%25": b"1"}
        last = page(limit=1).last
        assert page(after=last).values == {key: value for key, value in everything.items() if not key.startswith("x:a")}


@pytest.mark.parametrize(
    ("load", "complaint"),
    [
        ("SELECT 1 AS id", "view x: its load has no column value: it needs id and value"),
        ("SELECT 1 AS idd, 2 AS value", "view x: its load has no column id"),
        ("SELECT id FROM nowhere", 'view x: its load cannot be read: relation "nowhere" does not exist'),
        ("SELECT 1 AS id, 2 AS value UNION ALL SELECT 1, 3", "view x: its load has two rows for x:1"),
        ("SELECT 1 AS id, 2 AS value, 3 AS value", "view x: its load has two columns of one name"),
        ("SELECT 1/0 AS id, 2 AS value", "view x: its load cannot be read: division by zero"),
    ],
)
def test_a_load_that_does_not_fit_its_view_is_refused(place, load, complaint):
    with pytest.raises(ConfigError) as caught, rows_of(place, load) as (page, _):
        page()
    assert complaint in str(caught.value)
