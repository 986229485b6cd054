"""Whether what the regions serve is what the loaders say, and what to look at when it is not.

A comparison counts only when the loader says the same before and after it: then nothing changed meanwhile, and a
difference is a stale entry, not one that is about to be invalidated.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple

import msgspec
import psycopg

from cdc.errors import ConfigError, StaleproofError
from consumers.regions import open_region
from consumers.settings import Settings
from infra.table_counts import TableCounts
from infra.value_diff import differences
from infra.waiting import ASK_AGAIN_SECONDS
from invalidator.reader import CacheReader
from invalidator.region import Region
from invalidator.tokens import Session, Token
from invalidator.typed_views import Seconds
from invalidator.views import Rule, View, Views, key_parts

Loader = Callable[[Any, Any], object]
"""(connection, key) -> what is cached, None where the database has no such object. `key` is the template's one part,
or a mapping of its parts."""

SETTLE_LIMIT_SECONDS: Final = 20.0
"""How long an entry may take to be cached, or the database to stand still, before an assertion gives up."""

STALE_SHOWN_MAX: Final = 10

_REASONS: Final[Mapping[str, str]] = {
    "unproven": "the loader left the reader's transaction: it must only read, and neither commit nor roll back",
    "oversize": "the value is larger than a reader caches",
    "closed": "the view or the region is closed: see the alarms in the logs of the workers",
    "cold": "the region knows nothing yet: does its worker run? (`site.start_all()`)",
    "down": "its Redis does not answer",
    "refused": "no load could prove that it saw the newest changes: does a transaction that changes it stay open?",
}


class LastChange(NamedTuple):
    """What `change_and_wait` did last."""

    statement: str
    tables: frozenset[str]


class SiteReader(CacheReader):
    """A reader that remembers by which key objects it was asked: a cache knows only their text."""

    def __init__(
        self,
        region: Region,
        views: Views,
        connect: Callable[[], AbstractContextManager[Any]],
        *,
        asked: dict[tuple[str, str], object],
    ) -> None:
        super().__init__(region, views, connect)
        self._asked = asked

    def get(
        self,
        view: str,
        key: object,
        load: Callable[[Any], Any],
        *,
        max_staleness: Seconds | None = None,
        token: Token | Session | str | None = None,
        strong: bool = False,
    ) -> Any:
        """As `CacheReader.get`."""
        value = super().get(view, key, load, max_staleness=max_staleness, token=token, strong=strong)
        template = self._views.views[view].key
        parts = [key[name] for name in template.fields] if isinstance(key, Mapping) else [key]
        self._asked[view, template.render(parts)] = key
        return value


class _Truth(NamedTuple):
    """What a loader said, as JSON gives it back, and the tables that it read through its connection."""

    value: Any
    tables: frozenset[str]


class _Absent(StaleproofError):
    """The reader wanted to load."""


def _no_database(*_: object) -> Any:
    raise _Absent


_NOT_CACHED: Final = object()

_Name = tuple[str, str]
"""View, and the key's text."""


