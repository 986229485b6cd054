"""The demonstration's workload as Kafka records, without a database: what capture would have written. Pure.

The tables live in memory; transactions of the kinds and the frequencies of `infra/demo/workload.py` change them, one
after the other, beside an importer whose transactions stay open for a while. Rows, images (what each table's replica
identity gives, unchanged TOAST left out), positions, stamps, sequences and heartbeats with their snapshots and barriers
are as the real capture's; the same seed gives the same records.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import NamedTuple

from cdc.connectors.pg_values import UNAVAILABLE
from cdc.control import Heartbeat, encode_control
from cdc.envelope import EnvelopeWriter, encode_header, encode_key
from cdc.events import ChangeEvent, Op, Position, Row, Stamp
from consumers.kafka import partition_of
from infra.demo.data import CITIES, COLUMNS, Sizes, attributes, audience, contact, rows_of, skewed, template_body
from infra.demo.workload import (
    ABSENT_CONTACTS_MAX,
    BULK_FROM_RATE,
    BULK_MAX,
    IMPORTER_OPEN_SECONDS,
    IMPORTER_PERCENT,
    IMPORTER_ROWS,
    IMPORTER_SHARE,
    MOVED,
)

EPOCH = 1_767_225_600
"""Also when the traffic begins, seconds since 1970: an epoch is named by its time."""

HISTORY = "7525310223452345001:1"
HEARTBEAT_SECONDS = 0.25
LAST_HEARTBEATS = 4
"""After the last change, so that whatever was closed opens."""

_FIRST_STAMP = 1_000_000
_FIRST_LSN = 0x1_0000_0000
_LSN_STEP_MAX = 2_000
_KEYS = {table: columns[: 2 if table == "segment_members" else 1] for table, columns in COLUMNS.items()}
_FULL = ("contacts", "tracking_events")
"""Tables under REPLICA IDENTITY FULL in infra/demo/schema.sql; of others the log repeats the key where it must."""


class Outgoing(NamedTuple):
    """One record for Kafka."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    header: bytes | None


class Change(NamedTuple):
    """One row change: `before` and `after` are whole rows, as far as they exist."""

    table: str
    before: Row | None
    after: Row | None


class Import(NamedTuple):
    """A transaction of the importer that has not committed."""

    stamp: int
    due_seconds: float


