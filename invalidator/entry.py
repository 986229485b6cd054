"""What Redis stores under a cache key: a header that proves what the value shows, and the payload. Pure.

Written as docs/protocol.md §2.4 says. The guard puts four characters and the two generations before it; everything
after them (the *tail*) is made here, so that a fill cannot claim a generation it did not meet.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from cdc.errors import BadRecord
from invalidator.layout import FORMAT

HEAD_BYTES = 104
"""Format, kind, content, encoding (1 each), generations (32 + 32), as of, expires (12 + 12), three lengths (4 each)."""

SEEN_BYTES_MAX = 0xFFFF
PROOF_BYTES = 360
"""So much of an entry the scripts read: 13 running transactions, or 7 intervals; a longer proof counts as none."""

_FORMAT = FORMAT.encode()


class Kind(StrEnum):
    """Who stored the entry."""

    FILL = "f"
    EVENT = "e"


class Content(StrEnum):
    """Whether the database has the object."""

    VALUE = "v"
    ABSENT = "a"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A decoded entry. `seen`: a snapshot's text (fill), or position and stamps (event)."""

    kind: Kind
    content: Content
    encoding: str
    region_generation: str
    view_generation: str
    as_of_ms: int
    expires_ms: int
    seen: str
    view: str
    key: str
    payload: bytes


class TailEncoder:
    """Writes everything after the generations, of entries that come from one read and belong to one view.

    `seen` is the read's proof. Raises ValueError when a part is too long for its length field.
    """

    def __init__(self, *, view: str, seen: str, as_of_ms: int, expires_ms: int = 0) -> None:
        view_bytes = view.encode()
        _check_length(seen, view_bytes)
        self._head = f"{as_of_ms:012x}{expires_ms:012x}{len(seen):04x}{len(view_bytes):04x}".encode()
        self._seen_and_view = seen.encode() + view_bytes

    def encode(self, key: str, payload: bytes) -> bytes:
        """The tail of one entry."""
        key_bytes = key.encode()
        if len(key_bytes) > SEEN_BYTES_MAX:
            _check_length(key_bytes)
        return b"%s%04x%s%s%s" % (self._head, len(key_bytes), self._seen_and_view, key_bytes, payload)


def encode_tail(*, view: str, key: str, seen: str, payload: bytes, as_of_ms: int, expires_ms: int = 0) -> bytes:
    """The tail of a single entry; as `TailEncoder`."""
    return TailEncoder(view=view, seen=seen, as_of_ms=as_of_ms, expires_ms=expires_ms).encode(key, payload)


def _check_length(*parts: str | bytes) -> None:
    if max(map(len, parts)) > SEEN_BYTES_MAX:
        raise ValueError("an entry's proof, view and key have at most 65,535 bytes each")


def lead(kind: Kind, content: Content, encoding: str = "j") -> str:
    """The four characters before the generations."""
    return FORMAT + kind.value + content.value + encoding


def peek(data: bytes, view: bytes, key: bytes) -> tuple[str, str, int] | None:
    """Content, encoding and where the payload begins, if `data` names this view and key; shorter than `decode`."""
    if data[:1] != _FORMAT or data[96:104] != b"%04x%04x" % (len(view), len(key)):
        return None
    try:
        names = HEAD_BYTES + int(data[92:96], 16)
    except ValueError:
        return None
    payload = names + len(view) + len(key)
    return (chr(data[2]), chr(data[3]), payload) if data[names:payload] == view + key else None


def shown(data: bytes, seen_end: int) -> tuple[str, int, bool]:
    """What an entry that `peek` knows proves: proof, as of, and whether it is an event's. Raises BadRecord."""
    try:
        return data[HEAD_BYTES:seen_end].decode("ascii"), int(data[68:80], 16), data[1:2] == b"e"
    except ValueError as error:
        raise BadRecord(f"not an entry of format {FORMAT}: {error}") from error


def generations(data: bytes) -> str:
    """Those of region and view, in one text."""
    return data[4:68].decode("ascii", "replace")


def decode(data: bytes) -> Entry:
    """The entry behind `data`. Raises BadRecord when it is not one of this format."""
    try:
        if data[:1] != FORMAT.encode() or len(data) < HEAD_BYTES:
            raise ValueError("unknown format")
        head = data[:HEAD_BYTES].decode("ascii")
        seen_end = HEAD_BYTES + int(head[92:96], 16)
        view_end = seen_end + int(head[96:100], 16)
        key_end = view_end + int(head[100:104], 16)
        if key_end > len(data):
            raise ValueError("cut short")
        return Entry(
            kind=Kind(head[1]),
            content=Content(head[2]),
            encoding=head[3],
            region_generation=head[4:36],
            view_generation=head[36:68],
            as_of_ms=int(head[68:80], 16),
            expires_ms=int(head[80:92], 16),
            seen=data[HEAD_BYTES:seen_end].decode("ascii"),
            view=data[seen_end:view_end].decode(),
            key=data[view_end:key_end].decode(),
            payload=data[key_end:],
        )
    except ValueError as error:
        raise BadRecord(f"not an entry of format {FORMAT}: {error}") from error
