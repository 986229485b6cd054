import json

import pytest

from cdc.connectors.pg_values import UNAVAILABLE, UNAVAILABLE_BYTES
from cdc.envelope import (
    EnvelopeWriter,
    RecordHeader,
    decode_event,
    decode_header,
    decode_key,
    decode_row,
    decode_value,
    encode_header,
    encode_key,
    is_unavailable,
)
from cdc.errors import BadRecord
from cdc.events import ChangeEvent, Op, Position

ROW = {"id": 42, "name": 'Zoë "Z"', "score": 1.5, "gone": None, "ok": True}
WRITER = EnvelopeWriter(name="shop", database='d"b', version="0.1.0")


def event(**changes):
    fields = {
        "source": "shop",
        "table": "public.contact",
        "op": Op.UPDATE,
        "key": {"id": 42},
        "before": {"id": 42},
        "after": ROW,
        "position": Position(7, 0x1_0000_00FF, 3),
        "stamp": 99,
        "committed_at_ms": 1_700_000_000_123,
    }
    return ChangeEvent(**fields | changes)


def test_the_value_has_debeziums_fields():
    value = json.loads(WRITER.value(event(), 1_700_000_000_456_789))
    assert value == {
        "before": {"id": 42},
        "after": ROW,
        "source": {
            "version": "0.1.0",
            "connector": "postgresql",
            "name": "shop",
            "snapshot": "false",
            "db": 'd"b',
            "schema": "public",
            "table": "contact",
            "ts_ms": 1_700_000_000_123,
            "ts_us": 1_700_000_000_123_000,
            "ts_ns": 1_700_000_000_123_000_000,
            "sequence": '[null,"4294967551"]',
            "txId": 99,
            "lsn": 4294967551,
            "xmin": None,
        },
        "transaction": None,
        "op": "u",
        "ts_ms": 1_700_000_000_456,
        "ts_us": 1_700_000_000_456_789,
        "ts_ns": 1_700_000_000_456_789_000,
    }


def test_the_key_is_compact_json():
    assert encode_key(event(key={"a": 1, "b": "ü"})) == '{"a":1,"b":"ü"}'.encode()
    assert encode_key(event(key=None)) is None


def test_an_event_survives_the_wire():
    original = event()
    header = decode_header(encode_header(original, 5, 4))
    assert decode_event(encode_key(original), WRITER.value(original, 0), header) == original


def test_the_header_has_81_bytes_in_the_documented_order():
    data = encode_header(event(), 5, 4)
    assert data == b"1" + b"00000007" + b"00000001000000ff" + b"00000003" + b"%016x" % 99 + b"%016x" % 5 + b"%016x" % 4
    assert len(data) == 81
    assert decode_header(data) == RecordHeader("0000000700000001000000ff00000003", f"{99:016x}", 5, 4)


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"",
        b"1" * 80,
        b"1" * 82,
        b"2" + b"0" * 80,
        b"1" + b"A" * 80,
        b"1" + b"g" * 80,
        b"1" + b" " * 80,
        b"1" + b"_" * 80,
    ],
)
def test_other_headers_are_refused(data):
    with pytest.raises(BadRecord, match="staleproof"):
        decode_header(data)


def test_the_frame_leaves_the_rows_unread():
    envelope = decode_value(WRITER.value(event(), 0))
    assert (envelope.op, envelope.table, envelope.source.tx_id) == (Op.UPDATE, "public.contact", 99)
    assert decode_row(envelope.after) == ROW
    assert decode_row(envelope.before) == {"id": 42}


def test_an_absent_image_is_none():
    envelope = decode_value(WRITER.value(event(op=Op.TRUNCATE, before=None, after=None), 0))
    assert (envelope.before, envelope.after) == (None, None)
    assert decode_value(b'{"op":"d","source":{"name":"shop"}}').after is None


def test_the_schema_wrapper_is_accepted():
    bare = WRITER.value(event(), 0)
    wrapped = b'{"schema":{"type":"struct"},"payload":' + bare + b"}"
    assert decode_value(wrapped) == decode_value(bare)
    assert decode_key(b'{"schema":{},"payload":{"id":42}}') == {"id": 42} == decode_key(b'{"id":42}')


def test_a_table_may_have_columns_called_schema_and_payload():
    assert decode_key(b'{"schema":"a","payload":"b"}') == {"schema": "a", "payload": "b"}


def test_rows_of_an_incremental_snapshot_have_no_place_in_the_log():
    source = decode_value(b'{"op":"r","source":{"name":"s","lsn":null,"txId":null,"sequence":null}}').source
    assert (source.lsn, source.tx_id, source.sequence) == (None, None, None)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"op":"c"}',
        b'{"op":"?","source":{"name":"s"}}',
        b'{"op":"c","source":{"name":1}}',
        b'{"op":"c","source":{"name":"s","lsn":NaN}}',
        b'{"op":"c","source":{"name":"s","lsn":' + b"9" * 5000 + b"}}",
        b'{"op":"c","source":{"name":"s"},"after":' + b"[" * 100_000,
        b'{"op":"c","source":{"name":"s"},"after":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"op":"c","source":{"name":"\xff"}}',
        b'{"schema":null,"payload":null}',
        b'{"schema":null,"payload":{"payload":{}}}',
    ],
)
def test_bad_events_are_bad_records(value):
    with pytest.raises(BadRecord, match="event of"):
        decode_value(value)


@pytest.mark.parametrize(
    "row",
    [
        b"",
        b"[1]",
        b'{"a":NaN}',
        b'{"a":1e999}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b"[" * 100_000,
    ],
)
def test_bad_rows_are_bad_records(row):
    with pytest.raises(BadRecord, match="row image"):
        decode_row(row)


def test_placeholders_are_recognised_in_every_rendering():
    assert all(is_unavailable(value) for value in (UNAVAILABLE, UNAVAILABLE_BYTES, [UNAVAILABLE]))
    assert not any(is_unavailable(value) for value in ("", None, 1, [], "x", {}))
