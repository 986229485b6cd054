"""`staleproof capture`: commits of the source -> records in Kafka, and back the word that the log may forget them.

Three orders are kept, each closing a way to lose a change:

1. EpochStarted is in the control topic before the state that knows the epoch, and both before any of its records.
2. The state topic knows an acknowledged position before the slot does. A slot ahead of it was moved by somebody else.
3. A heartbeat is published when Kafka has every record before it, and the next one committed only after that.
4. A table's changed definition is remembered after Kafka acknowledged the raise that it caused.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import metadata

import msgspec
import structlog

from cdc.connectors.assembler import Assembler
from cdc.connectors.base import ChangeStream, Progress, SourceMessage, StreamItem
from cdc.connectors.postgres import HEARTBEAT_PREFIX, Fingerprint, Identity, PostgresSource, PostgresStream, Slot
from cdc.control import EpochStarted, Heartbeat, Raise, decode_control, encode_control
from cdc.envelope import EnvelopeWriter, encode_header, encode_key
from cdc.errors import BadRecord, FatalError, GapError, StaleproofError, TransientError
from cdc.events import ChangeEvent, Offset, Op, Position, lsn_text
from consumers import telemetry
from consumers.failpoints import failpoint
from consumers.kafka import Batch, Producer, partition_of, read_newest, read_sequences
from consumers.kafka_admin import COMPACTED, KEPT, Admin, Topic
from consumers.schema_watch import Fingerprints, SchemaWatch, altered
from consumers.service import Pulse, serve_http
from consumers.settings import Settings, SourceSettings
from consumers.stream import Extent

STATE_VERSION = 1

_SLOT_DEADLINE_SECONDS = 300.0  # a new slot waits for the transactions that are running
_REBUILDS_PER_HOUR = 3
_DRAIN_SECONDS = 8.0
_RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0)
_BUSY_WAIT_SECONDS = 0.005  # acknowledgements are only noticed between two reads
_IDLE_WAIT_SECONDS = 0.05

log = structlog.get_logger("staleproof.capture")


class SlotMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What the state topic remembers of a source: which history its slot followed, and how far.

    LSNs as numbers. `rebuilt_at` are the times (seconds since 1970) of the newest slots made in place of lost ones.
    `tables` are the definitions that every reader of the control topic knows; None: written by a release without them.
    """

    v: int = STATE_VERSION
    epoch: int
    system_identifier: str
    timeline: int
    slot: str
    slot_lsn: int
    acked_lsn: int
    rebuilt_at: list[int] = []
    tables: dict[str, Fingerprint] | None = None


def decode_memory(value: bytes) -> SlotMemory:
    """The state record's value. Raises FatalError: without it nobody knows what was lost."""
    remedy = "delete the record, and a new epoch starts"
    try:
        memory = msgspec.json.decode(value, type=SlotMemory)
    except (msgspec.MsgspecError, ValueError) as error:
        raise FatalError(f"the state topic's record cannot be read: {error}; {remedy}") from error
    if memory.v != STATE_VERSION:
        raise FatalError(f"the state topic's record has version {memory.v}; upgrade, or {remedy}")
    return memory


def break_in_history(memory: SlotMemory | None, identity: Identity, slot: Slot | None, name: str) -> str | None:
    """Why the log that `slot` gives does not continue what `memory` saw; None when it does.

    `slot` is the one found at the start, None when it had to be made.
    """
    if memory is None:
        return "first start" if slot is None else "nothing is remembered of the slot"
    if (memory.system_identifier, memory.timeline) != (identity.system_identifier, identity.timeline):
        return f"history {memory.system_identifier}:{memory.timeline} became {identity.history}"
    if slot is None:
        return f"slot {name} was lost"
    if memory.slot != name:
        return f"slot {memory.slot} was replaced by {name}"
    if slot.confirmed_lsn > memory.acked_lsn:
        return f"the slot is at {lsn_text(slot.confirmed_lsn)}, past the acknowledged {lsn_text(memory.acked_lsn)}"
    if identity.wal_end < memory.acked_lsn:
        return f"the log ends at {lsn_text(identity.wal_end)}, before the acknowledged {lsn_text(memory.acked_lsn)}"
    return None


