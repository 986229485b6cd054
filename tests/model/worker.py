"""The worker's decisions, one step at a time: what consumers/invalidate.py does between two calls of Redis. Pure.

Planning, coalescing and batching are the shipped ones (Intake, Slice), and so is the search for the rows (Checkpoints,
on a Redis and a Kafka that are not there). What is written anew is the order in which `Worker` calls them, loosened:
every step may wait, as a process that is stopped makes it wait.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from itertools import product
from types import ModuleType
from typing import Any, NamedTuple

import msgspec

from cdc.control import EpochStarted, Heartbeat, Raise
from cdc.events import stamp_text
from consumers.batching import Slice
from consumers.checkpoint import Checkpoints
from consumers.intake import STAMP_MARGIN, Bounds, Intake
from consumers.replay_planning import RangePlanner
from consumers.stream import Partition
from invalidator.guard import Batch, Beat, Closing, ControlStep, Outcome, Pass, RowStep
from invalidator.layout import REGION_SCOPE, Layout, Row, row_field, view_scope
from invalidator.plan import Planner
from tests.model import world as worlds
from tests.model.world import CONTROL, Env, Published, World

LAYOUT = Layout(stripes=1)
CONTROL_FIELD = row_field(*CONTROL)
TOPIC_IDS: dict[str, str] = {}


class Mind(NamedTuple):
    """What a worker believes. `next`: of each owned partition, then of the control topic.

    `beats` and `pending` are offsets of the control topic; `beats` in the order in which each was heard last, which is
    all that a search from the newest back can tell. A worker that is lost believes nothing but its beats.
    """

    owned: tuple[int, ...]
    lost: bool = True
    next: tuple[int, ...] = ()
    epoch: str = ""
    beats: tuple[int, ...] = ()
    pending: tuple[int, ...] = ()
    sequences: tuple[int, ...] = ()
    counts: tuple[tuple[tuple[str, str], int], ...] = ()

    def astray(self) -> Mind:
        """After a TransientError or a move: everything else is looked up again."""
        return Mind(self.owned, beats=self.beats)


class Step(NamedTuple):
    """One script: `call` names the guard's function; `mind` is what is believed once it says APPLIED."""

    label: str
    call: str
    request: Any
    mind: Mind


def steps(world: World, env: Env, mind: Mind) -> Iterator[Step]:
    """What a worker that has its rows may send next."""
    yield from _hearing(world, env, mind)
    yield from _passing(world, env, mind)
    yield from _applying(world, env, mind)


def is_gap(env: Env, mind: Mind) -> bool:
    """Whether Kafka has lost what would be fetched next: a GapError."""
    return not mind.lost and any(
        at < env.first[part] for part, at in zip(mind.owned, mind.next[:-1], strict=True)
    )  # fmt: skip


def find(guard: Any, world: World, env: Env, shard: Any, mind: Mind, gap: str) -> Mind:
    """Look for the rows, making and closing what must be; `shard` changes."""
    kafka = _Kafka(world, env)
    checkpoints = Checkpoints(
        region=_Region(guard, shard), views=worlds.views_of(world), tables=_tables(world), control_partition=CONTROL,
        data=kafka, control=kafka, metrics=_QUIET, alarms=_QUIET,
    )  # fmt: skip
    standing = checkpoints.find([world.partitions[part] for part in mind.owned], gap, believed={})
    fields = [_field(world, part) for part in mind.owned]
    places = [standing.places[world.partitions[part]].offset for part in mind.owned]
    assert places == [standing.next[0].get(name, 0) for name in fields]
    return Mind(
        owned=mind.owned,
        lost=False,
        next=(*places, standing.next[0][CONTROL_FIELD]),
        epoch=standing.epoch,
        beats=mind.beats,
        sequences=tuple(standing.sequences[name] for name in fields),
    )


def first_request(
    guard: ModuleType, world: World, env: Env, shard: Any, mind: Mind, gap: str
) -> tuple[str, Any] | None:
    """The first script that a search for the rows sends, if any: it may take long, and the worker give up."""
    try:
        find(_Recorder(guard), world, env, shard, mind, gap)
    except _Recorded as recorded:
        return recorded.request
    return None


class _Recorded(Exception):
    def __init__(self, call: str, request: Any) -> None:
        super().__init__(call)
        self.request = (call, request)