class Platform:
    """The demonstration's tables, and its transactions on them. `seconds` of the platform's clock are set from outside."""

    def __init__(self, rng: random.Random, sizes: Sizes, rate: float, seed: int) -> None:
        self.seconds = 0.0
        self._rng = rng
        self._sizes = sizes
        self._bulk = min(max(1, round(rate / BULK_FROM_RATE)), BULK_MAX)
        self._rows: dict[str, dict[tuple[object, ...], Row]] = {}
        for table, columns in COLUMNS.items():
            rows = (dict(zip(columns, row, strict=True)) for row in rows_of(table, seed, sizes))
            self._rows[table] = {_key(table, row): self._with_defaults(table, row) for row in rows}
        self._members: dict[int, set[int]] = {}
        for segment, member in self._rows["segment_members"]:
            self._members.setdefault(member, set()).add(segment)
        self._next_event = sizes.events + 1
        self._moved: deque[int] = deque()
        self._deleted: deque[tuple[int, list[int]]] = deque()
        self._kinds = [kind for _, kind in self._mix()]
        self._weights = list(accumulate(weight for weight, _ in self._mix()))

    def _mix(self) -> Sequence[tuple[float, Callable[[], list[Change]]]]:
        """As the demonstration's writer."""
        return (
            (30, self._edit_profile),
            (4, self._import_profiles),
            (4, self._visit),
            (14, self._track),
            (1, self._correct_tracking),
            (3, self._unsubscribe),
            (6, self._move_members),
            (3, self._add_members),
            (3, self._remove_members),
            (1, self._edit_template),
            (2, self._edit_campaign),
            (1, self._edit_segment),
            (1, self._delete_contact),
            (1, self._return_contact),
            (1, self._move_contact),
        )

    def transact(self) -> list[Change]:
        """The changes of one transaction; none where it found nothing to do."""
        return self._rng.choices(self._kinds, cum_weights=self._weights)[0]()

    def import_rows(self) -> list[Change]:
        """The changes of one transaction of the importer, who has every eighth contact for itself."""
        chosen = (audience(self._rng, self._sizes, self.seconds) for _ in range(IMPORTER_ROWS))
        numbers = sorted({number - number % IMPORTER_SHARE or IMPORTER_SHARE for number in chosen})
        return self._update_contacts(numbers, lambda: {"attributes": attributes(self._rng)})

    @property
    def now(self) -> str:
        """The platform's time as timestamptz is written."""
        moment = datetime.fromtimestamp(EPOCH + self.seconds, UTC)
        return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    # -- rows

    def _with_defaults(self, table: str, row: Row) -> Row:
        if table == "contacts":
            return {**row, "updated_at": self.now}
        if table == "campaigns":
            return {**row, "scheduled_at": None}
        return {**row, "at": self.now} if table == "tracking_events" else row

    def _insert(self, table: str, row: Row) -> list[Change]:
        key = _key(table, row)
        if key in self._rows[table]:
            return []
        self._rows[table][key] = row
        return [Change(table, None, row)]

    def _update(self, table: str, key: tuple[object, ...], new: Row) -> list[Change]:
        before = self._rows[table].pop(key, None)
        if before is None:
            return []
        after = before | new
        self._rows[table][_key(table, after)] = after
        return [Change(table, before, after)]

    def _delete(self, table: str, key: tuple[object, ...]) -> list[Change]:
        before = self._rows[table].pop(key, None)
        return [] if before is None else [Change(table, before, None)]

    def _contact(self) -> int:
        number = audience(self._rng, self._sizes, self.seconds)
        return number - 1 if number % IMPORTER_SHARE == 0 else number

    def _contacts(self, least: int, most: int) -> list[int]:
        return sorted({self._contact() for _ in range(self._rng.randint(least, most * self._bulk))})

    def _segment(self) -> int:
        return skewed(self._rng, self._sizes.segments)

    def _update_contacts(self, numbers: Sequence[int], new: Callable[[], Row]) -> list[Change]:
        now = self.now
        return [
            change for number in numbers for change in self._update("contacts", (number,), new() | {"updated_at": now})
        ]

    # -- contacts

    def _edit_profile(self) -> list[Change]:
        new = {"city": self._rng.choice(CITIES), "attributes": attributes(self._rng)}
        return self._update_contacts([self._contact()], lambda: new)

    def _import_profiles(self) -> list[Change]:
        return self._update_contacts(self._contacts(5, 40), lambda: {"attributes": attributes(self._rng)})

    def _visit(self) -> list[Change]:
        return self._update_contacts(self._contacts(2, 10), dict)

    def _unsubscribe(self) -> list[Change]:
        number = self._contact()
        status = self._rng.choice(("unsubscribed", "subscribed", "bounced"))
        return self._update("contacts", (number,), {"status": status}) + self._leave(self._segment(), number)

    def _delete_contact(self) -> list[Change]:
        if len(self._deleted) >= ABSENT_CONTACTS_MAX:
            return self._return_contact()
        number = self._contact()
        changes = self._delete("contacts", (number,))
        if changes:
            segments = sorted(self._members.get(number, ()))
            self._deleted.append((number, segments))
            for segment in segments:
                changes += self._leave(segment, number)
        return changes

    def _return_contact(self) -> list[Change]:
        if not self._deleted:
            return []
        number, segments = self._deleted.popleft()
        row = dict(zip(COLUMNS["contacts"], contact(number, self._rng), strict=True))
        changes = self._insert("contacts", self._with_defaults("contacts", row))
        for segment in segments:
            changes += self._join(segment, number)
        return changes

    def _move_contact(self) -> list[Change]:
        if len(self._moved) > self._rng.randrange(100):
            old = self._moved.popleft()
            new = old - MOVED
        else:
            old = self._contact()
            new = old + MOVED
        if (new,) in self._rows["contacts"]:
            return []
        changes = self._update("contacts", (old,), {"id": new})
        if changes:
            if new > old:
                self._moved.append(new)
            for segment in sorted(self._members.pop(old, ())):
                changes += self._update("segment_members", (segment, old), {"contact_id": new})
                self._members.setdefault(new, set()).add(segment)
        return changes

    # -- segments

    def _join(self, segment: int, number: int) -> list[Change]:
        self._members.setdefault(number, set()).add(segment)
        return self._insert("segment_members", {"segment_id": segment, "contact_id": number})

    def _leave(self, segment: int, number: int) -> list[Change]:
        self._members.get(number, set()).discard(segment)
        return self._delete("segment_members", (segment, number))

    def _move_members(self) -> list[Change]:
        old, new = self._segment(), self._segment()
        changes: list[Change] = []
        if old == new:
            return changes
        for number in self._contacts(4, 16):
            segments = self._members.get(number, set())
            if old in segments and new not in segments:
                segments.discard(old)
                segments.add(new)
                changes += self._update("segment_members", (old, number), {"segment_id": new})
        return changes

    def _add_members(self) -> list[Change]:
        segment, numbers = self._segment(), self._contacts(1, 8)
        known = [number for number in numbers if (number,) in self._rows["contacts"]]
        return [change for number in known for change in self._join(segment, number)]

    def _remove_members(self) -> list[Change]:
        segment = self._segment()
        return [change for number in self._contacts(2, 16) for change in self._leave(segment, number)]

    def _edit_segment(self) -> list[Change]:
        return self._update("segments", (self._segment(),), {"rule": f"points > {self._rng.randrange(5_000)}"})

    # -- what is sent, and what came of it

    def _edit_template(self) -> list[Change]:
        number = skewed(self._rng, self._sizes.templates)
        if self._rng.random() < 0.5:
            return self._update("templates", (number,), {"subject": f"subject {self._rng.randrange(1_000_000)}"})
        return self._update("templates", (number,), {"body": template_body(self._rng)})

    def _edit_campaign(self) -> list[Change]:
        new = {"status": self._rng.choice(("draft", "scheduled", "sending", "sent")), "scheduled_at": self.now}
        return self._update("campaigns", (skewed(self._rng, self._sizes.campaigns),), new)

    def _track(self) -> list[Change]:
        changes: list[Change] = []
        now = self.now
        for _ in range(self._rng.randint(1, 12 * self._bulk)):
            row: Row = {
                "id": self._next_event,
                "contact_id": audience(self._rng, self._sizes, self.seconds),
                "campaign_id": skewed(self._rng, self._sizes.campaigns),
                "kind": self._rng.choices(("sent", "open", "click"), (40, 45, 15))[0],
                "at": now,
            }
            self._next_event += 1
            changes += self._insert("tracking_events", row)
        return changes

    def _correct_tracking(self) -> list[Change]:
        number = self._rng.randrange(1, self._next_event)
        if self._rng.random() < 0.5:
            return self._delete("tracking_events", (number,))
        return self._update("tracking_events", (number,), {"contact_id": self._contact()})