def run(settings: Settings, stop: threading.Event) -> None:
    """Capture until `stop` is set.

    Raises FatalError for what a person must mend, and TransientError when the first start fails; once a stream was
    open, losing a server only means to try again.
    """
    pulse = Pulse(stalled_after_seconds=settings.capture.stalled_after_seconds)
    with serve_http(host=settings.capture.http_host, port=settings.capture.http_port, health=pulse.health):
        _keep_capturing(settings, stop, pulse)


def _keep_capturing(settings: Settings, stop: threading.Event, pulse: Pulse) -> None:
    failures, gap = 0, None
    opened = False
    while not stop.is_set():
        pulse.wait("opening the stream", limit_seconds=_SLOT_DEADLINE_SECONDS + settings.source.connect_timeout_seconds)
        try:
            with ExitStack() as resources:
                capture = open_capture(settings, stop, resources, gap)
                opened, failures, gap = True, 0, None
                capture.run(pulse)
        except GapError as error:
            gap = str(error)
            log.critical("capture_gap", reason=gap)
        except TransientError as error:
            if stop.is_set():
                return
            if not opened:
                raise
            log.warning("capture_interrupted", reason=str(error))
        except BadRecord as error:
            raise FatalError(f"the source's log cannot be decoded: {error}") from error
        else:
            return
        telemetry.CAPTURE_RESTARTS.inc()
        stop.wait(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
        failures += 1


def open_capture(settings: Settings, stop: threading.Event, resources: ExitStack, gap: str | None) -> Capture:
    """Connect to everything, decide about the epoch, announce it. Whatever is opened is left to `resources`.

    `gap` says why changes are known to be missing since the last stream, if they are.
    """
    source = settings.source
    admin = resources.enter_context(Admin(settings.kafka))
    questions = _open_source(source)
    resources.callback(questions.close)
    questions.check_server()
    tables = questions.published_tables(source.publication)
    _ensure_topics(admin, settings, tables)

    slot = _free_slot(questions, source, stop, gap)
    stream = PostgresStream(
        dsn=source.dsn.get_secret_value(),
        slot=source.slot,
        publication=source.publication,
        timeout_seconds=source.connect_timeout_seconds,
        status_interval_ms=source.status_interval_ms,
    )
    resources.callback(stream.close)
    identity = stream.identify()
    rebuilt_at = [] if slot is not None else _allowed_rebuild(_remembered(settings, admin))
    created = None
    if slot is None:
        created = stream.create_slot(deadline_seconds=_SLOT_DEADLINE_SECONDS, stopped=stop.is_set)
        log.info("slot_created", slot=source.slot, lsn=lsn_text(created))
    stream.start()  # from here on nobody else reads this slot

    memory = _remembered(settings, admin)
    producer = Producer(settings.kafka, inflight_records=settings.capture.inflight_records)
    resources.callback(producer.close)
    reason = gap or break_in_history(memory, identity, slot, source.slot)
    for topic, extents in admin.extents([source.control_topic, source.state_topic]).items():
        producer.track(topic, [extent.end for extent in extents])
    if memory is None or reason is not None:
        start_lsn = created if created is not None else slot.confirmed_lsn if slot is not None else 0
        memory = SlotMemory(
            epoch=max(int(time.time()), (_newest_epoch(settings, admin) if memory is None else memory.epoch) + 1),
            system_identifier=identity.system_identifier,
            timeline=identity.timeline,
            slot=source.slot,
            slot_lsn=start_lsn,
            acked_lsn=start_lsn,
            rebuilt_at=rebuilt_at,
            tables=questions.fingerprints(source.publication),  # older entries die of the epoch, whatever DDL there was
        )
        record = EpochStarted(
            source=source.name,
            history=identity.history,
            epoch=memory.epoch,
            reason=reason or "first start",
            lsn=start_lsn,
            stamp=questions.newest_xid(),
        )
        _announce(producer, settings, memory, record)

    heartbeats = HeartbeatWriter(source, secrets.token_hex(8))
    resources.callback(heartbeats.stop)
    watch = SchemaWatch(source)
    resources.callback(watch.stop)
    capture = Capture(
        settings=settings,
        stop=stop,
        stream=stream,
        producer=producer,
        admin=admin,
        heartbeats=heartbeats,
        watch=watch,
        identity=identity,
        memory=memory,
    )
    capture.add_tables(tables)
    assembler = Assembler(
        source=source.name, epoch=memory.epoch, reference=questions.newest_xid(), primary_key=questions.primary_key
    )
    stream.begin(assembler, memory.acked_lsn)
    log.info("capture_started", history=identity.history, epoch=memory.epoch, tables=len(tables))
    return capture


def _open_source(source: SourceSettings) -> PostgresSource:
    return PostgresSource(dsn=source.dsn.get_secret_value(), timeout_seconds=source.connect_timeout_seconds)


def _ensure_topics(admin: Admin, settings: Settings, tables: Sequence[str]) -> None:
    source = settings.source
    admin.ensure(
        [
            Topic(source.control_topic, 1, KEPT, exact=True),
            Topic(source.state_topic, 1, COMPACTED, exact=True),
            *(Topic(source.topic(table), settings.kafka.partitions, KEPT) for table in tables),
        ]
    )


def _free_slot(
    questions: PostgresSource, source: SourceSettings, stop: threading.Event, gap: str | None
) -> Slot | None:
    """The slot once nobody reads it; None when there is none, or only one that cannot give what it should.

    Such a one is dropped: its log is gone, or (`gap`) leads again and again to the place where changes are missing.
    The server needs a moment to notice that a killed process no longer reads.
    """
    deadline = time.monotonic() + source.connect_timeout_seconds
    while (slot := questions.slot(source.slot)) is not None and slot.active_pid is not None:
        if stop.wait(0.1):
            raise TransientError("stopped while waiting for the slot")
        if time.monotonic() > deadline:
            raise FatalError(
                f"slot {source.slot!r} is read by process {slot.active_pid} of the server: only one capture may read"
                " a slot; stop the other one, or name another source.slot and source.name"
            )
    if slot is None or (slot.lost is None and gap is None):
        return slot
    log.critical("slot_dropped", slot=source.slot, reason=slot.lost or gap)
    questions.drop_slot(source.slot)
    return None


def _allowed_rebuild(memory: SlotMemory | None) -> list[int]:
    """The rebuild times with the one that is due now. Raises FatalError when there were too many of late."""
    if memory is None:
        return []
    now = int(time.time())
    recent = [moment for moment in memory.rebuilt_at if moment > now - 3600]
    if len(recent) >= _REBUILDS_PER_HOUR:
        raise FatalError(
            f"slot {memory.slot!r} was lost {len(recent)} times within an hour; find out who drops it, or raise"
            " max_slot_wal_keep_size so that the server keeps enough log for it"
        )
    return [*recent, now]


def _remembered(settings: Settings, admin: Admin) -> SlotMemory | None:
    source = settings.source
    (extent,) = admin.extents([source.state_topic])[source.state_topic]
    value = read_newest(settings.kafka, source.state_topic, extent, source.name.encode())
    return None if value is None else decode_memory(value)


def _newest_epoch(settings: Settings, admin: Admin) -> int:
    """The epoch of the newest control record, 0 without one: where the state was lost, time may have gone back."""
    source = settings.source
    (extent,) = admin.extents([source.control_topic])[source.control_topic]
    for offset in range(extent.end - 1, extent.begin - 1, -1):  # a heartbeat is among the last few
        one = Extent(Offset(offset), Offset(offset + 1))
        value = read_newest(settings.kafka, source.control_topic, one, source.name.encode())
        epoch = None if value is None else epoch_of(value)
        if epoch is not None:
            return epoch
    return 0


def epoch_of(value: bytes) -> int | None:
    """The epoch that a control record belongs to; None where it is an order, or unreadable: people write those."""
    try:
        record = decode_control(value)
    except BadRecord:
        return None
    match record:
        case EpochStarted():
            return record.epoch
        case Heartbeat():
            return record.at.epoch
        case Raise():
            return None


def _announce(producer: Producer, settings: Settings, memory: SlotMemory, record: EpochStarted) -> None:
    """Tell everybody that a new epoch begins, then remember it."""
    source = settings.source
    key = source.name.encode()
    for topic, value in (
        (source.control_topic, encode_control(record)),
        (source.state_topic, msgspec.json.encode(memory)),
    ):
        producer.send(producer.batch(), topic, 0, key=key, value=value, header=None)
        if producer.flush(settings.kafka.request_timeout_seconds):
            raise TransientError(f"Kafka did not acknowledge the start of epoch {memory.epoch} in time")
        if topic == source.control_topic:
            failpoint("capture.after_announce")
    telemetry.CAPTURE_EPOCHS.inc()
    log.warning("epoch_started", epoch=record.epoch, history=record.history, reason=record.reason)


class _Transaction:
    """What was read of one transaction: its records, and the heartbeat that it may be."""

    __slots__ = ("batch", "heartbeat", "mark")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.mark = 0
        self.heartbeat: SourceMessage | None = None


class _Outlet:
    """Where one table's records go. `sequences` are the newest of each partition."""

    __slots__ = ("counter", "sequences", "topic")

    def __init__(self, topic: str, sequences: list[int]) -> None:
        self.topic = topic
        self.sequences = sequences
        self.counter = telemetry.CAPTURE_RECORDS.labels(topic)


class _Beat(msgspec.Struct, frozen=True):
    """The content of a heartbeat's message, as `PostgresSource.commit_heartbeat` writes it."""

    source: str
    instance: str
    number: int
    stamp: int
    snapshot: str
    time_ms: int


class HeartbeatWriter:
    """Commits heartbeats on a connection and a thread of its own, so that a slow commit stalls nothing.

    `instance` marks them: those of another process, or of an earlier stream of this one, count for nothing.
    """

    def __init__(self, source: SourceSettings, instance: str) -> None:
        self.instance = instance
        self._source = source
        self._orders: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[int, StaleproofError]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="heartbeats", daemon=True).start()

    def commit(self, number: int) -> None:
        """Ask for heartbeat `number`. One is under way at a time."""
        self._orders.put(number)

    def failed(self) -> tuple[int, StaleproofError] | None:
        """A heartbeat that was not, or may not have been, committed."""
        try:
            return self._results.get_nowait()
        except queue.Empty:
            return None

    def stop(self) -> None:
        """End the thread after what it is doing."""
        self._orders.put(None)

    def _work(self) -> None:
        connection: PostgresSource | None = None
        while (number := self._orders.get()) is not None:
            try:
                connection = connection or _open_source(self._source)
                connection.commit_heartbeat(source=self._source.name, instance=self.instance, number=number)
            except StaleproofError as error:
                self._results.put((number, error))
                if connection is not None:
                    connection.close()
                connection = None
        if connection is not None:
            connection.close()


