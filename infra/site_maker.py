"""Makes sites: a database with a schema, and the settings and views that let `staleproof` processes work on it.

    with SiteMaker.open(servers, directory) as maker:
        site = maker.make(schema=Path("schema.sql"), views=Path("views.yaml"), loaders={"basket": load_basket})

Isolation is by name: the database, the slot, every topic and every Redis key of a site begin with it, so that sites
share servers and none sees another's.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from consumers.regions import read_views
from consumers.settings import Settings, read_settings
from infra import attached, warden
from infra.freshness import Loader
from infra.processes import StackError, Warden
from infra.proxy import FaultProxy
from infra.servers import Servers
from infra.site import Site
from infra.topologies import Topologies, TopologyServers, settings_of

Schema = str | Path | Callable[[str], object]
"""SQL text; a file, or a directory whose `*.sql` files are run in order of name; or what is called with a libpq URI."""

HEARTBEAT_INTERVAL_MS: Final = 50
"""Tests wait for heartbeats: the shortest that the settings allow, instead of 250 by default."""

_serial = itertools.count()


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteMaker:
    """Sites on these servers. `living`: those that have not ended, for whoever wants their logs."""

    servers: Servers
    directory: Path
    living: list[Site] = field(default_factory=list)
    warden: Warden
    topologies: Topologies

    @classmethod
    @contextmanager
    def open(cls, servers: Servers, directory: Path, *, redis_server: Path | None = None) -> Iterator[Self]:
        """Ends every site with the block; if this process is killed, the sites' processes end as well.

        `redis_server`: the program of a Cluster or of servers watched by Sentinel, where a site asks for them.
        """
        guard = Warden(log=directory / "site-warden.log")
        topologies = Topologies(directory, guard, redis_server)
        maker = cls(servers=servers, directory=directory, warden=guard, topologies=topologies)
        with ExitStack() as last:
            last.callback(guard.close)
            last.callback(topologies.close)
            last.callback(maker._end_all)
            yield maker

    def make(
        self,
        *,
        schema: Schema,
        views: str | Path,
        loaders: Mapping[str, Loader] | None = None,
        regions: Collection[str] | Mapping[str, Mapping[str, Any]] | None = None,
        redis_urls: Mapping[str, str] | None = None,
        topology: Mapping[str, str] | None = None,
        proxied: bool = False,
        start: bool = True,
        directory: Path | None = None,
        **sections: Mapping[str, Any],
    ) -> Site:
        """A site whose processes run and whose regions are open; `start=False`: nothing is started yet.

        `views` is YAML text or a file. `regions`: only these of the servers', with settings of each where it is a
        mapping, such as `{"eu": {"shards": 4}}`; `redis_urls`: servers of the test's own instead.
        `topology`: regions on a Cluster or behind Sentinels, such as `{"eu": "cluster"}`, as native processes.
        `proxied` puts a fault proxy in front of every Redis. `sections` add to those of staleproof.yaml, such as
        `worker={"batch_records": 10}`. A publication of the views' tables is made unless the schema makes it.
        Raises StackError, ConfigError, psycopg.Error.
        """
        extra = dict(regions) if isinstance(regions, Mapping) else {}
        urls = redis_urls or self._urls(regions)
        for region in topology or ():
            if region not in urls:
                raise StackError(f"topology names region {region!r}, and the site has only {', '.join(urls)}")
        several = {region: self.topologies.servers(kind) for region, kind in (topology or {}).items()}
        if several and proxied:
            raise StackError("a fault proxy stands before one server: leave out proxied, or topology")
        for region, there in several.items():
            extra[region] = {**settings_of(there), **extra.get(region, {})}
        site = self._make(
            directory=directory,
            schema=schema,
            views=views,
            loaders=loaders or {},
            urls=urls,
            topologies=several,
            proxied=proxied,
            region_settings=extra,
            sections=sections,
        )
        if start:
            try:
                site.start_all()
            except BaseException:
                site.end()
                raise
        return site

    def _urls(self, regions: Collection[str] | None) -> dict[str, str]:
        known = self.servers.redis_urls
        missing = [region for region in regions or () if region not in known]
        if missing:
            raise StackError(
                f"the servers have no region {missing[0]!r}, only {', '.join(known)}: name it in --staleproof-regions"
            )
        return {region: known[region] for region in (known if regions is None else regions)}

    def _make(
        self,
        *,
        directory: Path | None,
        schema: Schema,
        views: str | Path,
        loaders: Mapping[str, Loader],
        urls: Mapping[str, str],
        topologies: Mapping[str, TopologyServers],
        proxied: bool,
        region_settings: Mapping[str, Mapping[str, Any]],
        sections: Mapping[str, Mapping[str, Any]],
    ) -> Site:
        owner = warden.identify(os.getpid())
        assert owner is not None
        name = attached.site_name(owner, next(_serial))
        place = directory or self.directory / name
        place.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            dsn = self._create_database(name, undo)
            proxies = {region: undo.enter_context(_proxy(url)) for region, url in urls.items()} if proxied else {}
            regions = {
                region: {"url": _through(proxies.get(region), url), "prefix": name, **region_settings.get(region, {})}
                for region, url in urls.items()
            }
            settings = self._write_settings(place, name=name, dsn=dsn, regions=regions, sections=sections)
            text = views.read_text(encoding="utf-8") if isinstance(views, Path) else views
            settings.views.write_text(text, encoding="utf-8")
            _apply_schema(schema, dsn)
            database = undo.enter_context(psycopg.connect(dsn, autocommit=True))
            undo.callback(attached.drop_slots, dsn)
            _publish(database, settings)
            site = Site(
                directory=place,
                dsn=dsn,
                settings=settings,
                database=database,
                servers=self.servers,
                warden=self.warden,
                loaders=loaders,
                proxies=proxies,
                topologies=topologies,
            )
            self.living.append(site)
            undo.callback(self.living.remove, site)
            site.resources.push(undo.pop_all())
        return site

    def _create_database(self, name: str, undo: ExitStack) -> str:
        with psycopg.connect(self.servers.postgres_dsn, autocommit=True) as admin:
            admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        if isinstance(self.servers, attached.AttachedServers):  # our own servers' data goes with them
            undo.callback(partial(attached.forget, self.servers, [name]))
        return attached.with_database(self.servers.postgres_dsn, name)

    def _write_settings(
        self,
        place: Path,
        *,
        name: str,
        dsn: str,
        regions: Mapping[str, Mapping[str, Any]],
        sections: Mapping[str, Mapping[str, Any]],
    ) -> Settings:
        settings: dict[str, Any] = {
            "source": {"name": name, "dsn": dsn, "slot": name, "heartbeat_interval_ms": HEARTBEAT_INTERVAL_MS},
            "kafka": {"bootstrap_servers": self.servers.kafka_bootstrap, "partitions": 2},
            "regions": regions,
            "worker": {"stalled_after_seconds": 10},
        }
        settings |= {section: settings.get(section, {}) | dict(values) for section, values in sections.items()}
        file = place / "staleproof.yaml"
        file.write_text(json.dumps(settings), encoding="utf-8")
        return read_settings(file, {})  # no overrides: the environment's may name a database that is not for tests

    def _end_all(self) -> None:
        with ExitStack() as last:
            for site in self.living:
                last.callback(site.end)


def _apply_schema(schema: Schema, dsn: str) -> None:
    if callable(schema):
        schema(dsn)
        return
    with psycopg.connect(dsn, autocommit=True) as connection:
        for text in _texts(schema):
            connection.execute(text.encode())


def _texts(schema: str | Path) -> Iterator[str]:
    if isinstance(schema, str):
        yield schema
        return
    files = sorted(schema.glob("*.sql")) if schema.is_dir() else [schema]
    if not files:
        raise StackError(f"{schema} holds no *.sql file: name a file, or pass what migrates as a callable")
    for file in files:
        yield file.read_text(encoding="utf-8")


def _publish(database: psycopg.Connection[Any], settings: Settings) -> None:
    """Make the publication unless the schema did. Tables that do not exist are left to `staleproof check` to name."""
    name = settings.source.publication
    if database.execute("SELECT 1 FROM pg_publication WHERE pubname = %s", [name]).fetchone() is not None:
        return
    tables = [sql.Identifier(*table.split(".", 1)) for table in sorted(read_views(settings.views).by_table)]
    there = [t for t in tables if database.execute("SELECT to_regclass(%s)", [t.as_string()]).fetchone() != (None,)]
    if there:
        statement = sql.SQL("CREATE PUBLICATION {} FOR TABLE {}")
        database.execute(statement.format(sql.Identifier(name), sql.SQL(", ").join(there)))


def _proxy(url: str) -> FaultProxy:
    port = urlsplit(url).port
    if urlsplit(url).hostname not in ("127.0.0.1", "localhost") or port is None:
        raise StackError(f"a fault proxy reaches servers of this machine only, not {url}: leave out proxied=True")
    return FaultProxy(port)


def _through(proxy: FaultProxy | None, url: str) -> str:
    return url if proxy is None else urlunsplit(urlsplit(url)._replace(netloc=f"127.0.0.1:{proxy.port}"))
