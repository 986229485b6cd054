"""What a change is: the vocabulary that every other module speaks. Pure; imports nothing of ours.

Three notions of order are kept apart by type, because mixing them is how caches go stale:

- `Position`: where a change stands in the source's log. Totally ordered within one epoch.
- `Stamp`: which transaction wrote it. What a reader can *see* is a set of stamps, not a position.
- `Offset`: Kafka's, and only Kafka's.
"""

from __future__ import annotations

from bisect import bisect_left
from enum import StrEnum
from typing import Any, NewType, TypeAlias

import msgspec

Stamp = NewType("Stamp", int)
"""The writing transaction: PostgreSQL's 64-bit xid. 32-bit xids are widened at capture, never later."""

Offset = NewType("Offset", int)
"""A Kafka offset."""

Epoch = NewType("Epoch", int)
"""One uninterrupted history of one source as one slot saw it; unsigned 32 bits, a later epoch is a larger number."""

History: TypeAlias = str
"""One server's uninterrupted past, e.g. `7525310223452345:1` (system identifier, timeline)."""

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


class PrimarySnapshot(msgspec.Struct, frozen=True):
    """What one read on a PostgreSQL primary could see: `pg_current_snapshot()`.

    `xmax` is the last completed xid + 1, `running` the transactions below it that were still running, ascending.
    """

    history: History
    xmin: int
    xmax: int
    running: tuple[int, ...] = ()

    def covers(self, stamp: int, position: Position | None = None) -> bool:  # noqa: ARG002 - one question for every kind
        """Whether the read saw everything that transaction `stamp` wrote."""
        return stamp < self.xmin or (stamp < self.xmax and not _contains(self.running, stamp))

    def covers_range(self, low: int, high: int, position: Position | None = None) -> bool:  # noqa: ARG002 - one question for every kind
        """Whether the read saw every transaction with low <= stamp <= high, whichever of them exist."""
        if high < self.xmin:
            return True
        first = bisect_left(self.running, low)
        return high < self.xmax and not (first < len(self.running) and self.running[first] <= high)

    @property
    def text(self) -> str:
        """Wire form: `p`, xmin, xmax and the running stamps, 16 hexadecimal digits each."""
        return "p" + "".join(stamp_text(s) for s in (self.xmin, self.xmax, *self.running))


class StandbySnapshot(msgspec.Struct, frozen=True):
    """What one read on a PostgreSQL standby could see.

    A standby's list of running transactions is empty (measured on PostgreSQL 18), so only two tests are safe:
    below xmin, or committed before `replay_lsn`, read by a statement that ended before the load's transaction began.
    """

    history: History
    xmin: int
    replay_lsn: int

    def covers(self, stamp: int, position: Position | None = None) -> bool:
        """Whether the read saw everything that transaction `stamp`, logged at `position`, wrote."""
        return stamp < self.xmin or (position is not None and position.lsn < self.replay_lsn)

    def covers_range(self, low: int, high: int, position: Position | None = None) -> bool:  # noqa: ARG002 - one question for every kind
        """Whether the read saw every transaction up to `high`, none of them logged after `position`."""
        return self.covers(high, position)

    @property
    def text(self) -> str:
        """Wire form: `s`, xmin and the replay LSN, 16 hexadecimal digits each."""
        return f"s{self.xmin:016x}{self.replay_lsn:016x}"


Snapshot: TypeAlias = PrimarySnapshot | StandbySnapshot


def parse_pg_snapshot(history: History, text: str) -> PrimarySnapshot:
    """PostgreSQL's `xmin:xmax:xip,xip` as a snapshot. Raises ValueError."""
    xmin, xmax, running = text.split(":")
    return PrimarySnapshot(history, int(xmin), int(xmax), tuple(sorted(int(x) for x in running.split(",") if x)))


def parse_lsn(text: str) -> int:
    """PostgreSQL's `16/B374D848` as a number. Raises ValueError."""
    high, low = text.split("/")
    return (int(high, 16) << 32) | int(low, 16)


def lsn_text(lsn: int) -> str:
    """A number as PostgreSQL writes it: `16/B374D848`."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def _contains(ascending: tuple[int, ...], value: int) -> bool:
    i = bisect_left(ascending, value)
    return i < len(ascending) and ascending[i] == value


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
