"""Tokens: what a reader must be shown. A writer hands one to whoever reads next, in any region. Pure.

In flow a write's stamp, or what a read saw; out flows a short text for a header or a cookie, and the answer to one
question: is this token shown by that proof? Written
`1.<history>.<stamps>.<lsn>[.<seen>][.s<after>]`: stamps are hexadecimal and joined by `-`, the rest as in
docs/protocol.md §2.4.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import Enum
from typing import Self

import msgspec

from cdc.events import History, split_stamps
from cdc.snapshots import NOWHERE, covers

TEXT_CHARACTERS_MAX = 1_024
"""A longer text is no token: cookies end at 4,096."""

STAMPS_MAX = 8
SEEN_MAX = 33 + 16 * 32
"""A read that saw so much beside running transactions is remembered as if those had ended: it asks for more."""

NO_LSN = "0" * 16
NOTHING_SEEN = ""
NEVER_COVERED = "p" + "f" * 32
"""Of a read that cannot be compared by snapshots: only a log position, or a new load, shows as much."""

_TEXT = re.compile(
    r"1\.([0-9a-z:-]{1,80})\.((?:[0-9a-f]{1,16}(?:-[0-9a-f]{1,16}){0,7})?)\.([0-9a-f]{0,16})(?:\.(p[0-9a-f]{32,}))?"
    r"(?:\.s([0-9a-f]{1,16}))?"
)


class Relation(Enum):
    """How a token's history stands to the one that a region follows."""

    SAME = "same"
    EARLIER = "earlier"
    UNKNOWN = "unknown"


def relation(token: History, current: History) -> Relation:
    """Histories are `<server>:<number>`, and the numbers of one server grow."""
    if token == current:
        return Relation.SAME
    server, _, number = token.rpartition(":")
    other, _, later = current.rpartition(":")
    if server == other and server and number.isdecimal() and later.isdecimal() and int(number) < int(later):
        return Relation.EARLIER
    return Relation.UNKNOWN


class Token(msgspec.Struct, frozen=True):
    """What must be shown: every transaction of `stamps`, and all that a read with the proof `seen` saw.

    `lsn` is a position of the log by which all of it was logged, zeros where none is known: who has everything logged
    before it needs no more proof. Besides, everything logged before `after` must be shown, whatever else is: so far a
    read may have seen that no snapshot describes. A token of nothing is always shown.
    """

    history: History
    stamps: tuple[str, ...] = ()
    lsn: str = NO_LSN
    seen: str = NOTHING_SEEN
    after: str = NO_LSN

    @property
    def empty(self) -> bool:
        """Whether it asks for nothing."""
        return not self.stamps and not self.seen and self.after == NO_LSN

    @property
    def text(self) -> str:
        """As it travels: letters, digits, `.`, `:` and `-` only."""
        stamps = "-".join(stamp.lstrip("0") or "0" for stamp in self.stamps)
        seen = f".{self.seen}" if self.seen else ""
        after = "" if self.after == NO_LSN else f".s{self.after.lstrip('0')}"
        return f"1.{self.history}.{stamps}.{self.lsn.lstrip('0')}{seen}{after}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The token behind `text`. Raises ValueError."""
        found = _TEXT.fullmatch(text) if len(text) <= TEXT_CHARACTERS_MAX else None
        if found is None or len(found[4] or "p") % 16 != 1:
            raise ValueError("not a token")
        stamps = tuple(stamp.zfill(16) for stamp in found[2].split("-")) if found[2] else ()
        return cls(found[1], stamps, found[3].zfill(16), found[4] or NOTHING_SEEN, (found[5] or "").zfill(16))

    def and_also(self, other: Token) -> Token:
        """One that asks for both. Of two histories the later one counts: it holds what remained of the other.

        Of two that cannot be compared it is `other`'s: a new server, which the caller has met after this one.
        """
        if other.empty or relation(other.history, self.history) is Relation.EARLIER:
            return other if self.empty else self
        if self.empty or self.history != other.history:
            return _fitting(other)
        stamps = tuple(sorted({*self.stamps, *other.stamps}))
        seen = _union(self.seen, other.seen)
        known = [token.lsn for token in (self, other) if token.stamps or token.seen]
        lsn = NO_LSN if not known or NO_LSN in known else max(known)
        return _fitting(Token(self.history, stamps, lsn, seen, max(self.after, other.after)))


class Session:
    """Reads that never go back, and see every write whose token was added. Pass it as a read's `token`.

    It begins with what an earlier request left: `Session(cookie)`, and `text` is what to leave for the next one. A text
    that cannot be read makes the session ask the primary until something else was shown.
    """

    def __init__(self, text: str = "") -> None:
        self.token: Token | None = None
        self.lost = False
        if text:
            try:
                self.token = Token.parse(text)
            except ValueError:
                self.lost = True

    @property
    def text(self) -> str:
        """What was written and shown so far; empty before anything was."""
        return "" if self.token is None else self.token.text

    def add(self, token: Token) -> None:
        """From now on this must be shown too."""
        self.token = Token(token.history).and_also(token) if self.token is None else self.token.and_also(token)


def is_shown(
    token: Token, proofs: Collection[str], *, stamps: Collection[str] = (), logged_before: str = NO_LSN
) -> bool:
    """Whether what these proofs cover together includes the token; all of them of the token's own history.

    `stamps` are shown by themselves, and so is everything that was logged before `logged_before`.
    """
    if token.after > logged_before:
        return False
    if token.lsn != NO_LSN and token.lsn <= logged_before:
        return True
    seen_by_one = not token.seen or any(includes(proof, token.seen) for proof in proofs)
    return seen_by_one and all(
        stamp in stamps or any(covers(proof, stamp, NOWHERE) for proof in proofs) for stamp in token.stamps
    )


def includes(proof: str, seen: str) -> bool:
    """Whether a read with `proof` saw everything that the read of a primary with `seen` saw."""
    kind, xmax = proof[:1], seen[17:33]
    if kind == "p":
        running = split_stamps(seen[33:])
        return proof[17:33] >= xmax and all(x >= xmax or x in running for x in split_stamps(proof[33:]))
    return kind == "s" and proof[1:17] >= xmax


def _fitting(token: Token) -> Token:
    """One that asks for this or more, and whose text is none too long."""
    stamps, seen = token.stamps, token.seen
    if len(stamps) > STAMPS_MAX:
        after = f"{min(int(max(stamps), 16) + 1, 2**64 - 1):016x}"
        stamps, seen = (), _union(seen, f"p{after}{after}")
    if len(seen) > SEEN_MAX:
        seen = f"p{seen[17:33]}{seen[17:33]}"
    return Token(token.history, stamps, token.lsn, seen, token.after)


def _union(one: str, other: str) -> str:
    """The smallest snapshot that saw what either saw."""
    if not one or not other:
        return one or other
    unseen = [
        x
        for x in sorted({*split_stamps(one[33:]), *split_stamps(other[33:])})
        if not covers(one, x, NOWHERE) and not covers(other, x, NOWHERE)
    ]
    xmax = max(one[17:33], other[17:33])
    return f"p{unseen[0] if unseen else xmax}{xmax}{''.join(unseen)}"
