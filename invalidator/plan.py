"""What must die: one change in, the invalidations it causes out. Pure, and the second step of the hot path.

In flow a decoded envelope, its header and the views; out flow Invalidations, one per affected key, or one for a whole
view where a key cannot be told. Row images are decoded only for tables that a view names, and of them only the columns
that its rules name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, TypeAlias

import msgspec

from cdc.envelope import Envelope, RecordHeader, decode_key, decode_row, is_unavailable
from cdc.errors import BadRecord
from cdc.events import Op
from invalidator.views import Mode, Rule, View, Views

Columns: TypeAlias = tuple[Any, ...]
"""Values of the columns a rule names: its key parts first, then the columns that matter; UNSET where absent."""

MISSING = msgspec.UNSET
_EVENTS_WITH_AFTER = (Op.CREATE, Op.UPDATE, Op.READ)


class Cause(StrEnum):
    """Why something must die."""

    CHANGE = "change"
    TRUNCATE = "truncate"
    MASS_CHANGE = "mass change"
    UNDECODABLE = "undecodable"


class Invalidation(msgspec.Struct, frozen=True, gc=False):
    """One cache key that changed, or (`key` None) every key of `view`.

    `stamps` ascend; `value` is the new row as JSON where the view is refreshed, else None: the entry is unlinked.
    `fault` says what of an undecodable record could not be read; it never holds a row's value.
    """

    view: str
    key: str | None
    position: str
    stamps: tuple[str, ...]
    value: bytes | None = None
    as_of_ms: int = 0
    cause: Cause = Cause.CHANGE
    fault: str = ""


class Planner:
    """The rules of `views`, compiled per table."""

    def __init__(self, views: Views) -> None:
        self._by_table = {
            table: [_CompiledRule(view, rule) for view, rule in rules] for table, rules in views.by_table.items()
        }

    def plan(self, table: str, envelope: Envelope, header: RecordHeader, key: bytes | None) -> list[Invalidation]:
        """The invalidations of one change of `table`; none when no view cares.

        Raises nothing: doubt names the whole view.
        """
        planned: list[Invalidation] = []
        for rule in self._by_table.get(table, ()):
            try:
                planned += rule.plan(envelope, header, key)
            except BadRecord as error:
                planned.append(_whole(rule.view, header, Cause.UNDECODABLE, f"{table}: {error}"))
        return planned

    def plan_unreadable(self, table: str, header: RecordHeader, key: bytes | None, fault: str) -> list[Invalidation]:
        """A record whose body cannot be read, but whose header can.

        Where the record's key names the view's key, only that: a row that moves is a delete of its old key and a create
        of its new one, so a record never concerns another key. Else every key of the view.
        """
        return [rule.plan_unreadable(header, key, fault) for rule in self._by_table.get(table, ())]

    def views_of(self, table: str) -> set[str]:
        """Names of the views that `table` feeds."""
        return {rule.view.name for rule in self._by_table.get(table, ())}


Changes: TypeAlias = dict[tuple[str, str | None], Invalidation]
"""One invalidation for each view and key."""


def coalesce(planned: Iterable[Invalidation], changes: Changes) -> None:
    """Add to `changes`: per key the newest value, and the union of all stamps."""
    for invalidation in planned:
        place = (invalidation.view, invalidation.key)
        known = changes.get(place)
        if known is None:
            changes[place] = invalidation
            continue
        last = invalidation if invalidation.position >= known.position else known
        if known.stamps == invalidation.stamps:
            changes[place] = last
        else:
            changes[place] = msgspec.structs.replace(last, stamps=tuple(sorted({*known.stamps, *invalidation.stamps})))


class _CompiledRule:
    """One rule with a decoder for exactly the columns it names."""

    def __init__(self, view: View, rule: Rule) -> None:
        self.view = view
        self._rule = rule
        others = sorted((rule.columns or frozenset()) - set(rule.parts))
        self._columns = (*rule.parts, *others)
        self._decode = _column_decoder(self._columns)
        self._parts = len(rule.parts)

    def plan(self, envelope: Envelope, header: RecordHeader, key: bytes | None) -> list[Invalidation]:
        """Raises BadRecord where a key cannot be told."""
        op = envelope.op
        if op not in _EVENTS_WITH_AFTER:
            if op is Op.TRUNCATE:
                return [_whole(self.view, header, Cause.TRUNCATE)]
            if op is Op.DELETE:
                return [self._unlink(self._key(self._before_or_key(envelope, key)), header)]
            return []
        after_json = envelope.after
        if after_json is None:
            raise BadRecord(f"a record of op {op.value} without an after image")
        after = self._decode(after_json)
        new_key = self._key(after)
        if op is not Op.UPDATE:
            return [self._changed(new_key, envelope, header)]
        before = self._before_of_update(envelope, key, after)
        if not self._same_part(before, after):
            old_key = self._key(before)
            if old_key != new_key:
                return [self._unlink(old_key, header), self._changed(new_key, envelope, header)]
        if self._nothing_that_matters(before, after):
            return []
        return [self._changed(new_key, envelope, header)]

    def plan_unreadable(self, header: RecordHeader, key: bytes | None, fault: str) -> Invalidation:
        """The one key that the record's own key names, else the whole view."""
        try:
            known = decode_key(key) or {}
            name = self._key(tuple(known.get(column, MISSING) for column in self._columns))
        except BadRecord:
            return _whole(self.view, header, Cause.UNDECODABLE, fault)
        return msgspec.structs.replace(self._unlink(name, header), cause=Cause.UNDECODABLE, fault=fault)

    def _before_of_update(self, envelope: Envelope, key: bytes | None, after: Columns) -> Columns:
        """The old values; without an image the key did not change, so its columns have the values they have now."""
        if envelope.before is not None:
            return self._decode(envelope.before)
        known = decode_key(key) or {}
        if not all(column in known for column in self._rule.parts):
            raise BadRecord(
                f"view {self.view.name} needs the old value of {', '.join(self._rule.parts)}: "
                f"ALTER TABLE {envelope.table} REPLICA IDENTITY FULL"
            )
        return after[: self._parts] + (MISSING,) * (len(after) - self._parts)

    def _before_or_key(self, envelope: Envelope, key: bytes | None) -> Columns:
        if envelope.before is not None:
            return self._decode(envelope.before)
        known = decode_key(key) or {}
        return tuple(known.get(column, MISSING) for column in self._columns)

    def _same_part(self, before: Columns, after: Columns) -> bool:
        """Whether both rows surely have one key. Only integers tell: 1 and true, 0.0 and -0.0 are equal as well."""
        if self._parts != 1:
            return False
        old, new = before[0], after[0]
        return type(old) is int and type(new) is int and old == new

    def _key(self, row: Columns) -> str:
        parts = row[: self._parts]
        if self._parts == 1 and type(parts[0]) is int:  # the commonest by far, and surely there
            return self.view.key.render(parts)
        for column, value in zip(self._rule.parts, parts, strict=True):
            if value is MISSING or is_unavailable(value):
                raise BadRecord(f"column {column} of view {self.view.name}'s key is not in the record")
        return self.view.key.render(parts)

    def _nothing_that_matters(self, before: Columns, after: Columns) -> bool:
        """Whether the row changed only where this view does not look. An unchanged TOAST value did not change."""
        if self._rule.columns is None:
            return False
        for old, new in zip(before, after, strict=True):
            if old is MISSING or (old != new and not is_unavailable(new)):
                return False
        return True

    def _unlink(self, key: str, header: RecordHeader) -> Invalidation:
        return Invalidation(self.view.name, key, header.position, (header.stamp,))

    def _changed(self, key: str, envelope: Envelope, header: RecordHeader) -> Invalidation:
        value = self._value(envelope) if self.view.mode is Mode.REFRESH else None
        return Invalidation(
            self.view.name, key, header.position, (header.stamp,), value, envelope.source.ts_ms if value else 0
        )

    def _value(self, envelope: Envelope) -> bytes | None:
        """The new row as the view stores it; None in doubt: a snapshot row, or a column that was not sent."""
        if envelope.op is Op.READ or envelope.after is None:
            return None
        row = decode_row(envelope.after)
        if self._rule.columns is not None:
            names = {*self._rule.parts, *self._rule.columns}
            row = {name: value for name, value in row.items() if name in names}
        if any(is_unavailable(value) for value in row.values()):
            return None
        return msgspec.json.encode(row)


def _whole(view: View, header: RecordHeader, cause: Cause, fault: str = "") -> Invalidation:
    return Invalidation(view.name, None, header.position, (header.stamp,), cause=cause, fault=fault)


def _column_decoder(columns: tuple[str, ...]) -> Callable[[msgspec.Raw], Columns]:
    """A function from a row image to the values of `columns`; it skips over all others without making objects."""
    names = [f"c{i}" for i in range(len(columns))]
    struct = msgspec.defstruct(
        "Columns", [(name, Any, MISSING) for name in names], rename=dict(zip(names, columns, strict=True)), gc=False
    )
    decoder = msgspec.json.Decoder(struct)

    def decode(image: msgspec.Raw) -> Columns:
        try:
            return msgspec.structs.astuple(decoder.decode(image))
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise BadRecord(f"a row image cannot be read: {type(error).__name__}") from error

    return decode
