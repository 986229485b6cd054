"""How a long command shows that it goes on, and how it holds back: a bar on a terminal, else log lines; a rate limit.

In flow how many units are done and what came of them; out flow lines on stderr, so that stdout keeps the result.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

log = structlog.get_logger("progress")

LOG_INTERVAL_SECONDS = 5.0

Clock = Callable[[], float]


class Every:
    """Whether it is time again: true once per `seconds`, the first time after as long."""

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._due_at = clock() + seconds

    def due(self) -> bool:
        """Whether so many seconds have passed since it was true last."""
        now = self._clock()
        if now < self._due_at:
            return False
        self._due_at = now + self._seconds
        return True


class RateLimit:
    """Not more than `per_second` units on average, and no burst after a pause; None: no limit.

    `wait` sleeps for so many seconds; an Event's own `wait` ends early where the command is to stop.
    """

    def __init__(
        self, per_second: float | None, *, clock: Clock = time.monotonic, wait: Callable[[float], object] = time.sleep
    ) -> None:
        self._per_second = per_second
        self._clock = clock
        self._wait = wait
        self._free_at = clock()

    def spend(self, n: int) -> None:
        """Wait until `n` more may be done."""
        if self._per_second is None:
            return
        now = self._clock()
        begins = max(self._free_at, now)
        self._free_at = begins + n / self._per_second
        if begins > now:
            self._wait(begins - now)


class Progress:
    """A bar where stderr is a terminal and the result is for people, else a log line every few seconds.

    `total` None: not known. `unit` names what is counted, in the plural. `done` counts an earlier run's units too, of
    which there were `before`.
    """

    def __init__(
        self, total: int | None, unit: str, as_json: bool, *, clock: Clock = time.monotonic
    ) -> None:  # fmt: skip
        self.done = 0
        self.counts: Counter[str] = Counter()
        self._total = total
        self._unit = unit
        self._clock = clock
        self._began = clock()
        self.before = 0
        self._log_due = Every(LOG_INTERVAL_SECONDS, clock)
        self._bar = _bar(unit) if sys.stderr.isatty() and not as_json else None

    def __enter__(self) -> Self:
        self._began = self._clock()
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task("", total=self._total, rest="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin_at(self, done: int, counts: Mapping[str, int] | None = None) -> None:
        """So many were done by an earlier run: they count as done, not for the rate."""
        self.done = self.before = done
        self.counts = Counter(counts or {})
        self._show()

    def expect(self, more: int) -> None:
        """So many more units are still to come."""
        self._total = self.done + more
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=self._total)

    def advance(self, n: int, **counts: int) -> None:
        """`n` more units are done; `counts` say what came of them."""
        self.done += n
        self.counts.update(counts)
        self._show()

    @property
    def seconds(self) -> float:
        """Since this run began."""
        return self._clock() - self._began

    @property
    def per_second(self) -> float:
        """Units per second of this run; 0 where nothing can be said."""
        seconds = self.seconds
        return (self.done - self.before) / seconds if seconds > 0 else 0.0

    @property
    def eta_seconds(self) -> float | None:
        """How long it will take still; None where that is not known."""
        rate = self.per_second
        return None if self._total is None or not rate else max(0, self._total - self.done) / rate

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done, rest=self._rest())
        elif self._log_due.due():
            eta = self.eta_seconds
            known = {} if self._total is None else {"total": self._total}
            left = {} if eta is None else {"eta_seconds": round(eta)}
            rate = {"per_second": round(self.per_second)}
            log.info("progress", unit=self._unit, done=self.done, **known, **rate, **left, **self.counts)

    def _rest(self) -> str:
        eta = self.eta_seconds
        left = "" if eta is None else f" · {_duration(eta)} left"
        return f"{self.per_second:,.0f}/s{left}" + "".join(f" · {name} {n:,}" for name, n in self.counts.items() if n)


def _bar(unit: str) -> Bar:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TextColumn("{task.fields[rest]}"))
    return Bar(*columns, console=Console(stderr=True))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
