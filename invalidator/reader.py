"""Reading through the cache: a hit is served as it is, a miss is loaded with a proof of what the load could see.

In flow a view, a key and a loader; out flows the value. What cannot be proven is returned, never cached; how a load
is proven, `loading.py` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import msgspec

from cdc.errors import BadRecord, ConfigError, TransientError
from invalidator import entry as entries
from invalidator.guard import Outcome
from invalidator.layout import Layout
from invalidator.loading import FillMaker, Proof, ProvenSource
from invalidator.region import Region
from invalidator.views import View, Views

T = TypeVar("T")


class Counts(Counter[str]):
    """What happened to the reads.

    hit, miss, closed, cold, down, foreign; filled, superseded, unproven, oversize, refused and refused:<reason>.
    """


class CacheReader:
    """A read-through client of one region. Thread-safe as far as `connect` is; one object serves a process.

    `connect` gives a context manager that lends an autocommit connection, e.g. psycopg_pool's `pool.connection`.
    Values larger than `payload_bytes_max` (as JSON) are returned and not cached.
    """

    def __init__(
        self,
        region: Region,
        views: Views,
        connect: Callable[[], AbstractContextManager[Any]],
        *,
        payload_bytes_max: int = 1 << 20,
    ) -> None:
        self.counts = Counts()
        self._region = region
        self._views = views
        self._source = ProvenSource(connect)
        self._payload_bytes_max = payload_bytes_max

    @property
    def layout(self) -> Layout:
        """Where this region's keys lie."""
        return self._region.layout

    def get(self, view: str, key: object, load: Callable[[Any], T | None]) -> T | None:
        """The value of `key` in `view`: from the cache where it may be served, else from `load(connection)`.

        `key` is the template's one part, or a mapping of its parts. `load` returns something JSON can hold, or None
        when the database has no such object; that is cached too. A hit comes back as JSON gives it. Errors of `load`
        pass through and nothing is cached. Raises ConfigError for an unknown view or a key that does not fit it.
        """
        known = self._view(view)
        name = _render(known, key)
        try:
            found = self._region.read(self.layout.place(name)[0], name, known.name, known.digest)
        except TransientError:
            self.counts["down"] += 1
            return self._source.load(load)[0]
        if found.entry is not None:
            try:
                entry = entries.decode(found.entry)
                if (entry.key, entry.view, entry.encoding) == (name, known.name, "j"):
                    self.counts["hit"] += 1
                    return None if entry.content is entries.Content.ABSENT else msgspec.json.decode(entry.payload)
            except (BadRecord, msgspec.DecodeError):
                pass  # counted below: whatever lies there is not what was asked for
            self.counts["foreign"] += 1
        else:
            self.counts[found.status.lower()] += 1
        value, proof = self._source.load(load)
        if proof is None:
            self.counts["unproven"] += 1
        else:
            self._fill(known, name, value, proof)
        return value

    def _view(self, name: str) -> View:
        view = self._views.views.get(name)
        if view is None:
            raise ConfigError(f"there is no view {name!r}; known are {', '.join(sorted(self._views.views))}")
        return view

    def _fill(self, view: View, name: str, value: object, proof: Proof) -> None:
        payload = None if value is None else msgspec.json.encode(value)
        if len(payload or b"") > self._payload_bytes_max or not proof.storable:
            self.counts["oversize"] += 1
            return
        shard, request = FillMaker(view, self.layout, proof).fill(name, payload)
        try:
            filled = self._region.fill(shard, request)
        except TransientError:
            self.counts["down"] += 1  # the value is good; only the cache did not take it
            return
        if filled.outcome is Outcome.APPLIED:
            self.counts["filled"] += 1
        elif filled.outcome is Outcome.REFUSED:
            self.counts["refused"] += 1
            self.counts[f"refused:{filled.reason}"] += 1
        else:
            self.counts[filled.outcome.lower()] += 1


def _render(view: View, key: object) -> str:
    fields = view.key.fields
    if not isinstance(key, Mapping):
        key = {fields[0]: key} if len(fields) == 1 else {}
    if set(key) != set(fields):
        raise ConfigError(
            f"view {view.name} is asked for by {', '.join(fields)}; got {', '.join(map(str, key)) or 'none'}"
        )
    try:
        return view.key.render([key[name] for name in fields])
    except BadRecord as error:
        raise ConfigError(f"view {view.name}: {error}") from error
