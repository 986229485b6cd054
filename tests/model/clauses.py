"""Model mutants: one clause of the protocol broken at a time, and the world in which the model must then find a fault.

What the model cannot see, and why:

- a heartbeat opens scopes although rows are before its barrier: records that were not jumped over are applied later and
  remove what was filled; the barrier keeps the watermark honest (P2);
- a scope opens with a heartbeat before its third: not within 2.5 million states of two workers on one cold shard;
- a refresh writes over an event entry of a later position: the fence's position refuses it first, always;
- `sp1_cold` on a shard that is there: as if Redis was rolled back, so it costs work and no truth;
- a batch that was applied already is applied again: merging, unlinking and writing twice is the same as once;
- one late heartbeat counts: the other two of the three are enough;
- a scope opens at the second heartbeat in a row of one capture: it was committed after the first was published, so after
  the closing. The third is a margin for a capture that breaks its rule.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import NamedTuple

from invalidator import guard
from tests.model.world import Budget, World
from tests.model.worlds import (
    ALL,
    DELETE_B,
    ONE,
    PARTITIONS_A,
    ROW,
    TRUNCATE_A,
    TRUNCATE_B,
    A,
    B,
    R,
    V,
)


class Clause(NamedTuple):
    """Replace `old`, which stands exactly once in invalidator/guard.py, by `new`; the model must find `fault`.

    `outside`: what is broken in the worker as well; `also`: a second place that keeps the clause up.
    """

    name: str
    old: str
    new: str
    world: World
    fault: str = "STALE"
    outside: str = ""
    also: tuple[str, str] | None = None
    slow: bool = False


def broken(clause: Clause) -> ModuleType:
    """The guard with that clause replaced."""
    source = inspect.getsource(guard)
    for old, new in ((clause.old, clause.new), *([clause.also] if clause.also else [])):
        assert source.count(old) == 1, "the clause does not fit the guard any more"
        source = source.replace(old, new)
    module = ModuleType(guard.__name__)
    exec(compile(source, "broken guard", "exec"), module.__dict__)
    return module


WARM = World("warm", (A, B), (V,), Budget(beats=1), readers=1)
COLD = World("cold", (A,), (V,), Budget(beats=3), cold=True, **ONE)
LOST = World("lost fences", (A, B), (V,), Budget(beats=1), (("fences", 1),), readers=1)
EMPTY = World("restarted empty", (A,), (V,), Budget(beats=3), (("everything", 1),), **ONE)
EVICTED = World("header evicted", (A,), (V,), Budget(beats=3), (("guard", 1),), beats_at_once=True, **ONE)
ROLLED = World("rolled back", (A, A), (V,), Budget(), (("roll", 1),), **ONE)
TRUNCATES = World("truncates", (TRUNCATE_A, TRUNCATE_B), (V,), Budget(), readers=1, owned=ALL)
TOGETHER = World("batches", (A, A), (V,), Budget(), readers=1, owned=ALL, records_max=2)
AGAIN = World("sent again", (A, A), (V,), Budget(beats=1, redeliver=1), readers=1, owned=ALL)
ONE_ROW = World("one row", (A, A), (R,), Budget(), **ROW)
MOVED = World("a row changes its partition", (A, B), (R,), Budget(), partitions=PARTITIONS_A, owned=ALL, readers=1)
GONE = World("records expire", (A,), (V,), Budget(beats=3, expire=1), **ONE)
REPLAYED = World("a row replayed", (A, A), (R,), Budget(), (("replay", 1),), **ONE)
EPOCH = World("epoch", (A,), (V,), Budget(epoch=1), **ONE)

CLAUSES = [
    Clause(
        "a replay writes what its stripe has not met",
        "allowed = allowed and change.position == fence.position",
        "allowed = allowed and change.position >= fence.position",
        REPLAYED,
        "OVERREACH",
    ),
    Clause("a fill is not checked against the stripe", ', ("stripe", stripe)):', "):", WARM),
    Clause("a fill is not checked against the region", '(("region", region.fence), ', "(", GONE),
    Clause("a fill is not checked against the view", '("view", view.fence), ', "", TRUNCATES),
    Clause(
        "a fence shrinks by a heartbeat that the change was logged before",
        "if beat and position[:8] == beat.position[:8] and position > beat.position:",
        "if beat:",
        AGAIN,
        outside="the worker sends its newest heartbeat",
    ),
    Clause(
        "a fence drops what the heartbeat did not see",
        "kept = tuple(stamp for stamp in kept if not covers(beat.seen, stamp, fence.position))",
        "kept = ()",
        WARM,
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
    Clause(
        "a lost fence refuses nothing", 'return Outcome.REFUSED, "lost"', 'shard.fences["*"] = EMPTY_FENCE.text', LOST
    ),
    Clause(
        "a scope opens at the first heartbeat",
        "scope.heartbeats == 3 and scope.third <= request.position",
        "scope.heartbeats >= 1",
        COLD._replace(budget=Budget(beats=2, late=1)),
    ),
    Clause(
        "heartbeats of several captures count together, and two are enough",
        "scope.heartbeats == 3 and scope.third <= request.position",
        "scope.heartbeats >= 2",
        COLD._replace(budget=Budget(beats=2, late=1)),
        also=("scope.heartbeats + 1 if scope.instance == beat.instance else 1", "scope.heartbeats + 1"),
    ),
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
        slow=True,
    ),
    Clause(
        "rows that went back are not told", "elif stored == step.expected:", "elif stored <= step.expected:", ROLLED
    ),
    Clause(
        "a refresh is not judged against the fence",
        "allowed and all(change.position >= known.position for known in (*fences, fence))",
        "allowed",
        MOVED._replace(writes=(A, DELETE_B)),
    ),
    Clause(
        "a refresh is judged against the stripe alone",
        "for known in (*fences, fence))",
        "for known in (fence,))",
        MOVED._replace(writes=(B, TRUNCATE_A)),
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
        ONE_ROW,
        fault="BACK IN TIME",
    ),
    Clause(
        "merging forgets the older stamps",
        "union = tuple(sorted({*kept, *stamps}))",
        "union = tuple(sorted({*stamps}))",
        WARM,
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
        "        _close_scopes(shard, (Closing(REGION_SCOPE, request.step.row.next_offset),))\n",
        "",
        EPOCH,
    ),
    Clause(
        "a closed scope can be read",
        'if region is None or view is None or not region.open or not view.open:\n        return "CLOSED", None',
        'if region is None or view is None:\n        return "CLOSED", None',
        EPOCH,
        also=("or not region.open or not view.open or len(data)", "or len(data)"),
    ),
    Clause(
        "heartbeats do not open a scope",
        "count = scope.heartbeats + 1",
        "count = scope.heartbeats",
        EPOCH,
        fault="NOT LIVE",
    ),
    Clause(
        "a refresh forgets the newest position of the fence",
        "newest = max(fence.position, position)",
        "newest = position",
        MOVED._replace(writes=(A, B, (*DELETE_B,))),
    ),
    Clause(
        "coalescing keeps the stamps of the newest alone",
        "for change in changes:\n        if change.position",
        "for change in changes:\n        if change.position",
        TOGETHER,
        outside="coalescing keeps the stamps of the newest",
    ),
]
