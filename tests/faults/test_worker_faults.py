"""Each silent row of the fault table under the worker, a worker that dies at any moment, and a run in which nothing fails.

Safe: while contacts change and are read without pause, nothing is served in the end that differs from the database.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time

import pytest

from consumers.regions import open_region, read_views
from infra.stack import Stack
from tests.contacts import Load, cached_key, fill_everything
from tests.fix_faults import Stopwatch
from tests.fix_stack import VIEWS, Site
from tests.waiting import wait_until

KILLED_SECONDS = 15
"""So soon after a kill -9 of its worker a region serves nothing wrong any more."""

QUIET_SECONDS = 15
REBALANCES = 3
REBALANCE_SECONDS = 3

ONE_VIEW = """
version: 1
views:
  contact: {key: "contact:{id}", mode: invalidate, tables: {public.contacts: {}}}
"""

WORKER = ("invalidate", "--region", "eu")


@pytest.fixture
def worker(site: Site) -> subprocess.Popen[bytes]:
    """The site's only worker; capture runs too, and the region is open."""
    site.start("capture")
    worker = site.start(*WORKER)
    site.wait_open("eu")
    return worker


def stopped(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_no_alarm_without_a_fault(site: Site, stopwatch: Stopwatch) -> None:
    """Two workers share a region under load; nothing fails, and nobody is called."""
    site.start("capture")
    for _ in range(2):
        site.start(*WORKER)
    site.wait_open("eu")
    with Load(site, "eu") as load:
        quiet = threading.Event()
        assert not quiet.wait(QUIET_SECONDS)  # how long it is watched, not how long something takes
        stopwatch.start()
        stopwatch.converged(site, load)
        assert load.changes > 100 * QUIET_SECONDS
    assert site.alarms() == []


def test_views_changed_by_a_deployment(site: Site, worker: subprocess.Popen[bytes], stopwatch: Stopwatch) -> None:
    """Entries under the old meaning are not served under the new one, and changes missed in between do no harm."""
    with Load(site, "eu") as load:
        load.wait_changes(100)
        stopped(worker)
        load.stop_writing()
    fill_everything(site, "eu")
    assert cached_key(site.reader("eu"), 1)
    (site.directory / "views.yaml").write_text(
        VIEWS.replace("public.contacts: {}", "public.contacts: {columns: [email]}")
    )
    assert not cached_key(site.reader("eu"), 1)  # a reader of the new version, before any worker came
    stopwatch.start()
    site.start(*WORKER)
    site.wait_alarm("closed")
    site.wait_open("eu")
    assert not cached_key(site.reader("eu"), 1)
    old_digest = read_views_digest(VIEWS, site)
    assert open_region(site.settings, "eu").read(0, "contact:1", "contact", old_digest).status != "HIT"
    site.database.execute("UPDATE contacts SET email = 'new'")
    stopwatch.converged(site, load)
    assert site.alarms() == ["closed"]


def read_views_digest(text: str, site: Site) -> str:
    """The digest of view contact in that text."""
    path = site.directory / "old.yaml"
    path.write_text(text)
    return read_views(path).views["contact"].digest


def test_worker_killed_under_load(site: Site, worker: subprocess.Popen[bytes], stopwatch: Stopwatch) -> None:
    with Load(site, "eu") as load:
        load.wait_changes(200)
        stopwatch.start()
        worker.kill()
        worker.wait()
        site.start(*WORKER)
        load.wait_changes(50)
        stopwatch.converged(site, load, within_seconds=KILLED_SECONDS)
    assert site.alarms() == []


def test_worker_killed_beside_another(site: Site, stopwatch: Stopwatch) -> None:
    """Nobody starts it again: the one that is left takes its partition. One table, so that each has one of the two."""
    (site.directory / "views.yaml").write_text(ONE_VIEW)
    site.start("capture")
    worker, _ = (site.start(*WORKER) for _ in range(2))
    site.wait_open("eu")
    wait_until(lambda: 1 in [line["partitions"] for line in site.logged("worker_started")][-2:], "both have a share")
    with Load(site, "eu") as load:
        load.wait_changes(200)
        stopwatch.start()
        worker.kill()
        worker.wait()
        load.wait_changes(50)
        stopwatch.converged(site, load, within_seconds=KILLED_SECONDS)
    assert site.alarms() == []


@pytest.mark.parametrize("point", [pytest.param("apply.before_script", marks=pytest.mark.slow), "apply.after_script"])
def test_worker_killed_at_a_failpoint(site: Site, stopwatch: Stopwatch, point: str) -> None:
    site.start("capture")
    worker = site.start(*WORKER, failpoints=f"{point}=kill@20")
    site.wait_open("eu")
    with Load(site, "eu") as load:
        assert worker.wait(60) == -signal.SIGKILL
        stopwatch.start()
        site.start(*WORKER)
        load.wait_changes(50)
        stopwatch.converged(site, load, within_seconds=KILLED_SECONDS)
    assert [line["point"] for line in site.logged("failpoint")] == [point]
    assert site.alarms() == []


def test_worker_told_to_stop_during_a_rebalance(
    site: Site, worker: subprocess.Popen[bytes], stopwatch: Stopwatch
) -> None:
    with Load(site, "eu") as load:
        load.wait_changes(100)
        second = site.start(*WORKER)
        wait_until(lambda: len(site.logged("http_listening")) == 3, "the second worker joins")
        stopwatch.start()
        stopped(worker)  # within ten seconds, with 0
        stopwatch.converged(site, load)
        assert second.poll() is None
    assert site.alarms() == []


def test_a_rebalance_every_three_seconds(site: Site, worker: subprocess.Popen[bytes], stopwatch: Stopwatch) -> None:
    """No loss, no alarm, and no stall: the watermark moves on between any two of them."""
    with Load(site, "eu") as load:
        stopwatch.start()
        for _ in range(REBALANCES):
            before, due = watermark(site, "eu"), time.monotonic() + REBALANCE_SECONDS
            started = len(site.logged("worker_started"))
            second = site.start(*WORKER)
            wait_until(lambda due=due: time.monotonic() > due, "it is time for the next one", seconds=10)
            # one that is told to stop before it listens for it just dies
            wait_until(
                lambda n=started: len(site.logged("worker_started")) > n, "the second worker started", seconds=30
            )
            stopped(second)
            wait_until(lambda before=before: watermark(site, "eu") > before, "the watermark moves", seconds=10)
        stopwatch.converged(site, load)
    assert site.alarms() == []


def watermark(site: Site, region: str) -> str:
    return site.header(region).get("w", "")


def test_a_region_that_is_gone_delays_no_other(site: Site, stack: Stack, stopwatch: Stopwatch) -> None:
    """P6. Its Redis is frozen for a while, then it is gone; the others' watermarks go on, and it catches up."""
    site.start("capture")
    regions = ("eu", "us")
    for region in regions:
        site.start("invalidate", "--region", region)
    for region in regions:
        site.wait_open(region)
    lost = stack.processes["redis-us"]
    with Load(site, "eu") as load:
        stopwatch.start()
        lost.pause()
        try:
            for _ in range(3):
                load.wait_changes(100)
                site.wait_drained("eu", seconds=5)
            site.wait_alarm("redis")
        finally:
            lost.resume()
        load.wait_changes(50)
        stopwatch.converged(site, load, region="eu")
        site.wait_drained("us")
    assert {(record["region"], record["kind"]) for record in site.logged("alarm")} == {("us", "redis")}
