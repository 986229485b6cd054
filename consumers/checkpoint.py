"""Where a region stands: its rows, compared with Kafka and with our views before anything is applied.

In flow the headers of the region's shards; out flow the places to read on from. What Kafka cannot continue, or was
planned by other views, is closed first. The rows in Redis decide: Kafka's own offsets of the group are never asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import structlog

from cdc.errors import TransientError
from consumers.alarms import Alarm, Alarms
from consumers.stream import Partition, Place, Stream
from consumers.telemetry import WorkerMetrics
from invalidator.guard import Close, Closing, Outcome
from invalidator.layout import (
    NO_DIGEST,
    REGION_SCOPE,
    UNKNOWN_TOPIC,
    ZERO_POSITION,
    ZERO_STAMP,
    Row,
    Scope,
    row_field,
    view_scope,
)
from invalidator.region import Region
from invalidator.views import Views

log = structlog.get_logger()

CONTROL_REVIEW_RECORDS = 100
"""A shard that jumps hears so many control records again: one tells the epoch. Hearing twice changes nothing."""


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Where the region stands. `next` per shard: next offset of each row; the rest concerns the partitions we own.

    `epoch` is the smallest of the shards', `position` and `stamp` the highest that are known of that epoch.
    """

    next: dict[int, dict[str, int]]
    places: dict[Partition, Place]
    control: Place
    sequences: dict[str, int]
    closed: dict[int, int]
    epoch: str
    position: str
    stamp: str
    reviewed: int
    """Control records before this offset are heard once more: a shard has jumped."""


