"""Decoder and assembler on hand-made bytes, as PostgreSQL's documentation lays them out."""

import struct

import pytest

from cdc.connectors.assembler import PG_EPOCH_MS, Assembler, widen
from cdc.connectors.base import Progress, SourceMessage
from cdc.connectors.pg_values import UNAVAILABLE, UNAVAILABLE_BYTES, converter
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
from cdc.events import ChangeEvent, Op, Position

INSERT = b"I\x00\x00\x00\x07N\x00\x03t\x00\x00\x00\x0242nu"


def text(value):
    return b"t" + struct.pack(">I", len(value)) + value


def test_begin_names_the_commit_record_and_a_32_bit_xid():
    assert decode(b"B" + struct.pack(">qqI", 500, 7, 4_000_000_000)) == Begin(500, 7, 4_000_000_000)


def test_commit_names_its_end():
    assert decode(b"C" + struct.pack(">Bqqq", 0, 500, 548, 7)) == Commit(500, 548, 7)


def test_an_insert_has_text_null_and_unchanged_columns():
    assert decode(INSERT) == Insert(7, ["42", None, UNCHANGED])


def test_a_start_offset_skips_the_replication_header():
    assert decode(b"w" * 25 + INSERT, 25) == decode(INSERT)


@pytest.mark.parametrize("kind, old_is_key", [(b"K", True), (b"O", False)])
def test_an_update_tells_key_images_from_whole_rows(kind, old_is_key):
    tuples = kind + b"\x00\x01" + text(b"1") + b"N\x00\x01" + text("ü".encode())
    assert decode(b"U\x00\x00\x00\x07" + tuples) == Update(7, ["1"], old_is_key, ["ü"])


def test_an_update_without_an_old_row():
    assert decode(b"U\x00\x00\x00\x07N\x00\x01" + text(b"1")) == Update(7, None, False, ["1"])


def test_a_delete():
    assert decode(b"D\x00\x00\x00\x07K\x00\x01" + text(b"1")) == Delete(7, ["1"], True)


def test_a_truncate_lists_its_relations():
    assert decode(b"T" + struct.pack(">IBII", 2, 1, 7, 8)) == Truncate((7, 8), 1)


def test_a_message_keeps_its_bytes():
    data = b"M" + struct.pack(">Bq", 1, 99) + b"app\0" + struct.pack(">I", 3) + b"\x00\xff\x01"
    assert decode(data) == Message(True, 99, "app", b"\x00\xff\x01")


def test_relation_type_and_origin():
    columns = b"\x01id\0" + struct.pack(">Ii", 23, -1) + b"\x00n\0" + struct.pack(">Ii", 25, -1)
    relation = b"R" + struct.pack(">I", 7) + b"public\0contact\0d" + struct.pack(">H", 2) + columns
    expected = Relation(7, "public", "contact", "d", (Column("id", 23, -1, True), Column("n", 25, -1, False)))
    assert decode(relation) == expected
    assert decode(b"Y" + struct.pack(">I", 9) + b"public\0mood\0") == Type(9, "public", "mood")
    assert decode(b"O" + struct.pack(">q", 9) + b"other\0") == Origin(9, "other")


@pytest.mark.parametrize("length", range(1, len(INSERT)))
def test_every_truncated_insert_is_refused(length):
    with pytest.raises(BadRecord, match="byte"):
        decode(INSERT[:length])


@pytest.mark.parametrize(
    "data, place",
    [
        (b"", "byte 0"),
        (b"?", "byte 0"),
        (INSERT + b"\0", "end at byte 17"),
        (b"I\x00\x00\x00\x07X\x00\x00", "byte 5"),
        (b"I\x00\x00\x00\x07N\x00\x01t\xff\xff\xff\xff1", "byte 14"),
        (b"I\x00\x00\x00\x07N\x00\x01t\x00\x00\x00\x01\xff", "byte 8"),
        (b"I\x00\x00\x00\x07N\x00\x01z", "byte 8"),
        (b"T\xff\xff\xff\xff\x00", "byte 6"),
        (b"M\x01" + bytes(8) + b"no closing zero", "byte 10"),
    ],
)
def test_malformed_bytes_are_refused_and_the_place_is_named(data, place):
    with pytest.raises(BadRecord, match=place):
        decode(data)


@pytest.mark.parametrize("kind", list("SEcAbPKrp"))
def test_streamed_and_prepared_transactions_stop_the_process(kind):
    with pytest.raises(FatalError, match="not asked for"):
        decode(kind.encode() + bytes(30))