class Capture:
    """One open stream, from its first item to its last. Made by `open_capture`."""

    def __init__(
        self,
        *,
        settings: Settings,
        stop: threading.Event,
        stream: ChangeStream,
        producer: Producer,
        admin: Admin,
        heartbeats: HeartbeatWriter,
        watch: SchemaWatch,
        identity: Identity,
        memory: SlotMemory,
    ) -> None:
        self._settings = settings
        self._source = settings.source
        self._stop = stop
        self._stream = stream
        self._producer = producer
        self._admin = admin
        self._identity = identity
        self._memory = memory
        self._writer = EnvelopeWriter(name=self._source.name, database=identity.database, version=_version())
        self._outlets: dict[str, _Outlet] = {}

        self._open: _Transaction | None = None
        self._waiting: deque[_Transaction] = deque()
        self._read_mark = self._done_mark = self._remembered_mark = memory.acked_lsn
        self._remembering: tuple[Batch, int] | None = None
        self._remember_due = 0.0

        self._heartbeats = heartbeats
        self._beat_number = 0
        self._outstanding: int | None = None
        self._publishing: Batch | None = None
        self._beat_due = 0.0
        self._published_at: float | None = None

        self._watch = watch
        self._withdrawn: frozenset[str] = frozenset()
        self._raising: tuple[Batch, Fingerprints] | None = None
        self._untold = False  # the state topic does not know the newest definitions

    def add_tables(self, tables: Sequence[str]) -> None:
        """Prepare the topics of tables whose changes may come: extents and the sequences to go on from."""
        names = {self._source.topic(table): table for table in tables}
        extents = self._admin.extents(list(names))
        for topic, sequences in read_sequences(self._settings.kafka, extents).items():
            self._producer.track(topic, _ends(extents[topic]))
            self._outlets[names[topic]] = _Outlet(topic, sequences)

    def run(self, pulse: Pulse) -> None:
        """Capture until told to stop, then hand over what is known to be safe."""
        while not self._stop.is_set():
            self.step()
            pulse.beat(self._published_at)
        self._finish()

    def step(self) -> None:
        """Read what there is, produce it, and move everything on that acknowledgements allow."""
        for item in self._stream.read(_BUSY_WAIT_SECONDS if len(self._producer) else _IDLE_WAIT_SECONDS):
            self._take(item)
        self._producer.poll(0)
        self._advance()
        self._settle_ddl()
        self._look()
        self._remember()
        self._beat()
        telemetry.CAPTURE_INFLIGHT.set(len(self._producer))
        telemetry.CAPTURE_ACK_LAG.set(self._read_mark - self._remembered_mark)

    # -- in: items of the stream

    def _take(self, item: StreamItem) -> None:
        if type(item) is ChangeEvent:
            self._produce(item)
        elif type(item) is Progress:
            self._seal(item)
        elif type(item) is SourceMessage:
            self._message(item)

    def _transaction(self) -> _Transaction:
        if self._open is None:
            self._open = _Transaction(self._producer.batch())
        return self._open

    def _produce(self, event: ChangeEvent) -> None:
        outlet = self._outlets.get(event.table) or self._new_outlet(event.table)
        key = encode_key(event)
        # Records without a key keep their order in partition 0, where Debezium's tools also look for TRUNCATE.
        partition = 0 if key is None else partition_of(key, len(outlet.sequences))
        self._send(outlet, partition, event, key, self._writer.value(event, time.time_ns() // 1000))
        if event.op is Op.DELETE and key is not None:
            self._send(outlet, partition, event, key, None)

    def _new_outlet(self, table: str) -> _Outlet:
        """A table that was added to the publication while we run, and changed before the watch saw it."""
        self._add_published([table])
        return self._outlets[table]

    def _add_published(self, tables: Sequence[str]) -> None:
        _ensure_topics(self._admin, self._settings, tables)
        self.add_tables(tables)
        log.info("tables_added", tables=tables)

    def _send(
        self, outlet: _Outlet, partition: int, event: ChangeEvent, key: bytes | None, value: bytes | None
    ) -> None:
        previous = outlet.sequences[partition]
        header = encode_header(event, previous + 1, previous)
        self._queue(self._transaction().batch, outlet.topic, partition, key=key, value=value, header=header)
        outlet.sequences[partition] = previous + 1
        outlet.counter.inc()

    def _queue(
        self, batch: Batch, topic: str, partition: int, *, key: bytes | None, value: bytes | None, header: bytes | None
    ) -> None:
        """Queue one record, waiting for room; the source hears from us meanwhile."""
        while not self._producer.send(batch, topic, partition, key=key, value=value, header=header):
            telemetry.CAPTURE_QUEUE_FULL.inc()
            if self._stop.is_set():
                raise TransientError("stopped while Kafka takes no records; what is not acknowledged is sent again")
            self._producer.poll(0.05)
            self._stream.keep_alive()

    def _seal(self, progress: Progress) -> None:
        transaction, self._open = self._open, None
        self._read_mark = max(self._read_mark, progress.mark)
        if progress.committed_at_ms:
            telemetry.CAPTURE_TRANSACTIONS.inc()
            telemetry.CAPTURE_COMMIT_TIME.set(progress.committed_at_ms / 1000)
        if transaction is None:
            if not self._waiting:
                self._done_mark = progress.mark
                return
            if self._waiting[-1].heartbeat is None:  # nothing of its own to wait for: it goes with the one before
                self._waiting[-1].mark = progress.mark
                return
            transaction = _Transaction(self._producer.batch())
        transaction.mark = progress.mark
        self._waiting.append(transaction)

    def _message(self, message: SourceMessage) -> None:
        if message.prefix == HEARTBEAT_PREFIX and self._is_ours(message):
            self._transaction().heartbeat = message
        else:
            telemetry.CAPTURE_IGNORED_MESSAGES.inc()

    def _is_ours(self, message: SourceMessage) -> bool:
        """Whether this stream wrote it; those of earlier ones count for nothing."""
        beat = _decode_beat(message)
        return beat is not None and beat.instance == self._heartbeats.instance

    # -- out: what acknowledgements allow

    def _advance(self) -> None:
        """Pass every transaction at the front whose records are all acknowledged."""
        waiting = self._waiting
        while waiting and waiting[0].batch.pending == 0:
            transaction = waiting.popleft()
            failpoint("capture.after_produce")
            self._done_mark = transaction.mark
            if transaction.heartbeat is not None:
                self._publish(transaction.heartbeat)

    def _publish(self, message: SourceMessage) -> None:
        beat = _decode_beat(message)
        if beat is None or beat.number != self._outstanding:
            return
        failpoint("capture.before_heartbeat")
        ends = self._producer.ends
        record = Heartbeat(
            source=self._source.name,
            history=self._identity.history,
            instance=beat.instance,
            number=beat.number,
            position=message.position.text,
            stamp=beat.stamp,
            snapshot=beat.snapshot,
            time_ms=beat.time_ms,
            barriers={
                outlet.topic: list(ends[outlet.topic])
                for table, outlet in self._outlets.items()
                if table not in self._withdrawn
            },
        )
        self._publishing = self._producer.batch()
        value, key = encode_control(record), self._source.name.encode()
        self._queue(self._publishing, self._source.control_topic, 0, key=key, value=value, header=None)
        telemetry.CAPTURE_HEARTBEATS.inc()
        self._published_at = time.monotonic()
        telemetry.CAPTURE_HEARTBEAT_TIME.set(beat.time_ms / 1000)

    def _beat(self) -> None:
        """Commit the next heartbeat when it is due, never before the one before it is in the control topic."""
        now = time.monotonic()
        if self._publishing is not None and self._publishing.pending == 0:
            self._publishing = self._outstanding = None
        failure = self._heartbeats.failed()
        if failure is not None and failure[0] == self._outstanding and self._publishing is None:
            # It may have been committed all the same; its number no longer counts, so it is never published.
            self._outstanding = None
            self._beat_due = now + 1.0
            telemetry.CAPTURE_HEARTBEAT_FAILURES.inc()
            log.warning("heartbeat_failed", number=failure[0], reason=str(failure[1]))
        if self._outstanding is None and now >= self._beat_due:
            self._beat_number += 1
            self._outstanding = self._beat_number
            self._beat_due = max(now, self._beat_due + self._source.heartbeat_interval_ms / 1000)
            self._heartbeats.commit(self._beat_number)

    # -- aside: what DDL changed

    def _look(self) -> None:
        """Take what the watch saw: who is captured from now on, and whose views must close."""
        if self._raising is not None:
            return
        seen = self._watch.newest()
        if seen is None:
            return
        if added := sorted(seen.keys() - self._outlets.keys()):
            self._add_published(added)
        # Records of a table that was taken out still come while the log lags, but no heartbeat vouches for it.
        self._withdrawn = frozenset(self._outlets.keys() - seen.keys())
        self._raising = (self._producer.batch(), seen)
        for table, reason in altered(self._memory.tables, seen).items():
            self._raise(self._raising[0], table, reason)
        self._settle_ddl()

    def _raise(self, batch: Batch, table: str, reason: str) -> None:
        order = Raise(
            source=self._source.name,
            position=Position(self._memory.epoch, self._done_mark, 0).text,
            region=None,
            view=None,
            reason=f"ddl: {table}: {reason}",
            table=table,
        )
        value, key = encode_control(order), self._source.name.encode()
        self._queue(batch, self._source.control_topic, 0, key=key, value=value, header=None)
        telemetry.CAPTURE_DDL.labels(table).inc()
        log.error("alarm", kind="ddl", table=table, reason=reason)

    def _settle_ddl(self) -> None:
        """Let the next state record know the definitions that were raised, once Kafka has the raises."""
        if self._raising is not None and self._raising[0].pending == 0:
            tables, self._raising = dict(self._raising[1]), None
            if tables != self._memory.tables:
                self._memory = msgspec.structs.replace(self._memory, tables=tables)
                self._untold = True

    # -- back: what the source may forget

    def _remember(self) -> None:
        """Write the acknowledged position to the state topic, then, once it is there, to the slot."""
        if self._remembering is not None:
            batch, mark = self._remembering
            if batch.pending:
                return
            self._remembering = None
            failpoint("capture.after_memory")
            self._remembered_mark = mark
            self._stream.ack(mark)
        now = time.monotonic()
        if (self._untold or self._done_mark > self._remembered_mark) and now >= self._remember_due:
            self._remember_due = now + self._source.status_interval_ms / 1000
            self._write_memory()

    def _write_memory(self) -> None:
        mark = max(self._done_mark, self._remembered_mark)
        memory = msgspec.structs.replace(self._memory, acked_lsn=mark)
        batch = self._producer.batch()
        value, key = msgspec.json.encode(memory), self._source.name.encode()
        self._queue(batch, self._source.state_topic, 0, key=key, value=value, header=None)
        self._remembering = (batch, mark)
        self._untold = False

    def _finish(self) -> None:
        """Wait, not for long, for what is under way; then tell the slot. The rest is sent again next time."""
        self._heartbeats.stop()
        self._watch.stop()
        self._outstanding = None
        deadline = time.monotonic() + _DRAIN_SECONDS
        self._drain(deadline)
        self._advance()
        self._settle_ddl()
        self._remember_due = 0.0
        self._remember()
        self._drain(deadline)
        self._remember()
        log.info("capture_stopped", acked=lsn_text(self._remembered_mark), unacknowledged=len(self._producer))

    def _drain(self, deadline: float) -> None:
        while len(self._producer) and time.monotonic() < deadline:
            self._producer.flush(0.2)
            self._stream.keep_alive()


def _ends(extents: Sequence[Extent]) -> list[int]:
    return [extent.end for extent in extents]


def _decode_beat(message: SourceMessage) -> _Beat | None:
    try:
        return msgspec.json.decode(message.content, type=_Beat)
    except (msgspec.MsgspecError, ValueError):
        return None


def _version() -> str:
    try:
        return metadata.version("staleproof")
    except metadata.PackageNotFoundError:
        return "0"