class Checkpoints:
    """Finds where a region stands. `tables`: topic to table."""

    def __init__(
        self, *, region: Region, views: Views, tables: Mapping[str, str], control_partition: Partition, data: Stream,
        control: Stream, metrics: WorkerMetrics, alarms: Alarms,
    ) -> None:  # fmt: skip
        self._region = region
        self._views = views
        self._tables = tables
        self._control_partition = control_partition
        self._control_field = row_field(*control_partition)
        self._data = data
        self._control = control
        self._metrics = metrics
        self._alarms = alarms
        self._reviewed = 0
        self.topic_ids: dict[str, str] = {}
        """As of the last `find`."""

    def find(self, owned: Iterable[Partition], gap: str, *, believed: Mapping[int, Mapping[str, int]]) -> Standing:
        """Read every shard's header, make shards that are not there, close what cannot be continued.

        `gap` says what Kafka reported missing, if it did; `believed`: next offsets that each shard has acknowledged to
        this process.
        """
        self._region.prepare()
        self._reviewed = 0
        ids_before, self.topic_ids = self.topic_ids, self.read_topic_ids()
        headers = {}
        for shard in range(self._region.layout.shards):
            header = self._region.header(shard)
            if header:
                self._compare(shard, header, believed.get(shard, {}), ids_before)
            else:
                header = self._start_cold(shard, alarm=bool(believed))
            closed = self._close_for_kafka(shard, header, owned, gap) | self._close_for_views(shard, header)
            headers[shard] = self._region.header(shard) if closed else header
            if not headers[shard]:
                raise TransientError(f"region {self._region.name}: shard {shard} is gone again")
        rows = {
            shard: {name: Row.parse(text) for name, text in header.items() if name.startswith("t:")}
            for shard, header in headers.items()
        }
        epoch = min(header["e"][:8] for header in headers.values())  # a shard that started cold knows none
        return Standing(
            next={shard: {name: row.next_offset for name, row in of.items()} for shard, of in rows.items()},
            places={p: _hindmost(rows, row_field(*p))[0] for p in owned},
            control=Place(_hindmost(rows, self._control_field)[0].offset),
            sequences={row_field(*p): _hindmost(rows, row_field(*p))[1] for p in owned},
            closed={shard: closed_scopes(header) for shard, header in headers.items()},
            epoch=epoch,
            reviewed=self._reviewed,
            **_newest(epoch, headers, rows),
        )

    def read_topic_ids(self) -> dict[str, str]:
        """The identities of our topics now."""
        return self._data.topic_ids([*self._tables, self._control_partition[0]])

    def row(self, topic: str, offset: int) -> Row:
        """A row of ours that knows nothing of what was applied."""
        return Row(next_offset=offset, topic_id=self.topic_ids.get(topic, UNKNOWN_TOPIC), digest=self._views.digest)

    def control_end(self) -> int:
        """The point from which heartbeats count for what closes now."""
        return self._control.bounds(self._control_partition)[1]

    def _compare(
        self, shard: int, header: Mapping[str, str], believed: Mapping[str, int], topic_ids: Mapping[str, str]
    ) -> None:
        """What was acknowledged and is not there any more, Redis has lost.

        A broken connection is all that a worker sees of most roll-backs and fail-overs: only the rows tell.
        """
        for name, offset in believed.items():
            row = Row.parse(header[name]) if name in header else Row(next_offset=0)
            made_again = row.topic_id not in (UNKNOWN_TOPIC, topic_ids.get(_topic(name)))  # other offsets altogether
            if row.next_offset < offset and not made_again:
                stands = f"shard {shard} stands at {row.next_offset} of {name.removeprefix('t:')}"
                lost = f"{stands} after it had acknowledged {offset}"
                self._alarms.up(Alarm.REWOUND, f"{lost}: redis lost data and is brought forward")
                return

    def _start_cold(self, shard: int, *, alarm: bool) -> dict[str, str]:
        """Begin at the end of everything: closed, until heartbeats prove what was jumped over."""
        rows = self._end_rows(self._data.partitions(self._tables))  # before the control topic's end: later is safer
        offset = self.control_end()
        rows.append(self._control_row())
        views = [(view.name, view.digest) for view in self._views.views.values()]
        outcome = self._region.cold(shard, offset, views, rows)
        self._metrics.cold_starts.inc()
        log.warning("shard_cold", region=self._region.name, shard=shard, outcome=outcome)
        if alarm and outcome is Outcome.APPLIED:
            self._alarms.up(Alarm.LOST, f"shard {shard} is gone; it starts cold, closed until heartbeats prove it")
        return self._region.header(shard)

    def _end_rows(self, partitions: Iterable[Partition]) -> list[tuple[str, Row]]:
        return [(row_field(*p), self.row(p[0], self._data.bounds(p)[1])) for p in partitions]

    def _control_row(self) -> tuple[str, Row]:
        first, end = self._control.bounds(self._control_partition)
        self._reviewed = max(self._reviewed, end)
        return self._control_field, self.row(self._control_partition[0], max(first, end - CONTROL_REVIEW_RECORDS))

    def _close_for_kafka(self, shard: int, header: dict[str, str], owned: Iterable[Partition], gap: str) -> bool:
        """A row that Kafka's partition does not continue is a gap: close, go on from the end.

        Where Kafka reported a gap itself (`gap`) and no row shows it, everything that we own goes on from its end.
        """
        unknown = [p for p in owned if row_field(*p) not in header and self._data.bounds(p)[0] > 0]
        cut = self._cut(header, owned)
        broken = [p for p in owned if p not in unknown and self._is_broken(self._data, p, header, cut)]
        lost_control = self._is_broken(self._control, self._control_partition, header, cut)
        if gap and not broken and not lost_control:
            broken = list(owned)
        if not broken and not lost_control and not gap and not unknown:
            return False
        rows = self._end_rows({*broken, *unknown})
        offset = self.control_end()
        if lost_control:
            rows.append(self._control_row())
        whole = bool(broken or lost_control or gap)
        closings = (Closing(REGION_SCOPE, offset),) if whole else self._closings_of(unknown, offset)
        request = Close(closings=closings, control_restart=offset if lost_control else None, rows=tuple(rows))
        self._region.close(shard, request)
        return True

    def _closings_of(self, partitions: Iterable[Partition], offset: int) -> tuple[Closing, ...]:
        """The views of tables whose first records expired before this region read any: nothing else was lost."""
        tables = {self._tables[topic] for topic, _ in partitions}
        views = sorted({view.name for table in tables for view, _ in self._views.by_table[table]})
        self._alarms.up(Alarm.CLOSED, f"views {', '.join(views)}: the first records of their tables have expired")
        return tuple(Closing(view_scope(view), offset) for view in views)

    def _cut(self, header: dict[str, str], owned: Iterable[Partition]) -> frozenset[Partition]:
        """Partitions that were given to a broker without the records that the shard has applied."""
        places = {}
        for partition in (*owned, self._control_partition):
            text = header.get(row_field(*partition))
            exists = self.topic_ids.get(partition[0]) == (text or "")[16:48]
            if text is not None and exists:
                row = Row.parse(text)
                places[partition] = Place(row.next_offset, row.leader_epoch)
        return self._data.cut(places)

    def _is_broken(
        self, stream: Stream, partition: Partition, header: Mapping[str, str], cut: frozenset[Partition]
    ) -> bool:
        text = header.get(row_field(*partition))
        row = self.row(partition[0], 0) if text is None else Row.parse(text)
        first, end = stream.bounds(partition)
        now = self.topic_ids.get(partition[0], UNKNOWN_TOPIC)
        if UNKNOWN_TOPIC not in (row.topic_id, now) and row.topic_id != now:
            self._alarms.up(Alarm.GAP, f"topic {partition[0]} was deleted and made again")
            return True
        place = f"{partition[0]}/{partition[1]}"
        if partition in cut:
            self._alarms.up(Alarm.GAP, f"{place}: truncation, kafka has lost records before {row.next_offset}")
            return True
        if not first <= row.next_offset <= end:
            self._alarms.up(Alarm.GAP, f"{place}: row at {row.next_offset}, kafka has {first} to {end}")
            return True
        return False

    def _close_for_views(self, shard: int, header: dict[str, str]) -> bool:
        """A view that is new here, or means something else than before, begins closed.

        One that this worker does not plan is closed as well: should it come back, its entries have missed changes. The
        rows take our digest in the same step, so that a worker that dies in between is followed by one that sees.
        """
        ours = {view_scope(view.name): view.digest for view in self._views.views.values()}
        theirs = {name: Scope.parse(text).digest for name, text in header.items() if name.startswith("s:")}
        changed = {name: digest for name, digest in ours.items() if theirs.get(name) != digest}
        gone = [name for name in theirs if name not in ours and name != REGION_SCOPE and theirs[name] != NO_DIGEST]
        changed |= dict.fromkeys(gone, NO_DIGEST)
        planned_otherwise = any(
            Row.parse(text).digest not in (NO_DIGEST, self._views.digest)
            for name, text in header.items()
            if name.startswith("t:")
        )
        if planned_otherwise and not changed:  # by which views is not known: records of any may have been ignored
            changed = ours
        if not changed:
            return False
        offset = self.control_end()
        closings = tuple(Closing(name, offset, digest) for name, digest in changed.items())
        self._region.close(shard, Close(closings=closings, rows_digest=self._views.digest))
        views = ", ".join(sorted(name.removeprefix("s:") for name in changed))
        self._alarms.up(Alarm.CLOSED, f"views {views}: new, changed or gone since the region was planned last")
        return True


