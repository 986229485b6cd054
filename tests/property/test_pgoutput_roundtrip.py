"""What an encoder written from PostgreSQL's documentation produces is what the decoder reads."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.connectors.pgoutput import (
    UNCHANGED,
    Begin,
    Column,
    Commit,
    Delete,
    Insert,
    Message,
    Origin,
    Relation,
    Truncate,
    Type,
    Update,
    decode,
)
from cdc.errors import BadRecord, FatalError


def string(text):
    return text.encode() + b"\0"


def tuple_bytes(values):
    out = struct.pack(">H", len(values))
    for value in values:
        if value is None:
            out += b"n"
        elif value is UNCHANGED:
            out += b"u"
        else:
            out += b"t" + struct.pack(">I", len(value.encode())) + value.encode()
    return out


def encode(m):
    match m:
        case Begin():
            return b"B" + struct.pack(">qqI", m.final_lsn, m.time_us, m.xid)
        case Commit():
            return b"C" + struct.pack(">Bqqq", 0, m.lsn, m.end_lsn, m.time_us)
        case Origin():
            return b"O" + struct.pack(">q", m.lsn) + string(m.name)
        case Type():
            return b"Y" + struct.pack(">I", m.oid) + string(m.namespace) + string(m.name)
        case Relation():
            head = b"R" + struct.pack(">I", m.id) + string(m.namespace) + string(m.name) + m.replica_identity.encode()
            columns = [
                bytes([c.identity]) + string(c.name) + struct.pack(">Ii", c.type_oid, c.type_modifier)
                for c in m.columns
            ]
            return head + struct.pack(">H", len(columns)) + b"".join(columns)
        case Insert():
            return b"I" + struct.pack(">I", m.relation) + b"N" + tuple_bytes(m.new)
        case Update():
            old = b"" if m.old is None else (b"K" if m.old_is_key else b"O") + tuple_bytes(m.old)
            return b"U" + struct.pack(">I", m.relation) + old + b"N" + tuple_bytes(m.new)
        case Delete():
            return b"D" + struct.pack(">I", m.relation) + (b"K" if m.old_is_key else b"O") + tuple_bytes(m.old)
        case Truncate():
            return b"T" + struct.pack(f">IB{len(m.relations)}I", len(m.relations), m.options, *m.relations)
        case Message():
            head = b"M" + struct.pack(">Bq", m.transactional, m.lsn) + string(m.prefix)
            return head + struct.pack(">I", len(m.content)) + m.content


oids = st.integers(0, 2**32 - 1)
longs = st.integers(0, 2**63 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=10)
rows = st.lists(st.none() | st.just(UNCHANGED) | texts, max_size=8)
columns = st.builds(Column, names, oids, st.integers(-1, 2**31 - 1), st.booleans())
updates = st.builds(Update, oids, st.none(), st.just(False), rows) | st.builds(Update, oids, rows, st.booleans(), rows)
messages = st.one_of(
    st.builds(Begin, longs, longs, oids),
    st.builds(Commit, longs, longs, longs),
    st.builds(Origin, longs, names),
    st.builds(Type, oids, names, names),
    st.builds(Relation, oids, names, names, st.sampled_from("dnfi"), st.lists(columns, max_size=5).map(tuple)),
    st.builds(Insert, oids, rows),
    updates,
    st.builds(Delete, oids, rows, st.booleans()),
    st.builds(Truncate, st.lists(oids, max_size=5).map(tuple), st.integers(0, 3)),
    st.builds(Message, st.booleans(), longs, names, st.binary(max_size=30)),
)


@given(messages, st.binary(max_size=30))
def test_what_was_encoded_is_decoded(message, header):
    assert decode(header + encode(message), len(header)) == message


@given(messages, st.data())
def test_a_message_cut_short_is_always_refused(message, data):
    encoded = encode(message)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(BadRecord, match="byte"):
        decode(encoded[:cut])


@given(messages, st.data())
def test_a_damaged_message_is_read_or_refused_but_never_fails_otherwise(message, data):
    damaged = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with suppress(BadRecord, FatalError):
        decode(bytes(damaged))
