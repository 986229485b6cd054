"""A source, its topics and one region: the stream is in memory, so that every interleaving can be written down.

The region is real: Redis and Valkey. Fixtures: `world`, and `sharded_world` with eight shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from cdc.control import Heartbeat, encode_control
from cdc.events import Position
from consumers.invalidate import Limits, Worker
from consumers.stream import Partition, Place, Record
from consumers.telemetry import WorkerMetrics
from invalidator.entry import Content, Kind, decode, encode_tail, lead
from invalidator.guard import Fill
from invalidator.layout import Layout
from invalidator.reader_commands import Filled
from invalidator.region import Region
from invalidator.views import Views, load_views

HISTORY = "77:1"
TOPIC = "shop.public.contacts"
TEMPLATES = "shop.public.templates"
CONTROL = "shop.staleproof.control"
VIEWS = load_views(
    """
version: 1
views:
  contact: {key: "contact:{id}", mode: invalidate, tables: {public.contacts: {}}}
  template: {key: "template:{id}", mode: refresh, tables: {public.templates: {}}}
""",
    place="views.yaml",
)


class MemoryStream:
    """A Stream over lists. `mine`: the partitions that are this worker's; None: all."""

    def __init__(self, log: dict[Partition, list[Record]], mine: frozenset[Partition] | None = None) -> None:
        self.log = log
        self.at: dict[Partition, int] = {}
        self.first: dict[Partition, int] = {}
        self.ids: dict[str, str] = {}
        self.fault: Exception | None = None
        self.mine = mine

    def owned(self) -> frozenset[Partition]:
        return frozenset(self.log) if self.mine is None else self.mine

    def assign(self, places: dict[Partition, Place]) -> None:
        self.at = {partition: place.offset for partition, place in places.items()}

    def moves(self) -> int:
        return hash(self.owned())

    def before_loss(self, settle: object) -> None:
        pass

    def fetch(self, records_max: int, timeout_seconds: float) -> Sequence[Record]:
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        for partition, offset in self.at.items():
            records = self.log[partition][offset : offset + records_max]
            if records:
                self.at[partition] = offset + len(records)
                return records
        return []

    def bounds(self, partition: Partition) -> tuple[int, int]:
        return self.first.get(partition, 0), len(self.log[partition])

    def cut(self, places: dict[Partition, Place]) -> frozenset[Partition]:
        return frozenset()

    def partitions(self, topics: Iterable[str]) -> list[Partition]:
        return [p for p in self.log if p[0] in set(topics)]

    def topic_ids(self, topics: Iterable[str]) -> dict[str, str]:
        return {topic: identity for topic, identity in self.ids.items() if topic in set(topics)}

    def commit(self, offsets: dict[Partition, int]) -> None:
        pass


