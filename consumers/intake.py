"""One record in, what it causes out. Pure: the first half of the worker's hot path.

In flow records of the captured topics, in the order of their partitions; out flow Planned: invalidations, scopes that
must close, and why a record is set aside. Every doubt names the smallest scope that surely covers the damage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import assert_never

import msgspec

from cdc.envelope import RecordHeader, decode_header, decode_value
from cdc.errors import BadRecord
from cdc.events import stamp_text
from consumers.alarms import Alarm
from consumers.stream import Record
from invalidator.layout import REGION_SCOPE, ZERO_POSITION, ZERO_STAMP, row_field, view_scope
from invalidator.plan import Cause, Invalidation, Planner

STAMP_MARGIN = 1 << 24
LSN_MARGIN = 1 << 40
"""So far beyond the newest heartbeat or applied record may a stamp, and a place in the log (1 TiB), be; more is forged.

PostgreSQL gives both out without holes, and what was applied moves the limits on, so only what nobody wrote is beyond.
"""

TRANSACTIONS_COUNTED_MAX = 1_024

_TOP_LSN, _TOP_STAMP, _TOP_ORDER = "f" * 16, "f" * 16, "f" * 8


class Doubt(msgspec.Struct, frozen=True):
    """Something a person should hear of; the record is set aside where `quarantined`."""

    alarm: Alarm
    reason: str
    quarantined: bool = False


class Planned(msgspec.Struct, frozen=True, gc=False):
    """One record and what it causes; `header` None where it could not be read. `closings` are scopes' fields."""

    record: Record
    field: str
    header: RecordHeader | None
    invalidations: Sequence[Invalidation] = ()
    closings: Sequence[str] = ()
    doubts: Sequence[Doubt] = ()


class Bounds(msgspec.Struct, frozen=True):
    """The highest position and stamp that a record may claim now; `known` once something is known of the epoch."""

    position: str = ZERO_POSITION
    stamp: str = ZERO_STAMP
    known: bool = False

    @classmethod
    def of_epoch(cls, epoch: str) -> Bounds:
        """Nothing of this epoch is known yet: anything may be claimed in it until a heartbeat comes."""
        return cls(epoch + _TOP_LSN + _TOP_ORDER, _TOP_STAMP) if epoch.strip("0") else cls()

    def widened(self, position: str, stamp: str) -> Bounds:
        """After something at `position` and with `stamp` was heard or applied in this epoch."""
        if position[:8] != self.position[:8]:
            return self
        lsn = min(int(position[8:24], 16) + LSN_MARGIN, int(_TOP_LSN, 16))
        newer_position = f"{position[:8]}{lsn:016x}{_TOP_ORDER}"
        newer_stamp = stamp_text(min(int(stamp, 16) + STAMP_MARGIN, int(_TOP_STAMP, 16)))
        if not self.known:
            return Bounds(newer_position, newer_stamp, known=True)
        return Bounds(max(self.position, newer_position), max(self.stamp, newer_stamp), known=True)


