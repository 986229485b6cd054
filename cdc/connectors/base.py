"""What capture needs from any source: a stream of items in log order, and an acknowledgement. Pure.

A connector yields a transaction as its events followed by one `Progress`; a transaction that was rolled back never
shows. `Progress` without events before it is as good: everything up to its mark has been handed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import msgspec

from cdc.events import ChangeEvent, Position, Stamp


class SourceMessage(msgspec.Struct, frozen=True, gc=False):
    """A note that somebody wrote into the log inside a transaction; our heartbeats are such notes."""

    prefix: str
    content: bytes
    position: Position
    stamp: Stamp


class Progress(msgspec.Struct, frozen=True, gc=False):
    """Everything before `mark` was handed over and committed. `mark` is what `ack` wants; it only grows.

    `committed_at_ms` is the database's clock at the commit, 0 when the mark ends no transaction.
    """

    mark: int
    committed_at_ms: int = 0


StreamItem: TypeAlias = ChangeEvent | SourceMessage | Progress


class ChangeStream(Protocol):
    """An open stream of one source. One thread uses it.

    Every method raises TransientError when the connection is gone, GapError when the log no longer has what the
    stream needs, FatalError when only a person can help.
    """

    def read(self, timeout_seconds: float) -> Sequence[StreamItem]:
        """Items in log order, a bounded number; waits up to `timeout_seconds` for the first one."""

    def keep_alive(self) -> None:
        """Tell the source that we live, when that is due; for the times when nobody can read."""

    def ack(self, mark: int) -> None:
        """Everything before `mark` is durable elsewhere; the source may forget it."""

    def close(self) -> None:
        """Tell the source the last acknowledged mark and leave. Never raises."""
