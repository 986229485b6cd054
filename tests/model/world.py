"""The world around a shard: a database whose commits are logged before they are seen, capture, and Kafka. Pure.

Transactions are numbered; number i has xid 16 * (i + 1). Which of them are logged first and which are seen first is
free, as PostgreSQL leaves it (DESIGN §2), except that two changes of one row wait for each other. Logging a change also
puts its record into Kafka: a record that comes later is a worker that comes later, and one that comes again
(`redeliver`) covers what cold starts jump over. A heartbeat begins (its snapshot is taken, then it gets its xid), is
logged and seen, and is published with its barriers; the next one begins only then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

import msgspec

from cdc.control import EpochStarted, Heartbeat, Raise
from cdc.events import Position
from consumers.stream import Partition, Record
from invalidator.views import Mode, Views, load_views

SOURCE = "s"
HISTORY = "1:1"
CONTROL: Partition = (f"{SOURCE}.staleproof.control", 0)
SETTLED_XID = 1
"""Everything up to here was over before the world began."""


class Write(NamedTuple):
    """A change of the row `k` in partition `part` (of `World.partitions`). `op`: c (sets it), d, or t (the table)."""

    part: int
    k: int
    op: str = "c"


class Budget(NamedTuple):
    """How often each thing may happen."""

    beats: int = 0
    redeliver: int = 0
    expire: int = 0  # Kafka's records of one partition are gone: a gap
    epoch: int = 0  # the slot is lost: what is logged then has no record, and a new epoch begins
    order: int = 0  # an operator fences a view or a key after a change that no record tells of
    late: int = 0  # capture is replaced, and the old one publishes its heartbeat late


class World(NamedTuple):
    """What exists and what may happen.

    `keys`: view and k of each cache key that readers ask for. `faults`: what may befall Redis and the workers, how
    often. `owned`: partitions of each worker. `states`: the world has at least so many.
    """

    name: str
    writes: tuple[tuple[Write, ...], ...]
    keys: tuple[tuple[str, int], ...]
    budget: Budget
    faults: tuple[tuple[str, int], ...] = ()
    partitions: tuple[Partition, ...] = ((f"{SOURCE}.public.a", 0), (f"{SOURCE}.public.b", 0))
    owned: tuple[tuple[int, ...], ...] = ((0,), (1,))
    readers: int = 2
    records_max: int = 1
    mass_keys: int = 100
    cold: bool = False
    beats_at_once: bool = False  # heartbeats are logged as soon as they begin: fewer states
    reads_from: str = "primary"
    unseen: tuple[int, ...] = ()  # transactions that no record tells of
    order: tuple[str | None, int | None] = (None, None)  # view and k that an operator fences
    states: int = 0
    deep: bool = False  # too large to be searched to its end: depth first, as far as the limit allows


VIEWS = {
    "v": '  v: {key: "v:{k}", mode: invalidate, tables: {public.a: {}, public.b: {}}}',
    "r": '  r: {key: "r:{k}", mode: refresh, tables: {public.a: {}}}',
}
"""View `v` shows rows of two tables and is invalidated; view `r` shows one row and is refreshed."""


@cache
def views_of(world: World) -> Views:
    """The views whose keys are asked for."""
    names = sorted({view for view, _ in world.keys})
    return load_views("\n".join(["version: 1", "views:", *(VIEWS[name] for name in names)]), place="the model")


class Beat(NamedTuple):
    """A heartbeat in the log."""

    xid: int
    snapshot: str


class Published(NamedTuple):
    """A heartbeat in the control topic: its place in the log, and the end offsets at that moment."""

    at: int
    beat: Beat
    barriers: tuple[int, ...]
    epoch: int
    capture: int = 0


class Order(NamedTuple):
    """An operator's order, and the transaction that was completed for it."""

    xid: int


