"""PostgreSQL's logical replication messages: bytes -> messages. Pure; knows no socket, no table, no Kafka.

Protocol version 1 as plain text tuples, the form that `START_REPLICATION … (proto_version '1', messages 'true')` asks
for. Streaming and two-phase messages are refused: nothing of a transaction may be applied before its commit.
LSNs are 64-bit numbers, times are microseconds since 2000-01-01 as PostgreSQL sends them.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from struct import Struct as Layout
from struct import error as LayoutError  # noqa: N812 - `struct.error` is a class in disguise
from typing import Literal, TypeAlias

import msgspec

from cdc.errors import BadRecord, FatalError


class Unchanged(Enum):
    """The one value that is not a value: a TOASTed column that the update left alone and the log does not repeat."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED

Value: TypeAlias = str | Literal[Unchanged.UNCHANGED] | None
Values: TypeAlias = list[Value]
"""One tuple: a value per column of the relation, as PostgreSQL's text."""


class Begin(msgspec.Struct, frozen=True, gc=False):
    """A transaction follows. `final_lsn` is the start of its commit record, `xid` has 32 bits."""

    final_lsn: int
    time_us: int
    xid: int


class Commit(msgspec.Struct, frozen=True, gc=False):
    """The transaction is complete. `end_lsn` is the first byte after its commit record."""

    lsn: int
    end_lsn: int
    time_us: int


class Origin(msgspec.Struct, frozen=True, gc=False):
    """The transaction came from another server through replication."""

    lsn: int
    name: str


class Column(msgspec.Struct, frozen=True, gc=False):
    """A column as the relation message describes it; `identity` says whether it is part of the replica identity."""

    name: str
    type_oid: int
    type_modifier: int
    identity: bool


class Relation(msgspec.Struct, frozen=True, gc=False):
    """What a table looks like from here on. `replica_identity` is d(efault), n(othing), f(ull) or i(ndex)."""

    id: int
    namespace: str
    name: str
    replica_identity: str
    columns: tuple[Column, ...]


class Type(msgspec.Struct, frozen=True, gc=False):
    """The name of a type that is not built in."""

    oid: int
    namespace: str
    name: str


class Insert(msgspec.Struct, frozen=True, gc=False):
    """A new row."""

    relation: int
    new: Values


class Update(msgspec.Struct, frozen=True, gc=False):
    """A changed row. `old` is the whole old row (`old_is_key` false), its identity columns, or None when unchanged."""

    relation: int
    old: Values | None
    old_is_key: bool
    new: Values


class Delete(msgspec.Struct, frozen=True, gc=False):
    """A row that is gone; `old` as in Update."""

    relation: int
    old: Values
    old_is_key: bool


class Truncate(msgspec.Struct, frozen=True, gc=False):
    """Emptied tables. `options`: 1 = CASCADE, 2 = RESTART IDENTITY."""

    relations: tuple[int, ...]
    options: int


class Message(msgspec.Struct, frozen=True, gc=False):
    """What somebody wrote with `pg_logical_emit_message`; outside of any transaction when not `transactional`."""

    transactional: bool
    lsn: int
    prefix: str
    content: bytes


PgMessage: TypeAlias = Begin | Commit | Origin | Relation | Type | Insert | Update | Delete | Truncate | Message


def decode(data: bytes, start: int = 0) -> PgMessage:
    """The message in `data[start:]`.

    Raises BadRecord when the bytes do not form a message (the text names the offset from `start`), FatalError for a
    message that this connector did not ask for.
    """
    if len(data) <= start:
        raise BadRecord("pgoutput message is empty: expected a kind at byte 0")
    read = _READERS.get(data[start])
    if read is None:
        raise _unknown(data[start])
    try:
        message, end = read(data, start + 1)
    except _Malformed as error:
        raise _bad(data, start, f"{error.what} at byte {error.at - start}") from error.__cause__
    if end != len(data):
        raise _bad(data, start, f"its fields end at byte {end - start}")
    return message


def _bad(data: bytes, start: int, what: str) -> BadRecord:
    return BadRecord(f"pgoutput message {chr(data[start])!r} of {len(data) - start} bytes: {what}")


class _Malformed(Exception):
    def __init__(self, what: str, at: int) -> None:
        super().__init__(what, at)
        self.what = what
        self.at = at


def _unknown(kind: int) -> FatalError | BadRecord:
    if chr(kind) in "SEcAbPKrp":
        return FatalError(
            f"pgoutput sent {chr(kind)!r} (streaming or two-phase) at byte 0, which was not asked for: "
            "use a slot without two_phase and a staleproof that matches this server"
        )
    return BadRecord(f"pgoutput message has unknown kind {kind:#04x} at byte 0")


_BEGIN = Layout(">qqI")
_COMMIT = Layout(">Bqqq")
_LSN = Layout(">q")
_OID = Layout(">I")
_COUNT = Layout(">H")
_COLUMN = Layout(">Ii")
_ROW = Layout(">IB")
_TRUNCATE = Layout(">IB")
_MESSAGE = Layout(">Bq")
_length_at = _OID.unpack_from
_count_at = _COUNT.unpack_from

_NULL, _TOAST, _TEXT = b"n"[0], b"u"[0], b"t"[0]
_KEY, _OLD, _NEW = b"K"[0], b"O"[0], b"N"[0]


def _fixed(layout: Layout, data: bytes, at: int) -> tuple[int, ...]:
    try:
        return layout.unpack_from(data, at)
    except LayoutError as error:
        raise _Malformed("ends early", at) from error