# -- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "oid, modifier, value, expected",
    [
        (16, -1, "t", True),
        (16, -1, "f", False),
        (20, -1, "-9223372036854775808", -(2**63)),
        (26, -1, "4294967295", 2**32 - 1),
        (701, -1, "0.1", 0.1),
        (701, -1, "NaN", "NaN"),
        (700, -1, "-Infinity", "-Infinity"),
        (1700, -1, "1.50", "1.50"),
        (1082, -1, "1970-01-02", 1),
        (1082, -1, "1969-12-31", -1),
        (1082, -1, "12345-01-01", 3_789_391),
        (1082, -1, "infinity", "infinity"),
        (1082, -1, "0044-03-15 BC", "0044-03-15 BC"),
        (1114, -1, "1970-01-01 00:00:01.5", 1_500_000),
        (1114, 6, "1969-12-31 23:59:59.999999", -1),
        (1114, -1, "2001-09-09 01:46:40.5", 1_000_000_000_500_000),
        (1114, -1, "20010-09-09 01:46:40", 569_309_132_800_000_000),
        (1114, 3, "1970-01-01 00:00:01.5", 1_500),
        (1114, 0, "1969-12-31 23:59:59", -1_000),
        (1114, -1, "-infinity", "-infinity"),
        (1114, -1, "0044-03-15 10:00:00 BC", "0044-03-15 10:00:00 BC"),
        (1083, -1, "01:02:03.000004", 3_723_000_004),
        (1083, 3, "01:02:03.004", 3_723_004),
        (1184, -1, "2026-01-02 03:04:05.678+00", "2026-01-02T03:04:05.678Z"),
        (1184, -1, "infinity", "infinity"),
        (17, -1, "\\x00ff", "AP8="),
        (17, -1, UNAVAILABLE_BYTES, UNAVAILABLE_BYTES),
    ],
)
def test_values_are_rendered_as_debezium_does(oid, modifier, value, expected):
    convert = converter(oid, modifier)
    rendered = value if convert is None else convert(value)
    assert rendered == expected
    assert type(rendered) is type(expected)


@pytest.mark.parametrize("oid", [25, 1043, 1042, 2950, 114, 3802, 1700, 99_999, 1007])
def test_other_types_stay_text(oid):
    assert converter(oid, -1) is None


# -- assembler -------------------------------------------------------------------------------------------------------


def relation(identity="d", key=("id",), columns=(("id", 23), ("name", 25), ("photo", 17)), number=7):
    described = tuple(Column(name, oid, -1, name in key) for name, oid in columns)
    return Relation(number, "public", "contact", identity, described)


def assembler(primary_key=lambda table: (), reference=1000, table=None):
    made = Assembler(source="shop", epoch=3, reference=reference, primary_key=primary_key)
    made.add(table or relation())
    made.add(Begin(500, 1_000_000, 42))
    return made


def test_a_transaction_counts_its_changes_and_ends_in_progress():
    made = assembler()
    (first,) = made.add(Insert(7, ["1", "a", None]))
    (second,) = made.add(Insert(7, ["2", "b", None]))
    assert first == ChangeEvent(
        source="shop",
        table="public.contact",
        op=Op.CREATE,
        key={"id": 1},
        before=None,
        after={"id": 1, "name": "a", "photo": None},
        position=Position(3, 500, 0),
        stamp=42,
        committed_at_ms=PG_EPOCH_MS + 1_000,
    )
    assert second.position == Position(3, 500, 1)
    assert made.inside
    assert list(made.add(Commit(500, 548, 1_000_000))) == [Progress(548, PG_EPOCH_MS + 1_000)]
    assert not made.inside


def test_the_order_starts_again_with_each_transaction():
    made = assembler()
    made.add(Insert(7, ["1", "a", None]))
    made.add(Commit(500, 548, 0))
    made.add(Begin(600, 0, 43))
    (event,) = made.add(Insert(7, ["1", "a", None]))
    assert event.position == Position(3, 600, 0)


def test_a_delete_has_only_what_the_log_repeats():
    (event,) = assembler().add(Delete(7, ["1", None, None], True))
    assert (event.op, event.key, event.before, event.after) == (Op.DELETE, {"id": 1}, {"id": 1}, None)


def test_a_moved_row_is_a_delete_and_a_create():
    gone, created = assembler().add(Update(7, ["1", None, None], True, ["2", "a", None]))
    assert (gone.op, gone.key, gone.before) == (Op.DELETE, {"id": 1}, {"id": 1})
    assert (created.op, created.key, created.before) == (Op.CREATE, {"id": 2}, None)
    assert gone.position < created.position