class Env(NamedTuple):
    """Database, capture and Kafka. `log` holds numbers of transactions, and Beats."""

    log: tuple[int | Beat, ...]
    seen: frozenset[int]  # xids
    running: Beat | None
    outstanding: int  # index in the log of a heartbeat that is not published, or -1
    late: tuple[Published, ...]
    records: tuple[tuple[tuple[int, int, int, int], ...], ...]  # per partition: log index, transaction, write, epoch
    first: tuple[int, ...]
    control: tuple[Published | int | Order, ...]  # an int: an epoch begins
    epoch: int
    broken: bool
    budget: Budget
    capture: int = 0  # which instance of capture runs


def xid_of(transaction: int) -> int:
    """The xid of a transaction; heartbeats have those between."""
    return 16 * (transaction + 1)


def position_text(epoch: int, at: int, order: int = 0) -> str:
    """The position of what stands at index `at` of the log."""
    return Position(epoch, at + 1, order).text


def first_env(world: World) -> Env:
    """Three heartbeats have been logged and published under epoch 1, nothing else has happened."""
    beats = tuple(Beat(xid, _text(frozenset(range(1, xid)), ())) for xid in (2, 3, 4))
    none = (0,) * len(world.partitions)
    control = (1, *(Published(at, beat, none, 1) for at, beat in enumerate(beats)))
    seen = frozenset((SETTLED_XID, *(beat.xid for beat in beats)))
    return Env(beats, seen, None, -1, (), ((),) * len(none), none, control, 1, False, world.budget)


def _text(seen: frozenset[int], known: tuple[int, ...]) -> str:
    """`pg_current_snapshot()`: xmax is the last completed xid + 1; below it, all others were given out and run."""
    xmax = max(seen) + 1
    running = sorted(xid for xid in known if xid < xmax and xid not in seen)
    return f"{running[0] if running else xmax}:{xmax}:{','.join(map(str, running))}"


def snapshot_text(world: World, env: Env) -> str:
    """The primary's snapshot now."""
    known = [xid_of(i) for i in range(len(world.writes))]
    known += [item.xid for item in env.log if isinstance(item, Beat)]
    if env.running is not None:
        known.append(env.running.xid)
    return _text(env.seen, tuple(known))


def moves(world: World, env: Env) -> Iterator[tuple[str, Env]]:
    """Everything that database, capture and Kafka may do next."""
    yield from _transactions(world, env)
    yield from _heartbeats(world, env)
    budget = env.budget
    if budget.redeliver:
        for at in range(3, len(env.log)):
            if isinstance(env.log[at], int):
                spent = budget._replace(redeliver=budget.redeliver - 1)
                again = _with_records(world, env, range(at, len(env.log)), again=True)
                yield f"capture restarts and sends again from {at}", again._replace(budget=spent)
    if budget.expire:
        spent = budget._replace(expire=budget.expire - 1)
        for part, records in enumerate(env.records):
            if len(records) > env.first[part]:
                first = (*env.first[:part], len(records), *env.first[part + 1 :])
                yield f"records of partition {part} expire", env._replace(first=first, budget=spent)
    if budget.epoch and not env.broken:
        spent = budget._replace(epoch=budget.epoch - 1)
        lost = env._replace(broken=True, running=None, outstanding=-1, budget=spent)
        yield "the slot is lost", lost
    if env.broken:
        epoch = env.epoch + 1
        yield f"epoch {epoch} begins", env._replace(broken=False, epoch=epoch, control=(*env.control, epoch))
    if budget.order and all(xid_of(i) in env.seen for i in world.unseen):
        spent = env._replace(budget=budget._replace(order=budget.order - 1))
        for xid in _new_xids(world, env):
            done = Beat(xid, snapshot_text(world, env))  # a transaction like a heartbeat's, told by the order only
            told = spent._replace(log=(*env.log, done), seen=env.seen | {xid}, control=(*env.control, Order(xid)))
            yield f"an operator fences, after a transaction {xid} of the order's own", told


