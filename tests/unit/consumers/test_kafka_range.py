"""Edges as people write them, and the offsets that they stand for, on a log in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import ConfigError, GapError
from cdc.events import Position
from consumers.kafka_range import Asked, AtOffset, AtPosition, AtTime, Whole, fix_range, parse_edge
from consumers.stream import Extent
from tests.fake_log import FakeLog, Kept

TOPIC = "shop.public.contacts"


def position(lsn: int, epoch: int = 1, order: int = 0) -> str:
    return Position(epoch, lsn, order).text


def kept(*lsns: int | None, epoch: int = 1) -> list[Kept]:
    """Records at those places of the log, one second apart; None: its header cannot be read."""
    return [Kept(1_000 * n, None if lsn is None else position(lsn, epoch)) for n, lsn in enumerate(lsns)]


def fixed(log: FakeLog, start: str, end: str = "end", **options: object) -> list[tuple[int, int]]:
    """Begin and end of every partition that is meant."""
    asked = Asked(start=parse_edge(start, "--from"), end=parse_edge(end, "--to"), topics=(TOPIC,), **options)
    return [(extent.begin, extent.end) for extent in fix_range(log, asked).extents.values()]


@pytest.mark.parametrize(
    ("text", "edge"),
    [
        ("beginning", Whole.BEGINNING),
        ("end", Whole.END),
        ("offset:0", AtOffset(0)),
        ("offset:123", AtOffset(123)),
        ("time:1700000000000", AtTime(1_700_000_000_000)),
        ("time:2023-11-14T22:13:20Z", AtTime(1_700_000_000_000)),
        ("time:2023-11-14T23:13:20.5+01:00", AtTime(1_700_000_000_500)),
        ("position:16/B374D848", AtPosition("", "00000016b374d84800000000")),
        ("position:6654a1f0@0/1b", AtPosition("6654a1f0", "000000000000001b00000000")),
        (f"position:{position(7, 5, 3)}", AtPosition("00000005", position(7, 5, 3)[8:])),
    ],
)
def test_an_edge_is_what_a_person_wrote(text, edge):
    assert parse_edge(text, "--from") == edge


@pytest.mark.parametrize(
    "text",
    ["", "start", "offset:", "offset:-1", "offset:x", "offset:1.5", "offset:" + "9" * 19, "time:", "time:yesterday",
     "position:", "position:16", "position:16/", "position:x@1/2", "position:1/123456789", "beginning:1", "lsn:1/2"],
)  # fmt: skip
def test_what_is_no_edge_is_refused_with_the_forms(text):
    with pytest.raises(ConfigError, match=r"--to.*write beginning, end, offset:<n>, time:"):
        parse_edge(text, "--to")


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(ConfigError, match="no time zone: add one, such as 2023-11-14T22:13:20Z"):
        parse_edge("time:2023-11-14T22:13:20", "--from")


def test_beginning_and_end_are_what_is_there():
    log = FakeLog({TOPIC: [kept(1, 2, 3), kept(), kept(1)]}, begins={(TOPIC, 0): 2})
    assert fixed(log, "beginning") == [(2, 3), (0, 0), (0, 1)]
    assert fixed(log, "end") == [(3, 3), (0, 0), (1, 1)]


def test_offsets_are_half_open_and_of_every_partition_or_of_one():
    log = FakeLog({TOPIC: [kept(1, 2, 3, 4), kept(1, 2, 3)]})
    assert fixed(log, "offset:1", "offset:3") == [(1, 3), (1, 3)]
    assert fixed(log, "offset:1", "offset:4", only=(TOPIC, 0)) == [(1, 4)]


@pytest.mark.parametrize(("start", "end"), [("offset:4", "end"), ("beginning", "offset:4")])
def test_an_offset_beyond_the_end_is_refused_unless_holes_are_allowed(start, end):
    log = FakeLog({TOPIC: [kept(1, 2, 3, 4), kept(1, 2, 3)]})
    with pytest.raises(ConfigError, match=rf"{TOPIC}/1: --\w+ is offset 4, and kafka has 0 to 3: .*--allow-holes"):
        fixed(log, start, end)
    assert fixed(log, start, end, allow_holes=True)[1] in ((3, 3), (0, 3))


def test_an_expired_offset_is_a_gap_unless_holes_are_allowed():
    log = FakeLog({TOPIC: [kept(1, 2, 3, 4)]}, begins={(TOPIC, 0): 2})
    with pytest.raises(GapError, match=rf"{TOPIC}/0: --from is offset 1, and kafka has 2 to 4: .*expired; begin later"):
        fixed(log, "offset:1")
    assert fixed(log, "offset:2") == [(2, 4)]
    assert fixed(log, "offset:1", allow_holes=True) == [(2, 4)]


@pytest.mark.parametrize("start", ["time:0", "time:2000", "position:0/1", "position:0/3"])
def test_where_the_first_record_left_is_in_the_range_others_may_have_expired(start):
    log = FakeLog({TOPIC: [kept(1, 2, 3, 4)]}, begins={(TOPIC, 0): 2})
    with pytest.raises(GapError, match=r"at or before offset 2, the first that kafka has still .*may have expired"):
        fixed(log, start)
    assert fixed(log, start, allow_holes=True) == [(2, 4)]


def test_a_time_is_the_first_record_stamped_at_or_after_it():
    log = FakeLog({TOPIC: [kept(1, 2, 3, 4), kept(1)]})
    assert fixed(log, "time:1000", "time:2001") == [(1, 3), (1, 1)]
    assert fixed(log, "time:1000", "time:2000") == [(1, 2), (1, 1)]
    assert fixed(log, "time:9999999") == [(4, 4), (1, 1)]


def test_a_position_is_the_first_record_at_or_after_it():
    log = FakeLog({TOPIC: [kept(10, 20, 20, 30), kept(15), kept()]})
    assert fixed(log, "position:0/14", "position:0/1E") == [(1, 3), (1, 1), (0, 0)]
    assert fixed(log, "position:0/1", "position:0/FF") == [(0, 4), (0, 1), (0, 0)]
    assert fixed(log, "position:0/15") == [(3, 4), (1, 1), (0, 0)]


def test_a_position_without_an_epoch_is_of_the_newest_one():
    log = FakeLog({TOPIC: [kept(100, 200, 300) + kept(5, 6, 7, epoch=2), kept(400)]})
    assert fixed(log, "position:0/6") == [(4, 6), (1, 1)]
    assert fixed(log, "position:00000001@0/C8") == [(1, 6), (0, 1)]
    assert fixed(log, "position:00000001@0/C8", "position:0/1") == [(1, 3), (0, 1)]


def test_the_newest_epoch_is_told_by_records_before_those_without_a_header():
    log = FakeLog({TOPIC: [kept(100, 200) + kept(5, 6, None, None, None, epoch=2)]})
    assert fixed(log, "position:0/6") == [(3, 7)]


def test_what_came_again_before_capture_was_killed_once_more_is_looked_behind():
    """The last records are older than those before: a search by halves ends at the end."""
    log = FakeLog({TOPIC: [kept(0, 1, 2, 3, 4, 5, 0, 0)]})
    assert fixed(log, "position:0/5") == [(8, 8)]
    assert fixed(log, "position:0/5", repeated_max=3) == [(5, 8)]
    assert fixed(log, "position:0/5", repeated_max=50) == [(0, 8)]


def test_records_without_a_header_are_looked_past():
    log = FakeLog({TOPIC: [kept(1, None, 3, None, None, 6, None)]})
    assert fixed(log, "position:0/4") == [(3, 7)]
    assert fixed(log, "position:0/2", "position:0/6") == [(1, 3)]
    with pytest.raises(ConfigError, match="no record tells a position"):
        fixed(FakeLog({TOPIC: [kept(None), kept()]}), "position:0/4")


def test_a_search_asks_for_few_records():
    log = FakeLog({TOPIC: [kept(*range(100_000))]})
    assert fixed(log, "position:0/C350") == [(50_000, 100_000)]
    assert log.probed < 25


@given(st.data())
def test_after_redeliveries_every_change_of_the_range_is_in_the_offsets(data):
    """A killed capture sends again from an older position on, and every one after it."""
    lsns, at = [], 0
    for upto in data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=5)):
        at = data.draw(st.integers(0, at))
        lsns += range(at, at + upto)
        at += upto
    start = data.draw(st.integers(0, 30))
    end = data.draw(st.integers(start, 31))
    ((begin, stop),) = fixed(
        FakeLog({TOPIC: [kept(*lsns)]}),
        f"position:0/{start:X}",
        f"position:0/{end:X}",
        allow_holes=True,
        repeated_max=60,
    )
    wanted = {lsn for lsn in lsns if start <= lsn < end}
    assert wanted <= set(lsns[begin:stop])


def test_positions_of_copies_are_not_searched_but_sorted_out_while_reading():
    log = FakeLog({TOPIC: [kept(30, 10, 20), kept(15)]})
    asked = Asked(
        start=parse_edge("position:0/B", "--from"), end=parse_edge("position:0/20", "--to"), topics=(TOPIC,), in_order=False
    )  # fmt: skip
    found = fix_range(log, asked)
    assert list(found.extents.values()) == [(Extent(0, 3)), Extent(0, 1)]
    assert (found.since, found.until) == (position(11), position(32))


def test_edges_the_wrong_way_round_are_refused():
    log = FakeLog({TOPIC: [kept(1, 2, 3, 4)]})
    for start, end in (("offset:3", "offset:1"), ("time:3000", "time:1000"), ("end", "beginning")):
        with pytest.raises(ConfigError, match=r"--from is offset \d, after --to, offset \d: exchange them"):
            fixed(log, start, end)
    with pytest.raises(ConfigError, match="--from is a position after --to: exchange them"):
        fixed(log, "position:0/3", "position:0/2")


def test_a_topic_that_is_not_there_or_not_whole_is_refused():
    with pytest.raises(ConfigError, match=f"there is no topic {TOPIC}: start `staleproof capture` once"):
        fixed(FakeLog({}), "beginning")
    log = FakeLog({TOPIC: [kept(1)]}, compact=frozenset({TOPIC}))
    with pytest.raises(ConfigError, match=f"topic {TOPIC} is compacted"):
        fixed(log, "beginning")
    assert fixed(log, "beginning", allow_holes=True) == [(0, 1)]


def test_a_partition_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=f"topic {TOPIC} has no partition 2: it has 0 to 1"):
        fixed(FakeLog({TOPIC: [kept(1), kept(1)]}), "beginning", only=(TOPIC, 2))
