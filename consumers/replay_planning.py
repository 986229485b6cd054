"""Records of a replayed range in, out flow waves: one invalidation per key, applied by Batches without rows. Pure.

What a record causes is planned as the worker plans it. What only whoever moves the rows may cause is left to the
worker, which meets the same record, and counted: raises of whole views, and closings. Holes in the numbers of records
mean nothing here: a range begins and ends anywhere, and copies come in any order.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from cdc.errors import ConfigError
from cdc.events import POSITION_WIDTH, STAMP_WIDTH
from consumers.batching import split
from consumers.intake import Bounds, Intake
from consumers.stream import Partition, Record
from invalidator.guard import Batch
from invalidator.layout import Layout
from invalidator.plan import Cause, Changes, Invalidation, Planner, coalesce
from invalidator.views import Views, can_render, index_views

SAMPLES_PER_VIEW = 5

_ANYTHING = Bounds("f" * POSITION_WIDTH, "f" * STAMP_WIDTH, known=True)
"""Whatever a record claims: nothing of it is remembered."""


class Wave(msgspec.Struct):
    """What is applied together: the keys that change, and how far each partition is once they are.

    `counts`: records, ignored, undecodable, earlier_epoch, whole_views (raises left to the worker); `causes`:
    invalidations by view and cause.
    """

    changes: Changes
    reached: dict[Partition, int]
    counts: Counter[str]
    causes: Counter[tuple[str, str]]

    def batch(self, shard: int, layout: Layout, views: Views) -> Batch | None:
        """The part of one shard; None where it has nothing to do."""
        parts = split(self.changes, shard, layout, views)
        if not parts.changes and not parts.refreshes:
            return None
        return Batch(rows=(), changes=tuple(parts.changes), refreshes=tuple(parts.refreshes))


class RangePlanner:
    """Plans records of a range for some views and keys.

    `tables`: topic to table. `keys` empty: every key. Positions before `since` or not before `until` are not meant.
    `since_epoch` (8 digits): of the regions; everything that can be read in them is newer than what is of an earlier
    one, so that is passed over. `wave_keys` limits what one wave touches.
    """

    def __init__(
        self, views: Views, tables: Mapping[str, str], *, wave_keys: int, keys: frozenset[str] = frozenset(),
        since: str = "", until: str = "g", since_epoch: str = "",
    ) -> None:  # fmt: skip
        # A transaction of any size is taken key by key: it is the worker's to raise a view.
        self._intake = Intake(Planner(views), tables, mass_keys=sys.maxsize)
        self._intake.bounds = _ANYTHING
        self._timed = {view.name for view in views.views.values() if view.ttl_ms}
        self._keys = keys
        self._since = since
        self._until = until
        self._since_epoch = since_epoch
        self._wave_keys = wave_keys
        self.samples: dict[str, dict[str, None]] = {}
        """The first keys of each view."""

    def waves(self, records: Sequence[Record]) -> Iterator[Wave]:
        """The records in their order, in waves of at most so many keys, and a few that one record adds."""
        wave = Wave({}, {}, Counter(), Counter())
        for record in records:
            self._add(record, wave)
            if len(wave.changes) >= self._wave_keys:
                yield wave
                wave = Wave({}, {}, Counter(), Counter())
        if wave.reached:
            yield wave

    def _add(self, record: Record, wave: Wave) -> None:
        planned = self._intake.plan(record)
        assert planned is not None  # nothing is beyond these bounds
        wave.reached[record.topic, record.partition] = record.offset + 1
        counts = wave.counts
        counts["records"] += 1
        if planned.header is None:
            counts["undecodable"] += 1
            counts["whole_views"] += len(planned.closings)
            return
        position = planned.header.position
        if not self._since <= position < self._until:
            counts["ignored"] += 1
            return
        if position[:8] < self._since_epoch:
            counts["earlier_epoch"] += 1
            return
        wanted = [i for i in planned.invalidations if self._is_wanted(i)]
        if not wanted:
            counts["ignored"] += 1
            return
        if any(i.cause is Cause.UNDECODABLE for i in wanted):
            counts["undecodable"] += 1
        for invalidation in wanted:
            wave.causes[invalidation.view, invalidation.cause.value] += 1
            samples = self.samples.setdefault(invalidation.view, {})
            if invalidation.key is not None and len(samples) < SAMPLES_PER_VIEW:
                samples[invalidation.key] = None
        keyed = [self._unless_timed(i) for i in wanted if i.key is not None]
        counts["whole_views"] += len(wanted) - len(keyed)
        coalesce(keyed, wave.changes)

    def _unless_timed(self, invalidation: Invalidation) -> Invalidation:
        """Without its value where entries end by themselves: one that has ended would live once more."""
        timed = invalidation.value is not None and invalidation.view in self._timed
        return msgspec.structs.replace(invalidation, value=None) if timed else invalidation

    def _is_wanted(self, invalidation: Invalidation) -> bool:
        return not self._keys or invalidation.key is None or invalidation.key in self._keys


def chosen_views(views: Views, names: Sequence[str], tables: Sequence[str]) -> Views:
    """Only those of `names` (empty: all) that a table of `tables` (empty: any) feeds. Raises ConfigError."""
    for name in names:
        if name not in views.views:
            raise ConfigError(f"there is no view {name!r} in the views file: known are {', '.join(views.views)}")
    for table in tables:
        if table not in views.by_table:
            raise ConfigError(f"no view is fed by table {table!r}: known are {', '.join(views.by_table)}")
    chosen = index_views(
        view
        for view in views.views.values()
        if (not names or view.name in names) and (not tables or any(rule.table in tables for rule in view.rules))
    )
    if not chosen.views:
        raise ConfigError(f"no view of {', '.join(names)} is fed by {', '.join(tables)}: leave out --view or --table")
    return chosen


def check_keys(views: Views, keys: Sequence[str]) -> None:
    """Raises ConfigError for a key that no view has."""
    for key in keys:
        if not any(can_render(view.key, key) for view in views.views.values()):
            templates = ", ".join(view.key.text for view in views.views.values())
            raise ConfigError(f"{key!a} is no key of the views that are replayed: their keys are {templates}")
