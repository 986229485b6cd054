"""PostgreSQL's messages -> change events. Pure: remembers relations and the open transaction, nothing else.

Decisions that readers of the topics see:

- The key is the replica identity's columns (the primary key by default), because they are what the log always
  repeats; under REPLICA IDENTITY FULL it is the primary key, which `primary_key` has to tell.
- A moved row (its key changed) is a delete of the old key and a create of the new one, as Debezium does.
- `before` has the columns that the log repeats and no others.
- A TOASTed value that the log does not repeat is taken from the old row where the log has it, else it is Debezium's
  placeholder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cdc.connectors.base import Progress, SourceMessage, StreamItem
from cdc.connectors.pg_values import Converter, converter, unavailable
from cdc.connectors.pgoutput import (
    UNCHANGED,
    Begin,
    Commit,
    Delete,
    Insert,
    Message,
    Origin,
    PgMessage,
    Relation,
    Truncate,
    Type,
    Update,
    Values,
)
from cdc.errors import BadRecord
from cdc.events import ChangeEvent, Op, Position, Row, Stamp

PG_EPOCH_MS = 946_684_800_000
"""2000-01-01 in milliseconds since 1970."""

_HALF = 1 << 31
_WHOLE = 1 << 32


def widen(xid32: int, reference64: int) -> int:
    """The 64-bit transaction id nearest to `reference64` that ends in the 32 bits `xid32`.

    PostgreSQL keeps every xid that can still appear in a slot's log within 2^31 of the newest one.
    """
    nearest = reference64 + (xid32 - reference64 + _HALF) % _WHOLE - _HALF
    return nearest if nearest >= 0 else nearest + _WHOLE


class _Table:
    """A relation, prepared for the hot path."""

    def __init__(self, relation: Relation, key: Sequence[str]) -> None:
        columns = relation.columns
        self.name = f"{relation.namespace}.{relation.name}"
        self.names = [column.name for column in columns]
        self.identity_at = [i for i, column in enumerate(columns) if column.identity]
        self.identity = [columns[i].name for i in self.identity_at]
        self.key = [name for name in key if name in set(self.names)] or None
        if self.key is not None and len(self.key) != len(key):
            self.key = None  # a column list left part of the key out: then there is no key to speak of
        self.stand_ins = [unavailable(column.type_oid) for column in columns]
        self.conversions = _conversions(relation)

    def row(self, values: Values) -> Row:
        """The values by name, rendered."""
        if len(values) != len(self.names):
            raise BadRecord(f"a tuple of {self.name} has {len(values)} values, its relation {len(self.names)} columns")
        row: Row = dict(zip(self.names, values, strict=True))
        try:
            for name, convert in self.conversions:
                text = row[name]
                if text is not None:
                    row[name] = convert(text)
        except (ValueError, IndexError, TypeError) as error:
            # The value itself is never put into a message: it is the user's data.
            raise BadRecord(f"a value of {self.name}.{name} is not in the form this session asked for") from error
        return row

    def filled(self, values: Values, old: Values | None, old_is_key: bool) -> Values:
        """`values` with every unchanged TOASTed one replaced: from the old row where it has the column."""
        stand_ins: Values = list(self.stand_ins)
        if old is not None:
            for i in self.identity_at if old_is_key else range(len(old)):
                stand_ins[i] = old[i]
        return [stand_ins[i] if value is UNCHANGED else value for i, value in enumerate(values)]

    def key_of(self, row: Row) -> Row | None:
        """The key columns of `row`; None without a key, or when the row lacks one of them."""
        try:
            return None if self.key is None else {name: row[name] for name in self.key}
        except KeyError:
            return None


def _conversions(relation: Relation) -> list[tuple[str, Converter]]:
    found = [(column.name, converter(column.type_oid, column.type_modifier)) for column in relation.columns]
    return [(name, convert) for name, convert in found if convert is not None]


class Assembler:
    """One stream's messages in, its items out.

    `reference` is any recent 64-bit transaction id of the server; `primary_key` answers, for `schema.table`, the names
    of the primary key's columns (empty without one) and is asked only under REPLICA IDENTITY FULL.
    """

    def __init__(self, *, source: str, epoch: int, reference: int, primary_key: Callable[[str], Sequence[str]]) -> None:
        self._source = source
        self._epoch = epoch
        self._reference = reference
        self._primary_key = primary_key
        self._tables: dict[int, _Table] = {}
        self._open = False
        self._lsn = 0
        self._order = 0
        self._stamp = Stamp(0)
        self._committed_at_ms = 0

    @property
    def inside(self) -> bool:
        """Whether a transaction has begun and not ended."""
        return self._open

    def add(self, message: PgMessage) -> Sequence[StreamItem]:
        """The items that `message` completes, in order. Raises BadRecord when it does not fit those before it."""
        kind = type(message)
        if kind is Insert:
            return self._insert(message)  # type: ignore[arg-type]  # `kind is` is the fast isinstance
        if kind is Update:
            return self._update(message)  # type: ignore[arg-type]
        match message:
            case Begin():
                self._begin(message)
            case Commit():
                return self._commit(message)
            case Delete():
                return self._delete(message)
            case Relation():
                self._relation(message)
            case Truncate():
                return [self._event(self._table(i), Op.TRUNCATE, None, None, None) for i in message.relations]
            case Message():
                return self._message(message)
            case Origin() | Type():
                pass
        return ()

    def _begin(self, begin: Begin) -> None:
        if self._open:
            raise BadRecord(f"transaction {begin.xid} begins inside transaction {self._stamp}")
        self._open = True
        self._lsn = begin.final_lsn
        self._order = 0
        self._stamp = Stamp(widen(begin.xid, self._reference))
        self._reference = max(self._reference, self._stamp)
        self._committed_at_ms = PG_EPOCH_MS + begin.time_us // 1000

    def _commit(self, commit: Commit) -> Sequence[Progress]:
        if not self._open or commit.lsn != self._lsn:
            raise BadRecord(f"commit at {commit.lsn:#x} without its begin (open: {self._open}, begun: {self._lsn:#x})")
        self._open = False
        return (Progress(commit.end_lsn, self._committed_at_ms),)

    def _relation(self, relation: Relation) -> None:
        key: Sequence[str] = [column.name for column in relation.columns if column.identity]
        if relation.replica_identity == "f":
            key = self._primary_key(f"{relation.namespace}.{relation.name}")
        self._tables[relation.id] = _Table(relation, key)

    def _message(self, message: Message) -> Sequence[SourceMessage]:
        if not message.transactional:
            return ()
        return (SourceMessage(message.prefix, message.content, self._next(), self._stamp),)

    def _insert(self, insert: Insert) -> Sequence[ChangeEvent]:
        table = self._table(insert.relation)
        row = table.row(insert.new)
        return (self._event(table, Op.CREATE, table.key_of(row), None, row),)

    def _update(self, update: Update) -> Sequence[ChangeEvent]:
        table = self._table(update.relation)
        new = update.new
        if UNCHANGED in new:
            new = table.filled(new, update.old, update.old_is_key)
        after = table.row(new)
        key = table.key_of(after)
        if update.old is None:
            return (self._event(table, Op.UPDATE, key, None, after),)
        before = self._before(table, update.old, update.old_is_key)
        old_key = table.key_of(before)
        if old_key is None or old_key == key:
            return (self._event(table, Op.UPDATE, key, before, after),)
        gone = self._event(table, Op.DELETE, old_key, before, None)
        return (gone, self._event(table, Op.CREATE, key, None, after))

    def _delete(self, delete: Delete) -> Sequence[ChangeEvent]:
        table = self._table(delete.relation)
        before = self._before(table, delete.old, delete.old_is_key)
        return (self._event(table, Op.DELETE, table.key_of(before), before, None),)

    def _before(self, table: _Table, old: Values, identity_only: bool) -> Row:
        row = table.row(table.filled(old, None, identity_only) if UNCHANGED in old else old)
        return {name: row[name] for name in table.identity} if identity_only else row

    def _event(self, table: _Table, op: Op, key: Row | None, before: Row | None, after: Row | None) -> ChangeEvent:
        return ChangeEvent(
            source=self._source,
            table=table.name,
            op=op,
            key=key,
            before=before,
            after=after,
            position=self._next(),
            stamp=self._stamp,
            committed_at_ms=self._committed_at_ms,
        )

    def _next(self) -> Position:
        if not self._open:
            raise BadRecord("a change outside of any transaction")
        position = Position(self._epoch, self._lsn, self._order)
        self._order += 1
        return position

    def _table(self, relation: int) -> _Table:
        try:
            return self._tables[relation]
        except KeyError:
            raise BadRecord(f"a change of relation {relation}, which was never described") from None