class World:
    """A source, its topics and one region."""

    def __init__(self, region: Region) -> None:
        self.region = region
        data = [(TOPIC, 0), (TOPIC, 1), (TEMPLATES, 0)]
        self.data = MemoryStream({partition: [] for partition in data})
        self.control = MemoryStream({(CONTROL, 0): []})
        self.lsn, self.stamp, self.beats, self.epoch = 100, 1_000, 0, 1
        self.sequence = dict.fromkeys(data, 0)
        self.registry = CollectorRegistry()
        self.metrics = WorkerMetrics(self.registry)
        self.worker = self.new_worker()

    def new_worker(self, *mine: Partition, views: Views = VIEWS, **limits: int) -> Worker:
        """A worker of all partitions, or of `mine` only."""
        data, control = self.data, self.control
        if mine:
            data = MemoryStream(self.data.log, frozenset(mine))
            control = MemoryStream(self.control.log)
        return Worker(
            source="shop", region=self.region, views=views, data=data, control=control,
            metrics=self.metrics, limits=Limits(topic_check_seconds=0.0, **limits),
        )  # fmt: skip

    def alarms(self, kind: str) -> float:
        return self.registry.get_sample_value("staleproof_worker_alarms_total", {"kind": kind}) or 0.0

    def alarm_count(self) -> float:
        samples = [s for metric in self.registry.collect() for s in metric.samples if s.name.endswith("_alarms_total")]
        return sum(sample.value for sample in samples)

    def change(
        self, row: dict | None, before: dict | None = None, *, op: str = "u", partition: Partition = (TOPIC, 0),
        stamp: int | None = None, lost: int = 0, body: bytes | None = None,
    ) -> int:  # fmt: skip
        """Log one change; its stamp."""
        self.lsn += 10
        if stamp is None:
            self.stamp += 1
            stamp = self.stamp
        schema, table = partition[0].split(".")[1:]
        source = {"name": "shop", "schema": schema, "table": table, "ts_ms": self.lsn}
        value = msgspec.json.encode({"op": op, "before": before, "after": row, "source": source, "ts_ms": 1})
        self.sequence[partition] += 1 + lost
        position = Position(self.epoch, self.lsn, 0).text
        header = f"1{position}{stamp:016x}{self.sequence[partition]:016x}{self.sequence[partition] - 1:016x}"
        key = msgspec.json.encode({"id": (row or before or {"id": 0})["id"]})
        log = self.data.log[partition]
        log.append(Record(*partition, len(log), 0, key, body or value, header.encode()))
        return stamp

    def heartbeat(self, snapshot: str | None = None, topics: tuple[str, ...] = (TOPIC, TEMPLATES)) -> None:
        """Publish one; by default it saw everything."""
        self.publish(self.commit_heartbeat(snapshot, topics))

    def commit_heartbeat(
        self, snapshot: str | None = None, topics: tuple[str, ...] = (TOPIC, TEMPLATES), instance: str = "c" * 16
    ) -> bytes:
        """One that is in the log and not published yet."""
        self.lsn += 10
        self.stamp += 1
        self.beats += 1
        barriers = {
            topic: [len(log) for (name, _), log in sorted(self.data.log.items()) if name == topic] for topic in topics
        }
        beat = Heartbeat(
            source="shop", history=HISTORY, instance=instance, number=self.beats, position=Position(self.epoch, self.lsn, 0).text,
            stamp=self.stamp, snapshot=snapshot or f"{self.stamp}:{self.stamp}:", time_ms=self.lsn, barriers=barriers,
        )  # fmt: skip
        return encode_control(beat)

    def publish(self, value: bytes) -> None:
        log = self.control.log[CONTROL, 0]
        log.append(Record(CONTROL, 0, len(log), 0, b"shop", value, None))

    def drain(self, worker: Worker | None = None) -> None:
        """Turn until two turns in a row find nothing."""
        worker = worker or self.worker
        idle = 0
        for _ in range(200):
            idle = idle + 1 if worker.turn() == 0 else 0
            if idle > 3:
                return
        raise AssertionError("the worker never comes to rest")

    def open(self) -> None:
        """The way a cold region opens: one heartbeat tells the epoch, three after it open."""
        self.drain()
        for _ in range(4):
            self.heartbeat()
            self.drain()

    def fill(self, key: str = "contact:1", seen: str | None = None, payload: bytes = b"1") -> Filled:
        """Offer a value; by default its read saw everything so far."""
        view = VIEWS.views[key.split(":", maxsplit=1)[0]]
        seen = seen or f"p{self.stamp + 1:016x}{self.stamp + 1:016x}"
        shard, stripe = self.region.layout.place(key)
        tail = encode_tail(view=view.name, key=key, seen=seen, payload=payload, as_of_ms=1)
        return self.region.fill(
            shard,
            Fill(
                key=key, stripe=stripe, view=view.name, digest=view.digest, history=HISTORY,
                lead=lead(Kind.FILL, Content.VALUE), tail=tail, ttl_ms=0,
            ),
        )  # fmt: skip

    def read(self, key: str = "contact:1") -> bytes | None:
        view = VIEWS.views[key.split(":", maxsplit=1)[0]]
        found = self.region.read(self.region.layout.place(key)[0], key, view.name, view.digest)
        return None if found.entry is None else decode(found.entry).payload


@pytest.fixture
def world(region: Region) -> World:
    return World(region)


@pytest.fixture
def sharded_world(region: Region) -> World:
    layout = Layout(prefix=region.layout.prefix, shards=8, stripes=256)
    return World(Region("test", region._nodes, layout))
