"""Rows of any content survive the wire, and no bytes make the decoder fail in any way but its own."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.envelope import (
    EnvelopeWriter,
    decode_event,
    decode_header,
    decode_key,
    decode_row,
    decode_value,
    encode_header,
    encode_key,
)
from cdc.errors import BadRecord
from cdc.events import ChangeEvent, Op, Position, Stamp

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
rows = st.dictionaries(texts, values, max_size=6)
words = st.integers(0, 2**32 - 1)
orders = st.integers(0, 2**31 - 1)
longs = st.integers(0, 2**63 - 1)
tables = st.builds(lambda schema, table: f"{schema}.{table}", texts.filter(lambda t: t and "." not in t), texts)
events = st.builds(
    ChangeEvent,
    source=texts,
    table=tables,
    op=st.sampled_from(Op),
    key=st.none() | rows.filter(lambda row: row.keys() != {"schema", "payload"}),
    before=st.none() | rows,
    after=st.none() | rows,
    position=st.builds(Position, words, longs, orders),
    stamp=longs.map(Stamp),
    committed_at_ms=st.integers(0, 2**42),
)


@given(events, longs, longs)
def test_any_event_survives_the_wire(event, sequence, previous):
    value = EnvelopeWriter(name=event.source, database="db", version="1").value(event, 1_700_000_000_000_000)
    header = decode_header(encode_header(event, sequence, previous))
    assert decode_event(encode_key(event), value, header) == event
    assert (header.sequence, header.previous) == (sequence, previous)
    assert json.loads(value)["after"] == event.after


fragments = st.sampled_from(
    [
        b"NaN",
        b"Infinity",
        b"[" * 3000,
        b'{"a":' * 3000,
        b"9" * 5000,
        b"-" + b"9" * 5000,
        b"1e999",
        b"\xff\xfe",
        b'"\\ud800"',
        b"\0",
        b"null",
        b"true",
        b"{}",
        b"[]",
        b'""',
        b"1.5",
        b'{"schema":{},"payload":',
        b'{"op":"c","source":{"name":"s"},"after":',
        b"}",
        b",",
    ]
)
noise = st.binary(max_size=40) | st.lists(fragments, max_size=6).map(b"".join)
wires = events.map(lambda event: EnvelopeWriter(name=event.source, database="db", version="1").value(event, 0))


def read(value):
    """Everything that a reader may ask of a record; only BadRecord may come out."""
    for decode in (decode_header, decode_key):
        with suppress(BadRecord):
            decode(value)
    with suppress(BadRecord):
        envelope = decode_value(value)
        for raw in (envelope.before, envelope.after):
            if raw is not None:
                decode_row(raw)
        assert isinstance(envelope.table, str)


@given(noise)
def test_no_noise_escapes_as_another_error(value):
    read(value)


@given(wires, noise, st.data())
def test_no_damage_escapes_as_another_error(value, inserted, data):
    begin = data.draw(st.integers(0, len(value)))
    end = data.draw(st.integers(begin, len(value)))
    read(value[:begin] + inserted + value[end:])


@given(wires, st.data())
def test_an_event_cut_short_is_refused(value, data):
    with pytest.raises(BadRecord):
        decode_value(value[: data.draw(st.integers(0, len(value) - 1))])
