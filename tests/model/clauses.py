"""Model mutants: one clause of the protocol broken at a time, and the world in which the model must then find a fault.

`old` stands exactly once in invalidator/guard.py; a clause that two places keep up (`also`) is broken in both.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import NamedTuple

from invalidator import guard
from tests.model.world import Budget, World, Write

V, V2, R = ("v", 1), ("v", 2), ("r", 1)
TABLE_A = (("s.public.a", 0),)
PARTITIONS_A = (*TABLE_A, ("s.public.a", 1))
A, B = (Write(0, 1),), (Write(1, 1),)
TRUNCATE_A, TRUNCATE_B = (Write(0, 0, "t"),), (Write(1, 0, "t"),)
ALL = ((0, 1),)
"""One worker that owns both partitions."""


class Clause(NamedTuple):
    """Replace `old` by `new` in the guard; `fault`: how the violation begins. `also`: broken as well, by name."""

    name: str
    old: str
    new: str
    world: World
    fault: str = "STALE"
    also: str = ""
    slow: bool = False


def broken(old: str, new: str) -> ModuleType:
    """The guard with one clause replaced."""
    source = inspect.getsource(guard)
    assert source.count(old) == 1, "the clause does not fit the guard any more"
    module = ModuleType(guard.__name__)
    exec(compile(source.replace(old, new), "broken guard", "exec"), module.__dict__)
    return module


ONE = {"readers": 1, "owned": ((0,),), "partitions": TABLE_A}
WARM = World("warm", (A, B), (V,), Budget(beats=1), readers=1)
COLD = World("cold", (A,), (V,), Budget(beats=3), cold=True, **ONE)
LOST = World("lost fences", (A, B), (V,), Budget(beats=1), (("fences", 1),), readers=1)
EMPTY = World("restarted empty", (A,), (V,), Budget(beats=3), (("everything", 1),), **ONE)
EVICTED = World("header evicted", (A,), (V,), Budget(beats=3), (("guard", 1),), **ONE)
ROLLED = World("rolled back", (A, A), (V,), Budget(), (("roll", 1),), **ONE)
TRUNCATES = World("truncates", (TRUNCATE_A, TRUNCATE_B), (V,), Budget(), readers=1, owned=ALL)
TOGETHER = World("batches", (A, A), (V,), Budget(), readers=1, owned=ALL, records_max=2)
AGAIN = World("sent again", (A, A), (V,), Budget(beats=1, redeliver=1), readers=1, owned=ALL)
ROW = World("one row", (A, A), (R,), Budget(), readers=2, owned=((0,),), partitions=TABLE_A)
MOVED = World("a row changes its partition", (A, B), (R,), Budget(), partitions=PARTITIONS_A, owned=ALL, readers=1)
GONE = World("records expire", (A,), (V,), Budget(beats=3, expire=1), **ONE)
EPOCH = World("epoch", (A,), (V,), Budget(epoch=1), **ONE)

CLAUSES = [
    Clause("a fill is not checked against the stripe", ', ("stripe", stripe)):', "):", WARM),
    Clause("a fill is not checked against the region", '(("region", region.fence), ', "(", GONE),
    Clause("a fill is not checked against the view", '("view", view.fence), ', "", TRUNCATES),
    Clause(
        "a fence shrinks by a heartbeat that the change was logged before",
        "if beat and position[:8] == beat.position[:8] and position > beat.position:",
        "if beat:",
        AGAIN,
        also="the worker sends its newest heartbeat",
    ),
    Clause(
        "a fence drops what the heartbeat did not see",
        "kept = tuple(stamp for stamp in kept if not covers(beat.seen, stamp, fence.position))",
        "kept = ()",
        WARM,
    ),
    Clause(
        "coalescing keeps the newest stamp alone",
        "union = tuple(sorted({*kept, *stamps}))",
        "union = tuple(sorted({*kept, *stamps}))",
        TOGETHER,
        also="coalescing keeps the stamps of the newest",
    ),
    Clause(
        "a lost fence comes back empty",
        'fence = Fence(False, newest, (ZERO_STAMP, stamp))\n        self.fences["*"]',
        'fence = EMPTY_FENCE\n        self.fences["*"]',
        LOST,
    ),
    Clause(
        "a lost fence comes back with one row's stamp",
        "return newest, max((row.stamp for row in rows if row.position[:8] == self.epoch), default=ZERO_STAMP)",
        "return newest, min((row.stamp for row in rows if row.position[:8] == self.epoch), default=ZERO_STAMP)",
        LOST,
    ),
    Clause('a lost fence refuses nothing', 'return Outcome.REFUSED, "lost"', 'shard.fences["*"] = EMPTY_FENCE.text', LOST),
    Clause(
        "a scope opens at the second heartbeat",
        "scope.heartbeats == 3 and scope.third <= request.position",
        "scope.heartbeats >= 2",
        COLD._replace(budget=Budget(beats=2, late=1)),
    ),
    Clause(
        "a scope opens before every row has passed the third heartbeat",
        "scope.heartbeats == 3 and scope.third <= request.position",
        "scope.heartbeats == 3",
        COLD._replace(owned=((0,), ()), beats_at_once=True),
    ),
    Clause("rows behind a barrier do not matter", "if behind or shard.epoch", "if shard.epoch", COLD),
    Clause(
        "a scope opens with the heartbeat's stamp alone",
        "(ZERO_STAMP, max(stamp, request.stamp)))\n    for",
        "(ZERO_STAMP, request.stamp))\n    for",
        COLD._replace(writes=(TRUNCATE_A,)),
    ),
    Clause(
        "heartbeats before the closing count",
        "not scope.open and scope.closed_at <= heard and scope.heartbeats < 3",
        "not scope.open and scope.heartbeats < 3",
        EMPTY,
    ),
    Clause(
        "a late heartbeat counts",
        'if shard.header.get("b", "")[:POSITION_WIDTH] < request.position:\n            shard.header["b"]',
        'if True:\n            shard.header["b"]',
        EMPTY._replace(budget=Budget(beats=3, late=1)),
    ),
    Clause(
        "a generation is the maximum of the positions",
        'return max(position, generation[:24] + f"{int(generation[24:], 16) + 1:08x}")',
        "return max(position, generation)",
        TRUNCATES,
    ),
    Clause(
        "what opens keeps its generation",
        "generation = _raised(scope.generation, request.position)\n            shard.header[name]",
        "generation = scope.generation\n            shard.header[name]",
        EVICTED,
    ),
    Clause("rows that went back are not told", "elif stored == step.expected:", "elif stored <= step.expected:", ROLLED),
    Clause(
        "a refresh is not judged against the fence",
        "allowed and all(change.position >= known.position for known in (*fences, fence))",
        "allowed",
        MOVED._replace(writes=(A, (Write(1, 1, "d"),))),
    ),
    Clause(
        "a refresh is judged against the stripe alone",
        "for known in (*fences, fence))",
        "for known in (fence,))",
        MOVED._replace(writes=(B, TRUNCATE_A)),
    ),
    Clause(
        "a refresh writes over an event entry of a later position",
        "if shown and shown[:POSITION_WIDTH] >= change.position:\n            return",
        "if False:\n            return",
        MOVED,
        fault="BACK IN TIME",
    ),
    Clause(
        "a fill stays that saw one of the stamps",
        "covers_all(seen, change.stamps, change.position))",
        "any(covers(seen, stamp, change.position) for stamp in change.stamps))",
        TOGETHER,
    ),
    Clause(
        "a fill stays that saw none of the stamps",
        "covers_all(seen, change.stamps, change.position))",
        "True)",
        WARM,
    ),
    Clause(
        "an entry of an older generation is readable",
        "return data[4:36] == region.generation.encode() and data[36:68] == view.generation.encode()",
        "return True",
        TRUNCATES,
    ),
    Clause(
        "a fill writes over a newer one",
        "and not _outdates(seen, data):",
        "and False:",
        ROW,
        fault="BACK IN TIME",
    ),
    Clause(
        "merging forgets the older stamps",
        "union = tuple(sorted({*kept, *stamps}))",
        "union = tuple(sorted({*stamps}))",
        WARM,
    ),
    Clause(
        "a shard that is there is made anew",
        "return Outcome.DISPLACED\n    shard.header = ",
        "pass\n    shard.header = ",
        EVICTED._replace(faults=(("hold", 1), ("guard", 1))),
    ),
    Clause(
        "a raise leaves the fence as it was",
        "fence = merge(fence, order.position, order.stamps, beat)\n    generation",
        "pass\n    generation",
        TRUNCATES,
    ),
    Clause(
        "a row's stamp goes back when records come again",
        "stamp = max(old.stamp, row.stamp) if old.position[:8] == row.position[:8] else old.stamp",
        "stamp = row.stamp",
        World("lost, sent again", (A, A), (V,), Budget(redeliver=1), (("fences", 1),), readers=1, owned=ALL),
    ),
    Clause(
        "an epoch begins without closing the region",
        "    if begins or not request.epoch:\n        _close_scopes",
        "    if not request.epoch:\n        _close_scopes",
        EPOCH,
    ),
    Clause(
        "a closed scope can be read",
        'if region is None or view is None or not region.open or not view.open:\n        return "CLOSED", None',
        'if region is None or view is None:\n        return "CLOSED", None',
        EPOCH,
    ),
]
