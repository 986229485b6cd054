"""The two caches that readers of the demonstration can have: staleproof's, and the plain one of every tutorial."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import resources
from typing import Any, TypeAlias

import msgspec
import redis

from infra.demo.objects import Load, Value
from invalidator import CacheReader
from invalidator.layout import Layout
from invalidator.nodes import Connection, connect
from invalidator.region import Region
from invalidator.views import Views, load_views

Lend: TypeAlias = Callable[[], AbstractContextManager[Any]]


class NaiveCache:
    """GET; on a miss SELECT and SET. The worker deletes what changes. Looks right, and is not."""

    def __init__(self, client: redis.Redis, lend: Lend) -> None:
        self.counts: Counter[str] = Counter()
        self._client = client
        self._lend = lend

    def get(self, view: str, key: object, load: Load) -> Value | None:
        """The object, from the cache or loaded; an absent one is stored as null."""
        name = naive_key(view, key)
        stored = self._client.get(name)
        if stored is not None:
            self.counts["hit"] += 1
            value: Value | None = msgspec.json.decode(stored)
            return value
        self.counts["miss"] += 1
        with self._lend() as connection:
            value = load(connection)
        self._client.set(name, msgspec.json.encode(value))
        return value


def naive_key(view: str, key: object) -> str:
    """Where the plain cache keeps an object."""
    return f"{view}:{key}"


def demo_views() -> Views:
    """The demonstration's views."""
    text = resources.files("infra.demo").joinpath("views.yaml").read_text(encoding="utf-8")
    return load_views(text, place="infra/demo/views.yaml")


def open_cache(region: str, url: str, lend: Lend, *, naive: bool) -> CacheReader | NaiveCache:
    """A cache of one region. `lend` lends autocommit connections."""
    nodes = connect(Connection(url=url))
    if naive:
        (server,) = nodes.primaries()
        return NaiveCache(server.client, lend)
    return CacheReader(Region(region, nodes, Layout()), demo_views(), lend)


def raw_key(view: str, key: object, *, naive: bool) -> str:
    """The key in Redis itself under which an object is found."""
    name = naive_key(view, key)  # the views' own keys are built alike
    layout = Layout()
    return name if naive else layout.entry_key(layout.place(name)[0], name)
