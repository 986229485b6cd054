"""Fixtures: one real stack for the whole run (PostgreSQL, Kafka, three Redis); a database, topics and keys per test."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
from psycopg import sql

from cdc.errors import TransientError
from consumers.failpoints import VARIABLE
from consumers.regions import open_region, read_views
from consumers.settings import Settings, load_settings
from infra.servers import Servers
from invalidator.reader import CacheReader
from tests.backends import start_servers
from tests.waiting import wait_until

_serial = itertools.count()
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The real servers."""
    with start_servers(tmp_path_factory.mktemp("stack")) as started:
        yield started


@dataclass(kw_only=True)
class Site:
    """One test's own database, topic prefix and keys on the shared stack, and the processes it started."""

    directory: Path
    dsn: str
    settings: Settings
    database: psycopg.Connection[Any]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *command: str, failpoints: str = "") -> subprocess.Popen[bytes]:
        """A `staleproof` process; its log is `<first word>-<n>.log` in the directory."""
        log = (self.directory / f"{command[0]}-{len(self.processes)}.log").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "consumers.cli", *command, "--config", str(self.directory / "staleproof.yaml")],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | ({VARIABLE: failpoints} if failpoints else {}),
        )
        self.processes.append(process)
        return process

    def reader(self, region: str) -> CacheReader:
        """A reader of that region; each load has a connection of its own."""
        return CacheReader(
            open_region(self.settings, region),
            read_views(self.settings.views),
            lambda: psycopg.connect(self.dsn, autocommit=True),
        )

    def header(self, region: str) -> dict[str, str]:
        """The header of the region's first shard; empty when the shard is not there, or its Redis does not answer."""
        try:
            return open_region(self.settings, region).header(0)
        except TransientError:
            return {}

    def headers(self, region: str) -> list[dict[str, str]]:
        """The header of every shard, each as `header` gives it."""
        known = open_region(self.settings, region)
        try:
            return [known.header(shard) for shard in range(known.layout.shards)]
        except TransientError:
            return [{}]

    def wait_open(self, region: str, seconds: float = 60) -> None:
        """Until every scope of every shard of the region is open."""

        def is_open() -> bool:
            self.check_processes()
            headers = self.headers(region)
            scopes = [text for header in headers for name, text in header.items() if name.startswith("s:")]
            return all(headers) and all(text.startswith("o") for text in scopes)

        wait_until(is_open, f"region {region} is open", seconds=seconds)

    def wait_drained(self, region: str, seconds: float = 60) -> None:
        """Until the watermark of every shard is past everything committed before this call."""
        with self.database.cursor() as cursor:
            cursor.execute("SELECT pg_current_wal_insert_lsn() - '0/0'")
            end = int((cursor.fetchone() or (0,))[0])

        def is_past() -> bool:
            self.check_processes()
            return all(int(header.get("w", "0" * 32)[8:24], 16) >= end for header in self.headers(region))

        wait_until(is_past, f"region {region} has applied everything up to {end:x}", seconds=seconds)

    def check_processes(self) -> None:
        """Fail with the log of a process that died by itself."""
        for process in self.processes:
            if process.poll() not in (None, 0, -9):
                logs = "\n".join(path.read_text()[-2_000:] for path in sorted(self.directory.glob("*.log")))
                raise AssertionError(f"a process ended with {process.returncode}:\n{logs}")

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Every log line with that event name, of all processes."""
        lines = (line for path in self.directory.glob("*.log") for line in path.read_text().splitlines())
        records = (json.loads(line) for line in lines if line.startswith("{"))
        return [record for record in records if record.get("event") == event]

    def alarms(self) -> list[str]:
        """The kind of every alarm of every process, each process' in order."""
        return [record["kind"] for record in self.logged("alarm")]

    def wait_alarm(self, kind: str, seconds: float = 30) -> None:
        """Until an alarm of that kind was raised."""
        wait_until(lambda: kind in self.alarms(), f"alarm {kind} is raised", seconds=seconds)

    def stop(self) -> None:
        """End every process that is still there."""
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
                process.send_signal(signal.SIGCONT)  # one that was frozen would not hear of it
        for process in self.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)

    def end(self) -> None:
        """Stop, and give back what the database keeps for capture."""
        self.stop()
        self.database.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()"
            " AND NOT active"
        )
        self.database.close()


VIEWS = """
version: 1
views:
  contact: {key: "contact:{id}", mode: invalidate, tables: {public.contacts: {}}}
  segment:
    key: "segment:{id}"
    mode: invalidate
    tables: {public.members: {parts: {id: segment_id}}}
  template: {key: "template:{id}", mode: refresh, tables: {public.templates: {}}}
"""

SCHEMA = """
CREATE TABLE contacts (id int PRIMARY KEY, email text, status text);
CREATE TABLE members (contact_id int PRIMARY KEY, segment_id int NOT NULL);
CREATE TABLE templates (id int PRIMARY KEY, body text);
ALTER TABLE members REPLICA IDENTITY FULL;
CREATE PUBLICATION staleproof FOR TABLE contacts, members, templates;
"""


class MakeSite(Protocol):
    """Makes a site with a fresh database, tables, settings and views; nothing is started yet."""

    def __call__(self, *, redis_urls: Mapping[str, str] | None = None, **sections: Mapping[str, Any]) -> Site:
        """`redis_urls`: regions of the test's own instead of the stack's. `sections` add to those of the settings."""


@pytest.fixture
def make_site(stack: Servers, tmp_path: Path) -> Iterator[MakeSite]:
    """For a test whose site is not the usual one; one site per test."""
    with ExitStack() as end:

        def make(*, redis_urls: Mapping[str, str] | None = None, **sections: Mapping[str, Any]) -> Site:
            made = new_site(stack, tmp_path, redis_urls or stack.redis_urls, sections)
            end.callback(made.end)
            return made

        yield make


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    """On the stack's own regions, with the usual settings."""
    return make_site()


def new_site(
    stack: Servers, directory: Path, redis_urls: Mapping[str, str], sections: Mapping[str, Mapping[str, Any]]
) -> Site:
    """A site that lives as long as its maker wants: who makes it, ends it."""
    name = f"t{next(_serial)}x{os.getpid()}"
    with psycopg.connect(stack.postgres_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    dsn = psycopg.conninfo.make_conninfo(stack.postgres_dsn, dbname=name)
    settings: dict[str, Any] = {
        "source": {"name": name, "dsn": dsn, "slot": name},
        "kafka": {"bootstrap_servers": stack.kafka_bootstrap, "partitions": 2},
        "regions": {region: {"url": url, "prefix": name} for region, url in redis_urls.items()},
        "worker": {"stalled_after_seconds": 10},
    }
    settings |= {section: settings.get(section, {}) | dict(values) for section, values in sections.items()}
    file = directory / "staleproof.yaml"
    file.write_text(json.dumps(settings))
    (directory / "views.yaml").write_text(VIEWS)
    database = psycopg.connect(dsn, autocommit=True)
    database.execute(SCHEMA)
    return Site(directory=directory, dsn=dsn, settings=load_settings(file), database=database)