class _Recorder:
    """In place of the guard: what would be sent."""

    def __init__(self, guard: ModuleType) -> None:
        self._guard = guard

    def cold(self, shard: Any, offset: int, views: Any, rows: Any) -> None:
        raise _Recorded("cold", (offset, tuple(views), tuple(rows)))

    def close(self, shard: Any, request: Any) -> None:
        raise _Recorded("close", request)


def _hearing(world: World, env: Env, mind: Mind) -> Iterator[Step]:
    offset = mind.next[-1]
    if offset >= len(env.control):
        return
    control = worlds.control_record(world, env.control[offset])
    row = Row(next_offset=offset + 1, digest=worlds.views_of(world).digest, leader_epoch=0)
    owned = tuple((_field(world, part), at) for part, at in zip(mind.owned, mind.next[:-1], strict=True))
    step = ControlStep(step=RowStep(CONTROL_FIELD, offset, row), owned=owned)
    whole = (Closing(REGION_SCOPE, offset + 1),)
    change = msgspec.structs.replace
    after = mind._replace(next=(*mind.next[:-1], offset + 1))
    match control:
        case EpochStarted():
            step = change(step, epoch=f"{control.epoch:08x}", history=control.history)
            after = after._replace(epoch=max(mind.epoch, f"{control.epoch:08x}"))
        case Raise(key=str() as key):
            step = change(step, key=key, stripe=LAYOUT.place(key)[1], stamp=stamp_text(control.stamp))
        case Raise(view=None):
            step = change(step, closings=whole)
        case Raise(view=str() as view):
            step = change(step, closings=(Closing(view_scope(view), offset + 1),))
        case Heartbeat():
            step = change(
                step,
                position=control.position,
                stamp=stamp_text(control.stamp),
                limit=stamp_text(control.stamp + STAMP_MARGIN),
                history=control.history,
                instance=control.instance,
                epoch=control.position[:8],
            )
            beats = (*(beat for beat in mind.beats if beat != offset), offset)
            epoch = max(mind.epoch, control.position[:8])
            after = after._replace(beats=beats, pending=(*mind.pending, offset), epoch=epoch)
    yield Step(f"hears control record {offset}", "hear", step, after)


def _passing(world: World, env: Env, mind: Mind) -> Iterator[Step]:
    """The newest heartbeat whose barriers all our rows have reached; older ones are not needed then."""
    newest = next((at for at in reversed(mind.pending) if _reached(_published(env, at), mind)), None)
    if newest is None:
        return
    reached = _published(env, newest)
    pending = mind.pending[mind.pending.index(newest) + 1 :]
    barriers = tuple((_field(world, part), end) for part, end in enumerate(reached.barriers))
    told = worlds.control_record(world, reached)
    assert isinstance(told, Heartbeat)
    request = Pass(
        position=told.position, stamp=stamp_text(told.stamp), time_ms=told.time_ms, proof=told.seen.text, barriers=barriers
    )  # fmt: skip
    yield Step(f"tells that the heartbeat at {reached.at} passed", "pass", request, mind._replace(pending=pending))


def _reached(beat: Published, mind: Mind) -> bool:
    return all(at >= beat.barriers[part] for part, at in zip(mind.owned, mind.next[:-1], strict=True))


def _published(env: Env, offset: int) -> Published:
    item = env.control[offset]
    assert isinstance(item, Published)
    return item


def _applying(world: World, env: Env, mind: Mind) -> Iterator[Step]:
    """Any number of records, up to `records_max` of each partition of ours, in one script."""
    ready = [
        range(min(world.records_max, len(env.records[part]) - at) + 1)
        for part, at in zip(mind.owned, mind.next[:-1], strict=True)
    ]
    for counts in product(*ready):
        if any(counts):
            step = _batch(world, env, mind, counts)
            if step is not None:
                yield step


def _batch(world: World, env: Env, mind: Mind, counts: tuple[int, ...]) -> Step | None:
    """The script for the next `counts` records; None while the control topic must be heard first."""
    views = worlds.views_of(world)
    intake = Intake(_planner(world), _tables(world), mass_keys=world.mass_keys)
    fields = [_field(world, part) for part in mind.owned]
    intake.sequences = dict(zip(fields, mind.sequences, strict=True))
    intake.bounds = Bounds.of_epoch(mind.epoch)
    intake._counts = dict(mind.counts)
    part = Slice(LAYOUT, views, TOPIC_IDS)
    for owned, first, count in zip(mind.owned, mind.next[:-1], counts, strict=True):
        for offset in range(first, first + count):
            record = worlds.data_record(world, owned, offset, env.records[owned][offset])
            planned = intake.plan(record)
            if planned is None:
                if mind.next[-1] < len(env.control):
                    return None
                planned = intake.plan(record, told_all=True)
            assert planned is not None
            part.add(planned)
    known = {CONTROL_FIELD: mind.next[-1], **dict(zip(fields, mind.next[:-1], strict=True))}
    batch = part.batch(0, known, beat_before(env, mind, part.oldest), len(env.control) if part.closings else 0)
    assert batch is not None
    after = mind._replace(
        next=(*(part.reached.get(name, known[name]) for name in fields), mind.next[-1]),
        sequences=tuple(intake.sequences[name] for name in fields),
        counts=tuple(intake._counts.items()) if world.mass_keys < 100 else (),
    )
    return Step(f"applies {counts} records from {mind.next[:-1]}", "apply", batch, after)


