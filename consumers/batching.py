"""Planned records, gathered into one script per shard: one change per key, one step per row. Pure.

In flow Planned, in the order of their partitions; out flows a guard Batch for each shard that still needs it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from consumers.intake import Planned
from consumers.stream import Record
from invalidator.entry import encode_tail
from invalidator.guard import Batch, Beat, Closing, KeyChange, KeyRefresh, RowStep, ScopeRaise
from invalidator.layout import UNKNOWN_TOPIC, ZERO_POSITION, ZERO_STAMP, Layout, Row, view_scope
from invalidator.plain import Debt
from invalidator.plan import Cause, Changes, Invalidation, coalesce
from invalidator.views import Views


class _Reached(msgspec.Struct, gc=False):
    """The newest of one row's records, and the highest position and stamp among them."""

    first_offset: int
    record: Record
    sequence: int
    position: str
    stamp: str


class Slice:
    """Records that one script applies."""

    def __init__(self, layout: Layout, views: Views, topic_ids: Mapping[str, str]) -> None:
        self.records = 0
        self.closings: dict[str, None] = {}
        self.oldest = ""
        """Lowest position of all records, empty where one has none."""
        self._layout = layout
        self._views = views
        self._topic_ids = topic_ids
        self._planned: list[Planned] = []
        self._changes: Changes = {}
        self._rows: dict[str, _Reached] = {}

    def add(self, planned: Planned) -> None:
        """Take one more."""
        self.records += 1
        self._planned.append(planned)
        coalesce(planned.invalidations, self._changes)
        if planned.closings:
            self.closings.update(dict.fromkeys(planned.closings))
        header, record = planned.header, planned.record
        row = self._rows.get(planned.field)
        if row is None:
            row = self._rows[planned.field] = _Reached(record.offset, record, 0, ZERO_POSITION, ZERO_STAMP)
        row.record = record
        if header is None:
            row.sequence = 0
            return
        row.sequence = header.sequence
        position = header.position
        if position > row.position:
            if header.stamp > row.stamp or position[:8] != row.position[:8]:
                row.stamp = header.stamp
            row.position = position
        elif header.stamp > row.stamp and position[:8] == row.position[:8]:
            row.stamp = header.stamp
        if position < self.oldest or not self.oldest:
            self.oldest = position

    @property
    def keys(self) -> int:
        """How many keys and views the script will have to touch."""
        return len(self._changes)

    @property
    def plain(self) -> list[Debt]:
        """Keys of plain views, of all records: also of those that every shard has already."""
        return plain_keys(self._changes, self._views)

    @property
    def reached(self) -> dict[str, int]:
        """Next offset of every row once this is applied."""
        return {name: row.record.offset + 1 for name, row in self._rows.items()}

    @property
    def newest(self) -> str:
        """Highest position."""
        return max(row.position for row in self._rows.values())

    @property
    def highest_stamp(self) -> str:
        """Highest stamp of the newest epoch."""
        epoch = self.newest[:8]
        return max(row.stamp for row in self._rows.values() if row.position[:8] == epoch)

    def batch(self, shard: int, known: Mapping[str, int], beat: Beat | None, closed_from: int) -> Batch | None:
        """What `shard`, whose rows stand at `known`, still needs; None where it has everything.

        A record that the shard has already is left out: after a crash between two shards each goes on from its own row.
        But for the raise of a mass change, which stands for records that every shard may still lack.
        """
        names = [name for name, row in self._rows.items() if row.record.offset >= known.get(name, 0)]
        needed = self._changes
        if any(row.first_offset < known.get(name, 0) for name, row in self._rows.items()):
            needed = {}
            for planned in self._planned:
                had = planned.record.offset < known.get(planned.field, 0)
                coalesce((i for i in planned.invalidations if not had or i.cause is Cause.MASS_CHANGE), needed)
        if not names and not needed:
            return None
        parts = split(needed, shard, self._layout, self._views)
        return Batch(
            rows=tuple(RowStep(name, known.get(name, 0), self._row(self._rows[name])) for name in names),
            closings=tuple(Closing(scope, closed_from) for scope in self.closings),
            raises=tuple(parts.raises),
            changes=tuple(parts.changes),
            refreshes=tuple(parts.refreshes),
            beat=beat,
        )

    def _row(self, row: _Reached) -> Row:
        return Row(
            next_offset=row.record.offset + 1,
            topic_id=self._topic_ids.get(row.record.topic, UNKNOWN_TOPIC),
            leader_epoch=row.record.leader_epoch,
            sequence=row.sequence,
            position=row.position,
            stamp=row.stamp,
            digest=self._views.digest,
        )


def plain_keys(changes: Changes, views: Views) -> list[Debt]:
    """The keys of plain views among those that change."""
    return [
        Debt(key, view, invalidation.position, invalidation.stamps)
        for (view, key), invalidation in changes.items()
        if key is not None and view in views.plain
    ]


class Parts(msgspec.Struct, gc=False):
    """What one shard has to do for some changes. Raises are every shard's."""

    raises: list[ScopeRaise]
    changes: list[KeyChange]
    refreshes: list[KeyRefresh]


def split(needed: Changes, shard: int, layout: Layout, views: Views) -> Parts:
    """The part of `shard`. Keys of plain views lie in none."""
    raises: list[ScopeRaise] = []
    changes: list[KeyChange] = []
    refreshes: list[KeyRefresh] = []
    for (view, key), invalidation in needed.items():
        if key is None:
            raises.append(ScopeRaise(view_scope(view), invalidation.position, invalidation.stamps))
            continue
        place, stripe = layout.place(key)
        if place != shard or view in views.plain:
            continue
        change = KeyChange(key, stripe, invalidation.position, invalidation.stamps)
        if invalidation.value is None:
            changes.append(change)
        else:
            refreshes.append(_refresh(change, invalidation, invalidation.value, views))
    return Parts(raises, changes, refreshes)


def _refresh(change: KeyChange, invalidation: Invalidation, value: bytes, views: Views) -> KeyRefresh:
    ttl_ms = views.views[invalidation.view].ttl_ms or 0
    tail = encode_tail(
        view=invalidation.view,
        key=change.key,
        seen=change.position + "".join(change.stamps),
        payload=value,
        as_of_ms=invalidation.as_of_ms,
        expires_ms=invalidation.as_of_ms + ttl_ms if ttl_ms else 0,
    )
    return KeyRefresh(change, invalidation.view, tail, ttl_ms)
