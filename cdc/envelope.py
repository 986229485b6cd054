"""Debezium's wire form <-> change events. Pure.

Outward: `EnvelopeWriter` makes key, value and the `staleproof` header of a record. Inward: `decode_value` reads the
frame of an event and leaves both row images as raw JSON, because most events concern rows that nobody caches;
`decode_row` reads one of them. Whatever arrives, decoding raises BadRecord and nothing else.
The layouts are in docs/protocol.md, section 1.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cdc.connectors.pg_values import UNAVAILABLE, UNAVAILABLE_BYTES
from cdc.errors import BadRecord
from cdc.events import ChangeEvent, Op, Position, Row, Stamp

HEADER_NAME = "staleproof"
HEADER_WIDTH = 81
HEADER_VERSION = "1"

_NULL = msgspec.Raw(b"null")
_UNAVAILABLE = (UNAVAILABLE, UNAVAILABLE_BYTES, [UNAVAILABLE])


class RecordHeader(msgspec.Struct, frozen=True, gc=False):
    """Who wrote the record and where it stands; position and stamp as fixed-width hexadecimal text.

    `sequence` counts the records of one partition from 1, `previous` is that of the record before it (0: none).
    """

    position: str
    stamp: str
    sequence: int
    previous: int


class Source(msgspec.Struct, frozen=True, gc=False):
    """The part of `source` that we read. `lsn`, `tx_id` and `sequence` are None for incremental-snapshot rows."""

    name: str
    table: str = ""
    schema: str = ""
    db: str = ""
    connector: str = ""
    ts_ms: int = 0
    lsn: int | None = None
    tx_id: int | str | None = msgspec.field(name="txId", default=None)
    sequence: str | None = None
    snapshot: str | bool | None = None


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """One event's frame. `before` and `after` are the rows' JSON, unread, or None."""

    op: Op
    source: Source
    before_json: msgspec.Raw = msgspec.field(name="before", default=_NULL)
    after_json: msgspec.Raw = msgspec.field(name="after", default=_NULL)
    ts_ms: int | None = None

    @property
    def before(self) -> msgspec.Raw | None:
        """The row as it was, as far as the source's log repeats it."""
        return None if self.before_json == _NULL else self.before_json

    @property
    def after(self) -> msgspec.Raw | None:
        """The row as it is now."""
        return None if self.after_json == _NULL else self.after_json

    @property
    def table(self) -> str:
        """`schema.table` (just the table where the source has no schemas)."""
        source = self.source
        return f"{source.schema}.{source.table}" if source.schema else source.table


def decode_header(value: bytes | None) -> RecordHeader:
    """The `staleproof` header's fields. Raises BadRecord unless it is 81 bytes of version 1.

    The order within the transaction has 31 bits: a raise counts on from there.
    """
    if (
        value is None
        or len(value) != HEADER_WIDTH
        or value[0] != _VERSION
        or value[25] > _SEVEN
        or value.translate(None, _HEXADECIMAL)
    ):
        raise BadRecord(_header_fault(value))
    text = value.decode("ascii")
    return RecordHeader(text[1:33], text[33:49], int(text[49:65], 16), int(text[65:], 16))


def decode_value(value: bytes) -> Envelope:
    """The frame of one event, with or without Kafka Connect's `{"schema", "payload"}` wrapper. Raises BadRecord."""
    try:
        try:
            return _envelopes.decode(value)
        except msgspec.ValidationError:
            wrapper = _wrappers.decode(value)
            if wrapper.payload is msgspec.UNSET:
                raise
            return _envelopes.decode(wrapper.payload)
    except _UNREADABLE as error:
        raise _bad("event", value, error) from error


def decode_row(raw: bytes | msgspec.Raw) -> Row:
    """A row image as column name to value. Raises BadRecord."""
    try:
        return _rows.decode(raw)
    except _UNREADABLE as error:
        raise _bad("row image", bytes(raw), error) from error


def decode_key(key: bytes | None) -> Row | None:
    """A record's key as column name to value, wrapped or not; None for a record without one. Raises BadRecord."""
    if key is None:
        return None
    row = decode_row(key)
    payload = row.get("payload")
    return payload if row.keys() == {"schema", "payload"} and isinstance(payload, dict) else row


