import json

import pytest

from cdc.control import EpochStarted, Heartbeat, Raise, decode_control, encode_control
from cdc.errors import BadRecord
from cdc.events import Position
from cdc.snapshots import parse_pg_snapshot

HEARTBEAT = Heartbeat(
    source="shop",
    history="7:1",
    number=3,
    position=Position(5, 600, 0).text,
    stamp=44,
    snapshot="40:44:41",
    time_ms=1_700_000_000_000,
    barriers={"shop.public.contact": [5, 0, 7]},
)
RECORDS = [
    HEARTBEAT,
    EpochStarted(source="shop", history="7:1", epoch=5, reason="first start", lsn=0x1F4, stamp=44),
    Raise(source="shop", position=Position(5, 600, 0).text, region=None, view="contact", reason="ddl"),
    Raise(source="shop", position="", region="eu", view="contact", key="contact:1", reason="an operator", stamp=7),
    Raise(source="shop", position="", region=None, view=None, table="public.contact", reason="ddl"),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_survives_the_wire(record):
    assert decode_control(encode_control(record)) == record


def test_a_heartbeat_reads_its_own_texts():
    assert HEARTBEAT.at == Position(5, 600, 0)
    assert HEARTBEAT.seen == parse_pg_snapshot("7:1", "40:44:41")
    assert HEARTBEAT.own_stamp == 44


@pytest.mark.parametrize(
    "field, value", [("v", 2), ("position", "0"), ("snapshot", "1:2"), ("barriers", 5), ("kind", "?")]
)
def test_a_record_that_cannot_be_trusted_is_refused(field, value):
    record = json.loads(encode_control(HEARTBEAT)) | {field: value}
    with pytest.raises(BadRecord):
        decode_control(json.dumps(record).encode())


def test_an_epoch_of_a_release_that_did_not_say_where_it_begins_is_read():
    record = b'{"kind":"epoch","v":1,"source":"shop","history":"7:1","epoch":5,"reason":"first start"}'
    assert decode_control(record) == EpochStarted(source="shop", history="7:1", epoch=5, reason="first start")


@pytest.mark.parametrize(
    "scope, complaint",
    [
        ({"key": "contact:1"}, "names no view"),
        ({"table": "public.contact", "view": "contact"}, "raise of a table"),
        ({"table": "public.contact", "key": "contact:1"}, "raise of a table"),
    ],
)
def test_a_raise_that_names_no_one_scope_is_refused(scope, complaint):
    record = {"kind": "raise", "v": 1, "source": "shop", "position": "", "region": None, "view": None, "reason": "x"}
    with pytest.raises(BadRecord, match=complaint):
        decode_control(json.dumps(record | scope).encode())


@pytest.mark.parametrize("value", [b"", b"null", b"{}", b"\xff", b"[" * 10_000])
def test_other_bytes_are_refused(value):
    with pytest.raises(BadRecord):
        decode_control(value)
