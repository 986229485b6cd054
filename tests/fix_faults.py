"""Fixtures: a server of each kind that a test may kill, roll back or replace; the time from a fault to convergence."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra import cache
from infra.processes import ServerProcess, Warden, free_port
from infra.redis_faults import RedisFaults
from tests.contacts import Load, stale_entries_after_reading
from tests.fix_redis import BINARIES
from tests.fix_stack import Site

CONVERGED = "converged_seconds"


@pytest.fixture(params=sorted(BINARIES))
def mortal_redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisFaults]:
    """One test's own Redis, then its own Valkey, with the stack's settings."""
    guard = Warden(log=tmp_path / "warden.log")
    server = cache.server(
        program=BINARIES[request.param],
        region="eu",
        directory=tmp_path / "redis-eu",
        log=tmp_path / "redis-eu.log",
        port=free_port(),
        extra={},
    )
    process = ServerProcess(server, guard)
    process.start()
    yield RedisFaults(process)
    process.kill()
    guard.close()


class Stopwatch:
    """From a fault to the moment at which nothing that the region serves differs from the database."""

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record
        self._began: float | None = None

    def start(self) -> None:
        """The fault begins now."""
        self._began = time.monotonic()

    def converged(self, site: Site, load: Load, *, region: str = "eu", within_seconds: float = 90) -> None:
        """Ends the writing, waits until all of it is applied and the region is open, and compares.

        Readers go on until it is: what they fill meanwhile is what could be wrong.
        """
        assert self._began is not None
        load.stop_writing()
        site.wait_drained(region, seconds=90)
        site.wait_open(region)
        seconds = time.monotonic() - self._began
        self._record(CONVERGED, round(seconds, 1))
        assert not load.errors
        assert stale_entries_after_reading(site, region, at_least=0) == []  # one that was just opened may hold little
        assert seconds <= within_seconds


@pytest.fixture
def stopwatch(record_property: Callable[[str, object], None]) -> Stopwatch:
    """Measures one fault; the figure stands in the summary of the run."""
    return Stopwatch(record_property)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the measured times."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, [])]
    figures = [(r.nodeid, value) for r in reports for name, value in r.user_properties if name == CONVERGED]
    if figures:
        terminalreporter.section("seconds from the fault to convergence")
    for nodeid, value in figures:
        terminalreporter.write_line(f"{value:6.1f}  {nodeid}")
