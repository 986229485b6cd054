"""`staleproof invalidate`: a region's worker. Fetch, decode, plan, coalesce, apply; only what Redis answered counts.

In flow the records of the partitions that this process owns, and all control records; out flow the guard's scripts to
one region. The checkpoint is the region's own: where Redis says that it stands elsewhere than this worker believes, the
worker moves. Several workers may share a region: Kafka's group splits the partitions, the rows in Redis keep the order.
"""

from __future__ import annotations

import gc
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack

import msgspec
import structlog
from prometheus_client import CollectorRegistry

from cdc.control import ControlRecord, EpochStarted, Heartbeat, Raise, decode_control
from cdc.errors import BadRecord, GapError, TransientError
from cdc.events import stamp_text
from cdc.snapshots import shortened
from consumers.alarms import Alarm, Alarms
from consumers.batching import Slice
from consumers.checkpoint import Checkpoints, closed_scopes
from consumers.failpoints import failpoint
from consumers.intake import STAMP_MARGIN, Bounds, Intake, Planned
from consumers.kafka import RecordStream
from consumers.kafka_admin import epoch_ends
from consumers.plain import PlainKeys
from consumers.regions import open_region, read_views
from consumers.service import Pulse, serve_http
from consumers.settings import Settings
from consumers.stream import Partition, Record, Stream
from consumers.telemetry import WorkerMetrics
from invalidator.guard import Beat, Closing, ControlStep, Outcome, Pass, RowStep
from invalidator.layout import REGION_SCOPE, ZERO_POSITION, row_field, view_scope
from invalidator.plain import Debt
from invalidator.plan import Planner
from invalidator.redis_errors import Remedy
from invalidator.region import Applied, Region, Submitted
from invalidator.region_faults import RegionFault
from invalidator.views import Views

log = structlog.get_logger()

PENDING_HEARTBEATS_MAX = 32
"""Control records are not read further ahead of the data than so many heartbeats."""

HEARTBEATS_KEPT = 2 * PENDING_HEARTBEATS_MAX
"""Those that are behind the data let fences shrink, also while a backlog is worked off."""

PROOF_RUNNING_MAX = 13
"""Running transactions that a watermark names; beyond, it claims less."""

