"""Commit to cache, on real PostgreSQL, Kafka and Redis, with the processes that people run; and what must survive."""

from __future__ import annotations

import os
import signal
import threading
import urllib.error
import urllib.request
from typing import Any

import psycopg

from consumers.regions import open_region, read_views
from invalidator.layout import Row, row_field
from invalidator.region import Region
from tests.contacts import Load, fill_everything, load_contact, stale_entries, stale_entries_after_reading
from tests.fix_redis import redis_of
from tests.fix_stack import Site
from tests.waiting import wait_until


def load_segment(identity: int) -> Any:
    def load(connection: psycopg.Connection[Any]) -> list[int]:
        rows = connection.execute("SELECT contact_id FROM members WHERE segment_id = %s ORDER BY 1", (identity,))
        return [row[0] for row in rows]

    return load


def load_template(identity: int) -> Any:
    def load(connection: psycopg.Connection[Any]) -> dict[str, Any] | None:
        row = connection.execute("SELECT id, body FROM templates WHERE id = %s", (identity,)).fetchone()
        return None if row is None else {"id": row[0], "body": row[1]}

    return load


def refuse(connection: object) -> Any:
    raise AssertionError("this should have been a hit")


def cached(region: Region, site: Site, view: str, identity: int) -> bool:
    digest = read_views(site.settings.views).views[view].digest
    return region.read(0, f"{view}:{identity}", view, digest).status == "HIT"


def test_a_commit_reaches_every_region(site: Site) -> None:
    site.start("capture")
    for region in site.settings.regions:
        site.start("invalidate", "--region", region)
    for region in site.settings.regions:
        site.wait_open(region)
        reader, known = site.reader(region), open_region(site.settings, region)
        assert reader.get("contact", 1, load_contact(1)) is None
        assert reader.get("contact", 1, refuse) is None  # that there is no such row is cached as well
        assert cached(known, site, "contact", 1)
    site.database.execute("INSERT INTO contacts VALUES (1, 'a@example.org', 'subscribed')")
    for region in site.settings.regions:
        known = open_region(site.settings, region)
        wait_until(lambda known=known: not cached(known, site, "contact", 1), f"{region} is invalidated")
        reader = site.reader(region)
        expected = {"email": "a@example.org", "status": "subscribed"}
        assert reader.get("contact", 1, load_contact(1)) == expected
        assert reader.get("contact", 1, refuse) == expected


def test_a_moved_row_kills_both_keys_and_a_refresh_writes_the_new_row(site: Site) -> None:
    site.database.execute("INSERT INTO members VALUES (5, 1)")
    site.start("capture")
    site.start("invalidate", "--region", "eu")
    site.wait_open("eu")
    reader = site.reader("eu")
    assert reader.get("segment", 1, load_segment(1)) == [5]
    assert reader.get("segment", 2, load_segment(2)) == []
    site.database.execute("UPDATE members SET segment_id = 2 WHERE contact_id = 5")
    site.database.execute("INSERT INTO templates VALUES (9, 'hello')")
    site.wait_drained("eu")
    assert reader.get("segment", 1, load_segment(1)) == []
    assert reader.get("segment", 2, load_segment(2)) == [5]
    assert reader.get("template", 9, refuse) == {"id": 9, "body": "hello"}
    site.database.execute("DELETE FROM templates WHERE id = 9")
    site.wait_drained("eu")
    assert reader.get("template", 9, load_template(9)) is None


def test_a_killed_capture_and_a_killed_worker_leave_no_gap(site: Site) -> None:
    """kill -9 of both, mid-stream and more than once: afterwards nothing differs, and no alarm was needed."""
    capture = site.start("capture")
    worker = site.start("invalidate", "--region", "eu")
    site.wait_open("eu")
    with Load(site, "eu") as load:
        for _ in range(2):
            before = load.changes
            wait_until(lambda before=before: load.changes > before + 150, "some changes were made")
            worker.kill()
            worker.wait()
            wait_until(lambda before=before: load.changes > before + 300, "changes went on without a worker")
            worker = site.start("invalidate", "--region", "eu")
            capture.kill()
            capture.wait()
            wait_until(lambda before=before: load.changes > before + 450, "changes went on without capture")
            capture = site.start("capture")
        load.stop_writing()
        site.wait_drained("eu", seconds=90)
        load.wait_filled()
    assert not load.errors
    assert stale_entries_after_reading(site, "eu") == []
    assert site.logged("alarm") == []
    assert len(site.logged("epoch_started")) == 2  # capture announced the first start, the worker heard it: no more


def test_records_delivered_twice_change_nothing(site: Site) -> None:
    site.start("capture")
    worker = site.start("invalidate", "--region", "eu")
    site.wait_open("eu")
    with Load(site, "eu") as load:
        wait_until(lambda: load.changes > 300, "some changes were made")
    site.wait_drained("eu")
    fill_everything(site, "eu")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0
    region = open_region(site.settings, "eu")
    header = region.header(0)
    for partition in range(2):
        name = row_field(site.settings.source.topic("public.contacts"), partition)
        row = Row.parse(header[name])
        assert row.next_offset > 0
        rewound = Row(next_offset=0, digest=row.digest, position=row.position, stamp=row.stamp)
        redis_of(region).hset(region.layout.header_key(0), name, rewound.text)
    site.start("invalidate", "--region", "eu")
    site.database.execute("UPDATE contacts SET email = 'last' WHERE id = 0")
    site.wait_drained("eu")
    assert stale_entries(site, "eu") == []
    assert site.logged("alarm") == []


