"""Key names and the guard's small texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invalidator.layout import Fence, Layout, Row, Scope

hexadecimal = st.text("0123456789abcdef", min_size=16, max_size=16)
positions = st.tuples(hexadecimal, hexadecimal).map("".join)
fences = st.builds(
    lambda exact, position, stamps: Fence(exact, position, tuple(stamps) if exact else (min(stamps), max(stamps))),
    st.booleans(),
    positions,
    st.lists(hexadecimal, min_size=1, max_size=8),
)


def test_everything_of_a_shard_shares_one_hash_tag() -> None:
    layout = Layout(prefix="sp", shards=4)
    names = [layout.header_key(3), layout.fences_key(3), layout.entry_key(3, "contact:{9}")]
    assert {name[: name.index("}") + 1] for name in names} == {"{sp:3}"}


def test_keys_spread_over_shards_and_stripes() -> None:
    layout = Layout(shards=4, stripes=65_536)
    places = [layout.place(f"contact:{i}") for i in range(4_000)]
    assert {shard for shard, _ in places} == {0, 1, 2, 3}
    assert len({stripe for _, stripe in places}) > 3_500


def test_the_place_of_a_key_is_part_of_the_format() -> None:
    # CRC-32's published check value: 0xCBF43926 for these nine digits.
    assert Layout(shards=8).place("123456789") == (0xCBF4 % 8, "3926")


@given(fences)
def test_a_fence_comes_back(fence: Fence) -> None:
    assert Fence.parse(fence.text) == fence


@given(positions, hexadecimal, fences)
def test_an_open_scope_comes_back(generation: str, digest: str, fence: Fence) -> None:
    scope = Scope(generation=generation, digest=digest, fence=fence)
    assert Scope.parse(scope.text) == scope


@given(positions, hexadecimal, hexadecimal, st.integers(0, 3), positions)
def test_a_closed_scope_comes_back(generation: str, digest: str, closed_at: str, count: int, third: str) -> None:
    scope = Scope(
        generation=generation, digest=digest, closed_at=closed_at, heartbeats=count, third=third if count == 3 else ""
    )
    assert Scope.parse(scope.text) == scope


@given(st.integers(0, 2**63), positions, hexadecimal, st.integers(-1, 2**31 - 1), st.integers(0, 2**63))
def test_a_row_comes_back(offset: int, position: str, stamp: str, leader: int, sequence: int) -> None:
    row = Row(next_offset=offset, position=position, stamp=stamp, leader_epoch=leader, sequence=sequence)
    assert Row.parse(row.text) == row


@pytest.mark.parametrize("text", ["", "=", "x" + "0" * 32, "=" + "0" * 32 + "1"])
def test_other_texts_are_no_fence(text: str) -> None:
    with pytest.raises(ValueError):
        Fence.parse(text)