GC_THRESHOLDS = (50_000, 20, 20)
BACKOFF_SECONDS_MIN = 0.05
BACKOFF_SECONDS_MAX = 2.0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds a worker. `script_keys`: entries that one script may touch."""

    batch_records: int = 1_000
    script_keys: int = 250
    mass_change_keys: int = 10_000
    topic_check_seconds: float = 10.0
    fetch_timeout_seconds: float = 0.1
    control_timeout_seconds: float = 10.0
    closed_alarm_seconds: float = 60.0


class _Waiting(msgspec.Struct, frozen=True):
    """A heartbeat that has not passed, and the barrier of each row."""

    beat: Heartbeat
    barriers: tuple[tuple[Partition, str, int], ...]


class _Moved(Exception):
    """What this worker believes of the region or of its partitions holds no longer: look, and go on from there."""

    def __init__(self, what: str, reason: str, alarm: Alarm | None = None) -> None:
        super().__init__(reason)
        self.what = what
        self.alarm = alarm


_MOVES = {
    Outcome.REWIND: (None, "redis stands before what was expected"),  # the alarm comes when the rows are looked for
    Outcome.DISPLACED: (Alarm.DISPLACED, "another worker, or one with other views, moved rows of ours"),
    Outcome.COLD: (None, "the shard is gone"),  # the alarm comes when it is made again
    Outcome.REFUSED: (Alarm.DISPLACED, "the region is of another epoch than was believed"),
}


class Worker:
    """Applies the stream of one source to one region. Not thread-safe: one loop drives it.

    `source` is the prefix of the topics. A region's workers share `data`; each of them reads all of `control`.
    """

    def __init__(
        self, *, source: str, region: Region, views: Views, data: Stream, control: Stream, metrics: WorkerMetrics,
        limits: Limits,
    ) -> None:  # fmt: skip
        self._region = region
        self._views = views
        self._planner = Planner(views)
        self._data = data
        self._control = control
        self._metrics = metrics
        self._limits = limits
        self._alarms = Alarms(region.name, metrics)
        self._tables = {f"{source}.{table}": table for table in views.by_table}
        self._intake = Intake(self._planner, self._tables, mass_keys=limits.mass_change_keys)
        self._control_partition = (f"{source}.staleproof.control", 0)
        self._control_field = row_field(*self._control_partition)
        self._checkpoints = Checkpoints(
            region=region, views=views, tables=self._tables, control_partition=self._control_partition, data=data,
            control=control, metrics=metrics, alarms=self._alarms,
        )  # fmt: skip
        self._shards = range(region.layout.shards)
        # What this worker believes: the partitions that are its own, and of each shard the next offset by row.
        self._owned: frozenset[Partition] = frozenset()
        self._moves = -1
        self._next: dict[int, dict[str, int]] = {}
        self._topics_due = 0.0
        self._gap = ""
        self._reviewed = 0  # control records before this one were heard, and reported, once before
        self._epoch = "00000000"
        self._beats: deque[Beat] = deque(maxlen=HEARTBEATS_KEPT)
        self._pending: deque[_Waiting] = deque()
        self._uncaptured: frozenset[str] = frozenset()
        self._lost = True  # believes nothing yet
        self._stumbled = False
        self._under_way: list[tuple[int, Slice, Submitted]] = []
        self._passed_at: float | None = None
        self._closed: dict[int, int] = {}
        self._closed_since: float | None = None
        self._watermarks: dict[int, str] = {}
        self._fault = ""
        self._full = False
        self._plain = PlainKeys(region, views, metrics, self._alarms, self._checkpoints.control_end)
        data.before_loss(self._settle)

    @property
    def passed_at(self) -> float | None:
        """When a heartbeat last passed through every row of ours, monotonic seconds."""
        return self._passed_at

    @property
    def stumbled(self) -> bool:
        """Whether the last turn found the region or Kafka elsewhere than believed: a cause that lasts must not spin."""
        return self._stumbled

    @property
    def doubt(self) -> str:
        """Why the region cannot be relied on now, if so."""
        closed = sum(self._closed.values())
        return self._fault or (f"{closed} scopes are closed until heartbeats prove them" if closed else "")

    # -- one turn ----------------------------------------------------------------------------------------------------

    def turn(self) -> int:
        """Fetch and apply once; the number of records applied. Raises TransientError: call again later."""
        self._stumbled = False
        try:
            if self._lost or self._data.moves() != self._moves:
                self._find_rows()
            self._hear_waiting()
            self._check_topics()
            self._check_closed()
            records = self._data.fetch(self._limits.batch_records, self._limits.fetch_timeout_seconds)
            if self._data.moves() != self._moves:
                return 0  # partitions came or went while we fetched: start from their rows
            self._apply(records)
            if len(records) < self._limits.batch_records:
                self._settle()  # else Redis works while we fetch
            self._pass()
            self._plain.turn(self._newest_beat())
        except _Moved as moved:
            self._lose_footing()
            self._metrics.moves.labels(cause=moved.what).inc()
            if moved.alarm is None:
                log.warning("worker_moves", region=self._region.name, cause=str(moved))
            else:
                self._alarms.up(moved.alarm, str(moved))
            self._stumbled = True
            return 0
        except GapError as gap:
            self._lose_footing()
            self._gap = str(gap)  # the region closes when its rows are looked for
            self._alarms.up(Alarm.GAP, str(gap))
            self._stumbled = True
            return 0
        except TransientError as error:
            self._lose_footing()  # a script may or may not have run: ask the rows
            self._note_fault(error)
            raise
        return len(records)

    def finish(self) -> None:
        """Wait for the answers to what is under way; where they do not come, the rows will tell the next worker."""
        try:
            self._settle()
        except (_Moved, TransientError) as error:
            log.warning("worker_stops_unanswered", region=self._region.name, reason=str(error))

    def _lose_footing(self) -> None:
        self._lost = True
        self._under_way.clear()
        self._plain.forget()
        self._region.abandon()

    def _note_fault(self, error: TransientError) -> None:
        """An alarm when Redis begins to fail, not at every try; none for a library that is loaded again at once."""
        if isinstance(error, RegionFault) and error.remedy is not Remedy.RELOAD and not self._fault:
            self._fault = str(error)
            self._alarms.up(Alarm.REDIS, str(error), fault=error.kind)

    def _find_rows(self) -> None:
        self._settle()
        moves, owned = self._data.moves(), self._data.owned()
        standing = self._checkpoints.find(owned, self._gap, believed=self._next)
        self._gap = ""
        self._next, self._closed, self._epoch = standing.next, standing.closed, standing.epoch
        self._intake.sequences = dict(standing.sequences)
        self._intake.forget()
        self._intake.bounds = Bounds.of_epoch(self._epoch).widened(standing.position, standing.stamp)
        if self._lost:
            self._pending.clear()  # the shards may have to hear them again first
        self._reviewed = standing.reviewed
        self._data.assign(standing.places)
        self._control.assign({self._control_partition: standing.control})
        self._owned, self._moves, self._lost = owned, moves, False
        self._show_closed()
        log.info("worker_started", region=self._region.name, epoch=self._epoch, partitions=len(owned))

    def _smallest(self, name: str) -> int:
        return min(self._next[shard].get(name, 0) for shard in self._shards)

    def _check_topics(self) -> None:
        """A topic that was deleted and made again may continue at the same offsets: only its identity tells."""
        now = time.monotonic()
        if now >= self._topics_due:
            self._topics_due = now + self._limits.topic_check_seconds
            self._check_room()
            self._drop_unreachable()
            if self._checkpoints.read_topic_ids() != self._checkpoints.topic_ids:
                raise _Moved("topics", "topics came, went or were made again")

    def _drop_unreachable(self) -> None:
        """Heartbeats whose barriers Kafka does not have: of a topic that was made again meanwhile."""
        if len(self._pending) < PENDING_HEARTBEATS_MAX:
            return
        ends = {partition: self._data.bounds(partition)[1] for partition in self._owned}
        kept = [w for w in self._pending if all(barrier <= ends.get(p, barrier) for p, _, barrier in w.barriers)]
        if len(kept) < len(self._pending):
            dropped = len(self._pending) - len(kept)
            log.warning("heartbeats_dropped", region=self._region.name, count=dropped, reason="barriers beyond the end")
            self._pending = deque(kept)

    def _check_room(self) -> None:
        """A full Redis loses stale entries and takes no new ones: right, and of no use."""
        full = self._region.is_full()
        if full and not self._full:
            self._alarms.up(Alarm.REDIS, "redis is full and evicts nothing of ours: raise maxmemory", fault="OOM")
        self._full = bool(full)

    # -- data records ------------------------------------------------------------------------------------------------

    def _apply(self, records: Sequence[Record]) -> None:
        """In slices that touch so many keys that Redis is not held for long."""
        part = self._new_slice()
        for record in records:
            planned = self._intake.plan(record)
            if planned is None:  # what comes before it, and what the control topic tells, move the bounds on
                if part.records:
                    self._submit(part)
                    part = self._new_slice()
                self._hear_everything()
                planned = self._intake.plan(record, told_all=True)
                assert planned is not None
            part.add(planned)
            if planned.closings or planned.doubts:
                self._report(planned)
            if part.keys >= self._limits.script_keys:
                self._submit(part)
                part = self._new_slice()
        if part.records:
            self._submit(part)

    def _new_slice(self) -> Slice:
        return Slice(self._region.layout, self._views, self._checkpoints.topic_ids)

    def _report(self, planned: Planned) -> None:
        record = planned.record
        place = f"{record.topic}/{record.partition} at {record.offset}"
        for doubt in planned.doubts:
            self._alarms.up(doubt.alarm, f"{place}: {doubt.reason}")
            if doubt.quarantined:
                self._metrics.quarantined.inc()
                log.error("record_quarantined", region=self._region.name, place=place, reason=doubt.reason)

    def _submit(self, part: Slice) -> None:
        """Send one slice to every shard that still needs it; what was sent before is answered first."""
        closed_from = self._checkpoints.control_end() if part.closings else 0
        self._settle()
        if self._plain.views:
            self._plain.remove(part.plain, self._newest_beat())
        beat = self._beat_before(part.oldest)
        for shard in self._shards:
            batch = part.batch(shard, self._next[shard], beat, closed_from)
            if batch is not None:
                failpoint("apply.before_script")
                self._under_way.append((shard, part, self._region.submit(shard, batch)))
        failpoint("apply.after_script")
        self._widen(part.newest, part.highest_stamp)
        self._metrics.records.inc(part.records)

    def _settle(self) -> None:
        """Wait for the answers to what is under way."""
        under_way, self._under_way = self._under_way, []
        for shard, part, submitted in under_way:
            applied = submitted.applied()
            if applied.outcome is not Outcome.APPLIED:
                self._move(applied.outcome)
            self._fault = ""  # what ends an outage is a write: a turn may have had nothing to write
            known = self._next[shard]
            for name, offset in part.reached.items():
                known[name] = max(offset, known.get(name, 0))  # a shard that started cold is ahead of the others
            self._count(submitted, applied)
            if part.closings:
                self._show_scopes(shard)

    def _count(self, submitted: Submitted, applied: Applied) -> None:
        metrics, batch = self._metrics, submitted.batch
        metrics.script_seconds.observe(submitted.seconds)
        metrics.invalidations.inc(len(batch.changes) + len(batch.refreshes))
        metrics.unlinked.inc(applied.unlinked)
        metrics.kept.inc(applied.kept)
        metrics.written.inc(applied.written)
        for order in batch.raises:
            metrics.raises.labels(view=order.field.removeprefix("s:")).inc()
        self._restored(applied.restored)

    def _restored(self, restored: int) -> None:
        if restored:
            self._alarms.up(
                Alarm.GUARD_LOST, "the fence hash was gone: evicted or deleted; fills were refused under it"
            )

    def _move(self, outcome: Outcome) -> None:
        alarm, reason = _MOVES[outcome]
        raise _Moved(outcome.value.lower(), reason, alarm)

    def _widen(self, position: str, stamp: str) -> None:
        """What was heard or applied moves the bounds of what may be claimed."""
        if position[:8] == self._epoch:
            self._intake.bounds = self._intake.bounds.widened(position, stamp)

    def _beat_before(self, position: str) -> Beat | None:
        """The newest heartbeat that every record of a batch was logged after."""
        return next((beat for beat in reversed(self._beats) if beat.position < position), None)

    def _newest_beat(self) -> Beat | None:
        return self._beats[-1] if self._beats else None

    # -- control records ---------------------------------------------------------------------------------------------

    def _hear_waiting(self) -> None:
        room = PENDING_HEARTBEATS_MAX - len(self._pending)
        if room > 0:
            for record in self._control.fetch(room, 0.0):
                self._hear(record)

    def _hear_everything(self) -> None:
        """Every control record that is there: a data record of a new epoch comes after the record that begins it."""
        end = self._checkpoints.control_end()
        deadline = time.monotonic() + self._limits.control_timeout_seconds
        while self._smallest(self._control_field) < end:
            for record in self._control.fetch(self._limits.batch_records, self._limits.fetch_timeout_seconds):
                self._hear(record)
            if time.monotonic() > deadline:
                raise TransientError("the control topic has records that do not come")

    def _hear(self, record: Record) -> None:
        self._settle()
        try:
            control = decode_control(record.value or b"")
        except BadRecord as error:
            self._alarms.up(Alarm.GAP, f"control record at {record.offset} cannot be read: {error}")
            control = None
        if isinstance(control, Raise):
            self._plain.remove(self._plain_key(control), self._newest_beat())
        for shard in self._shards:
            if record.offset < self._next[shard].get(self._control_field, 0):
                continue
            step = self._control_step(shard, record, control)
            heard = self._region.hear(shard, step)
            if heard.outcome is not Outcome.APPLIED:
                self._move(heard.outcome)
            self._fault = ""
            self._restored(heard.restored)
            self._next[shard][self._control_field] = record.offset + 1
            if step.closings:
                self._show_scopes(shard)
        self._remember(control, again=record.offset < self._reviewed)

    def _remember(self, control: ControlRecord | None, *, again: bool) -> None:
        """What a control record means for us, once every shard has it. `again`: a cold start looks back at it."""
        if isinstance(control, EpochStarted):
            self._begin_epoch(f"{control.epoch:08x}", control.reason)
            if control.stamp:
                self._widen(f"{control.epoch:08x}{control.lsn:016x}{0:08x}", stamp_text(control.stamp))
        elif isinstance(control, Raise):
            if self._concerns_us(control) and not again:
                self._alarms.up(Alarm.ORDERED, f"{_scope_text(control)}: {control.reason}")
        elif isinstance(control, Heartbeat):
            self._begin_epoch(control.position[:8], "heartbeat of a new epoch")
            self._widen(control.position, stamp_text(control.stamp))
            self._beats.append(Beat(control.position, control.seen.text))
            if not self._owned:
                for shard in self._shards:
                    self._show_scopes(shard)
            if not again:
                self._report_uncaptured(control)
            self._pending.append(self._waiting(control))

    def _begin_epoch(self, epoch: str, reason: str) -> None:
        if epoch <= self._epoch:
            return
        if self._epoch.strip("0"):  # a cold shard learns its first epoch: nothing was lost by that
            self._alarms.up(Alarm.EPOCH, f"epoch {epoch} began: {reason}")
        log.warning("epoch_started", region=self._region.name, epoch=epoch, reason=reason)
        self._metrics.closings.labels(cause="epoch").inc()
        self._epoch = epoch
        self._intake.bounds = Bounds.of_epoch(epoch)

    def _control_step(self, shard: int, record: Record, control: ControlRecord | None) -> ControlStep:
        known = self._next[shard]
        row = self._checkpoints.row(record.topic, record.offset + 1)
        row = msgspec.structs.replace(row, leader_epoch=record.leader_epoch)
        owned = tuple((name, known.get(name, 0)) for name in (row_field(*p) for p in self._owned))
        step = ControlStep(step=RowStep(self._control_field, known.get(self._control_field, 0), row), owned=owned)
        change = msgspec.structs.replace
        match control:
            case None:
                return change(step, closings=(Closing(REGION_SCOPE, record.offset + 1),))
            case EpochStarted():
                return change(step, epoch=f"{control.epoch:08x}", history=control.history)
            case Raise():
                return self._obeying(shard, step, control, record.offset + 1)
            case Heartbeat():
                return change(
                    step,
                    position=control.position,
                    stamp=stamp_text(control.stamp),
                    limit=stamp_text(control.stamp + STAMP_MARGIN),
                    history=control.history,
                    instance=control.instance,
                    epoch=control.position[:8],  # begins here only where its own record was missed
                    closings=self._closings_of_uncaptured(control, record.offset + 1),
                )

    def _concerns_us(self, order: Raise) -> bool:
        return order.region in (None, self._region.name)

    def _obeying(self, shard: int, step: ControlStep, order: Raise, offset: int) -> ControlStep:
        """What an order closes. One for a view that we do not have concerns nobody here."""
        if not self._concerns_us(order):
            return step
        if order.table is not None:
            views = self._planner.views_of(order.table)
        elif order.view is not None:
            views = {order.view} & self._views.views.keys()
        else:
            return msgspec.structs.replace(step, closings=(Closing(REGION_SCOPE, offset),))
        if order.key is not None and self._is_possible(order):
            if order.view in self._plain.views:
                return step
            place, stripe = self._region.layout.place(order.key)
            if place != shard or not views:
                return step
            return msgspec.structs.replace(step, key=order.key, stripe=stripe, stamp=stamp_text(order.stamp))
        closings = tuple(Closing(view_scope(view), offset) for view in sorted(views))
        return msgspec.structs.replace(step, closings=closings)

    def _is_possible(self, order: Raise) -> bool:
        """A stamp that nobody can have seen would refuse for ever: then the view closes, which needs none."""
        return stamp_text(order.stamp) <= self._intake.bounds.stamp

    def _plain_key(self, order: Raise) -> list[Debt]:
        """The key of a plain view that an order names. The order's transaction is not in a topic: its place is near."""
        wanted = self._concerns_us(order) and self._is_possible(order)
        if order.key is None or order.view is None or not wanted or order.view not in self._plain.views:
            return []
        beat = self._newest_beat()
        return [Debt(order.key, order.view, beat.position if beat else ZERO_POSITION, (stamp_text(order.stamp),))]

    # -- heartbeats that have passed ---------------------------------------------------------------------------------

    def _pass(self) -> None:
        """Tell the region the newest heartbeat whose barriers every row of ours has reached."""
        if not self._owned:  # a worker in reserve: those that own partitions tell
            while len(self._pending) > 1:
                self._pending.popleft()
            return
        reached = None
        for waiting in reversed(self._pending):  # the newest first: one whose barrier never comes stands before nothing
            if self._reached(waiting):
                reached = waiting
                break
        if reached is None:
            return
        while self._pending.popleft() is not reached:
            pass
        self._settle()
        beat = reached.beat
        request = Pass(
            position=beat.position,
            stamp=stamp_text(beat.stamp),
            time_ms=beat.time_ms,
            proof=shortened(beat.seen.text, PROOF_RUNNING_MAX),
            barriers=tuple((name, barrier) for _, name, barrier in reached.barriers),
        )
        for shard in self._shards:
            passed = self._region.pass_heartbeat(shard, request)
            if passed.outcome is Outcome.COLD:
                self._move(passed.outcome)
            self._restored(passed.restored)
            if passed.outcome is Outcome.APPLIED:
                self._metrics.watermark_ms.set(beat.time_ms)
                self._passed_at = time.monotonic()
            if passed.opened:
                log.info("scopes_opened", region=self._region.name, shard=shard, scopes=passed.opened)
            if self._closed.get(shard) or passed.outcome is not Outcome.APPLIED:
                self._show_scopes(shard)
        self._data.commit({p: self._smallest(name) for p, name, _ in reached.barriers if p in self._owned})

    def _waiting(self, beat: Heartbeat) -> _Waiting:
        barriers = tuple(
            ((topic, partition), row_field(topic, partition), barrier)
            for topic in self._tables
            for partition, barrier in enumerate(beat.barriers.get(topic, []))
        )
        return _Waiting(beat, barriers)

    def _closings_of_uncaptured(self, beat: Heartbeat, offset: int) -> tuple[Closing, ...]:
        """The views of our tables that the heartbeat does not list: their changes are lost until one does.

        In the heartbeat's own step: every one without the table closes them anew, so three must follow that list it.
        """
        missing = self._tables.keys() - beat.barriers.keys()
        views = {view for topic in missing for view in self._planner.views_of(self._tables[topic])}
        return tuple(Closing(view_scope(view), offset) for view in sorted(views))

    def _report_uncaptured(self, beat: Heartbeat) -> None:
        missing = frozenset(self._tables.keys() - beat.barriers.keys())
        for topic in sorted(missing - self._uncaptured):
            table = self._tables[topic]
            views = ", ".join(sorted(self._planner.views_of(table)))
            self._alarms.up(Alarm.CLOSED, f"views {views}: table {table} is not captured: add it to the publication")
        self._uncaptured = missing

    def _reached(self, waiting: _Waiting) -> bool:
        """Whether every row of ours is at or after its barrier."""
        return all(self._smallest(name) >= barrier for p, name, barrier in waiting.barriers if p in self._owned)

    # -- what is closed ----------------------------------------------------------------------------------------------

    def _show_scopes(self, shard: int) -> None:
        header = self._region.header(shard)
        self._closed[shard] = closed_scopes(header)
        watermark = header.get("w", "")
        if watermark > self._watermarks.get(shard, ""):
            self._passed_at = time.monotonic()  # told by a worker whose rows were behind ours, too
        self._watermarks[shard] = watermark
        self._show_closed()

    def _check_closed(self) -> None:
        """A scope opens after about a second: one that stays closed waits for something that a person can find."""
        now = time.monotonic()
        if not any(self._closed.values()):
            self._closed_since = None
        elif self._closed_since is None:
            self._closed_since = now
        elif now - self._closed_since > self._limits.closed_alarm_seconds:
            self._closed_since = now  # and again after as long
            hint = "look whether capture runs, and for old transactions in the database's pg_stat_activity"
            self._alarms.up(Alarm.STUCK, f"{self.doubt}, and it takes long: {hint}")

    def _show_closed(self) -> None:
        self._metrics.closed_scopes.set(sum(self._closed.values()))


