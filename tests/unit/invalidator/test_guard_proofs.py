"""What the guard makes of proofs; that the Lua makes the same of them is shown by tests/property/test_guard_twin.py."""

import pytest

from cdc.events import stamp_text
from invalidator.entry import Content, Kind, encode_tail, lead
from invalidator.guard import Beat, Fill, Outcome, Shard, admits, fill, forged, merge
from invalidator.layout import EMPTY_FENCE, FORMAT, REGION_SCOPE, Fence, Scope, view_scope

ORIGIN = 1 << 48
EARLY, LATE = "00000001" + "0" * 15 + "5" + "0" * 8, "00000001" + "0" * 15 + "9" + "0" * 8


def proof(kind: str, *stamps: int) -> str:
    return kind + "".join(map(stamp_text, stamps))


def exact(*stamps: int) -> Fence:
    return Fence(True, EARLY, tuple(map(stamp_text, stamps)))


def interval(low: int, high: int) -> Fence:
    return Fence(False, EARLY, (stamp_text(low), stamp_text(high)))


@pytest.mark.parametrize(
    "fence, seen, admitted",
    [
        (exact(3, 9), proof("g", 0, 9), True),
        (exact(3, 9), proof("g", 0, 3, 9, 9), True),
        (exact(3, 9), proof("g", 0, 8), False),
        (exact(3, ORIGIN | 2), proof("g", 0, 3, ORIGIN, ORIGIN | 2), True),
        (exact(3, ORIGIN | 2), proof("g", 0, 3), False),
        (interval(0, 9), proof("g", 0, 9), True),
        (interval(0, 9), proof("g", 0, 4, 6, 9), False),
        (interval(3, ORIGIN | 2), proof("g", 0, 9, ORIGIN, ORIGIN | 2), False),
        (interval(0, 9), proof("g"), False),
    ],
)
def test_gtids_admit_what_they_hold_and_a_range_only_whole(fence: Fence, seen: str, admitted: bool) -> None:
    assert admits(fence, seen) is admitted


@pytest.mark.parametrize(
    "seen, limit, is_forged",
    [
        (proof("p", 9, 9), 9, False),
        (proof("p", 9, 10), 9, True),
        (proof("p", 10, 9), 9, True),
        (proof("s", 9, 99), 9, False),
        (proof("s", 10, 0), 9, True),
        (proof("g", 0, 3, 5, 9), 9, False),
        (proof("g", 0, 3, 5, 10), 9, True),
        (proof("g", 0, 10, 12, 13), 9, True),
        (proof("g", 0, 9, ORIGIN, ORIGIN | 999), 9, False),
        (proof("g", 0, 999, ORIGIN, ORIGIN | 9), ORIGIN | 9, False),
        (proof("g", 0, 999, ORIGIN, ORIGIN | 10), ORIGIN | 9, True),
        (proof("g", 0, 2 * ORIGIN), ORIGIN | 9, True),
        (proof("g"), 9, False),
    ],
)
def test_a_proof_beyond_the_newest_heartbeat_of_its_origin_is_forged(seen: str, limit: int, is_forged: bool) -> None:
    assert forged(seen, stamp_text(limit)) is is_forged


def test_what_a_heartbeats_gtids_hold_leaves_a_fence() -> None:
    beat = Beat("00000001" + "0" * 15 + "7" + "0" * 8, proof("g", 0, 4))
    assert merge(exact(3, 5), LATE, [stamp_text(6)], beat).stamps == (stamp_text(5), stamp_text(6))
    assert merge(interval(0, 4), LATE, [stamp_text(6)], beat) == Fence(True, LATE, (stamp_text(6),))
    assert merge(interval(0, 5), LATE, [stamp_text(6)], beat) == Fence(False, LATE, (stamp_text(0), stamp_text(6)))


def fill_over(kind: Kind, there: str, seen: str) -> Outcome:
    """The outcome of a fill with proof `seen`, where an entry with proof `there` can be read and nothing is fenced."""
    scope = Scope(generation=EARLY, digest="a" * 16, fence=EMPTY_FENCE)
    header = {"v": FORMAT, "e": "00000001oh1", "b": LATE + stamp_text(9) + stamp_text(2 * ORIGIN)}
    shard = Shard(
        header=header | {REGION_SCOPE: scope.text, view_scope("contact"): scope.text}, fences={"*": "=" + LATE}
    )
    old = encode_tail(view="contact", key="contact:1", seen=there, payload=b"[0]", as_of_ms=5)
    shard.entries["contact:1"] = (lead(kind, Content.VALUE) + EARLY + EARLY).encode() + old
    request = Fill(
        key="contact:1", stripe="0001", view="contact", digest="a" * 16, history="h1",
        lead=lead(Kind.FILL, Content.VALUE), ttl_ms=0,
        tail=encode_tail(view="contact", key="contact:1", seen=seen, payload=b"[1]", as_of_ms=5),
    )  # fmt: skip
    return fill(shard, request)[0]


@pytest.mark.parametrize(
    "kind, there, seen, outcome",
    [
        (Kind.FILL, proof("p", 3, 5), proof("p", 5, 7), Outcome.APPLIED),
        (Kind.FILL, proof("p", 3, 5), proof("p", 4, 7), Outcome.SUPERSEDED),
        (Kind.FILL, proof("p", 3, 5), proof("g", 8, 9), Outcome.SUPERSEDED),
        (Kind.FILL, proof("g", 0, 5), proof("g", 0, 9), Outcome.SUPERSEDED),
        (Kind.FILL, proof("s", 3, 5), proof("p", 9, 9), Outcome.SUPERSEDED),
        (Kind.EVENT, EARLY + stamp_text(5), proof("g", 0, 9), Outcome.APPLIED),
        (Kind.EVENT, EARLY + stamp_text(5), proof("g", 0, 4, 6, 9), Outcome.SUPERSEDED),
    ],
)
def test_a_fill_replaces_only_what_it_provably_outdates(kind: Kind, there: str, seen: str, outcome: Outcome) -> None:
    assert fill_over(kind, there, seen) is outcome