class Freshness:
    """Reads and judges for one site. `drain` waits until these regions have applied all that is committed."""

    def __init__(
        self,
        *,
        settings: Settings,
        views: Views,
        loaders: Mapping[str, Loader],
        dsn: str,
        drain: Callable[[Collection[str]], None],
    ) -> None:
        self.asked: dict[_Name, object] = {}
        self.last_change: LastChange | None = None
        self._settings, self._views, self._loaders, self._dsn, self._drain = settings, views, loaders, dsn, drain
        self._readers: dict[str, SiteReader] = {}
        self._probes: dict[str, CacheReader] = {}  # readers that ask the cache and nobody else

    def read(self, region: str, view: str, key: object) -> Any:
        """The view's loader behind the region's cache."""
        load = self._loader(view)
        return self._reader(region).get(view, key, lambda connection: load(connection, key))

    def is_cached(self, region: str, view: str, key: object) -> bool:
        """Whether the reader serves it without loading."""
        return self._cached(region, view, key) is not _NOT_CACHED

    def assert_fresh(self, view: str, key: object, regions: Collection[str]) -> None:
        """AssertionError that names each region where it is stale, and what differs."""
        __tracebackhide__ = True
        complaints = self._complaints(view, key, regions)
        if complaints:
            raise AssertionError("\n".join(complaints))

    def assert_all_fresh(self, regions: Collection[str], at_least: int) -> None:
        """The same for every entry; AssertionError too where a region serves fewer than `at_least`."""
        __tracebackhide__ = True
        keys = {name: self._key(name) for name in dict.fromkeys(n for region in regions for n in self._entries(region))}
        before = self._truths(keys)
        self._drain(regions)
        served = {
            (region, name): self._cached(region, name[0], key) for region in regions for name, key in keys.items()
        }
        after = self._truths(keys)
        for region in regions:
            count = sum(value is not _NOT_CACHED for (place, _), value in served.items() if place == region)
            if count < at_least:
                raise AssertionError(
                    f"region {region} serves {count} entries, fewer than {at_least}, which says nothing:"
                    " fill it first, with site.read(view, key, region=...)"
                )
        stale: dict[_Name, list[str]] = {}
        for name, key in keys.items():
            here = {region: served[region, name] for region in regions}
            if before[name].value != after[name].value:  # it changed meanwhile: looked at again, by itself
                stale[name] = self._complaints(
                    name[0], key, [r for r, value in here.items() if value is not _NOT_CACHED]
                )
            else:
                stale[name] = self._judge(name[0], key, here, after[name])
        found = [lines for lines in stale.values() if lines]
        if found:
            shown = [line for lines in found[:STALE_SHOWN_MAX] for line in lines]
            rest = len(found) - STALE_SHOWN_MAX
            raise AssertionError(
                "\n".join(
                    [f"{len(found)} of {len(keys)} entries are stale", *shown, *([f"and {rest} more"] * (rest > 0))]
                )
            )

    def assert_covered(self, view: str, key: object, besides: Collection[str]) -> None:
        """AssertionError that names the tables which the loader reads and the view does not."""
        __tracebackhide__ = True
        forgotten = self._truth(view, key).tables - self._tables(view) - set(besides)
        if forgotten:
            raise AssertionError("\n".join([f"view {view} does not cover its loader", *self._hints(view, forgotten)]))

    # -- judging

    def _complaints(self, view: str, key: object, regions: Collection[str]) -> list[str]:
        """What is stale, judged while the database stands still; empty when nothing is."""
        deadline = time.monotonic() + SETTLE_LIMIT_SECONDS
        while True:
            before = self._truth(view, key)
            self._drain(regions)
            served = {region: self._served(region, view, key) for region in regions}
            after = self._truth(view, key)
            if before.value == after.value:
                return self._judge(view, key, served, after)
            if time.monotonic() > deadline:
                raise AssertionError(f"{view} {key!r} changes all the time: let nothing write it while it is compared")

    def _judge(self, view: str, key: object, served: Mapping[str, Any], truth: _Truth) -> list[str]:
        lines: list[str] = []
        for region, value in served.items():
            if value is not _NOT_CACHED and value != truth.value:
                lines.append(f"{view} {key!r} is stale in region {region}:")
                lines += (f"  {line}" for line in differences(value, truth.value))
        return [*lines, *self._hints(view, truth.tables - self._tables(view))] if lines else []

    def _hints(self, view: str, forgotten: Iterable[str]) -> list[str]:
        """Where to look: at what invalidates the view, what else its loader reads, and what was changed last."""
        known = self._views.views[view]
        lines = [f"  view {view} is invalidated by " + "; ".join(_told(known, rule) for rule in known.rules)]
        lines += (
            f"  its loader also reads {table}, which the view does not name: no change there reaches an entry."
            f" Name it under `tables:` in {self._settings.views.name}, with `parts:` if the key has another name there"
            for table in sorted(forgotten)
        )
        if self.last_change is not None:
            tables = ", ".join(sorted(self.last_change.tables)) or "no table"
            lines.append(f"  the last change_and_wait changed {tables}: {' '.join(self.last_change.statement.split())}")
        return lines

    # -- asking

    def _served(self, region: str, view: str, key: object) -> Any:
        """What the region's cache has; what it does not have is read until it does."""
        deadline = time.monotonic() + SETTLE_LIMIT_SECONDS
        counts = self._reader(region).counts
        before = Counter(counts)
        while (value := self._cached(region, view, key)) is _NOT_CACHED:
            if time.monotonic() > deadline:
                reasons = {name.partition(":")[0] for name, count in counts.items() if count > before[name]}
                known = [text for name, text in _REASONS.items() if name in reasons]
                raise AssertionError(
                    f"{view} {key!r} is never cached in region {region}: " + ("; ".join(known) or f"{dict(counts)}")
                )
            self.read(region, view, key)
            if not self.is_cached(region, view, key):
                time.sleep(ASK_AGAIN_SECONDS)
        return value

    def _cached(self, region: str, view: str, key: object) -> Any:
        if region not in self._probes:
            self._probes[region] = CacheReader(open_region(self._settings, region), self._views, _no_database)
        try:
            return self._probes[region].get(view, key, _no_database)
        except _Absent:
            return _NOT_CACHED

    def _truths(self, keys: Mapping[_Name, object]) -> dict[_Name, _Truth]:
        with self._session() as session:
            return {name: self._ask(session, name[0], key) for name, key in keys.items()}

    def _truth(self, view: str, key: object) -> _Truth:
        with self._session() as session:
            return self._ask(session, view, key)

    def _ask(self, session: psycopg.Connection[Any], view: str, key: object) -> _Truth:
        load = self._loader(view)
        with session.transaction():
            session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")  # as a reader does
            counts = TableCounts.now(session)
            value = load(session, key)
            tables = TableCounts.now(session).read_since(counts)
        if value is not None and not tables:
            raise AssertionError(
                f"the loader of {view} reads no table through the connection that it is given: what it reads elsewhere"
                " nothing proves, and a stale value would be cached. Use the connection that is its first argument"
            )
        return _Truth(msgspec.json.decode(msgspec.json.encode(value)), tables)

    def _session(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self._dsn, autocommit=True)

    def _loader(self, view: str) -> Loader:
        if view not in self._views.views:
            raise ConfigError(f"there is no view {view!r}; known are {', '.join(sorted(self._views.views))}")
        if view not in self._loaders:
            raise ConfigError(f"view {view} has no loader: make the site with loaders={{{view!r}: load, ...}}")
        return self._loaders[view]

    def _reader(self, region: str) -> SiteReader:
        if region not in self._readers:
            self._readers[region] = SiteReader(
                open_region(self._settings, region),
                self._views,
                lambda: psycopg.connect(self._dsn, autocommit=True),
                asked=self.asked,
            )
        return self._readers[region]

    def _entries(self, region: str) -> Iterator[_Name]:
        """Every entry that lies there, readable or not."""
        for text in open_region(self._settings, region).keys(""):
            views = self._views.views.values()
            view = next((v.name for v in views if key_parts(v.key, text) is not None), None)
            if view is not None:
                yield view, text

    def _key(self, name: _Name) -> object:
        """The key to ask by: the object that a reader was asked by, else the parts as text."""
        if name in self.asked:
            return self.asked[name]
        template = self._views.views[name[0]].key
        parts = key_parts(template, name[1]) or ()
        if None in parts:
            raise AssertionError(
                f"an entry of {name[0]} has a key that is hashed, and no reader of this site was asked for it:"
                " read it once with site.read(view, key, region=...)"
            )
        return parts[0] if len(parts) == 1 else dict(zip(template.fields, parts, strict=True))

    def _tables(self, view: str) -> set[str]:
        return {rule.table for rule in self._views.views[view].rules}


def _told(view: View, rule: Rule) -> str:
    parts = ", ".join(
        field if field == column else f"{field} from {column}"
        for field, column in zip(view.key.fields, rule.parts, strict=True)
    )
    columns = "every column" if rule.columns is None else f"only {', '.join(sorted(rule.columns)) or 'the key'}"
    return f"{rule.table} ({parts}; {columns})"
