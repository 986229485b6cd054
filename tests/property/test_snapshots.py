"""What a snapshot's text covers equals what a plain set of stamps holds, for every kind of database."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.events import Position, split_stamps, stamp_text
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

LAST = 14
"""Stamps, and numbers of a GTID, are small, so that every one of them can be asked about."""

NAMES = [f"3e11fa47-71ca-11e1-9e33-c80aa942956{digit}" for digit in "0a"]
NAMES.append(NAMES[0] + ":bulk")
STRANGER = "ffffffff-71ca-11e1-9e33-c80aa9429562"
MYSQL = Origins("u:1", tuple(NAMES))
MARIADB = Origins("1:1", ("3", "0", "70000"))

numbers = st.sets(st.integers(1, LAST), max_size=LAST)
shuffled = st.randoms(use_true_random=False)


def agrees(seen: str, stamps: set[int], bounds: range) -> None:
    """`covers` and `covers_range` say of all of `bounds` what the set says."""
    for low in bounds:
        assert covers(seen, stamp_text(low), NOWHERE) == (low in stamps)
        for high in range(low, bounds.stop):
            expected = stamps.issuperset(range(low, high + 1))
            assert covers_range(seen, stamp_text(low), stamp_text(high), NOWHERE) == expected


@given(xmin=st.integers(1, LAST), length=st.integers(0, LAST), chosen=numbers, random=shuffled)
def test_a_primary_covers_what_was_complete(xmin, length, chosen, random):
    xmax = xmin + length
    running = [xid for xid in chosen if xmin <= xid < xmax]
    random.shuffle(running)
    snapshot = parse_pg_snapshot("7:1", f"{xmin}:{xmax}:{','.join(map(str, running))}")
    assert split_stamps(snapshot.text[1:]) == tuple(map(stamp_text, (xmin, xmax, *sorted(running))))
    agrees(snapshot.text, set(range(xmax)) - set(running), range(xmax + 3))


@given(xmin=st.integers(1, LAST), length=st.integers(0, LAST), replayed=st.integers(0, 5), logged=st.integers(0, 5))
def test_a_standby_covers_what_is_below_xmin_or_was_replayed(xmin, length, replayed, logged):
    snapshot = parse_pg_standby_snapshot("7:1", f"{xmin}:{xmin + length}:", replayed)
    agrees(snapshot.text, set(range(xmin)), range(xmin + length + 3))
    for stamp in range(xmin + length + 3):
        assert snapshot.covers(stamp) == (stamp < xmin)
        assert snapshot.covers(stamp, Position(1, logged, 0)) == (stamp < xmin or logged < replayed)


def runs(chosen: set[int]) -> list[tuple[int, int]]:
    """The set as closed intervals, some of them next to each other."""
    found: list[tuple[int, int]] = []
    for number in sorted(chosen):
        if found and found[-1][1] == number - 1 and number % 5:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


@st.composite
def gtid_sets(draw: st.DrawFn) -> tuple[str, dict[str, set[int]]]:
    """A set of GTIDs as a server, or a person, may write it, and what is in it."""
    executed = {name: draw(numbers) for name in (*NAMES, STRANGER)}
    random = draw(shuffled)
    parts = []
    for name, chosen in executed.items():
        words = [f"{low}" if low == high else f"{low}-{high}" for low, high in runs(chosen)]
        random.shuffle(words)
        if words:
            parts.append(":".join([name, *words]))
    random.shuffle(parts)
    text = draw(st.sampled_from([",", ",\n", " , "])).join(parts)
    return (text.upper() if draw(st.booleans()) else text), executed


def stamps_of(executed: dict[str, set[int]], origins: Origins) -> set[int]:
    """Stamps of all GTIDs of known writers; number 0 does not exist, so it counts as soon as 1 does."""
    known = {name: chosen | ({0} if 1 in chosen else set()) for name, chosen in executed.items()}
    return {at << 48 | number for at, name in enumerate(origins.names) for number in known.get(name, ())}


def intervals_of(snapshot: Snapshot) -> list[tuple[int, int]]:
    bounds = [int(stamp, 16) for stamp in split_stamps(snapshot.text[1:])]
    return list(zip(bounds[::2], bounds[1::2], strict=True))


def gtids_agree(snapshot: Snapshot, stamps: set[int]) -> None:
    """In each origin the text says what the set says; of two origins at once, it never covers."""
    intervals = intervals_of(snapshot)
    assert {stamp for low, high in intervals for stamp in range(low, high + 1)} == stamps
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(intervals))
    for origin in range(3):
        agrees(snapshot.text, stamps, range(origin << 48, (origin << 48 | LAST) + 3))
        for low, high in ((0, 1), (LAST, 0)):
            texts = (stamp_text(origin << 48 | low), stamp_text(origin + 1 << 48 | high))
            assert not covers_range(snapshot.text, *texts, NOWHERE)


@given(gtid_sets())
def test_mysql_covers_what_was_executed(written):
    text, executed = written
    gtids_agree(parse_mysql_gtid_set(MYSQL, text), stamps_of(executed, MYSQL))


@given(
    position=st.dictionaries(st.sampled_from(["3", "0", "70000", "9"]), st.integers(1, LAST)),
    server=st.integers(1, 2**32 - 1),
    comma=st.sampled_from([",", ",\n"]),
)
def test_mariadb_covers_everything_up_to_its_position_in_each_domain(position, server, comma):
    text = comma.join(f"{domain}-{server}-{number}" for domain, number in position.items())
    executed = {domain: set(range(1, number + 1)) for domain, number in position.items()}
    gtids_agree(parse_mariadb_position(MARIADB, text), stamps_of(executed, MARIADB))


near = st.text(alphabet="0123456789abf:-,\n ", max_size=60) | st.text(max_size=20)


@pytest.mark.parametrize(
    "parse",
    [
        lambda text: parse_pg_snapshot("h", text),
        lambda text: parse_pg_standby_snapshot("h", text, 9),
        lambda text: parse_mysql_gtid_set(MYSQL, text),
        lambda text: parse_mariadb_position(MARIADB, text),
    ],
    ids=["primary", "standby", "mysql", "mariadb"],
)
@given(text=near | near.map(lambda text: f"{NAMES[0]}:{text}") | near.map(lambda text: f"1:{text}"))
def test_any_text_is_a_snapshot_or_a_value_error(parse, text):
    try:
        snapshot = parse(text)
    except ValueError:
        return
    assert re.fullmatch(r"[ps]([0-9a-f]{16}){2,}|g([0-9a-f]{32})*", snapshot.text)
