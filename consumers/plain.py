"""Keys of plain views: removed when they change, once more when that is visible, swept when their view is raised.

Driven by the worker. What is still to be done lies in Redis before any row moves past its cause, or is told by the
scopes themselves: so another worker goes on where this one was killed. `invalidator/plain.py`, docs/protocol.md §2.10.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from consumers.alarms import Alarm, Alarms
from consumers.failpoints import failpoint
from consumers.telemetry import WorkerMetrics
from invalidator.guard import Beat, Close, Closing
from invalidator.layout import REGION_SCOPE, Scope, view_scope
from invalidator.node import Node
from invalidator.plain import NEVER, Debt, is_due, is_swept, is_view, is_visible, note_of, pattern, swept_for, view_debt
from invalidator.region import Region
from invalidator.views import View, Views, can_render

log = structlog.get_logger()

OWED_MAX = 20_000
"""Debts of one shard, about 3 MB: a quarter of a second of 80,000 changes a second. Beyond, whole views are owed."""

PAY_KEYS = 1_000
"""Keys removed in one step."""

SWEEP_SECONDS = 0.05
"""Of each turn; a step looks at some thousand keys, and no turn does none."""


class PlainKeys:
    """What the plain views of `views` need in one region. `control_end`: the point from which heartbeats count now."""

    def __init__(
        self, region: Region, views: Views, metrics: WorkerMetrics, alarms: Alarms, control_end: Callable[[], int]
    ) -> None:
        self._region = region
        self.views = {name: view for name, view in views.views.items() if name in views.plain}
        self._metrics = metrics
        self._alarms = alarms
        self._control_end = control_end
        self._shards = range(region.layout.shards)
        self._paid_until = ""  # position of the newest heartbeat by which debts were paid
        self._due: dict[str, dict[int, str]] = {}  # views to sweep, and the debts that this pays
        self._sweep: _Sweep | None = None

    def forget(self) -> None:
        """Redis may stand elsewhere than believed: look at everything again."""
        self._paid_until = ""
        self._due.clear()
        self._sweep = None

    def remove(self, changes: Sequence[Debt], beat: Beat | None) -> None:
        """Remove changed keys, once what is owed for them is written. To be called before rows move past the changes.

        `beat`: the newest heartbeat that was heard. Raises RegionFault.
        """
        if not changes:
            return
        keys = [change.key for change in changes]
        owed: dict[int, list[Debt]] = {}
        for shard, change in zip(self._region.beside(keys), changes, strict=True):
            if not is_visible(change.position, change.stamps, beat):
                owed.setdefault(shard, []).append(change)
        for shard, debts in owed.items():
            self._region.owe(shard, debts, beat, OWED_MAX)
        self._unlink(keys, "changed")
        failpoint("plain.after_unlink")

    def turn(self, beat: Beat | None) -> None:
        """Pay what is due, and sweep for a while. `beat`: the newest heartbeat that was heard. Raises RegionFault."""
        if not self.views:
            return
        if beat is not None and beat.position > self._paid_until:
            self._pay(beat)
            self._paid_until = beat.position
        deadline = time.monotonic() + SWEEP_SECONDS
        while self._sweep is not None or self._begin(beat):
            self._step()
            if time.monotonic() > deadline:
                return

    # -- debts

    def _pay(self, beat: Beat) -> None:
        """Remove once more what this heartbeat proves visible; views are swept for theirs."""
        for shard in self._shards:
            due = {name: text for name, text in self._region.owed(shard) if name[0] != "!" and is_due(text, beat)}
            names = list(due)
            for i in range(0, len(names), PAY_KEYS):
                some = [name for name in names[i : i + PAY_KEYS] if not is_view(name)]
                if some:
                    failpoint("plain.before_pay")
                    self._unlink(some, "visible")
                    self._region.pay(shard, {name: due[name] for name in some}, {})
            for name in filter(is_view, names):
                self._due.setdefault(name[1:], {})[shard] = due[name]

    def _unlink(self, keys: Sequence[str], cause: str) -> None:
        self._metrics.plain_unlinked.labels(cause=cause).inc(self._region.unlink_plain(keys))

    # -- sweeps

    def _begin(self, beat: Beat | None) -> bool:
        """Begin to sweep a view that needs it."""
        notes = self._notes(beat)
        for name in [*self._due]:
            if name not in self.views:  # of another views file: nothing of it is ours any more
                for shard, text in self._due.pop(name).items():
                    self._region.pay(shard, {view_debt(name): text}, {})
                continue
            notes.setdefault(name, {})
        for name, wanted in notes.items():
            self._sweep = _Sweep(self.views[name], self._region, wanted, self._due.pop(name, {}))
            return True
        return False

    def _notes(self, beat: Beat | None) -> dict[str, dict[int, str]]:
        """The views that need a sweep, and what each shard would note of it."""
        needed: dict[str, dict[int, str]] = {}
        layout = self._region.layout
        for shard in self._shards:
            texts = self._region.fields(layout.header_key(shard), [REGION_SCOPE, *map(view_scope, self.views)])
            region, *scopes = [Scope.parse(text) if text else None for text in texts]
            noted = self._region.fields(layout.owed_key(shard), [*map(note_of, self.views)])
            for name, scope, note in zip(self.views, scopes, noted, strict=True):
                if not note:
                    self._restore(shard, name, region, scope)
                wanted = swept_for(region, scope, beat)
                if not is_swept(note, wanted):
                    needed.setdefault(name, {})[shard] = wanted
        return needed

    def _restore(self, shard: int, view: str, region: Scope | None, scope: Scope | None) -> None:
        """Nothing says what was swept. Where the view is open that was lost, with debts of unknown keys: close it."""
        if region is not None and scope is not None and region.open and scope.open:
            self._alarms.up(
                Alarm.GUARD_LOST, f"what is owed to plain view {view} was gone: evicted or deleted; it closes"
            )
            self._region.close(shard, Close(closings=(Closing(view_scope(view), self._control_end()),)))
        self._region.pay(shard, {}, {note_of(view): NEVER})

    def _step(self) -> None:
        sweep = self._sweep
        assert sweep is not None
        keys = sweep.step()
        if keys:
            self._unlink(keys, "swept")
            sweep.removed += len(keys)
        if sweep.is_done():
            for shard in {*sweep.notes, *sweep.debts}:
                note = {note_of(sweep.view.name): sweep.notes[shard]} if shard in sweep.notes else {}
                debt = {view_debt(sweep.view.name): sweep.debts[shard]} if shard in sweep.debts else {}
                self._region.pay(shard, debt, note)
            log.info("plain_view_swept", region=self._region.name, view=sweep.view.name, keys=sweep.removed)
            self._sweep = None


class _Sweep:
    """One pass over every server's keys. `notes` and `debts` by shard: what is written once all are through."""

    def __init__(self, view: View, region: Region, notes: Mapping[int, str], debts: Mapping[int, str]) -> None:
        self.view = view
        self.notes = notes
        self.debts = debts
        self.removed = 0
        self._region = region
        self._pattern = pattern(view.key)
        self._start()

    def _start(self) -> None:
        servers = self._region.servers()
        self._places: list[Any] = [place for place, _ in servers]
        self._left: list[Node] = [node for _, node in servers]
        self._cursor = 0

    def step(self) -> list[str]:
        """Look at some keys; those of the view. Others that fit the pattern belong to somebody else."""
        self._cursor, names = self._region.scan(self._left[0], self._cursor, self._pattern)
        if not self._cursor:
            self._left.pop(0)
        return [name for name in names if can_render(self.view.key, name)]

    def is_done(self) -> bool:
        """Whether all were looked at. Where a server was replaced, it starts again: a cursor is of one server."""
        if self._left:
            return False
        if [place for place, _ in self._region.servers()] != self._places:
            self._start()
            return False
        return True
