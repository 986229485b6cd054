"""What one read could see, for every kind of database, and the one question asked of it: did it see this stamp? Pure.

A snapshot travels, is stored and is judged as text (docs/protocol.md §2.4), stamps as 16 hexadecimal digits:

- `p` xmin xmax running...: a PostgreSQL primary;
- `s` xmin replay-LSN [shown-LSN]: a PostgreSQL standby, or statements of a primary with a snapshot each; all that they
  may show was logged before shown-LSN;
- `g` low high, low high...: GTIDs that MySQL or MariaDB had executed, disjoint ascending closed intervals.

`covers_range` is the decision, and the only one; its twin is in invalidator/lua/10_text.lua.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import msgspec

from cdc.events import POSITION_WIDTH, History, Position, Stamp, split_stamps, stamp_text

ORIGINS_MAX = 1 << 16
GTID_NUMBER_MAX = (1 << 48) - 1
"""A GTID's stamp is its origin (16 bits, high) and its number (48 bits, low)."""

NOWHERE = "f" * POSITION_WIDTH
"""A position that no replay passes: where it is not known at which one a stamp was logged."""


def covers_range(seen: str, low: str, high: str, position: str) -> bool:
    """Whether the read behind `seen` saw all of low..high, whichever exist, none logged after `position`."""
    kind = seen[:1]
    if kind == "p":
        if high < seen[1:17]:
            return True
        return high < seen[17:33] and not any(low <= running <= high for running in split_stamps(seen[33:]))
    if kind == "s":  # its list of running transactions is empty, whatever runs (measured on PostgreSQL 18)
        return high < seen[1:17] or position[8:24] < seen[17:33]
    if kind == "g":
        return any(seen[i : i + 16] <= low and high <= seen[i + 16 : i + 32] for i in range(1, len(seen), 32))
    return False


def covers(seen: str, stamp: str, position: str) -> bool:
    """Whether the read behind `seen` saw transaction `stamp`, logged at `position`."""
    return covers_range(seen, stamp, stamp, position)


class Snapshot(msgspec.Struct, frozen=True):
    """What one read could see: the history of the server that was read, and the proof as text."""

    history: History
    text: str

    def covers(self, stamp: int, position: Position | None = None) -> bool:
        """Whether the read saw everything that transaction `stamp`, logged at `position`, wrote."""
        return covers(self.text, stamp_text(stamp), NOWHERE if position is None else position.text)


# --- PostgreSQL -----------------------------------------------------------------------------------------------------

_PG_SNAPSHOT = re.compile(r"([0-9]{1,20}):([0-9]{1,20}):([0-9]{1,20}(?:,[0-9]{1,20})*)?")


def parse_pg_snapshot(history: History, text: str) -> Snapshot:
    """A primary's `pg_current_snapshot()`, `xmin:xmax:xip,xip`. Raises ValueError.

    xmax is the last completed xid + 1, the list those below it that were still running.
    """
    xmin, xmax, running = _pg_snapshot(text)
    return Snapshot(history, "p" + "".join(stamp_text(xid) for xid in (xmin, xmax, *running)))


def parse_pg_standby_snapshot(history: History, text: str, replay_lsn: int, shown_lsn: int | None = None) -> Snapshot:
    """A standby's `pg_current_snapshot()`, of which xmin alone can be believed. Raises ValueError.

    `replay_lsn` is `pg_last_wal_replay_lsn()`, read by a statement that ended before the load's transaction began;
    `shown_lsn` the same, read after the load.
    """
    xmin, _, _ = _pg_snapshot(text)
    shown = "" if shown_lsn is None else f"{shown_lsn:016x}"
    return Snapshot(history, f"s{stamp_text(xmin)}{replay_lsn:016x}{shown}")


def _pg_snapshot(text: str) -> tuple[int, int, list[int]]:
    match = _PG_SNAPSHOT.fullmatch(text)
    if match is None:
        raise ValueError(f"not a pg_snapshot (xmin:xmax:xip,...): {text[:80]!r}")
    xmin, xmax = int(match[1]), int(match[2])
    running = sorted(int(xid) for xid in match[3].split(",")) if match[3] else []
    if not xmin <= xmax < 1 << 64 or (running and not xmin <= running[0] <= running[-1] < xmax):
        raise ValueError(f"a pg_snapshot has xmin <= xip < xmax, 64 bits each: {text[:80]!r}")
    return xmin, xmax, running


def shortened(proof: str, running_max: int) -> str:
    """A primary's proof with at most so many running transactions; a longer one claims nothing beyond its xmin."""
    return proof if len(proof) <= 33 + 16 * running_max else proof[:17] + proof[1:17]