def _scope_text(order: Raise) -> str:
    if order.key is not None:
        return f"a key of view {order.view}"
    if order.table is not None:
        return f"the views of table {order.table}"
    return "the region" if order.view is None else f"view {order.view}"


def run(settings: Settings, region: str, stop: threading.Event) -> None:
    """Apply the source's stream to `region` until `stop`; what is under way is finished first. Raises FatalError."""
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    views = read_views(settings.views)
    group = f"staleproof-{settings.source.name}-{region}"
    topics = [settings.source.topic(table) for table in views.by_table]
    queued = settings.worker.queued_kilobytes
    with ExitStack() as resources:
        data = RecordStream(settings.kafka, group=group, queued_kilobytes=queued, shared=topics, epoch_ends=epoch_ends)
        resources.callback(data.close)
        control = RecordStream(settings.kafka, group=group, queued_kilobytes=queued)
        resources.callback(control.close)
        worker = Worker(
            source=settings.source.name,
            region=open_region(settings, region),
            views=views,
            data=data,
            control=control,
            metrics=metrics,
            limits=Limits(
                batch_records=settings.worker.batch_records,
                script_keys=settings.worker.script_keys,
                mass_change_keys=settings.worker.mass_change_keys,
            ),
        )
        # What lives long is set apart from the collector, and what lives short has no cycles: collections find nothing.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        pulse = Pulse(stalled_after_seconds=settings.worker.stalled_after_seconds)
        resources.enter_context(
            serve_http(
                host=settings.worker.http_host, port=settings.worker.http_port, health=pulse.health, registry=registry
            )
        )
        drive(worker, stop, pulse, metrics)
    log.info("worker_stopped", region=region)


def drive(worker: Worker, stop: threading.Event, pulse: Pulse, metrics: WorkerMetrics) -> None:
    """Turn until told to stop; a passing fault is waited out, longer each time up to a limit."""
    pause_seconds = BACKOFF_SECONDS_MIN
    while not stop.is_set():
        try:
            worker.turn()
        except TransientError as error:
            metrics.retries.inc()
            log.warning("worker_waits", reason=str(error), seconds=pause_seconds)
            pulse.wait(str(error))
            stop.wait(pause_seconds)
            pause_seconds = min(pause_seconds * 2, BACKOFF_SECONDS_MAX)
        else:
            pulse.beat(worker.passed_at, worker.doubt)
            if worker.stumbled:
                stop.wait(pause_seconds)
                pause_seconds = min(pause_seconds * 2, BACKOFF_SECONDS_MAX)
            else:
                pause_seconds = BACKOFF_SECONDS_MIN
    worker.finish()
