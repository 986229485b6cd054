"""Tokens: their text, how they stand to histories, and that what shows them really holds what they name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invalidator.tokens import STAMPS_MAX, Relation, Session, Token, includes, is_shown, relation

XIDS = range(1, 9)


def text(*stamps: int) -> str:
    return "".join(f"{stamp:016x}" for stamp in stamps)


@st.composite
def snapshots(draw: st.DrawFn) -> str:
    """A primary's proof over a few transactions."""
    xmax = draw(st.integers(1, max(XIDS) + 1))
    running = sorted(draw(st.sets(st.integers(1, max(1, xmax - 1)), max_size=4)) if xmax > 1 else ())
    return f"p{text(running[0] if running else xmax, xmax, *running)}"


def visible(proof: str) -> set[int]:
    """What a read with this proof saw, by the definition of a snapshot."""
    xmax = int(proof[17:33], 16)
    running = {int(proof[i : i + 16], 16) for i in range(33, len(proof), 16)}
    return {xid for xid in XIDS if xid < xmax and xid not in running}


tokens = st.builds(
    Token,
    st.sampled_from(["7:1", "7:2"]),
    st.sets(st.sampled_from(XIDS), max_size=3).map(lambda xids: tuple(text(xid) for xid in sorted(xids))),
    st.sampled_from([text(0), text(0x50)]),
    st.one_of(st.just(""), snapshots()),
    st.sampled_from([text(0), text(0x60)]),
)


@given(tokens)
def test_a_token_travels_as_a_text_that_fits_a_cookie(token: Token) -> None:
    assert Token.parse(token.text) == token
    assert token.text.replace(".", "").replace(":", "").replace("-", "").isalnum()


@given(snapshots(), snapshots())
def test_a_read_includes_another_if_it_saw_everything_that_the_other_saw(one: str, other: str) -> None:
    if includes(one, other):
        assert visible(other) <= visible(one)
    if visible(other) <= visible(one) and other[17:33] <= one[17:33]:
        assert includes(one, other)


@given(tokens, tokens, snapshots(), st.sampled_from([text(0), text(0x50), text(0x60)]))
def test_a_token_for_both_is_shown_only_where_both_are(one: Token, other: Token, proof: str, lsn: str) -> None:
    both = one.and_also(other)
    if one.history != other.history:
        full = [token for token in (one, other) if not token.empty]
        assert both == max(full, key=lambda token: token.history) if full else both.empty
    elif is_shown(both, (proof,), logged_before=lsn):
        assert is_shown(one, (proof,), logged_before=lsn)
        assert is_shown(other, (proof,), logged_before=lsn)
    if one.history == other.history and both.lsn != text(0) and all(t.stamps or t.seen for t in (one, other)):
        assert both.lsn == max(one.lsn, other.lsn)


@given(st.lists(st.integers(1, 1 << 40), min_size=STAMPS_MAX + 1, max_size=20, unique=True))
def test_many_writes_become_everything_up_to_the_last(stamps: list[int]) -> None:
    session = Session()
    for stamp in stamps:
        session.add(Token("7:1", (text(stamp),)))
    assert session.token is not None
    last = max(stamps)
    assert len(session.text) < 300
    assert is_shown(session.token, (f"p{text(last + 1, last + 1)}",))
    assert not is_shown(session.token, (f"p{text(last, last)}",))


@pytest.mark.parametrize(
    ("token", "current", "expected"),
    [
        ("7:1", "7:1", Relation.SAME),
        ("7:1", "7:2", Relation.EARLIER),
        ("7:9", "7:10", Relation.EARLIER),
        ("7:2", "7:1", Relation.UNKNOWN),
        ("8:1", "7:2", Relation.UNKNOWN),
        ("7:1", "", Relation.UNKNOWN),
        ("a-b:3", "a-b:4", Relation.EARLIER),
        (":1", ":2", Relation.UNKNOWN),
    ],
)
def test_a_history_is_the_same_earlier_or_unknown(token: str, current: str, expected: Relation) -> None:
    assert relation(token, current) is expected


@pytest.mark.parametrize("proof", [f"s{text(9, 99)}", f"g{text(0, 99)}", "", "x", "p"])
def test_what_is_no_primarys_proof_shows_a_read_only_by_its_xmin(proof: str) -> None:
    seen = Token("7:1", seen=f"p{text(9, 9)}")
    assert is_shown(seen, (proof,)) is (proof[:1] == "s")
    assert not is_shown(Token("7:1", seen=f"p{text(10, 10)}"), (proof,))


@pytest.mark.parametrize(
    "shown",
    [
        Token("7:1", seen=f"p{text(*range(10, 99))}"),
        Token("7:1", tuple(map(text, range(20)))),
        Token("7:1", (*map(text, range(8)), "f" * 16)),
    ],
)
def test_a_session_that_was_shown_much_leaves_a_text_that_can_be_read(shown: Token) -> None:
    session = Session()
    session.add(shown)
    left = Session(session.text)
    assert not left.lost
    assert left.token is not None
    assert is_shown(left.token, (f"p{'f' * 32}",))
    assert not is_shown(left.token, (f"p{text(1, 1)}",))