def decode_event(key: bytes | None, value: bytes, header: RecordHeader) -> ChangeEvent:
    """The whole change event behind one record of our own connector. Raises BadRecord."""
    envelope = decode_value(value)
    return ChangeEvent(
        source=envelope.source.name,
        table=envelope.table,
        op=envelope.op,
        key=decode_key(key),
        before=None if envelope.before is None else decode_row(envelope.before),
        after=None if envelope.after is None else decode_row(envelope.after),
        position=Position.parse(header.position),
        stamp=Stamp(int(header.stamp, 16)),
        committed_at_ms=envelope.source.ts_ms,
    )


def is_unavailable(value: Any) -> bool:
    """Whether a row's value is only Debezium's placeholder for a TOASTed value that the log did not repeat."""
    return value in _UNAVAILABLE


def encode_header(event: ChangeEvent, sequence: int, previous: int) -> bytes:
    """The 81 bytes of the `staleproof` header."""
    epoch, lsn, order = event.position.epoch, event.position.lsn, event.position.order
    return b"1%08x%016x%08x%016x%016x%016x" % (epoch, lsn, order, event.stamp, sequence, previous)


def encode_key(event: ChangeEvent) -> bytes | None:
    """The record's key: the key columns as JSON; None for an event without one."""
    return None if event.key is None else _encode(event.key)


class EnvelopeWriter:
    """Writes the values of one source's events. `version` is ours, `database` the database's name."""

    def __init__(self, *, name: str, database: str, version: str) -> None:
        self._head = (
            f'{{"version":{_text(version)},"connector":"postgresql","name":{_text(name)},"snapshot":"false",'
            f'"db":{_text(database)},'
        ).encode()
        self._tables: dict[str, bytes] = {}

    def value(self, event: ChangeEvent, now_us: int) -> bytes:
        """The event as Debezium's JSON. `now_us` is this process's clock, microseconds since 1970."""
        before, after = event.before, event.after
        return b'{"before":%b,"after":%b,"source":%b,"transaction":null,"op":"%b","ts_ms":%d,"ts_us":%d,"ts_ns":%d}' % (
            b"null" if before is None else _encode(before),
            b"null" if after is None else _encode(after),
            self._source(event),
            event.op.encode(),
            now_us // 1000,
            now_us,
            now_us * 1000,
        )

    def _source(self, event: ChangeEvent) -> bytes:
        table = self._tables.get(event.table)
        if table is None:
            table = self._tables[event.table] = self._table(event.table)
        ms, lsn = event.committed_at_ms, event.position.lsn
        return b'%b"ts_ms":%d,"ts_us":%d,"ts_ns":%d,"sequence":"[null,\\"%d\\"]","txId":%d,"lsn":%d,"xmin":null}' % (
            table,
            ms,
            ms * 1000,
            ms * 1_000_000,
            lsn,
            event.stamp,
            lsn,
        )

    def _table(self, table: str) -> bytes:
        schema, _, name = table.partition(".")
        return self._head + f'"schema":{_text(schema)},"table":{_text(name)},'.encode()


class _Wrapper(msgspec.Struct, frozen=True):
    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_VERSION = ord(HEADER_VERSION)
_SEVEN = ord("7")
_HEXADECIMAL = b"0123456789abcdef"
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
_encode = msgspec.json.Encoder().encode
_envelopes = msgspec.json.Decoder(Envelope)
_wrappers = msgspec.json.Decoder(_Wrapper)
_rows: msgspec.json.Decoder[Row] = msgspec.json.Decoder(dict[str, Any])


def _text(value: str) -> str:
    return _encode(value).decode()


def _bad(what: str, value: bytes, error: BaseException) -> BadRecord:
    # msgspec names the place ("`$.source.lsn`") and the kind of fault, never the value.
    return BadRecord(f"{what} of {len(value)} bytes cannot be read: {error}")


def _header_fault(value: bytes | None) -> str:
    if value is None or len(value) != HEADER_WIDTH:
        return f"header `{HEADER_NAME}` has {len(value or b'')} bytes, expected {HEADER_WIDTH}"
    if value[:1] != HEADER_VERSION.encode():
        return f"header `{HEADER_NAME}` is of version {value[:1]!r}; this release reads version 1: upgrade"
    if value[25] > _SEVEN:
        return f"header `{HEADER_NAME}` names an order of more than 31 bits"
    return f"header `{HEADER_NAME}` is not lower-case hexadecimal"
