import pytest

from cdc.events import Position, stamp_text
from cdc.snapshots import (
    NOWHERE,
    Origins,
    Snapshot,
    covers,
    covers_range,
    parse_mariadb_position,
    parse_mysql_gtid_set,
    parse_pg_snapshot,
    parse_pg_standby_snapshot,
)

OWN = "3e11fa47-71ca-11e1-9e33-c80aa9429562"
OTHER = "a0b1c2d3-0000-11ef-8123-000000000001"
STRANGER = "ffffffff-0000-11ef-8123-000000000002"
ORIGINS = Origins(f"{OWN}:1", (OWN, OTHER, f"{OWN}:bulk"))
DOMAINS = Origins("1:1", ("7", "0", "4294967295"))


def seen_range(snapshot: Snapshot, low: int, high: int) -> bool:
    return covers_range(snapshot.text, stamp_text(low), stamp_text(high), NOWHERE)


def written(*intervals: tuple[int, int]) -> str:
    return "g" + "".join(f"{low:016x}{high:016x}" for low, high in intervals)


# --- PostgreSQL -----------------------------------------------------------------------------------------------------

PRIMARY = parse_pg_snapshot("7:1", "10:20:18,10,15")


def test_a_primarys_snapshot_is_written_with_fixed_width_and_ascending():
    assert PRIMARY.history == "7:1"
    assert PRIMARY.text == "p" + "".join(f"{n:016x}" for n in (10, 20, 10, 15, 18))
    assert parse_pg_snapshot("7:1", "10:10:").text == f"p{10:016x}{10:016x}"


@pytest.mark.parametrize(
    "stamp, covered", [(9, True), (10, False), (11, True), (15, False), (19, True), (20, False), (21, False)]
)
def test_a_primary_covers_what_was_complete(stamp, covered):
    assert PRIMARY.covers(stamp) is covered


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
def test_a_primary_covers_a_range_only_without_a_running_transaction_in_it(low, high, covered):
    assert seen_range(PRIMARY, low, high) is covered


def test_a_primary_that_names_a_stamp_below_xmin_as_running_is_believed_about_xmin():
    assert Snapshot("7:1", "p" + "".join(map(stamp_text, (10, 20, 5)))).covers(5)


def test_a_standby_is_believed_only_below_xmin_or_below_its_replay_position():
    standby = parse_pg_standby_snapshot("7:1", "10:20:", 500)
    assert standby == Snapshot("7:1", f"s{10:016x}{500:016x}")
    assert standby.covers(9)
    assert not standby.covers(10)
    assert standby.covers(10, Position(1, 499, 0))
    assert not standby.covers(10, Position(1, 500, 0))
    assert not seen_range(standby, 1, 12)


def test_a_standby_that_replayed_everything_covers_nothing_whose_position_is_unknown():
    assert not parse_pg_standby_snapshot("7:1", "10:20:", 2**64 - 1).covers(10)


@pytest.mark.parametrize(
    "text",
    [
        *("", "1:2", "1:2:3:4", "a:b:c", "-1:2:", "1:2:\n", "1_0:20:", "+1:2:", "1:20:3,", "1:20:,3", "\u0661:2:"),
        *("5:4:", "5:9:4", "5:9:9", f"1:{2**64}:", "9" * 5000 + ":1:"),
    ],
)
def test_other_texts_are_not_snapshots_of_postgresql(text):
    for parse in (parse_pg_snapshot, lambda history, text: parse_pg_standby_snapshot(history, text, 1)):
        with pytest.raises(ValueError, match="pg_snapshot"):
            parse("7:1", text)


# --- MySQL ----------------------------------------------------------------------------------------------------------


def test_mysqls_executed_set_becomes_intervals_of_stamps():
    snapshot = parse_mysql_gtid_set(ORIGINS, f"{OWN}:1-5:7,\n{OTHER}:2-3")
    assert snapshot == Snapshot(ORIGINS.history, written((0, 5), (7, 7), (1 << 48 | 2, 1 << 48 | 3)))


@pytest.mark.parametrize(
    "stamp, covered",
    [
        *((1, True), (5, True), (6, False), (7, True), (8, False)),
        *((1 << 48, False), (1 << 48 | 1, False), (1 << 48 | 2, True), (1 << 48 | 4, False), (2 << 48 | 2, False)),
    ],
)
def test_executed_is_covered(stamp, covered):
    assert parse_mysql_gtid_set(ORIGINS, f"{OWN}:1-5:7,{OTHER}:2-3").covers(stamp) is covered


def test_everything_up_to_a_stamp_is_covered_without_a_hole_and_not_over_one():
    assert seen_range(parse_mysql_gtid_set(ORIGINS, f"{OWN}:1-9"), 0, 9)
    assert not seen_range(parse_mysql_gtid_set(ORIGINS, f"{OWN}:1-9"), 0, 10)
    assert not seen_range(parse_mysql_gtid_set(ORIGINS, f"{OWN}:2-9"), 0, 9)
    assert not seen_range(parse_mysql_gtid_set(ORIGINS, f"{OWN}:1-5:7-9"), 0, 9)


def test_a_range_over_two_origins_is_not_covered():
    snapshot = parse_mysql_gtid_set(ORIGINS, f"{OWN}:1-9,{OTHER}:1-9")
    assert snapshot.covers(9)
    assert snapshot.covers(1 << 48 | 1)
    assert not seen_range(snapshot, 9, 1 << 48 | 1)