def beat_before(env: Env, mind: Mind, position: str) -> Beat | None:
    """The newest heartbeat that every record of a batch was logged after."""
    for offset in reversed(mind.beats):
        beat = _published(env, offset)
        at = worlds.position_text(beat.epoch, beat.at)
        if at < position:
            xmin, xmax, running = beat.beat.snapshot.split(":")
            stamps = [xmin, xmax, *(xid for xid in running.split(",") if xid)]
            return Beat(at, "p" + "".join(stamp_text(int(stamp)) for stamp in stamps))
    return None


def replays(world: World, env: Env) -> Iterator[tuple[str, Batch]]:
    """What `staleproof replay kafka` may send: any record that ever was, alone; and all of them together."""
    told = [
        worlds.data_record(world, part, offset, record)
        for part, records in enumerate(env.records)
        for offset, record in enumerate(records)
    ]
    groups = [[record] for record in told] + ([told] if len(told) > 1 else [])
    for records in groups:
        planner = RangePlanner(worlds.views_of(world), _tables(world), wave_keys=100)
        (wave,) = planner.waves(records)
        batch = wave.batch(0, LAYOUT, worlds.views_of(world))
        if batch is not None:
            places = ", ".join(f"{record.topic}/{record.partition} at {record.offset}" for record in records)
            yield f"a replay of {places}", batch


def newest_passed(world: World, env: Env, shard: Any, k: int) -> int:
    """Where in the log the newest change of row `k` stands that a row of the shard has passed; -1: none."""
    return max(
        (
            at
            for part, records in enumerate(env.records)
            for at, transaction, number, _ in records[: shard.next_offset(_field(world, part))]
            if world.writes[transaction][number].k in (0, k)
        ),
        default=-1,
    )


def _field(world: World, part: int) -> str:
    return row_field(*world.partitions[part])


@cache
def _planner(world: World) -> Planner:
    return Planner(worlds.views_of(world))


@cache
def _tables(world: World) -> dict[str, str]:
    return {topic: worlds.table_of(world, part) for part, (topic, _) in enumerate(world.partitions)}


class _Region:
    """The part of `Region` that Checkpoints calls, on a shard in memory."""

    name = "model"
    layout = LAYOUT

    def __init__(self, guard: Any, shard: Any) -> None:
        self._guard = guard
        self._shard = shard

    def prepare(self) -> None:
        pass

    def header(self, shard: int) -> dict[str, str]:
        return copy.copy(self._shard.header)

    def cold(self, shard: int, *request: Any) -> Outcome:
        return Outcome(self._guard.cold(self._shard, *request))

    def close(self, shard: int, request: Any) -> Outcome:
        return Outcome(self._guard.close(self._shard, request))


class _Kafka:
    """The part of `Stream` that Checkpoints calls."""

    def __init__(self, world: World, env: Env) -> None:
        self._world = world
        self._env = env

    def bounds(self, partition: Partition) -> tuple[int, int]:
        if partition == CONTROL:
            return 0, len(self._env.control)
        part = self._world.partitions.index(partition)
        return self._env.first[part], len(self._env.records[part])

    def cut(self, places: Any) -> frozenset[Partition]:
        return frozenset()

    def partitions(self, topics: Any) -> list[Partition]:
        return [partition for partition in self._world.partitions if partition[0] in set(topics)]

    def topic_ids(self, topics: Any) -> dict[str, str]:
        return TOPIC_IDS


class _Quiet:
    """Metrics and alarms that nobody hears."""

    def __getattr__(self, name: str) -> _Quiet:
        return self

    def __call__(self, *words: Any, **more: Any) -> _Quiet:
        return self


_QUIET: Any = _Quiet()
