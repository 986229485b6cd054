"""Herd control inside one process: who loads, how many at a time, and when a failing Redis is left alone. Pure.

In flow what happens (a load begins, ends, fails) and the time; out flow permissions. Waiting is a driver's business: it
makes the Flights that others wait for. Everything here is safe between threads. Times are monotonic seconds.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import msgspec

REOPENED_SHARE = 8
"""After a region was raised a process begins with the eighth part of its loads, and doubles it every second."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one reader. `loads`: at a time in this process; keep it at or below the pool's size.

    `region_loads`: at a time in the whole region, shared out among its shards; 0 for no leases at all.
    `lease_seconds`: after so long a load that did not end no longer keeps others from loading the same.
    `wait_seconds`: so long a read waits for others' loads, for its turn and for a lease, before it is Overloaded.
    `breaker_failures`: after so many failures in a row Redis is not asked for `breaker_seconds`.
    """

    loads: int = 16
    region_loads: int = 64
    lease_seconds: float = 5.0
    wait_seconds: float = 2.0
    breaker_failures: int = 5
    breaker_seconds: float = 1.0
    payload_bytes_max: int = 1 << 20
    ttl_jitter: float = 0.1


class Flight(Protocol):
    """Something that others wait for. A driver makes it; `finish` may be called from any thread, once."""

    result: Any

    def finish(self, result: Any) -> None:
        """Wake everybody who waits."""


class Flights:
    """The loads under way in this process, by key: the first who asks leads, the others join."""

    def __init__(self, make: Callable[[], Flight]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._flying: dict[Hashable, Flight] = {}

    def lead_or_join(self, key: Hashable) -> tuple[Flight, bool]:
        """The flight of `key`, and whether the caller leads it and must `land` it, whatever happens."""
        with self._lock:
            flight = self._flying.get(key)
            if flight is not None:
                return flight, False
            flight = self._flying[key] = self._make()
            return flight, True

    def land(self, key: Hashable, result: Any) -> None:
        """It has ended, with `result` for those who joined."""
        with self._lock:
            flight = self._flying.pop(key, None)
        if flight is not None:
            flight.finish(result)


class LoadGate:
    """At most so many loads at a time; those who come later wait in line. After a raise the limit starts low."""

    def __init__(self, loads: int, make: Callable[[], Flight]) -> None:
        self._loads = loads
        self._make = make
        self._lock = threading.Lock()
        self._inside = 0
        self._line: deque[Flight] = deque()
        self._raised: float | None = None

    def limit(self, now: float) -> int:
        """How many loads may run now."""
        if self._raised is None:
            return self._loads
        graded = max(1, self._loads // REOPENED_SHARE) << max(0, int(now - self._raised))
        if graded < self._loads:
            return graded
        self._raised = None
        return self._loads

    def raised(self, now: float) -> None:
        """The region was raised: whatever is read from now on is a miss."""
        if self._raised is None:
            self._raised = now

    def enter(self, now: float) -> Flight | None:
        """None for who is in and must `leave`; else what to wait for before asking again."""
        with self._lock:
            if self._inside < self.limit(now):
                self._inside += 1
                return None
            flight = self._make()
            self._line.append(flight)
            return flight

    def leave(self, now: float) -> None:
        """A load has ended: as many as fit may ask again."""
        with self._lock:
            self._inside -= 1
            room = self.limit(now) - self._inside
            woken = [self._line.popleft() for _ in range(min(max(1, room), len(self._line)))]
        for flight in woken:
            flight.finish(None)

    def give_up(self, flight: Flight) -> None:
        """Who waited is gone; if it was just woken, the next one is."""
        with self._lock:
            try:
                self._line.remove(flight)
            except ValueError:
                woken = self._line.popleft() if self._line else None
            else:
                woken = None
        if woken is not None:
            woken.finish(None)


class Breaker:
    """Leaves a Redis alone that failed several times in a row; then one request tries, and the rest follow it."""

    def __init__(self, failures: int, seconds: float) -> None:
        self._allowed = failures
        self._seconds = seconds
        self._failures = 0
        self._open_until = 0.0

    @property
    def is_closed(self) -> bool:
        """Whether Redis answered last time, or did not fail often enough since."""
        return self._failures < self._allowed

    def permits(self, now: float) -> bool:
        """Whether to ask Redis now."""
        if self._failures < self._allowed:
            return True
        if now < self._open_until:
            return False
        self._open_until = now + self._seconds  # this one tries, whoever comes meanwhile does not
        return True

    def failed(self, now: float) -> None:
        """Redis did not answer."""
        self._failures += 1
        if self._failures >= self._allowed:
            self._open_until = now + self._seconds

    def succeeded(self) -> None:
        """It did."""
        self._failures = 0