def test_upper_case_blanks_and_line_breaks_do_not_matter():
    text = f"  {OTHER.upper()}:1-3 ,\n{OWN.upper()}:1 \n"
    assert parse_mysql_gtid_set(ORIGINS, text) == parse_mysql_gtid_set(ORIGINS, f"{OWN}:1,{OTHER}:1-3")


def test_intervals_that_touch_or_overlap_are_united():
    assert parse_mysql_gtid_set(ORIGINS, f"{OWN}:4-6:1-3,{OWN}:5-9:7-8").text == written((0, 9))


def test_a_writer_that_has_no_origin_is_not_covered():
    assert parse_mysql_gtid_set(ORIGINS, f"{STRANGER}:1-9,{OWN}:1-2,{OTHER}:tag:1-9").text == written((0, 2))
    assert parse_mysql_gtid_set(ORIGINS, "").text == "g"


def test_a_tag_is_numbered_by_itself():
    snapshot = parse_mysql_gtid_set(ORIGINS, f"{OWN}:1-4:bulk:1-2:9:audit:1-8")
    assert snapshot.text == written((0, 4), (2 << 48, 2 << 48 | 2), (2 << 48 | 9, 2 << 48 | 9))
    assert parse_mysql_gtid_set(ORIGINS, f"{OWN}:bulk:1").text == written((2 << 48, 2 << 48 | 1))


@pytest.mark.parametrize(
    "text",
    [
        *(
            OWN,
            f"{OWN}:",
            f"{OWN}:1-",
            f"{OWN}:-1",
            f"{OWN}:1-2-3",
            f"{OWN}:1:bulk",
            f"{OWN}:bulk:audit:1",
            f"{OWN}::1",
        ),
        *(f"{OWN}:1,", f",{OWN}:1", f"{OWN}:1,,{OTHER}:1", f"{OWN}: 1", f"{OWN[:-1]}:1", "1-5", "0-1-100"),
        *(f"{OWN}:0", f"{OWN}:0-5", f"{OWN}:5-4", f"{OWN}:1-{1 << 48}", f"{OWN}:1-\u0665", f"{STRANGER}:5-4"),
        f"{OWN}:1-{'9' * 5000}",
    ],
)
def test_other_texts_are_not_gtid_sets(text):
    with pytest.raises(ValueError, match="GTID"):
        parse_mysql_gtid_set(ORIGINS, text)


# --- MariaDB --------------------------------------------------------------------------------------------------------


def test_mariadbs_position_is_everything_up_to_it_in_each_domain():
    snapshot = parse_mariadb_position(DOMAINS, "0-1-100,\n7-2-8,4294967295-1-3")
    assert snapshot == Snapshot(DOMAINS.history, written((0, 8), (1 << 48, 1 << 48 | 100), (2 << 48, 2 << 48 | 3)))


def test_the_server_that_wrote_it_does_not_matter_and_an_unknown_domain_is_not_covered():
    assert parse_mariadb_position(DOMAINS, "7-2-8") == parse_mariadb_position(DOMAINS, "3-2-9,7-4294967295-8")
    assert parse_mariadb_position(DOMAINS, "").text == "g"


@pytest.mark.parametrize(
    "text",
    [
        *("7", "7-1", "7-1-", "7-1-2-3", "-1-2", "7:1:2", "7-1-2,", "7 -1-2", "7-1-x", "+7-1-2", "7-1-\u0665"),
        *("7-1-0", f"7-1-{1 << 48}", "7-1-2,7-3-4", "7-1-2,07-1-2", "3-1-0", f"7-1-{'9' * 5000}"),
    ],
)
def test_other_texts_are_not_positions_of_mariadb(text):
    with pytest.raises(ValueError, match="GTID"):
        parse_mariadb_position(DOMAINS, text)


# --- both -----------------------------------------------------------------------------------------------------------


def test_a_stamp_of_the_first_origin_is_its_plain_number():
    assert ORIGINS.stamp(OWN, 7) == 7
    assert ORIGINS.stamp(f"{OWN}:bulk", 7) == 2 << 48 | 7
    assert DOMAINS.stamp("0", (1 << 48) - 1) == (2 << 48) - 1


@pytest.mark.parametrize("name, number", [(STRANGER, 1), (OWN, 0), (OWN, -1), (OWN, 1 << 48)])
def test_what_has_no_origin_or_does_not_fit_has_no_stamp(name, number):
    with pytest.raises(ValueError):
        ORIGINS.stamp(name, number)


def test_an_older_list_of_origins_covers_less_and_never_something_else():
    older = Origins(ORIGINS.history, ORIGINS.names[:1])
    text = f"{OWN}:1-9,{OTHER}:1-9,{OWN}:bulk:3"
    assert parse_mysql_gtid_set(ORIGINS, text).text.startswith(parse_mysql_gtid_set(older, text).text)


@pytest.mark.parametrize("names", [(OWN, OWN), tuple(map(str, range((1 << 16) + 1)))], ids=["twice", "too many"])
def test_other_lists_are_not_origins(names):
    with pytest.raises(ValueError, match="new epoch"):
        Origins("1:1", names)


@pytest.mark.parametrize(
    "seen", ["", "x", "x" + "f" * 64, "g", "g" + "0" * 16, "P" + "f" * 32, "G" + "0" * 16 + "f" * 16]
)
def test_a_proof_of_no_known_kind_covers_nothing(seen):
    assert not covers(seen, stamp_text(0), "0" * 32)