# --- MySQL and MariaDB ----------------------------------------------------------------------------------------------

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_TAG = r"[a-z_][a-z0-9_]{0,31}"
_INTERVAL = r"[0-9]{1,19}(?:-[0-9]{1,19})?"
_MYSQL_SOURCE = re.compile(rf"{_UUID}(?::(?:{_TAG}:)?{_INTERVAL})+")
_MARIADB_GTID = re.compile(r"([0-9]{1,10})-[0-9]{1,10}-([0-9]{1,20})")


class Origins(msgspec.Struct, frozen=True):
    """Who writes GTIDs into one history's log: the writer `names[i]` has origin i in stamps.

    A name is a MySQL server uuid in lower case; `uuid:tag` for tagged GTIDs, which are numbered by themselves; or a
    MariaDB domain id in decimal digits. First stands the captured server's own, so that its stamps are its plain
    numbers. The source keeps this list: under one history it appends and never reorders, so a reader with an older copy
    only knows too little, and covers too little. Raises ValueError when a name comes twice or there are too many.
    """

    history: History
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names) or len(self.names) > ORIGINS_MAX:
            raise ValueError(f"origins are up to {ORIGINS_MAX} different names: begin a new epoch with a new list")

    def stamp(self, name: str, number: int) -> Stamp:
        """The stamp of GTID `name:number`. Raises ValueError when the name is unknown or the number does not fit."""
        _check_numbers(number, number)
        if name not in self.names:
            raise ValueError(f"{name} has no origin in history {self.history}: append it before its first stamp")
        return Stamp(self.names.index(name) << 48 | number)

    def interval(self, name: str, low: int, high: int) -> list[tuple[int, int]]:
        """The stamps of name:low-high as one interval; none of an unknown name. Raises ValueError.

        Numbers begin at 1; from there on it begins at 0, so that "everything up to" is asked as of any other kind.
        """
        _check_numbers(low, high)
        if name not in self.names:
            return []
        first = self.names.index(name) << 48
        return [(first if low == 1 else first | low, first | high)]


def parse_mysql_gtid_set(origins: Origins, text: str) -> Snapshot:
    """`@@GLOBAL.gtid_executed` as read before BEGIN: `uuid:1-5:7:tag:1-3,uuid:1-9`. Raises ValueError.

    A transaction enters that set after its engine committed, so what is in it was visible to a later BEGIN; the read
    may see more. Writers that `origins` does not name are left out: nothing of theirs is covered.
    An XA transaction has two GTIDs, of XA PREPARE and of XA COMMIT. Its rows are logged under the first and seen after
    the second: the source gives them the stamp of XA COMMIT, or refuses XA.
    """
    intervals: list[tuple[int, int]] = []
    for part in _parts(text.lower()):
        if not _MYSQL_SOURCE.fullmatch(part):
            raise ValueError(f"not a GTID set (uuid:[tag:]first-last...): {part[:80]!r}")
        uuid, *rest = part.split(":")
        name = uuid
        for word in rest:
            if word[0].isdigit():
                low, _, high = word.partition("-")
                intervals += origins.interval(name, int(low), int(high or low))
            else:
                name = f"{uuid}:{word}"
    return _gtids(origins.history, intervals)


def parse_mariadb_position(origins: Origins, text: str) -> Snapshot:
    """One position per domain, `0-1-100,3-2-7`, as everything up to it. Raises ValueError.

    That is true under `gtid_strict_mode` (numbers of a domain only grow), which the source must demand. The position is
    `BINLOG_GTID_POS(binlog_snapshot_file, binlog_snapshot_position)` after START TRANSACTION WITH CONSISTENT SNAPSHOT;
    `gtid_binlog_pos` moves before the engine commits and would claim what cannot be seen yet. The server id does not
    matter. Of XA the same is true as of MySQL.
    """
    intervals: list[tuple[int, int]] = []
    domains: set[int] = set()
    for part in _parts(text):
        match = _MARIADB_GTID.fullmatch(part)
        if match is None or int(match[1]) in domains:
            raise ValueError(f"not a position of one GTID per domain (domain-server-number,...): {part[:80]!r}")
        domains.add(int(match[1]))
        intervals += origins.interval(str(int(match[1])), 1, int(match[2]))
    return _gtids(origins.history, intervals)


def _parts(text: str) -> Iterator[str]:
    """What stands between commas; servers print a line break after each. Nothing at all is the empty set."""
    if text.strip():
        yield from (part.strip() for part in text.split(","))


def _check_numbers(low: int, high: int) -> None:
    if not 1 <= low <= high <= GTID_NUMBER_MAX:
        raise ValueError(f"GTID numbers ascend from 1 to {GTID_NUMBER_MAX}, not {low}-{high}")


def _gtids(history: History, intervals: Iterable[tuple[int, int]]) -> Snapshot:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(intervals):
        if merged and low <= merged[-1][1] + 1:
            low, high = merged[-1][0], max(merged.pop()[1], high)  # noqa: PLW2901 - the union of the two
        merged.append((low, high))
    return Snapshot(history, "g" + "".join(stamp_text(low) + stamp_text(high) for low, high in merged))