def _string(data: bytes, at: int) -> tuple[str, int]:
    end = data.find(0, at)
    if end < 0:
        raise _Malformed("text without its closing zero", at)
    try:
        return data[at:end].decode(), end + 1
    except UnicodeDecodeError as error:
        raise _Malformed("text is not UTF-8", at) from error


def _values(data: bytes, at: int) -> tuple[Values, int]:
    """The hot loop. Slices never fail, so an overlong length shows only in `at`, compared once at the end."""
    values: Values = []
    add = values.append
    try:
        (count,) = _count_at(data, at)
        at += 2
        for _ in range(count):
            kind = data[at]
            if kind == _TEXT:
                begin = at + 5
                end = begin + _length_at(data, at + 1)[0]
                add(data[begin:end].decode())
                at = end
            elif kind == _NULL:
                add(None)
                at += 1
            elif kind == _TOAST:
                add(UNCHANGED)
                at += 1
            else:
                raise _Malformed(f"column of unknown kind {kind:#04x}", at)
    except (IndexError, LayoutError) as error:
        raise _Malformed("tuple ends early", min(at, len(data))) from error
    except UnicodeDecodeError as error:
        raise _Malformed("column is not UTF-8", at) from error
    if at > len(data):
        raise _Malformed("tuple ends early", len(data))
    return values, at


def _begin(data: bytes, at: int) -> tuple[Begin, int]:
    final_lsn, time_us, xid = _fixed(_BEGIN, data, at)
    return Begin(final_lsn, time_us, xid), at + _BEGIN.size


def _commit(data: bytes, at: int) -> tuple[Commit, int]:
    _flags, lsn, end_lsn, time_us = _fixed(_COMMIT, data, at)
    return Commit(lsn, end_lsn, time_us), at + _COMMIT.size


def _origin(data: bytes, at: int) -> tuple[Origin, int]:
    (lsn,) = _fixed(_LSN, data, at)
    name, at = _string(data, at + _LSN.size)
    return Origin(lsn, name), at


def _relation(data: bytes, at: int) -> tuple[Relation, int]:
    (relation,) = _fixed(_OID, data, at)
    namespace, at = _string(data, at + _OID.size)
    name, at = _string(data, at)
    (identity,) = data[at : at + 1] or b"?"
    (count,) = _fixed(_COUNT, data, at + 1)
    if chr(identity) not in "dnfi":
        raise _Malformed(f"unknown replica identity {identity:#04x}", at)
    at += 1 + _COUNT.size
    columns = []
    for _ in range(count):
        column, at = _column(data, at)
        columns.append(column)
    return Relation(relation, namespace or "pg_catalog", name, chr(identity), tuple(columns)), at


def _column(data: bytes, at: int) -> tuple[Column, int]:
    flags = data[at : at + 1]
    name, at = _string(data, at + 1)
    oid, modifier = _fixed(_COLUMN, data, at)
    return Column(name, oid, modifier, flags == b"\x01"), at + _COLUMN.size


def _type(data: bytes, at: int) -> tuple[Type, int]:
    (oid,) = _fixed(_OID, data, at)
    namespace, at = _string(data, at + _OID.size)
    name, at = _string(data, at)
    return Type(oid, namespace or "pg_catalog", name), at


def _insert(data: bytes, at: int) -> tuple[Insert, int]:
    relation, kind = _fixed(_ROW, data, at)
    if kind != _NEW:
        raise _Malformed("expected a new tuple (N)", at + 4)
    values, at = _values(data, at + 5)
    return Insert(relation, values), at


def _update(data: bytes, at: int) -> tuple[Update, int]:
    relation, kind = _fixed(_ROW, data, at)
    at += 5
    if kind == _NEW:
        new, at = _values(data, at)
        return Update(relation, None, False, new), at
    if kind not in (_KEY, _OLD):
        raise _Malformed("expected a tuple (K, O or N)", at - 1)
    old, at = _values(data, at)
    if data[at : at + 1] != b"N":
        raise _Malformed("expected a new tuple (N)", at)
    new, at = _values(data, at + 1)
    return Update(relation, old, kind == _KEY, new), at


def _delete(data: bytes, at: int) -> tuple[Delete, int]:
    relation, kind = _fixed(_ROW, data, at)
    if kind not in (_KEY, _OLD):
        raise _Malformed("expected an old tuple (K or O)", at + 4)
    old, at = _values(data, at + 5)
    return Delete(relation, old, kind == _KEY), at


def _truncate(data: bytes, at: int) -> tuple[Truncate, int]:
    count, options = _fixed(_TRUNCATE, data, at)
    at += _TRUNCATE.size
    if count > (len(data) - at) // 4:
        raise _Malformed(f"{count} relations do not fit", at)
    return Truncate(_fixed(Layout(f">{count}I"), data, at), options), at + 4 * count


def _message(data: bytes, at: int) -> tuple[Message, int]:
    flags, lsn = _fixed(_MESSAGE, data, at)
    prefix, at = _string(data, at + _MESSAGE.size)
    (size,) = _fixed(_OID, data, at)
    at += _OID.size
    return Message(bool(flags & 1), lsn, prefix, data[at : at + size]), at + size


_READERS: dict[int, Callable[[bytes, int], tuple[PgMessage, int]]] = {
    b"B"[0]: _begin,
    b"C"[0]: _commit,
    b"O"[0]: _origin,
    b"R"[0]: _relation,
    b"Y"[0]: _type,
    b"I"[0]: _insert,
    b"U"[0]: _update,
    b"D"[0]: _delete,
    b"T"[0]: _truncate,
    b"M"[0]: _message,
}
