"""What a person sees while the demonstration runs: a table four times a second, or a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table

LINE_SECONDS = 5.0


class RegionState(msgspec.Struct, frozen=True, kw_only=True):
    """One region's figures; `lag_ms` None where there is no watermark (the plain cache has none)."""

    lag_ms: int | None
    reads_per_second: float
    hit_ratio: float
    refused: int


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is shown."""

    phase: str
    changes: int
    changes_per_second: float
    p50_ms: float
    p99_ms: float
    regions: Mapping[str, RegionState]


class Screen(Protocol):
    """Somebody who looks."""

    def say(self, text: str) -> None:
        """One line that stays."""

    def show(self, state: State) -> None:
        """The figures now."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Silent:
    """Nobody looks."""

    def say(self, text: str) -> None:
        """Say nothing."""

    def show(self, state: State) -> None:
        """Show nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Lines(Silent):
    """A log reads along: one line every few seconds."""

    def __init__(self) -> None:
        self._shown = 0.0

    def say(self, text: str) -> None:
        """Print it."""
        print(text, flush=True)

    def show(self, state: State) -> None:
        """Print a line, when it is time for one."""
        if time.monotonic() - self._shown < LINE_SECONDS:
            return
        self._shown = time.monotonic()
        regions = ", ".join(
            f"{name} {region.reads_per_second:.0f} reads/s {region.hit_ratio:.0%} hits lag {_lag(region)}"
            for name, region in state.regions.items()
        )
        changes = f"{state.changes_per_second:.0f} changes/s"
        self.say(f"{state.phase}: {changes}, gone after {state.p50_ms:.1f} ms (p99 {state.p99_ms:.1f}); {regions}")


class Table4Hz(Silent):
    """A person looks: a table that changes in place."""

    def __init__(self) -> None:
        self._live = Live(console=Console(), auto_refresh=False, transient=True)

    def say(self, text: str) -> None:
        """Print it above the table."""
        self._live.console.print(text, highlight=False)

    def show(self, state: State) -> None:
        """Draw the table anew."""
        self._live.update(_table(state), refresh=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


def choose(*, silent: bool) -> Screen:
    """The screen that fits where the output goes."""
    if silent:
        return Silent()
    return Table4Hz() if sys.stdout.isatty() else Lines()


def _table(state: State) -> Table:
    title = f"{state.phase}: {state.changes} changes, {state.changes_per_second:.0f}/s"
    caption = f"after a commit the old value is gone in {state.p50_ms:.1f} ms (p99 {state.p99_ms:.1f} ms)"
    table = Table(title=title, caption=caption)
    for column in ("region", "lag", "reads/s", "hits", "refused fills"):
        table.add_column(column, justify="left" if column == "region" else "right")
    for name, region in state.regions.items():
        reads = f"{region.reads_per_second:.0f}"
        table.add_row(name, _lag(region), reads, f"{region.hit_ratio:.1%}", str(region.refused))
    return table


def _lag(region: RegionState) -> str:
    return "-" if region.lag_ms is None else f"{region.lag_ms} ms"
