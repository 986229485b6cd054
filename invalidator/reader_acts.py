"""What the reader's logic asks of whoever carries it out, and what it returns. Pure.

A flow yields acts and is sent their answers; `CacheReader` and `AsyncCacheReader` carry them out.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, TypeAlias, TypeVar

import msgspec

from invalidator.guard import Fill
from invalidator.herd import Flight
from invalidator.judging import Evidence
from invalidator.near import Kept
from invalidator.reader_commands import Looked
from invalidator.typed_views import TypedView
from invalidator.views import View

T = TypeVar("T")


class Look(msgspec.Struct, frozen=True):
    """Read entries of one shard. Answer: Looked."""

    shard: int
    names: tuple[str, ...]
    view: View


class Lease(msgspec.Struct, frozen=True):
    """Ask for leases in one shard, or give them back. Answer: per field GRANTED, HELD or FULL."""

    shard: int
    fields: tuple[str, ...]
    seconds: float


class Load(msgspec.Struct, frozen=True):
    """Run the application's loader for these keys (by cache key). Answer: Loaded, its value a mapping by cache key."""

    view: TypedView[Any]
    keys: Mapping[str, Any]
    primary: bool
    snapshot: Any


class Offer(msgspec.Struct, frozen=True):
    """Offer fills to one shard. Answer: a Filled for each."""

    shard: int
    fills: list[Fill]


class Wait(msgspec.Struct, frozen=True):
    """Wait until a flight has finished, at most so long. Answer: whether it has."""

    flight: Flight
    seconds: float


class Pause(msgspec.Struct, frozen=True):
    """Let so much time pass."""

    seconds: float


class AskClock(msgspec.Struct, frozen=True):
    """Ask the primary for its time. Answer: ClockReading, or None."""


Act: TypeAlias = Look | Lease | Load | Offer | Wait | Pause | AskClock
Flow: TypeAlias = Generator[Act, Any, T]


AWAY = Looked("AWAY", "", "", ())
"""Stands for a reply that did not come."""


class Found(msgspec.Struct, frozen=True):
    """A value to return; `kept` is its encoded form with what is known of it, where that was looked at.

    `again`: what to run beside its use, so that it stays within its bound. `own`: what is known of a value that is for
    nobody else.
    """

    value: Any
    kept: Kept | None = None
    again: Flow[Any] | None = None
    own: Evidence | None = None

    @property
    def evidence(self) -> Evidence | None:
        """What is known of it, where that was looked at."""
        return self.own if self.kept is None else self.kept.evidence
