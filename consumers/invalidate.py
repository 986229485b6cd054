"""`staleproof invalidate`: one region's worker. Fetch, decode, plan, coalesce, apply; commit only what Redis answered.

In flow the records of the captured topics and of the control topic; out flow the guard's scripts to one region. The
checkpoint is the region's own: where Redis says that it stands elsewhere than this worker believes, the worker moves.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import msgspec
import structlog
from prometheus_client import CollectorRegistry

from cdc.control import EpochStarted, Heartbeat, Raise, decode_control
from cdc.envelope import RecordHeader, decode_header, decode_value
from cdc.errors import BadRecord, GapError, TransientError
from cdc.events import stamp_text
from consumers.kafka import RecordStream
from consumers.regions import open_region, read_views
from consumers.service import Pulse, serve_http
from consumers.settings import Settings
from consumers.stream import Partition, Record, Stream
from consumers.telemetry import WorkerMetrics
from invalidator.entry import encode_tail
from invalidator.guard import (
    Batch,
    Beat,
    Close,
    ControlStep,
    KeyChange,
    KeyRefresh,
    Outcome,
    Pass,
    RowStep,
    ScopeRaise,
)
from invalidator.layout import NO_DIGEST, REGION_SCOPE, ZERO_POSITION, ZERO_STAMP, Row, Scope, row_field, view_scope
from invalidator.plan import Invalidation, Planner, coalesce
from invalidator.region import Region
from invalidator.views import Views

log = structlog.get_logger()

FORGERY_MARGIN = 1 << 24
"""A proof may claim stamps so far beyond the newest heartbeat's; more is forged."""