def _transactions(world: World, env: Env) -> Iterator[tuple[str, Env]]:
    for i, writes in enumerate(world.writes):
        xid = xid_of(i)
        if i not in env.log:
            invisible = [o for o in env.log if isinstance(o, int) and xid_of(o) not in env.seen]
            if not any(_wait_for_each_other(world, writes, world.writes[other]) for other in invisible):
                logged = env._replace(log=(*env.log, i))
                yield f"transaction {i} is logged", _with_records(world, logged, [len(env.log)], again=False)
        elif xid not in env.seen:
            yield f"transaction {i} becomes visible", env._replace(seen=env.seen | {xid})


def _wait_for_each_other(world: World, some: tuple[Write, ...], others: tuple[Write, ...]) -> bool:
    """Two changes of one row: the lock is free once the first is visible.

    Where no view shows one row, every change is of a row of its own.
    """
    if all(view != "r" for view, _ in world.keys):
        return False
    rows = {(table_of(world, write.part), write.k) for write in some}
    return any((table_of(world, write.part), write.k) in rows for write in others)


def _heartbeats(world: World, env: Env) -> Iterator[tuple[str, Env]]:
    if env.running is not None:
        yield "the heartbeat is logged", _logged(env)
    elif env.outstanding >= 0:
        at = env.outstanding
        beat = env.log[at]
        assert isinstance(beat, Beat)
        published = Published(at, beat, tuple(len(records) for records in env.records), env.epoch, env.capture)
        told = env._replace(outstanding=-1, control=(*env.control, published))
        yield f"the heartbeat at {at} is published", told
        if env.budget.late:
            spent = env.budget._replace(late=env.budget.late - 1)
            held = env._replace(
                outstanding=-1, late=(*env.late, published), budget=spent, capture=env.capture + 1
            )  # fmt: skip
            yield "capture is replaced while it publishes", held
    elif env.budget.beats and not env.broken:
        yield from _beginnings(world, env)
    for i, late in enumerate(env.late):
        told = env._replace(control=(*env.control, late), late=(*env.late[:i], *env.late[i + 1 :]))
        yield f"an old capture's heartbeat at {late.at} is published late", told


def _logged(env: Env) -> Env:
    beat = env.running
    assert beat is not None
    outstanding = -1 if env.broken else len(env.log)
    return env._replace(log=(*env.log, beat), seen=env.seen | {beat.xid}, running=None, outstanding=outstanding)


def _beginnings(world: World, env: Env) -> Iterator[tuple[str, Env]]:
    spent = env.budget._replace(beats=env.budget.beats - 1)
    snapshot = snapshot_text(world, env)
    for xid in _new_xids(world, env):
        running = Beat(xid, snapshot)
        begun = env._replace(running=running, budget=spent)
        yield f"heartbeat {xid} begins, sees {snapshot}", _logged(begun) if world.beats_at_once else begun


def _new_xids(world: World, env: Env) -> Iterator[int]:
    """An xid is above all that were given out: those that were logged, maybe others."""
    given = [item.xid if isinstance(item, Beat) else xid_of(item) for item in env.log]
    if env.running is not None:
        given.append(env.running.xid)
    number = sum(isinstance(item, Beat) for item in env.log) + (env.running is not None)
    for i in range(len(world.writes) + 1):
        xid = 16 * i + 5 + number
        if xid > max(given):
            yield xid


def _with_records(world: World, env: Env, places: Iterable[int], *, again: bool) -> Env:
    """With the records of what stands at `places`; `again`: only of what had some, in this epoch."""
    records = [list(of) for of in env.records]
    told = {(at, epoch) for of in env.records for at, _, _, epoch in of}
    for at in places:
        item = env.log[at]
        if not isinstance(item, int) or env.broken or item in world.unseen or (again and (at, env.epoch) not in told):
            continue
        for number, write in enumerate(world.writes[item]):
            records[write.part].append((at, item, number, env.epoch))
    return env._replace(records=tuple(map(tuple, records)))


# --- what a key shows -----------------------------------------------------------------------------------------------


