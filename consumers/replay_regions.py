"""The regions that a replay is applied to: whether they may be, and each wave to all of their shards.

In flow waves, out flow counts. A batch without rows changes nothing when it comes twice, so whatever fails for now is
sent again as a whole.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import structlog

from cdc.errors import ConfigError, TransientError
from consumers.batching import plain_keys
from consumers.replay_planning import Wave
from invalidator.guard import Outcome
from invalidator.layout import Scope, view_scope
from invalidator.region import Region, Submitted
from invalidator.views import Views

log = structlog.get_logger("replay")

RETRY_SECONDS = 30.0
"""A region that fails for longer ends the replay: its state is kept."""

_PAUSE_SECONDS = 0.2


class Target:
    """One region. `counts`: unlinked, kept, written, and lost (keys whose shard was not there)."""

    def __init__(self, region: Region, views: Views, *, wait: Callable[[float], object] = time.sleep) -> None:
        self.name = region.name
        self.counts: Counter[str] = Counter(unlinked=0, kept=0, written=0)
        self.alarms: dict[str, None] = {}
        self._region = region
        self._views = views
        self._wait = wait
        self._sent: list[Submitted] = []

    def prepare(self) -> str:
        """Make it ready; the earliest epoch of its shards.

        Raises TransientError where nothing is cached yet, ConfigError where entries are made by other views: what is
        written here would be read as theirs. The range is fixed before this is asked: a view that changes afterwards
        opens with a fence beyond every record of it.
        """
        self._region.prepare()
        epochs = []
        for shard in range(self._region.layout.shards):
            header = self._region.header(shard)
            if not header:
                raise TransientError(
                    f"region {self.name}: shard {shard} is not there, so nothing is cached in it: start `staleproof"
                    f" invalidate --region {self.name}`, or leave the region out with --region"
                )
            self._check_views(header)
            epochs.append(header["e"][:8])
        return min(epochs)

    def _check_views(self, header: dict[str, str]) -> None:
        for view in self._views.views.values():
            scope = header.get(view_scope(view.name))
            if scope is None or Scope.parse(scope).digest != view.digest:
                raise ConfigError(
                    f"region {self.name} keeps view {view.name} by another definition than the views file here: use"
                    " that of its workers, or restart them with this one"
                )

    def send(self, wave: Wave) -> None:
        """Send it, and do not wait; keys of plain views are removed first."""
        plain = [change.key for change in plain_keys(wave.changes, self._views)]
        if plain:
            self.counts["unlinked"] += self._region.unlink_plain(plain)
        for shard in range(self._region.layout.shards):
            batch = wave.batch(shard, self._region.layout, self._views)
            if batch is not None:
                self._sent.append(self._region.submit(shard, batch))

    def settle(self) -> None:
        """Take the answers to what was sent. Raises RegionFault, FatalError."""
        sent, self._sent = self._sent, []
        counts: Counter[str] = Counter()  # of a wave that has to be sent again nothing counts
        for submitted in sent:
            applied = submitted.applied()
            if applied.restored:
                self._alarm("guard_lost", "the fence hash was gone: evicted or deleted; it is made again")
            if applied.outcome is Outcome.APPLIED:
                counts.update(unlinked=applied.unlinked, kept=applied.kept, written=applied.written)
            else:
                self._alarm("lost", f"a shard answered {applied.outcome}: nothing in it can be read")
                counts["lost"] += len(submitted.batch.changes) + len(submitted.batch.refreshes)
        self.counts.update(counts)

    def give_up(self) -> None:
        """Forget what was sent and not answered."""
        self._sent.clear()
        self._region.abandon()

    def repeat(self, wave: Wave, error: TransientError, stopped: Callable[[], bool]) -> None:
        """Send the wave until it is answered. Raises TransientError after RETRY_SECONDS, or once `stopped`."""
        self.give_up()
        log.warning("replay_waits", region=self.name, reason=str(error))
        deadline = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                self._region.prepare()
                self.send(wave)
                self.settle()
            except TransientError:
                self.give_up()
                if stopped() or time.monotonic() > deadline:
                    raise
                self._wait(_PAUSE_SECONDS)
            else:
                return

    def _alarm(self, kind: str, reason: str) -> None:
        if kind not in self.alarms:
            self.alarms[kind] = None
            log.error("alarm", region=self.name, kind=kind, reason=reason)


class Begun(msgspec.Struct, frozen=True):
    """A wave that was sent to every region and not answered by all; `failed`: what it could not even be sent to."""

    wave: Wave
    failed: dict[str, TransientError]


def begin(wave: Wave, targets: Sequence[Target]) -> Begun:
    """Send to all; Redis works while the next wave is planned."""
    begun = Begun(wave, {})
    for target in targets:
        try:
            target.send(wave)
        except TransientError as error:
            begun.failed[target.name] = error
    return begun


def finish(begun: Begun, targets: Sequence[Target], stopped: Callable[[], bool]) -> None:
    """Until all have answered, those that fail last. Raises TransientError where a region fails for too long."""
    failed = dict(begun.failed)
    for target in targets:
        if target.name not in failed:
            try:
                target.settle()
            except TransientError as error:
                failed[target.name] = error
    for target in targets:
        if target.name in failed:
            target.repeat(begun.wave, failed[target.name], stopped)