class Intake:
    """Plans records one after another. `tables`: topic to table; `mass_keys`: keys of one view in one transaction."""

    def __init__(self, planner: Planner, tables: Mapping[str, str], *, mass_keys: int) -> None:
        self.bounds = Bounds()
        self.sequences: dict[str, int] = {}
        """Number of the newest record of each row; 0 or absent where it is not known."""
        self._planner = planner
        self._tables = tables
        self._fields: dict[tuple[str, int], str] = {}
        self._mass_keys = mass_keys
        self._counts: dict[tuple[str, str], int] = {}
        self._mass: dict[tuple[str, str], None] = {}

    def plan(self, record: Record, *, told_all: bool = False) -> Planned | None:
        """What `record` causes; None when it is beyond the bounds, and the control topic may tell more (`told_all`)."""
        place = (record.topic, record.partition)
        field = self._fields.get(place) or self._fields.setdefault(place, row_field(*place))
        try:
            header = decode_header(record.header)
        except BadRecord as error:
            return self._without_header(record, field, Doubt(Alarm.CLOSED, str(error), quarantined=True))
        bounds = self.bounds
        if header.position > bounds.position or header.stamp > bounds.stamp:
            if not told_all:
                return None
            reason = "its position or stamp is far beyond everything known"
            return self._without_header(record, field, Doubt(Alarm.FORGED, reason, quarantined=True))
        last = self.sequences.get(field, 0)
        self.sequences[field] = header.sequence
        if last and header.previous != last:
            return self._after_hole(record, field, header, last)
        return self._with_header(record, field, header)

    def forget(self) -> None:
        """What was planned may not have been applied: count anew, from the records that come again."""
        self._counts.clear()
        self._mass.clear()

    def _with_header(self, record: Record, field: str, header: RecordHeader) -> Planned:
        if record.value is None:
            return Planned(record, field, header)
        table = self._tables[record.topic]
        try:
            envelope = decode_value(record.value)
        except BadRecord as error:
            invalidations = self._planner.plan_unreadable(table, header, record.key, str(error))
        else:
            if envelope.table == table:
                invalidations = self._planner.plan(table, envelope, header, record.key)
            else:
                fault = f"a record of another table in the topic of {table}"
                invalidations = self._planner.plan_unreadable(table, header, None, fault)
        if not invalidations:
            return Planned(record, field, header)
        invalidations = self._counted(invalidations)
        for invalidation in invalidations:
            if invalidation.cause is not Cause.CHANGE:
                doubts = [_doubt(i) for i in invalidations if i.cause is not Cause.CHANGE]
                return Planned(record, field, header, invalidations, (), doubts)
        return Planned(record, field, header, invalidations)

    def _without_header(self, record: Record, field: str, doubt: Doubt) -> Planned:
        """Nothing tells which transaction it was, so its views close."""
        self.sequences[field] = 0  # its number is not known
        table = self._tables[record.topic]
        closings = [view_scope(view) for view in sorted(self._planner.views_of(table))]
        return Planned(record, field, None, (), closings, (doubt,))

    def _after_hole(self, record: Record, field: str, header: RecordHeader, last: int) -> Planned:
        """Records before this one are missing, and nobody knows whose."""
        planned = self._with_header(record, field, header)
        hole = Doubt(Alarm.GAP, f"{last} is followed by {header.sequence}, which follows {header.previous}")
        closings, doubts = [REGION_SCOPE, *planned.closings], [hole, *planned.doubts]
        return msgspec.structs.replace(planned, closings=closings, doubts=doubts)

    def _counted(self, invalidations: list[Invalidation]) -> list[Invalidation]:
        """Past the limit a transaction raises the view once; what it changes there later is covered by that."""
        counts, limit = self._counts, self._mass_keys
        over = False
        for invalidation in invalidations:
            place = (invalidation.view, _transaction(invalidation))
            count = counts[place] = counts.get(place, 0) + 1
            over = over or count > limit
        if len(counts) > TRANSACTIONS_COUNTED_MAX:  # one that is counted anew unlinks, or raises, more than it must
            self._counts = dict(list(counts.items())[TRANSACTIONS_COUNTED_MAX // 2 :])
            self._mass = dict(list(self._mass.items())[-TRANSACTIONS_COUNTED_MAX // 2 :])
        return self._raised(invalidations) if over else invalidations

    def _raised(self, invalidations: list[Invalidation]) -> list[Invalidation]:
        """What is left of one record's invalidations where a transaction is past the limit of their views."""
        kept: list[Invalidation] = []
        for invalidation in invalidations:
            place = (invalidation.view, _transaction(invalidation))
            plain = invalidation.key is not None and invalidation.cause is Cause.CHANGE
            if not plain or self._counts.get(place, 0) <= self._mass_keys:
                kept.append(invalidation)
            elif place not in self._mass:
                self._mass[place] = None
                kept.append(msgspec.structs.replace(invalidation, key=None, value=None, cause=Cause.MASS_CHANGE))
        return kept


def _transaction(invalidation: Invalidation) -> str:
    """Epoch and stamp: a new epoch may give a stamp out again."""
    return invalidation.position[:8] + invalidation.stamps[0]


def _doubt(invalidation: Invalidation) -> Doubt:
    """Why a person should hear of an invalidation that is no plain change."""
    whom = f"view {invalidation.view}" if invalidation.key is None else f"a key of view {invalidation.view}"
    match invalidation.cause:
        case Cause.TRUNCATE:
            return Doubt(Alarm.TRUNCATE, f"{whom}: a table it comes from was truncated")
        case Cause.MASS_CHANGE:
            return Doubt(Alarm.MASS_CHANGE, f"{whom}: one transaction changed more keys than worker.mass_change_keys")
        case Cause.UNDECODABLE | Cause.CHANGE:
            return Doubt(Alarm.UNDECODABLE, f"{whom}: {invalidation.fault}", quarantined=True)
    assert_never(invalidation.cause)
