"""Plain views: what is owed, when it is due, and what a sweep is good for."""

from __future__ import annotations

from invalidator.guard import Beat
from invalidator.layout import EMPTY_FENCE, Fence, Scope
from invalidator.plain import PROVEN, Debt, is_due, is_swept, is_visible, owe, pattern, swept_for
from invalidator.views import parse_template


def at(lsn: int, epoch: int = 1) -> str:
    return f"{epoch:08x}{lsn:016x}{0:08x}"


def seen_all_below(xid: int, lsn: int = 100, epoch: int = 1) -> Beat:
    return Beat(at(lsn, epoch), f"p{xid:016x}{xid:016x}")


def scope(*stamps: int, generation: int = 1) -> Scope:
    return Scope(
        generation=at(generation), digest="d" * 16, fence=Fence(True, at(5), tuple(f"{s:016x}" for s in stamps))
    )


CLOSED = Scope(generation=at(1), digest="d" * 16, closed_at="0" * 16)


def test_a_debt_is_due_once_every_stamp_is_seen():
    owed: dict[str, str] = {}
    owe(owed, [Debt("k", "v", at(5), (f"{7:016x}",)), Debt("k", "v", at(6), (f"{9:016x}",))], None, 10)
    assert not is_due(owed["k"], seen_all_below(9))
    assert is_due(owed["k"], seen_all_below(10))


def test_a_debt_of_an_earlier_epoch_is_due_and_one_of_a_later_is_not():
    owed: dict[str, str] = {}
    owe(owed, [Debt("k", "v", at(5, epoch=2), (f"{7:016x}",))], None, 10)
    assert is_due(owed["k"], seen_all_below(1, epoch=3))
    assert not is_due(owed["k"], seen_all_below(100, epoch=1))


def test_stamps_of_another_epoch_prove_nothing():
    assert is_visible(at(5), ("0" * 16,), seen_all_below(10))
    assert not is_visible(at(5, epoch=2), ("0" * 16,), seen_all_below(10))
    assert not is_visible(at(5), ("0" * 16,), None)


def test_a_sweep_serves_until_the_scopes_move_or_their_fences_are_seen():
    first = swept_for(scope(7), scope(8), seen_all_below(8))
    assert not is_swept("0", first)
    assert is_swept(first, first)
    proven = swept_for(scope(7), scope(8), seen_all_below(9))
    assert proven.startswith(PROVEN)
    assert not is_swept(first, proven)
    assert is_swept(proven, first), "what was proven once stays so"
    assert not is_swept(proven, swept_for(scope(7), scope(8, generation=2), None))
    assert not is_swept(proven, swept_for(CLOSED, scope(8), seen_all_below(9)))
    assert not is_swept(swept_for(CLOSED, scope(8), None), first)


def test_a_view_that_no_shard_knows_counts_as_closed():
    assert swept_for(scope(), None, seen_all_below(9))[:2] == swept_for(CLOSED, CLOSED, None)[:2] == "1c"
    empty = Scope(generation=at(1), digest="d" * 16, fence=EMPTY_FENCE)
    assert swept_for(empty, empty, seen_all_below(1))[:2] == "2o"


def test_a_pattern_has_a_star_for_each_field():
    assert pattern(parse_template("crm:contact:{id}/{part}-x")) == "crm:contact:*/*-x"
    assert pattern(parse_template("campaigns")) == "campaigns"
