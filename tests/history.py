"""Reads and writes as they happened, and whether what was promised held: no clock but the test's own, no cache involved.

Values of a key are versions 1, 2, 3 … in the order of their commits. A write is done once its commit was answered.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """A read of `key` that was asked for at `began` (seconds)."""

    key: int
    version: int
    began: float


@dataclass(kw_only=True)
class History:
    """Everything that was done, from all threads."""

    acked: dict[int, list[tuple[float, int]]] = field(default_factory=lambda: defaultdict(list))
    reads: list[Read] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wrote(self, key: int, version: int, acked: float) -> None:
        """A commit was answered."""
        with self._lock:
            self.acked[key].append((acked, version))

    def read(self, key: int, version: int, began: float) -> None:
        """A read has returned."""
        self.reads.append(Read(key=key, version=version, began=began))

    def stale(self, bound_seconds: float) -> list[Read]:
        """Reads that returned a version which had been replaced for more than the bound when they were asked for."""
        newest: dict[int, tuple[list[float], list[int]]] = {}
        for key, writes in self.acked.items():
            ordered = sorted(writes)
            highest, versions = 0, []
            for _, version in ordered:
                highest = max(highest, version)
                versions.append(highest)
            newest[key] = ([at for at, _ in ordered], versions)
        found = []
        for read in self.reads:
            times, versions = newest.get(read.key, ([], []))
            count = bisect_left(times, read.began - bound_seconds)
            if count and versions[count - 1] > read.version:
                found.append(read)
        return found


class SessionHistory:
    """What one session wrote and was shown, and each time that it was shown less than that."""

    def __init__(self) -> None:
        self.least: dict[int, int] = {}
        self.unseen_writes: list[tuple[int, int, int]] = []
        self.went_back: list[tuple[int, int, int]] = []
        self.reads = 0
        self._written: dict[int, int] = {}

    def wrote(self, key: int, version: int) -> None:
        """It wrote."""
        self._written[key] = version

    def read(self, key: int, version: int) -> None:
        """It was shown a version."""
        self.reads += 1
        written, shown = self._written.get(key, 0), self.least.get(key, 0)
        if version < written:
            self.unseen_writes.append((key, written, version))
        if version < shown:
            self.went_back.append((key, shown, version))
        self.least[key] = max(shown, version)
