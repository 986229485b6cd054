"""The entry format: what is written comes back; anything else is a BadRecord."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import BadRecord
from invalidator.entry import HEAD_BYTES, Content, Kind, decode, encode_tail, lead

GENERATIONS = "1" * 32 + "2" * 32


def stored(view: str = "contact", key: str = "contact:1", seen: str = "p" + "0" * 32, payload: bytes = b"{}") -> bytes:
    tail = encode_tail(view=view, key=key, seen=seen, payload=payload, as_of_ms=5, expires_ms=9)
    return (lead(Kind.FILL, Content.VALUE) + GENERATIONS).encode() + tail


@given(view=st.text(min_size=1), key=st.text(min_size=1), payload=st.binary())
def test_what_is_written_comes_back(view: str, key: str, payload: bytes) -> None:
    entry = decode(stored(view, key, payload=payload))
    assert (entry.view, entry.key, entry.payload, entry.as_of_ms, entry.expires_ms) == (view, key, payload, 5, 9)
    assert (entry.kind, entry.content, entry.encoding) == (Kind.FILL, Content.VALUE, "j")
    assert (entry.region_generation, entry.view_generation) == ("1" * 32, "2" * 32)


@pytest.mark.parametrize("cut", [0, 1, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 20])
def test_a_short_entry_is_a_bad_record(cut: int) -> None:
    with pytest.raises(BadRecord):
        decode(stored()[:cut])


@given(st.binary(max_size=200))
def test_other_bytes_are_a_bad_record_or_an_entry(data: bytes) -> None:
    with suppress(BadRecord):
        decode(data)


def test_an_entry_of_another_format_is_refused() -> None:
    with pytest.raises(BadRecord, match="format 1"):
        decode(b"2" + stored()[1:])


def test_a_proof_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"65,535"):
        stored(seen="p" + "0" * 70_000)