def test_an_update_that_keeps_its_key_is_one_event():
    (event,) = assembler().add(Update(7, ["1", None, None], True, ["1", "b", None]))
    assert (event.op, event.key) == (Op.UPDATE, {"id": 1})


def test_an_unchanged_toasted_value_is_a_placeholder():
    (event,) = assembler().add(Update(7, None, False, ["1", UNCHANGED, UNCHANGED]))
    assert event.after == {"id": 1, "name": UNAVAILABLE, "photo": UNAVAILABLE_BYTES}


def test_a_key_image_does_not_fill_unchanged_columns_with_its_nulls():
    _, created = assembler().add(Update(7, ["1", None, None], True, ["2", UNCHANGED, None]))
    assert created.after["name"] == UNAVAILABLE


def test_a_full_image_fills_unchanged_columns():
    made = assembler(lambda table: ("id",), table=relation("f", key=("id", "name", "photo")))
    (event,) = made.add(Update(7, ["1", "long", "\\x01"], False, ["1", UNCHANGED, UNCHANGED]))
    assert event.after == {"id": 1, "name": "long", "photo": "AQ=="} == event.before


def test_a_long_toasted_key_is_taken_from_the_key_image():
    made = assembler(table=relation(key=("name",)))
    (event,) = made.add(Update(7, [None, "long", None], True, ["1", UNCHANGED, None]))
    assert (event.op, event.key) == (Op.UPDATE, {"name": "long"})


def test_under_full_identity_the_primary_key_is_asked_for():
    asked = []
    made = assembler(lambda table: asked.append(table) or ("id",), table=relation("f", key=("id", "name", "photo")))
    (event,) = made.add(Delete(7, ["1", "a", None], False))
    assert asked == ["public.contact"]
    assert (event.key, event.before) == ({"id": 1}, {"id": 1, "name": "a", "photo": None})


def test_a_table_without_a_key_gives_events_without_one():
    (event,) = assembler(table=relation("n", key=())).add(Insert(7, ["1", "a", None]))
    assert event.key is None


def test_a_truncate_is_one_event_per_table_without_a_key():
    made = assembler()
    events = made.add(Truncate((7, 7), 0))
    assert [(e.op, e.key, e.before, e.after, e.position.order) for e in events] == [
        (Op.TRUNCATE, None, None, None, 0),
        (Op.TRUNCATE, None, None, None, 1),
    ]


def test_a_transactional_message_has_a_position():
    (message,) = assembler().add(Message(True, 1, "app", b"x"))
    assert message == SourceMessage("app", b"x", Position(3, 500, 0), 42)


def test_a_message_outside_of_transactions_is_left_out():
    made = Assembler(source="shop", epoch=1, reference=0, primary_key=lambda table: ())
    assert list(made.add(Message(False, 1, "app", b"x"))) == []


@pytest.mark.parametrize(
    "messages",
    [
        [Insert(8, ["1", "a", None])],
        [Insert(7, ["1"])],
        [Insert(7, ["one", "a", None])],
        [Insert(7, ["1", "a", "escape"])],
        [Begin(600, 0, 1)],
        [Commit(600, 648, 0)],
        [Commit(500, 548, 0), Insert(7, ["1", "a", None])],
    ],
)
def test_messages_that_do_not_fit_are_refused(messages):
    made = assembler()
    for message in messages[:-1]:
        made.add(message)
    with pytest.raises(BadRecord) as caught:
        made.add(messages[-1])
    assert "escape" not in str(caught.value)


@pytest.mark.parametrize(
    "xid, reference, expected",
    [
        (5, 5, 5),
        (5, 2**32 - 3, 2**32 + 5),
        (2**32 - 3, 2**32 + 5, 2**32 - 3),
        (7, 3 * 2**32 + 9, 3 * 2**32 + 7),
        (4_000_000_000, 10, 4_000_000_000),
    ],
)
def test_widening_takes_the_nearest_number(xid, reference, expected):
    assert widen(xid, reference) == expected


def test_the_stamps_of_a_long_stream_follow_the_counter_around():
    made = Assembler(source="shop", epoch=1, reference=2**32 - 2, primary_key=lambda table: ())
    stamps = []
    for xid in (2**32 - 1, 3, 2**31, 5):
        made.add(Begin(1, 0, xid))
        (message,) = made.add(Message(True, 1, "app", b""))
        stamps.append(message.stamp)
        made.add(Commit(1, 2, 0))
    assert stamps == [2**32 - 1, 2**32 + 3, 2**32 + 2**31, 2**32 + 5]
