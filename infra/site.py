"""One test's own place on shared servers: a database, topics, a slot, Redis keys, and the processes that it started.

    with maker.make(schema=Path("schema.sql"), views=Path("views.yaml"), loaders={"basket": load_basket}) as site:
        site.assert_fresh("basket", 7)                  # reads it in every region, and so fills the caches
        site.change_and_wait("UPDATE products SET price = %s WHERE id = %s", [5, 1])
        site.assert_fresh("basket", 7)                  # every region serves what the database says

Made by `infra/site_maker.py`. Every wait has a deadline and ends at once, with its log, when a process dies by itself.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psycopg
from psycopg import sql

from cdc.errors import TransientError
from consumers.check import examine
from consumers.failpoints import VARIABLE
from consumers.findings import Level
from consumers.regions import open_region, read_views
from consumers.settings import Settings, is_override
from infra.freshness import Freshness, LastChange, Loader, SiteReader
from infra.processes import StackError, Warden, announced
from infra.proxy import FaultProxy
from infra.servers import Servers
from infra.site_faults import SiteFaults
from infra.table_counts import TableCounts
from infra.topologies import TopologyServers
from infra.waiting import wait_until
from invalidator.views import Views

OPEN_LIMIT_SECONDS: Final = 60.0
DRAIN_LIMIT_SECONDS: Final = 60.0
STOP_LIMIT_SECONDS: Final = 15.0
LOG_TAIL_BYTES: Final = 2_000

_CHECKOUT: Final = Path(__file__).resolve().parent.parent


@dataclass(kw_only=True)
class Site:
    """A fresh database with its settings and views. `directory` holds both files and the logs."""

    directory: Path
    dsn: str
    settings: Settings
    database: psycopg.Connection[Any]
    """In autocommit mode; for the test."""
    servers: Servers
    warden: Warden
    """Stops every process when the one that runs the tests is gone, however it went."""
    loaders: Mapping[str, Loader] = field(default_factory=dict)
    """View -> how the application loads one object: from a connection and the key's part, or a mapping of its parts."""
    proxies: Mapping[str, FaultProxy] = field(default_factory=dict)
    """Region -> what stands between its Redis and everybody else, where the site was made with `proxied`."""
    topologies: Mapping[str, TopologyServers] = field(default_factory=dict)
    """Region -> its servers, with tools to move slots or to fail over, where the site was made with `topology`."""
    resources: ExitStack = field(default_factory=ExitStack)
    """Closed with the site."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _commands: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def name(self) -> str:
        """Of the database, the slot and the source; begins every topic and Redis key."""
        return self.settings.source.name

    @cached_property
    def views(self) -> Views:
        """What the views' file described when it was first asked for."""
        return read_views(self.settings.views)

    @cached_property
    def faults(self) -> SiteFaults:
        """Tools that break servers, processes and networks; whatever is still broken when the test ends is mended."""
        return SiteFaults(self)

    # -- processes

    def start_all(self) -> None:
        """Capture and a worker per region; returns when every region is open.

        Raises StackError, with the statements that mend it, for whatever `staleproof check` finds wrong.
        """
        wrong = [finding for finding in examine(self.settings) if finding.level is Level.FAIL]
        if wrong:
            lines = (f"{f.subject}: {f.text}" + (f"\n  fix: {f.fix}" if f.fix else "") for f in wrong)
            raise StackError("\n".join(["`staleproof check` finds fault with this schema and these views:", *lines]))
        self.start("capture")
        for region in self.settings.regions:
            self.start("invalidate", "--region", region)
        self.wait_open()

    def start(self, *command: str, failpoints: str = "") -> subprocess.Popen[bytes]:
        """One `staleproof` process; its log is `<first word>-<n>.log` in the directory.

        The environment's overrides of settings do not reach it: they may name a database that is not for tests.
        """
        environment = {name: value for name, value in os.environ.items() if not is_override(name)}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_CHECKOUT), os.environ.get("PYTHONPATH")]))
        program = (sys.executable, "-m", "consumers.cli", *command)
        with (self.directory / f"{command[0]}-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                announced((*program, "--config", str(self.directory / "staleproof.yaml")), signal.SIGKILL),
                stdin=self.warden.write_end,
                cwd=self.directory,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment | ({VARIABLE: failpoints} if failpoints else {}),
                start_new_session=True,  # Ctrl-C belongs to the tests, which then end everything in order
            )
        self.processes.append(process)
        self._commands[process.pid] = command
        return process

    def running(self, *command: str) -> list[subprocess.Popen[bytes]]:
        """The processes that were started by exactly these words and are still there."""
        return [p for p in self.processes if p.poll() is None and self._commands.get(p.pid) == command]

    def check_processes(self) -> None:
        """Fail with the log of a process that died by itself."""
        for process in self.processes:
            if process.poll() not in (None, 0, -signal.SIGKILL):
                logs = "\n".join(self.log_tails().values())
                raise AssertionError(f"a process ended with {process.returncode}:\n{logs}")

    def stop(self) -> None:
        """End every process that is still there."""
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
                process.send_signal(signal.SIGCONT)  # one that was frozen would not hear of it
        for process in self.processes:
            try:
                process.wait(STOP_LIMIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_LIMIT_SECONDS)

    def end(self) -> None:
        """Stop, mend what faults broke, and give back what the database keeps for capture; twice is once."""
        with ExitStack() as last:
            last.callback(self.resources.close)
            last.callback(self.stop)
            if "faults" in self.__dict__:
                self.faults.heal()

    # -- reading and changing

    def reader(self, region: str, *, dsn: str | None = None) -> SiteReader:
        """A reader of that region, loading from the site's database or from `dsn` (a standby's)."""
        source = dsn or self.dsn
        return SiteReader(
            open_region(self.settings, region),
            read_views(self.settings.views),
            lambda: psycopg.connect(source, autocommit=True),
            asked=self._freshness.asked,
        )

    def read(self, view: str, key: object, *, region: str) -> Any:
        """What the application gets there: the view's loader behind the region's cache."""
        return self._freshness.read(region, view, key)

    def is_cached(self, view: str, key: object, *, region: str) -> bool:
        """Whether the region serves it without asking the database."""
        return self._freshness.is_cached(region, view, key)

    def change_and_wait(
        self, statement: str, parameters: Sequence[object] | Mapping[str, object] = ()
    ) -> list[tuple[Any, ...]]:
        """Commit one statement, and wait until every region has applied it. The rows that it returned."""
        with self.database.transaction():
            counts = TableCounts.now(self.database)
            cursor = self.database.execute(statement.encode(), parameters or None)
            rows = cursor.fetchall() if cursor.description else []
            tables = TableCounts.now(self.database).changed_since(counts)
            self._freshness.last_change = LastChange(statement, tables)
        self.wait_drained()
        return rows

    def clear(self) -> None:
        """Empty every table that a view names, with what refers to it, and wait: for tests that share a site.

        After a TRUNCATE nothing that was cached of these views is readable.
        """
        tables = [sql.Identifier(*table.split(".", 1)) for table in sorted(self.views.by_table)]
        self.database.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY CASCADE").format(sql.SQL(", ").join(tables)))
        self.wait_drained()

    # -- asserting

    def assert_fresh(self, view: str, key: object, *, regions: Collection[str] | None = None) -> None:
        """In every region: it is cached, and what the reader serves is what the loader says on the database now.

        Waits first until everything that is committed has been applied. One that is not cached yet is filled.
        """
        __tracebackhide__ = True
        self._freshness.assert_fresh(view, key, self._regions(regions))

    def assert_all_fresh(self, *, regions: Collection[str] | None = None, at_least: int = 1) -> None:
        """The same for everything that each region has cached by now: at least so many entries.

        A loader gets the key that a reader of this site was asked for; of a key that none was, its parts as text.
        """
        __tracebackhide__ = True
        self._freshness.assert_all_fresh(self._regions(regions), at_least)

    def assert_covered(self, view: str, key: object, *, besides: Collection[str] = ()) -> None:
        """The view names every table that its loader reads for this key, except those that are known not to matter.

        This finds a forgotten table without a test that changes it. `besides`: names as `schema.table`.
        """
        __tracebackhide__ = True
        self._freshness.assert_covered(view, key, besides)

    # -- waiting

    def header(self, region: str, shard: int = 0) -> dict[str, str]:
        """The header of one of the region's shards; empty when it is not there, or its Redis does not answer."""
        try:
            return open_region(self.settings, region).header(shard)
        except TransientError:
            return {}

    def wait_open(self, region: str | None = None, seconds: float = OPEN_LIMIT_SECONDS) -> None:
        """Until every scope of the region's shards, or of all regions, is open."""
        for name in self._regions(None if region is None else (region,)):
            self._wait(_is_open, name, f"region {name} is open", seconds)

    def wait_drained(self, region: str | None = None, seconds: float = DRAIN_LIMIT_SECONDS) -> None:
        """Until the watermark of the region, or of all regions, is past everything committed before this call."""
        self._wait_drained(self._regions(None if region is None else (region,)), seconds)

    def wait_alarm(self, kind: str, seconds: float = 30) -> None:
        """Until an alarm of that kind was raised."""
        wait_until(lambda: kind in self.alarms(), f"alarm {kind} is raised", seconds=seconds)

    # -- logs

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Every log line with that event name, of all processes."""
        lines = (line for path in self.directory.glob("*.log") for line in path.read_text().splitlines())
        records = (json.loads(line) for line in lines if line.startswith("{"))
        return [record for record in records if record.get("event") == event]

    def alarms(self) -> list[str]:
        """The kind of every alarm of every process, each process' in order."""
        return [record["kind"] for record in self.logged("alarm")]

    def log_tails(self) -> dict[str, str]:
        """The end of each process' log, by file name."""
        return {path.name: path.read_text()[-LOG_TAIL_BYTES:] for path in sorted(self.directory.glob("*.log"))}

    # -- private

    @cached_property
    def _freshness(self) -> Freshness:
        return Freshness(
            settings=self.settings, views=self.views, loaders=self.loaders, dsn=self.dsn, drain=self._wait_drained
        )

    def _regions(self, names: Collection[str] | None) -> list[str]:
        return list(self.settings.regions if names is None else names)

    def _wait_drained(self, regions: Collection[str], seconds: float = DRAIN_LIMIT_SECONDS) -> None:
        with self.database.cursor() as cursor:
            cursor.execute("SELECT pg_current_wal_insert_lsn() - '0/0'")
            end = int((cursor.fetchone() or (0,))[0])
        for name in regions:
            what = f"region {name} has applied everything up to {end:x}"
            self._wait(lambda header: _watermark(header) >= end, name, what, seconds)

    def _wait(self, holds: Callable[[Mapping[str, str]], bool], region: str, what: str, seconds: float) -> None:
        """Until it holds for the header of each of the region's shards."""

        def is_there() -> bool:
            self.check_processes()
            shards = range(self.settings.regions[region].shards)
            return all(holds(self.header(region, shard)) for shard in shards)

        wait_until(is_there, what, seconds=seconds)


def _is_open(header: Mapping[str, str]) -> bool:
    scopes = [text for name, text in header.items() if name.startswith("s:")]
    return bool(scopes) and all(text.startswith("o") for text in scopes)


def _watermark(header: Mapping[str, str]) -> int:
    """The log position of the newest heartbeat that everything passed; 0 where there is none."""
    return int(header.get("w", "0" * 32)[8:24], 16)
