"""Which tables a session has read and changed: PostgreSQL counts per session before it publishes the counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import psycopg
from psycopg.rows import tuple_row

# What it shows holds the session's last second as well: only the difference between two moments means something.
_QUESTION: Final = """SELECT n.nspname || '.' || c.relname,
    sum(coalesce(s.seq_scan, 0) + coalesce(s.idx_scan, 0))::bigint,
    sum(s.n_tup_ins + s.n_tup_upd + s.n_tup_del)::bigint
    FROM pg_stat_xact_user_tables s JOIN pg_class c ON c.oid = coalesce(pg_partition_root(s.relid), s.relid)
    JOIN pg_namespace n ON n.oid = c.relnamespace GROUP BY 1"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableCounts:
    """`schema.table` -> scans, rows changed; a partition counts as its root. Two moments of one transaction compare."""

    scans: Mapping[str, int]
    changes: Mapping[str, int]

    @classmethod
    def now(cls, session: psycopg.Connection[Any]) -> Self:
        """Of this session."""
        with session.cursor(row_factory=tuple_row) as cursor:  # a loader may have changed the session's own
            rows = cursor.execute(_QUESTION).fetchall()
        return cls(scans={name: scans for name, scans, _ in rows}, changes={name: n for name, _, n in rows})

    def read_since(self, earlier: Self) -> frozenset[str]:
        """The tables that were scanned in between."""
        return _grown(earlier.scans, self.scans)

    def changed_since(self, earlier: Self) -> frozenset[str]:
        """The tables in which rows were changed in between."""
        return _grown(earlier.changes, self.changes)


def _grown(earlier: Mapping[str, int], now: Mapping[str, int]) -> frozenset[str]:
    return frozenset(name for name, count in now.items() if count > earlier.get(name, 0))
