"""What a change is: the vocabulary that every other module speaks. Pure; imports nothing of ours.

Three notions of order are kept apart by type, because mixing them is how caches go stale:

- `Position`: where a change stands in the source's log. Totally ordered within one epoch.
- `Stamp`: which transaction wrote it. What a reader can *see* is a set of stamps (`cdc.snapshots`), not a position.
- `Offset`: Kafka's, and only Kafka's.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NewType, TypeAlias

import msgspec

Stamp = NewType("Stamp", int)
"""The writing transaction, 64 bits: PostgreSQL's xid, widened at capture, never later; a GTID in `Origins`' form."""

Offset = NewType("Offset", int)
"""A Kafka offset."""

Epoch = NewType("Epoch", int)
"""One uninterrupted history of one source as one slot saw it; unsigned 32 bits, a later epoch is a larger number."""

History: TypeAlias = str
"""One server's uninterrupted past: the only one whose snapshots and stamps can be compared.

PostgreSQL: `7525310223452345:1` (system identifier, timeline). MySQL: `<server_uuid>:<serial>`; MariaDB, which has no
uuid: `<server_id>:<serial>`. The serial is the source's own count: it grows whenever the binary log did not go on where
it was left (RESET, restore) and whenever the list of origins is made anew.
"""

POSITION_WIDTH = 32
STAMP_WIDTH = 16
OFFSET_WIDTH = 16


class Op(StrEnum):
    """What happened to a row; the values are Debezium's letters."""

    CREATE = "c"
    UPDATE = "u"
    DELETE = "d"
    READ = "r"
    TRUNCATE = "t"
    MESSAGE = "m"


class Position(msgspec.Struct, frozen=True, order=True, gc=False):
    """A totally ordered place in one source's log.

    `lsn` is the start of the transaction's *commit record* (pgoutput's "final LSN"): it is known before the first row
    arrives, so that a transaction of any size can be streamed. Records are replayed whole, hence
    "replay LSN > start of the record" says the same as "replay LSN >= end of the record".
    `order` counts the changes of one transaction from 0.
    """

    epoch: int
    lsn: int
    order: int

    @property
    def text(self) -> str:
        """32 lower-case hexadecimal digits that sort like the position."""
        return f"{self.epoch:08x}{self.lsn:016x}{self.order:08x}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The position behind `text`. Raises ValueError."""
        if len(text) != POSITION_WIDTH:
            raise ValueError(f"a position has {POSITION_WIDTH} hexadecimal digits, not {len(text)}")
        return cls(int(text[:8], 16), int(text[8:24], 16), int(text[24:], 16))


def stamp_text(stamp: int) -> str:
    """16 lower-case hexadecimal digits that sort like the stamp."""
    return f"{stamp:016x}"


def split_stamps(text: str) -> tuple[str, ...]:
    """Stamps that stand one after the other, one by one."""
    return tuple(text[i : i + STAMP_WIDTH] for i in range(0, len(text), STAMP_WIDTH))


def parse_lsn(text: str) -> int:
    """PostgreSQL's `16/B374D848` as a number. Raises ValueError."""
    high, low = text.split("/")
    return (int(high, 16) << 32) | int(low, 16)


def lsn_text(lsn: int) -> str:
    """A number as PostgreSQL writes it: `16/B374D848`."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


Row: TypeAlias = dict[str, Any]
"""Column name to value, in Debezium's rendering (decimals as text, timestamps as numbers)."""


class ChangeEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One committed row change.

    `before` holds what the replica identity gives: the whole row under FULL, else the key columns or nothing.
    `key` is the primary key, None for TRUNCATE, MESSAGE and tables without one. `committed_at_ms` is the database's
    clock, milliseconds since 1970.
    """

    source: str
    table: str
    op: Op
    key: Row | None
    before: Row | None
    after: Row | None
    position: Position
    stamp: Stamp
    committed_at_ms: int
