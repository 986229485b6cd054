import pytest

from cdc.events import (
    Position,
    PrimarySnapshot,
    StandbySnapshot,
    lsn_text,
    parse_lsn,
    parse_pg_snapshot,
    stamp_text,
)


def test_positions_compare_by_epoch_then_lsn_then_order():
    first, second, third, last = Position(1, 5, 9), Position(1, 6, 0), Position(2, 0, 0), Position(2, 0, 1)
    assert sorted([last, second, third, first]) == [first, second, third, last]


def test_position_texts_sort_like_positions():
    positions = [Position(0, 2**64 - 1, 2**32 - 1), Position(1, 9, 10), Position(1, 10, 9), Position(2**32 - 1, 0, 0)]
    assert sorted(p.text for p in positions) == [p.text for p in positions]
    assert all(len(p.text) == 32 and Position.parse(p.text) == p for p in positions)


@pytest.mark.parametrize("text", ["", "0" * 31, "0" * 33, "x" * 32])
def test_other_texts_are_not_positions(text):
    with pytest.raises(ValueError):
        Position.parse(text)


def test_stamp_texts_sort_like_stamps():
    assert stamp_text(9) < stamp_text(10) < stamp_text(2**64 - 1)


SNAPSHOT = PrimarySnapshot("s:1", 10, 20, (10, 15, 18))


@pytest.mark.parametrize(
    "stamp, covered", [(9, True), (10, False), (11, True), (15, False), (19, True), (20, False), (21, False)]
)
def test_a_snapshot_covers_what_was_complete(stamp, covered):
    assert SNAPSHOT.covers(stamp) is covered
    assert SNAPSHOT.covers_range(stamp, stamp) is covered


@pytest.mark.parametrize(
    "low, high, covered",
    [
        (0, 9, True),
        (0, 10, False),
        (11, 14, True),
        (11, 15, False),
        (16, 17, True),
        (16, 19, False),
        (19, 19, True),
        (19, 20, False),
    ],
)
def test_a_snapshot_covers_a_range_only_without_a_running_transaction_in_it(low, high, covered):
    assert SNAPSHOT.covers_range(low, high) is covered


def test_a_range_is_covered_exactly_when_each_of_its_stamps_is():
    for low in range(8, 22):
        for high in range(low, 22):
            assert SNAPSHOT.covers_range(low, high) == all(SNAPSHOT.covers(s) for s in range(low, high + 1))


def test_a_standby_is_believed_only_below_xmin_or_below_its_replay_position():
    standby = StandbySnapshot("s:1", 10, 500)
    assert standby.covers(9)
    assert not standby.covers(10)
    assert standby.covers(10, Position(1, 499, 0))
    assert not standby.covers(10, Position(1, 500, 0))
    assert not standby.covers_range(1, 12)


def test_postgresqls_text_is_read():
    assert parse_pg_snapshot("s:1", "10:20:18,10,15") == SNAPSHOT
    assert parse_pg_snapshot("s:1", "10:10:") == PrimarySnapshot("s:1", 10, 10)


@pytest.mark.parametrize("text", ["", "1:2", "1:2:3:4", "a:b:c"])
def test_other_texts_are_not_snapshots(text):
    with pytest.raises(ValueError):
        parse_pg_snapshot("s:1", text)


def test_snapshot_texts_have_fixed_width():
    assert SNAPSHOT.text == "p" + "".join(f"{n:016x}" for n in (10, 20, 10, 15, 18))
    assert StandbySnapshot("s:1", 10, 500).text == f"s{10:016x}{500:016x}"


def test_lsns_are_written_as_postgresql_does():
    assert parse_lsn("16/B374D848") == 0x16_B374_D848
    assert lsn_text(0x16_B374_D848) == "16/B374D848"