def shown(world: World, env: Env, key: int, seen: frozenset[int]) -> bytes:
    """What the database shows for a key of `world.keys` to who sees the xids `seen`.

    An invalidated view shows every change, a refreshed one the newest row. `n` tells the tests where it stands.
    """
    view, k = world.keys[key]
    tables = {rule.table for rule in views_of(world).views[view].rules}
    changes = [
        (at, i, write)
        for at, i in enumerate(env.log)
        if isinstance(i, int) and xid_of(i) in seen
        for write in world.writes[i]
        if table_of(world, write.part) in tables and (write.op == "t" or write.k == k)
    ]
    if views_of(world).views[view].mode is Mode.INVALIDATE:
        return msgspec.json.encode(sorted({i for _, i, _ in changes}))
    if not changes:
        return row(k, -1, -1)
    at, i, _ = max(changes, key=lambda change: change[0])
    return row(k, i, at)


def row(k: int, transaction: int, at: int) -> bytes:
    """A row's image."""
    return msgspec.json.encode({"k": k, "x": transaction, "n": at})


def table_of(world: World, part: int) -> str:
    """The table of a partition."""
    return world.partitions[part][0].removeprefix(f"{SOURCE}.")


# --- what a worker fetches ------------------------------------------------------------------------------------------


@cache
def data_record(world: World, part: int, offset: int, told: tuple[int, int, int, int]) -> Record:
    """The Kafka record, as capture writes it."""
    at, transaction, number, epoch = told
    write = world.writes[transaction][number]
    schema, table = table_of(world, part).split(".")
    after = msgspec.Raw(row(write.k, transaction, at) if write.op == "c" else b"null")
    source = {"name": SOURCE, "schema": schema, "table": table, "ts_ms": 5}
    value = msgspec.json.encode({"before": None, "after": after, "op": write.op, "ts_ms": 5, "source": source})
    position = position_text(epoch, at, number)
    header = f"1{position}{xid_of(transaction):016x}{offset + 1:016x}{offset:016x}".encode()
    key = None if write.op == "t" else msgspec.json.encode({"k": write.k})
    topic, partition = world.partitions[part]
    return Record(topic, partition, offset, 0, key, value, header)


@cache
def control_record(world: World, item: Published | int | Order) -> Heartbeat | EpochStarted | Raise:
    """The control record, as capture or an operator writes it."""
    if isinstance(item, int):
        return EpochStarted(source=SOURCE, history=HISTORY, epoch=item, reason="model")
    if isinstance(item, Order):
        view, k = world.order
        key = None if k is None else f"{view}:{k}"
        return Raise(source=SOURCE, position="", region=None, view=view, key=key, reason="model", stamp=item.xid)
    barriers: dict[str, list[int]] = {}
    for (topic, _), end in zip(world.partitions, item.barriers, strict=True):
        barriers.setdefault(topic, []).append(end)
    return Heartbeat(
        source=SOURCE,
        history=HISTORY,
        instance=f"{item.epoch:08x}{item.capture:08x}",
        number=item.at,
        position=position_text(item.epoch, item.at),
        stamp=item.beat.xid,
        snapshot=item.beat.snapshot,
        time_ms=item.at,
        barriers=barriers,
    )


def proof(world: World, env: Env) -> list[tuple[str, frozenset[int]]]:
    """What reads could see now: their proof and the xids. Of a standby any part of the log may be replayed."""
    if world.reads_from == "primary":
        text = snapshot_text(world, env)
        xmin, xmax, running = text.split(":")
        stamps = [int(xmin), int(xmax), *(int(xid) for xid in running.split(",") if xid)]
        return [("p" + "".join(f"{stamp:016x}" for stamp in stamps), env.seen)]
    found = []
    for end in range(3, len(env.log) + 1):
        replayed = {SETTLED_XID, *(i.xid if isinstance(i, Beat) else xid_of(i) for i in env.log[:end])}
        known = [xid_of(i) for i in range(len(world.writes))] + [i.xid for i in env.log if isinstance(i, Beat)]
        xmin = min([xid for xid in known if xid not in replayed], default=max(replayed) + 1)
        xmin = min(xmin, max(replayed) + 1)
        found.append((f"s{xmin:016x}{end + 1:016x}", frozenset(replayed)))
    return found