class Log:
    """The platform's transactions as capture writes them. `records` is the whole of it.

    Every topic of a table has `partitions` partitions. `ends` are their end offsets after what was taken so far.
    """

    def __init__(self, *, source: str, partitions: int, seed: int = 1, rate: float = 2_000, sizes: Sizes | None = None):
        sizes = sizes or Sizes()
        self.control_topic = f"{source}.staleproof.control"
        self.ends = {f"{source}.public.{table}": [0] * partitions for table in COLUMNS}
        self.heartbeats = 0
        self.events = 0
        self._source = source
        self._rate = rate
        self._rng = random.Random(f"{seed}:traffic")
        self._platform = Platform(self._rng, sizes, rate, seed)
        self._writer = EnvelopeWriter(name=source, database="app", version="0")
        self._next_stamp = _FIRST_STAMP
        self._lsn = _FIRST_LSN
        self._import: Import | None = None
        self._imported = 0
        self._beat_due_seconds = HEARTBEAT_SECONDS

    @property
    def records(self) -> int:
        """How many data records were taken, null records included."""
        return sum(map(sum, self.ends.values()))

    def take(self, events: int) -> Iterator[Outgoing]:
        """Records of at least so many changes, in the order in which they were committed, and their heartbeats."""
        while self.events < events:
            self._platform.seconds = self.events / self._rate
            yield from self._importer_step()
            changes = self._platform.transact()
            if changes:
                yield from self._commit(self._stamp(), changes)
            if self._platform.seconds >= self._beat_due_seconds:
                self._beat_due_seconds = self._platform.seconds + HEARTBEAT_SECONDS
                yield self._heartbeat()
        for _ in range(LAST_HEARTBEATS):
            self._platform.seconds += HEARTBEAT_SECONDS
            yield self._heartbeat()

    def _importer_step(self) -> Iterator[Outgoing]:
        now = self._platform.seconds
        if self._import is None:
            if self._imported * 100 < self.events * IMPORTER_PERCENT:
                self._import = Import(self._stamp(), now + self._rng.uniform(0, IMPORTER_OPEN_SECONDS))
        elif now >= self._import.due_seconds:
            changes = self._platform.import_rows()
            stamp, self._import = self._import.stamp, None
            self._imported += len(changes)
            yield from self._commit(stamp, changes)

    def _stamp(self) -> int:
        self._next_stamp += 1
        return self._next_stamp - 1

    def _commit(self, stamp: int, changes: Sequence[Change]) -> Iterator[Outgoing]:
        self._lsn += self._rng.randrange(200, _LSN_STEP_MAX) * len(changes)
        order = 0
        for change in changes:
            for op, key, before, after in _images(change):
                event = ChangeEvent(
                    source=self._source,
                    table=f"public.{change.table}",
                    op=op,
                    key=key,
                    before=before,
                    after=after,
                    position=Position(EPOCH, self._lsn, order),
                    stamp=Stamp(stamp),
                    committed_at_ms=self._now_ms,
                )
                order += 1
                yield from self._produce(event)

    def _produce(self, event: ChangeEvent) -> Iterator[Outgoing]:
        self.events += 1
        topic, key = f"{self._source}.{event.table}", encode_key(event)
        ends = self.ends[topic]
        partition = partition_of(key or b"", len(ends))
        values = [self._writer.value(event, event.committed_at_ms * 1000 + 5_000)]
        for value in (*values, None) if event.op is Op.DELETE else values:
            # Offset and sequence count the same records, the one from 0, the other from 1.
            header = encode_header(event, ends[partition] + 1, ends[partition])
            ends[partition] += 1
            yield Outgoing(topic, partition, key, value, header)

    def _heartbeat(self) -> Outgoing:
        self._lsn += 100
        self.heartbeats += 1
        stamp = self._stamp()
        # xmax is the last completed transaction + 1: the heartbeat's own has not completed.
        snapshot = f"{stamp}:{stamp}:" if self._import is None else f"{self._import.stamp}:{stamp}:{self._import.stamp}"
        beat = Heartbeat(
            source=self._source,
            history=HISTORY,
            number=self.heartbeats,
            position=Position(EPOCH, self._lsn, 0).text,
            stamp=stamp,
            snapshot=snapshot,
            time_ms=self._now_ms,
            barriers={topic: list(ends) for topic, ends in self.ends.items()},
        )
        return Outgoing(self.control_topic, 0, self._source.encode(), encode_control(beat), None)

    @property
    def _now_ms(self) -> int:
        return int((EPOCH + self._platform.seconds) * 1000)


def _key(table: str, row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in _KEYS[table])


def _images(change: Change) -> Iterator[tuple[Op, Row, Row | None, Row | None]]:
    """The events of one change: op, key, before, after. A row that moved is a delete and a create."""
    table, before, after = change
    names = _KEYS[table]
    old = None if before is None or table in _FULL else {name: before[name] for name in names}
    image = before if table in _FULL else old
    if after is None:
        assert before is not None
        yield Op.DELETE, {name: before[name] for name in names}, image, None
        return
    key = {name: after[name] for name in names}
    if before is None:
        yield Op.CREATE, key, None, after
    elif _key(table, before) != _key(table, after):
        yield Op.DELETE, {name: before[name] for name in names}, image, None
        yield Op.CREATE, key, None, after
    else:
        if table == "templates" and before["body"] == after["body"]:
            after = {**after, "body": UNAVAILABLE}
        yield Op.UPDATE, key, image if table in _FULL else None, after