def test_a_redis_that_restarts_empty_starts_cold_and_is_right(site: Site, stack: Any) -> None:
    site.start("capture")
    site.start("invalidate", "--region", "us")
    site.wait_open("us")
    reader, known = site.reader("us"), open_region(site.settings, "us")
    reader.get("contact", 1, load_contact(1))
    region = open_region(site.settings, "us")
    old_generation = region.header(0)["s:"]
    keys = list(redis_of(region).scan_iter(match=f"{{{region.layout.prefix}:*"))
    redis_of(region).delete(*keys)
    site.database.execute("INSERT INTO contacts VALUES (1, 'new', 's')")
    wait_until(lambda: known.header(0).get("s:", "").startswith("o"), "the region opened again", seconds=60)
    assert known.header(0)["s:"] > old_generation
    assert reader.get("contact", 1, load_contact(1)) == {"email": "new", "status": "s"}
    site.wait_drained("us")
    assert site.logged("shard_cold")


def test_a_worker_told_to_stop_drains_within_ten_seconds(site: Site) -> None:
    site.start("capture")
    worker = site.start("invalidate", "--region", "eu")
    site.wait_open("eu")
    with Load(site, "eu") as load:
        wait_until(lambda: load.changes > 100, "some changes were made")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(10) == 0


def test_an_event_that_arrives_before_its_row_is_visible_refuses_the_fill(site: Site) -> None:
    """DESIGN §2. With an absent synchronous standby a commit is in the log, and decoded, before anyone can see it."""
    site.database.execute("INSERT INTO contacts VALUES (1, 'old', 's')")
    site.start("capture")
    site.start("invalidate", "--region", "eu")
    site.wait_open("eu")
    reader, known = site.reader("eu"), open_region(site.settings, "eu")
    assert reader.get("contact", 1, load_contact(1)) == {"email": "old", "status": "s"}
    assert cached(known, site, "contact", 1)
    with invisible_commit(site, "UPDATE contacts SET email = 'new' WHERE id = 1"):
        wait_until(lambda: not cached(known, site, "contact", 1), "the invalidation was applied")
        assert reader.get("contact", 1, load_contact(1)) == {"email": "old", "status": "s"}  # what the database shows
        assert reader.counts["refused:stripe"] == 1
        assert not cached(known, site, "contact", 1)
    site.wait_drained("eu")
    wait_until(
        lambda: reader.get("contact", 1, load_contact(1)) == {"email": "new", "status": "s"}, "the new row is visible"
    )
    assert reader.get("contact", 1, refuse) == {"email": "new", "status": "s"}


class invisible_commit:  # noqa: N801 - reads as a with-statement's verb
    """A commit that waits for a standby that does not exist; on leaving, it is let go and becomes visible."""

    def __init__(self, site: Site, statement: str) -> None:
        self._site, self._statement = site, statement
        self._pid = 0
        self._done = threading.Thread(target=self._run)

    def _run(self) -> None:
        with psycopg.connect(self._site.dsn, autocommit=True) as connection:
            self._pid = connection.info.backend_pid
            connection.execute("SET synchronous_commit = on")
            connection.execute(self._statement)

    def __enter__(self) -> None:
        self._site.database.execute("ALTER SYSTEM SET synchronous_standby_names = 'absent'")
        self._site.database.execute("SELECT pg_reload_conf()")
        wait_until(lambda: self._setting() == "absent", "the setting is in force")
        self._done.start()
        wait_until(self._waits, "the commit waits for the standby")

    def __exit__(self, *_: object) -> None:
        self._site.database.execute("ALTER SYSTEM RESET synchronous_standby_names")
        self._site.database.execute("SELECT pg_reload_conf()")
        self._done.join(30)
        assert not self._done.is_alive()

    def _setting(self) -> str:
        with psycopg.connect(self._site.dsn, autocommit=True) as connection:
            row = connection.execute("SHOW synchronous_standby_names").fetchone()
            return str(row[0]) if row else ""

    def _waits(self) -> bool:
        row = self._site.database.execute(
            "SELECT wait_event FROM pg_stat_activity WHERE pid = %s", (self._pid,)
        ).fetchone()
        return bool(row and row[0] == "SyncRep")


def test_health_is_judged_by_progress(site: Site) -> None:
    site.start("capture")
    worker = site.start("invalidate", "--region", "eu")
    site.wait_open("eu")
    port = wait_until(lambda: [r for r in site.logged("http_listening") if r["host"]], "a port is logged")[-1]["port"]

    def status(page: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{page}", timeout=5) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code

    wait_until(lambda: status("/ready") == 200, "the worker is ready")
    assert status("/live") == 200
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        assert b"staleproof_worker_closed_scopes 0.0" in reply.read()
    os.kill(site.processes[0].pid, signal.SIGSTOP)  # capture: no more heartbeats
    try:
        wait_until(lambda: status("/ready") == 503, "without heartbeats it is not ready", seconds=40)
        assert status("/live") == 200
    finally:
        os.kill(site.processes[0].pid, signal.SIGCONT)
    assert worker.poll() is None
