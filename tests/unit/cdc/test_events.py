import pytest

from cdc.events import Position, lsn_text, parse_lsn, split_stamps, stamp_text


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


def test_stamps_in_a_row_come_apart():
    assert split_stamps("") == ()
    assert split_stamps(stamp_text(9) + stamp_text(10)) == (stamp_text(9), stamp_text(10))


def test_lsns_are_written_as_postgresql_does():
    assert parse_lsn("16/B374D848") == 0x16_B374_D848
    assert lsn_text(0x16_B374_D848) == "16/B374D848"