PENDING_HEARTBEATS_MAX = 256
UNKNOWN_TOPIC = "0" * 32
BACKOFF_SECONDS_MIN = 0.05
BACKOFF_SECONDS_MAX = 2.0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds a worker. `script_keys`: entries that one script may touch."""

    batch_records: int = 500
    script_keys: int = 250
    topic_check_seconds: float = 10.0
    fetch_timeout_seconds: float = 0.1


class _Planned(msgspec.Struct, frozen=True, gc=False):
    """One record and what it causes; `header` None where it could not be read."""

    record: Record
    header: RecordHeader | None
    invalidations: list[Invalidation]


class _Moved(Exception):
    """The region stands elsewhere than this worker believed: look, and go on from there."""


class Worker:
    """Applies the stream of one source to one region. Not thread-safe: one loop drives it.

    `source` is the prefix of the topics. Two streams, because every worker reads all of the control topic.
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
        self._tables = {f"{source}.{table}": table for table in views.by_table}
        self._control_partition = (f"{source}.staleproof.control", 0)
        self._control_field = row_field(*self._control_partition)
        self._shards = range(region.layout.shards)
        # What this worker believes of each shard: next offset by row.
        self._next: dict[int, dict[str, int]] = {}
        self._assigned: dict[Partition, int] = {}
        self._sequence: dict[str, int] = {}
        self._topic_ids: dict[str, str] = {}
        self._topics_due = 0.0
        self._gap = ""
        self._epoch = "00000000"
        self._beats: deque[Beat] = deque(maxlen=64)
        self._pending: deque[Heartbeat] = deque()
        self._uncaptured: set[str] = set()
        self._lost = True  # believes nothing yet
        self._passed_at: float | None = None
        self._closed: dict[int, int] = {}

    @property
    def passed_at(self) -> float | None:
        """When a heartbeat last passed through every row, monotonic seconds."""
        return self._passed_at

    @property
    def doubt(self) -> str:
        """Why the region cannot be filled now, if so."""
        closed = sum(self._closed.values())
        return f"{closed} scopes are closed until heartbeats prove them" if closed else ""

    # -- one turn ----------------------------------------------------------------------------------------------------

    def turn(self) -> int:
        """Fetch and apply once; the number of records applied. Raises TransientError: call again later."""
        if self._lost:
            self._find_rows()
        try:
            if len(self._pending) < PENDING_HEARTBEATS_MAX:
                for record in self._control.fetch(self._limits.batch_records, 0.0):
                    self._hear(record)
            self._pass()
            self._check_topics()
            records = self._data.fetch(self._limits.batch_records, self._limits.fetch_timeout_seconds)
            self._apply(records)
            self._pass()
        except _Moved as moved:
            self._lost = True
            self._metrics.moves.labels(cause=str(moved)).inc()
            log.warning("worker_moves", region=self._region.name, cause=str(moved))
            return 0
        except GapError as gap:
            self._lost, self._gap = True, str(gap)  # the region closes when its rows are looked for
            self._alarm("gap", str(gap))
            return 0
        except TransientError:
            self._lost = True  # a script may or may not have run: ask the rows
            raise
        return len(records)

    # -- where the region stands -------------------------------------------------------------------------------------

    def _find_rows(self) -> None:
        """Read every shard's rows, make shards that are not there, and start where the region stands."""
        self._region.prepare()
        self._topic_ids = self._read_topic_ids()
        epochs = []
        for shard in self._shards:
            header = self._region.header(shard)
            if not header:
                self._start_cold(shard)
                header = self._region.header(shard)
            self._compare_with_kafka(shard, header)
            self._compare_views(shard, self._region.header(shard))
            header = self._region.header(shard)
            rows = {name: Row.parse(text) for name, text in header.items() if name.startswith("t:")}
            self._next[shard] = {name: row.next_offset for name, row in rows.items()}
            epochs.append(header["e"][:8])
            self._show_scopes(shard, header)
            self._remember_sequences(shard, rows)
        self._gap = ""
        self._epoch = min(epochs)  # a shard that started cold knows none
        self._pending.clear()
        self._assigned = {p: self._smallest(row_field(*p)) for p in self._data.partitions(self._tables)}
        self._data.assign(self._assigned)
        self._control.assign({self._control_partition: self._smallest(self._control_field)})
        self._lost = False
        log.info("worker_started", region=self._region.name, epoch=self._epoch, partitions=len(self._next[0]))

    def _smallest(self, name: str) -> int:
        return min(self._next[shard].get(name, 0) for shard in self._shards)

    def _remember_sequences(self, shard: int, rows: dict[str, Row]) -> None:
        """The sequence to go on from: where shards differ, reading starts at the hindmost."""
        for name, row in rows.items():
            others = [self._next[earlier].get(name, 0) for earlier in range(shard)]
            if all(row.next_offset < other for other in others):
                self._sequence[name] = row.sequence
            elif row.next_offset in others:
                self._sequence[name] = max(row.sequence, self._sequence.get(name, 0))
        for name in self._sequence.keys() - rows.keys():  # missing here: read again from the start
            self._sequence[name] = 0

    def _read_topic_ids(self) -> dict[str, str]:
        return self._data.topic_ids([*self._tables, self._control_partition[0]])

    def _row(self, topic: str, offset: int) -> Row:
        return Row(next_offset=offset, topic_id=self._topic_ids.get(topic, UNKNOWN_TOPIC), digest=self._views.digest)

    def _start_cold(self, shard: int) -> None:
        """Begin at the end of everything: closed, until heartbeats prove what was jumped over."""
        rows = self._end_rows(self._data.partitions(self._tables))  # before the control topic's end: later is safer
        offset = self._control_end()
        rows.append((self._control_field, self._row(self._control_partition[0], offset)))
        views = [(view.name, view.digest) for view in self._views.views.values()]
        outcome = self._region.cold(shard, offset, views, rows)
        self._metrics.cold_starts.inc()
        log.warning("shard_cold", region=self._region.name, shard=shard, outcome=outcome)

    def _end_rows(self, partitions: Iterable[Partition]) -> list[tuple[str, Row]]:
        return [(row_field(*p), self._row(p[0], self._data.bounds(p)[1])) for p in partitions]

    def _control_end(self) -> int:
        return self._control.bounds(self._control_partition)[1]

    def _compare_with_kafka(self, shard: int, header: dict[str, str]) -> None:
        """A row that Kafka's partition does not continue is a gap: close, go on from the end."""
        broken = [
            partition
            for stream, partitions in (
                (self._data, self._data.partitions(self._tables)),
                (self._control, [self._control_partition]),
            )
            for partition in partitions
            if self._is_broken(stream, partition, header.get(row_field(*partition)))
        ]
        if broken or self._gap:
            rows = self._end_rows(p for p in broken if p != self._control_partition)
            offset = self._control_end()
            if self._control_partition in broken:
                rows.append((self._control_field, self._row(self._control_partition[0], offset)))
            self._region.close(shard, Close(scope=REGION_SCOPE, offset=offset, rows=tuple(rows)))

    def _is_broken(self, stream: Stream, partition: Partition, text: str | None) -> bool:
        row = self._row(partition[0], 0) if text is None else Row.parse(text)
        first, end = stream.bounds(partition)
        now = self._topic_ids.get(partition[0], UNKNOWN_TOPIC)
        if UNKNOWN_TOPIC not in (row.topic_id, now) and row.topic_id != now:
            self._alarm("gap", f"topic {partition[0]} was deleted and made again")
            return True
        if not first <= row.next_offset <= end:
            place = f"{partition[0]}/{partition[1]}"
            self._alarm("gap", f"{place}: row at {row.next_offset}, kafka has {first} to {end}")
            return True
        return False

    def _compare_views(self, shard: int, header: dict[str, str]) -> None:
        """A view that is new here, or means something else than before, begins closed.

        One that this worker does not plan is closed as well: should it come back, its entries have missed changes. The
        rows take our digest with the last closing, so that a worker that dies in between is followed by one that sees.
        """
        ours = {view_scope(view.name): view.digest for view in self._views.views.values()}
        theirs = {name: Scope.parse(text).digest for name, text in header.items() if name.startswith("s:")}
        changed = [(name, digest) for name, digest in ours.items() if theirs.get(name) != digest]
        changed += [
            (name, NO_DIGEST)
            for name, digest in theirs.items()
            if name not in ours and name != REGION_SCOPE and digest != NO_DIGEST
        ]
        planned_otherwise = any(
            Row.parse(text).digest not in (NO_DIGEST, self._views.digest)
            for name, text in header.items()
            if name.startswith("t:")
        )
        if planned_otherwise and not changed:  # by which views is not known: records of any may have been ignored
            changed = list(ours.items())
        for name, digest in changed:
            last = self._views.digest if name == changed[-1][0] else ""
            request = Close(scope=name, offset=self._control_end(), digest=digest, rows_digest=last)
            self._region.close(shard, request)
            log.warning("view_closed", region=self._region.name, scope=name, reason="new, changed or gone")

    # -- data records ------------------------------------------------------------------------------------------------

    def _check_topics(self) -> None:
        """A topic that was deleted and made again may continue at the same offsets: only its identity tells."""
        now = time.monotonic()
        if now >= self._topics_due:
            self._topics_due = now + self._limits.topic_check_seconds
            if self._read_topic_ids() != self._topic_ids:
                raise _Moved("topics changed")

    def _apply(self, records: Sequence[Record]) -> None:
        """In slices that touch so many keys that Redis is not held for long."""
        planned: list[_Planned] = []
        keys = 0
        for record in records:
            planned.append(self._plan(record))
            keys += 1 + len(planned[-1].invalidations)
            if keys >= self._limits.script_keys:
                self._apply_planned(planned)
                planned, keys = [], 0
        if planned:
            self._apply_planned(planned)

    def _apply_planned(self, planned: Sequence[_Planned]) -> None:
        newest = max((p.header.position for p in planned if p.header), default=ZERO_POSITION)
        if newest[:8] > self._epoch:
            self._begin_epoch(newest[:8], "", "records of a new epoch")
        for shard in self._shards:
            outcome = self._apply_to(shard, planned)
            if outcome is not Outcome.APPLIED:
                raise _Moved(outcome.value)
        for item in planned:
            for invalidation in item.invalidations:
                if invalidation.fault:
                    self._quarantine(item.record, invalidation.fault)
        self._metrics.records.inc(len(planned))

    def _plan(self, record: Record) -> _Planned:
        """Decode and plan. What cannot be understood names the smallest scope that it surely touched."""
        name, table = row_field(record.topic, record.partition), self._tables[record.topic]
        try:
            header = decode_header(record.header)
        except BadRecord as error:
            self._close_views(table, f"{name} at {record.offset}: {error}")
            self._quarantine(record, str(error))
            self._sequence[name] = 0  # its number is not known
            return _Planned(record, None, [])
        last = self._sequence.get(name, 0)
        if last and header.previous != last:
            self._close_region(f"{name} at {record.offset}: {last} is followed by {header.sequence}, which follows "
                               f"{header.previous}")  # fmt: skip
        self._sequence[name] = header.sequence
        if record.value is None:
            return _Planned(record, header, [])
        try:
            envelope = decode_value(record.value)
        except BadRecord as error:
            return _Planned(record, header, self._planner.plan_unreadable(table, header, str(error)))
        if envelope.table != table:
            fault = f"a record of another table in the topic of {table}"
            return _Planned(record, header, self._planner.plan_unreadable(table, header, fault))
        return _Planned(record, header, self._planner.plan(envelope, header, record.key))

    def _apply_to(self, shard: int, planned: Sequence[_Planned]) -> Outcome:
        known = self._next[shard]
        mine = [p for p in planned if p.record.offset >= known.get(row_field(p.record.topic, p.record.partition), 0)]
        if not mine:
            return Outcome.APPLIED
        batch = self._batch(shard, mine)
        started = time.perf_counter()
        applied = self._region.apply(shard, batch)
        self._metrics.script_seconds.observe(time.perf_counter() - started)
        if applied.outcome is Outcome.APPLIED:
            known.update({step.field: step.row.next_offset for step in batch.rows})
            self._metrics.invalidations.inc(len(batch.changes) + len(batch.refreshes))
            self._metrics.unlinked.inc(applied.unlinked)
            self._metrics.kept.inc(applied.kept)
            self._metrics.written.inc(applied.written)
        return applied.outcome

    def _batch(self, shard: int, planned: Sequence[_Planned]) -> Batch:
        changes, refreshes, raises = [], [], []
        layout = self._region.layout
        for (view, key), invalidation in coalesce(i for p in planned for i in p.invalidations).items():
            position, stamps = invalidation.position, invalidation.stamps
            if key is None:
                raises.append(ScopeRaise(view_scope(view), position, stamps))
                self._metrics.raises.labels(view=view).inc()
                continue
            place, stripe = layout.place(key)
            if place != shard:
                continue
            change = KeyChange(key, stripe, position, stamps)
            if invalidation.value is None:
                changes.append(change)
            else:
                refreshes.append(self._refresh(change, invalidation, invalidation.value))
        return Batch(
            rows=self._steps(shard, planned),
            raises=tuple(raises),
            changes=tuple(changes),
            refreshes=tuple(refreshes),
            beat=self._beat_before(min((p.header.position for p in planned if p.header), default="")),
        )

    def _refresh(self, change: KeyChange, invalidation: Invalidation, value: bytes) -> KeyRefresh:
        ttl_ms = self._views.views[invalidation.view].ttl_ms or 0
        tail = encode_tail(
            view=invalidation.view,
            key=change.key,
            seen=change.position + "".join(change.stamps),
            payload=value,
            as_of_ms=invalidation.as_of_ms,
            expires_ms=invalidation.as_of_ms + ttl_ms if ttl_ms else 0,
        )
        return KeyRefresh(change, invalidation.view, tail, ttl_ms)

    def _steps(self, shard: int, planned: Sequence[_Planned]) -> tuple[RowStep, ...]:
        rows: dict[str, Row] = {}
        for item in planned:
            record, header = item.record, item.header
            name = row_field(record.topic, record.partition)
            old = rows.get(name)
            position, stamp = (old.position, old.stamp) if old else (ZERO_POSITION, ZERO_STAMP)
            if header is not None:
                if header.position[:8] == position[:8]:
                    stamp = max(stamp, header.stamp)
                elif header.position > position:
                    stamp = header.stamp
                position = max(position, header.position)
            rows[name] = Row(
                next_offset=record.offset + 1,
                topic_id=self._topic_ids.get(record.topic, UNKNOWN_TOPIC),
                leader_epoch=max(record.leader_epoch, 0),
                sequence=header.sequence if header else 0,
                position=position,
                stamp=stamp,
                digest=self._views.digest,
            )
        return tuple(RowStep(name, self._next[shard].get(name, 0), row) for name, row in rows.items())

    def _beat_before(self, position: str) -> Beat | None:
        """The newest heartbeat that every record of a batch was logged after."""
        return next((beat for beat in reversed(self._beats) if beat.position < position), None)

    # -- control records ---------------------------------------------------------------------------------------------

    def _hear(self, record: Record) -> None:
        try:
            control = decode_control(record.value or b"")
        except BadRecord as error:
            self._close_region(f"control record at {record.offset}: {error}")
            self._quarantine(record, str(error))
            control = None
        match control:
            case EpochStarted():
                self._begin_epoch(f"{control.epoch:08x}", control.history, control.reason)
            case Heartbeat() if control.position[:8] > self._epoch:
                self._begin_epoch(control.position[:8], control.history, "heartbeat of a new epoch")
            case Raise():
                self._obey(control)
            case _:
                pass
        beat = control if isinstance(control, Heartbeat) else None
        for shard in self._shards:
            if record.offset < self._next[shard].get(self._control_field, 0):
                continue
            outcome = self._region.hear(shard, self._control_step(shard, record, beat))
            if outcome is not Outcome.APPLIED:
                raise _Moved(outcome.value)
            self._next[shard][self._control_field] = record.offset + 1
        if beat is not None:
            self._beats.append(Beat(beat.position, beat.seen.text))
            self._pending.append(beat)

    def _control_step(self, shard: int, record: Record, beat: Heartbeat | None) -> ControlStep:
        known = self._next[shard]
        row = self._row(record.topic, record.offset + 1)
        owned = tuple((name, offset) for name, offset in known.items() if name != self._control_field)
        step = RowStep(self._control_field, known.get(self._control_field, 0), row)
        if beat is None:
            return ControlStep(step=step, owned=owned)
        return ControlStep(
            step=step,
            position=beat.position,
            stamp=stamp_text(beat.stamp),
            limit=stamp_text(beat.stamp + FORGERY_MARGIN),
            history=beat.history,
            owned=owned,
        )

    def _obey(self, order: Raise) -> None:
        if order.region not in (None, self._region.name):
            return
        if order.view is None:
            self._close_region(f"ordered: {order.reason}")
        elif order.view in self._views.views:
            self._close_view(order.view, f"ordered: {order.reason}")

    def _pass(self) -> None:
        """Tell the region the newest heartbeat whose barriers every row has reached."""
        reached = None
        while self._pending:
            if self._is_incomplete(self._pending[0]):
                self._pending.popleft()  # proves nothing for us, and must not stand before those that do
            elif self._reached(self._pending[0]):
                reached = self._pending.popleft()
            else:
                break
        if reached is None:
            return
        for shard in self._shards:
            request = Pass(
                position=reached.position,
                stamp=stamp_text(reached.stamp),
                time_ms=reached.time_ms,
                barriers=tuple((row_field(*p), barrier) for p, barrier in self._barriers(reached)),
            )
            outcome, opened = self._region.pass_heartbeat(shard, request)
            if outcome is Outcome.COLD:
                raise _Moved(outcome.value)
            if outcome is Outcome.APPLIED:
                self._metrics.watermark_ms.set(reached.time_ms)
                self._passed_at = time.monotonic()
            if opened:
                log.info("scopes_opened", region=self._region.name, shard=shard, scopes=opened)
                self._show_scopes(shard, self._region.header(shard))
        self._data.commit(
            {p: self._smallest(row_field(*p)) for p, _ in self._barriers(reached) if row_field(*p) in self._next[0]}
        )

    def _barriers(self, beat: Heartbeat) -> list[tuple[Partition, int]]:
        return [
            ((topic, partition), barrier)
            for topic in self._tables
            for partition, barrier in enumerate(beat.barriers.get(topic, []))
        ]

    def _is_incomplete(self, beat: Heartbeat) -> bool:
        """Whether a table of our views was not captured when the heartbeat was published.

        Its changes are lost until it is, and three heartbeats must follow that: its views close at both ends.
        """
        missing = {topic for topic in self._tables if topic not in beat.barriers}
        for topic in sorted(missing ^ self._uncaptured):
            state = "is not captured: add it to the publication" if topic in missing else "is captured from now on"
            self._close_views(self._tables[topic], f"table {self._tables[topic]} {state}")
        self._uncaptured = missing
        return bool(missing)

    def _reached(self, beat: Heartbeat) -> bool:
        """Whether every row is at or after its barrier."""
        barriers = self._barriers(beat)
        if any(partition not in self._assigned for partition, _ in barriers):
            raise _Moved("new partition")  # taken up from its start
        return all(self._smallest(row_field(*p)) >= barrier for p, barrier in barriers)

    # -- doubt -------------------------------------------------------------------------------------------------------

    def _begin_epoch(self, epoch: str, history: str, reason: str) -> None:
        for shard in self._shards:
            request = Close(scope=REGION_SCOPE, offset=self._control_end(), epoch=epoch, history=history)
            if self._region.close(shard, request) is Outcome.APPLIED:
                self._metrics.closings.labels(cause="epoch").inc()
                log.warning("epoch_started", region=self._region.name, shard=shard, epoch=epoch, reason=reason)
                self._show_scopes(shard, self._region.header(shard))
        self._epoch = max(self._epoch, epoch)

    def _close_region(self, reason: str) -> None:
        self._alarm("gap", reason)
        for shard in self._shards:
            self._region.close(shard, Close(scope=REGION_SCOPE, offset=self._control_end()))
            self._show_scopes(shard, self._region.header(shard))

    def _close_views(self, table: str, reason: str) -> None:
        for view in sorted(self._planner.views_of(table)):
            self._close_view(view, reason)

    def _close_view(self, view: str, reason: str) -> None:
        self._alarm("closed", f"view {view}: {reason}")
        for shard in self._shards:
            self._region.close(shard, Close(scope=view_scope(view), offset=self._control_end()))
            self._show_scopes(shard, self._region.header(shard))

    def _alarm(self, kind: str, reason: str) -> None:
        self._metrics.alarms.labels(kind=kind).inc()
        log.error("alarm", region=self._region.name, kind=kind, reason=reason)

    def _quarantine(self, record: Record, reason: str) -> None:
        self._metrics.quarantined.inc()
        log.error(
            "record_quarantined", region=self._region.name, topic=record.topic, partition=record.partition,
            offset=record.offset, reason=reason,
        )  # fmt: skip

    def _show_scopes(self, shard: int, header: dict[str, str]) -> None:
        closed = sum(text.startswith("c") for name, text in header.items() if name.startswith("s:"))
        self._closed[shard] = closed
        self._metrics.closed_scopes.set(sum(self._closed.values()))


def run(settings: Settings, region: str, stop: threading.Event) -> None:
    """Apply the source's stream to `region` until `stop`; what is under way is finished first. Raises FatalError."""
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    views = read_views(settings.views)
    group = f"staleproof-{settings.source.name}-{region}"
    with ExitStack() as resources:
        streams = []
        for _ in range(2):
            stream = RecordStream(settings.kafka, group=group, queued_kilobytes=settings.worker.queued_kilobytes)
            resources.callback(stream.close)
            streams.append(stream)
        worker = Worker(
            source=settings.source.name,
            region=open_region(settings, region),
            views=views,
            data=streams[0],
            control=streams[1],
            metrics=metrics,
            limits=Limits(batch_records=settings.worker.batch_records, script_keys=settings.worker.script_keys),
        )
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
            pause_seconds = BACKOFF_SECONDS_MIN