def _topic(field: str) -> str:
    """The topic of a row."""
    return field.removeprefix("t:").rpartition("/")[0]


def closed_scopes(header: dict[str, str]) -> int:
    """How many scopes of a shard are closed."""
    return sum(text.startswith("c") for name, text in header.items() if name.startswith("s:"))


def _hindmost(rows: dict[int, dict[str, Row]], name: str) -> tuple[Place, int]:
    """Where reading goes on where shards differ, and the sequence there. A missing row begins at 0."""
    known = [of.get(name) or Row(next_offset=0) for of in rows.values()]
    # Of those at one place, the one that knows its sequence: another may have jumped there.
    row = min(known, key=lambda row: (row.next_offset, -row.sequence))
    return Place(row.next_offset, row.leader_epoch if row.next_offset else -1), row.sequence


def _newest(epoch: str, headers: dict[int, dict[str, str]], rows: dict[int, dict[str, Row]]) -> dict[str, str]:
    """The highest position and stamp that rows and heartbeats of this epoch know."""
    known = [(row.position, row.stamp) for of in rows.values() for row in of.values()]
    known += [(beat[:32], beat[32:48]) for header in headers.values() if (beat := header.get("b"))]
    ours = [pair for pair in known if pair[0][:8] == epoch]
    return {
        "position": max((position for position, _ in ours), default=ZERO_POSITION),
        "stamp": max((stamp for _, stamp in ours), default=ZERO_STAMP),
    }
