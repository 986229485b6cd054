"""The worlds: each a small part of what may happen, chosen so that together they meet every pair that matters."""

from __future__ import annotations

from tests.model.world import Budget, World, Write

V, V2, V3, R = ("v", 1), ("v", 2), ("v", 3), ("r", 1)
TABLE_A = (("s.public.a", 0),)
PARTITIONS_A = (*TABLE_A, ("s.public.a", 1))
"""As if partitions had been added: the records of one row are in both."""

A, B, A2 = (Write(0, 1),), (Write(1, 1),), (Write(0, 2),)
DELETE, DELETE_B = (Write(0, 1, "d"),), (Write(1, 1, "d"),)
TRUNCATE_A, TRUNCATE_B = (Write(0, 0, "t"),), (Write(1, 0, "t"),)
THREE_KEYS = (Write(0, 1), Write(0, 2), Write(0, 3))

ALL = ((0, 1),)
"""One worker that owns both partitions."""

ROW = {"partitions": TABLE_A, "owned": ((0,),)}
ONE = {"readers": 1, **ROW}

CHANGES = [
    World("three writers, two keys in one stripe", (A, B, A2), (V, V2), Budget(), records_max=2, states=29_000),
    World("sent again", (A, B), (V,), Budget(beats=1, redeliver=1), readers=1, states=345_000),
    World("two workers on one partition", (A, B), (V,), Budget(beats=1), (("steal", 1),), readers=1, states=213_000),
    World("swallowed replies", (A, A), (V,), Budget(beats=1), (("swallow", 1), ("restart", 1)), records_max=2, **ONE, states=147_000),
    World("scripts that run later", (A, A), (V,), Budget(beats=1), (("hold", 1),), **ONE, states=122_000),
    World("truncated tables", (TRUNCATE_A, TRUNCATE_B, A), (V,), Budget(), owned=ALL, states=14_000),
    World("truncated, one heartbeat", (TRUNCATE_A, A), (V,), Budget(beats=1), **ONE, states=17_000),
    World("a refreshed row", (A, A, DELETE), (R,), Budget(beats=1), **ROW, states=539_000),
    World("a refreshed row in two partitions", (A, DELETE_B, A), (R,), Budget(), partitions=PARTITIONS_A, states=3_000),
    World("a refreshed row sent again", (A, A), (R,), Budget(beats=1, redeliver=1), (("entries", 1),), **ROW, states=480_000),
    World("a refreshed table truncated", (TRUNCATE_A, B, A), (R,), Budget(), partitions=PARTITIONS_A, states=6_000),
    World("both views of one row", (A, A), (V, R), Budget(beats=1), owned=ALL, records_max=2, states=132_000),
    World("one transaction changes too many keys", (THREE_KEYS, A), (V, V2, V3), Budget(), (("swallow", 1),), mass_keys=1,
          records_max=2, partitions=TABLE_A, owned=((0,),), states=32_000),
    World("reads from a standby", (A, B), (V,), Budget(beats=1), reads_from="standby", states=228_000),
]  # fmt: skip

LOSSES = [
    World("lost fences", (A, B), (V,), Budget(beats=1), (("fences", 1),), readers=1, states=157_000),
    World("rolled back", (A, B), (V,), Budget(beats=1), (("roll", 1),), readers=1, states=602_000),
    World("sent again, lost fences", (A, A), (V,), Budget(redeliver=1), (("fences", 1),), owned=ALL, records_max=2, states=7_000),
    World("restarted empty", (A,), (V,), Budget(beats=3), (("everything", 1),), **ONE, states=332_000),
    World("header evicted, entries survive", (A,), (V,), Budget(beats=3), (("guard", 1),), beats_at_once=True, **ONE, states=325_000),
    World("records expire", (A,), (V,), Budget(beats=3, expire=1), **ONE, states=108_000),
    World("a new epoch", (A,), (V,), Budget(beats=3, epoch=1), beats_at_once=True, **ONE, states=176_000),
    World("an operator fences a view", (A,), (V,), Budget(beats=3, order=1), unseen=(0,), order=("v", None), **ONE, states=36_000),
    World("an operator fences a key", (A, B), (V,), Budget(beats=1, order=1), readers=1, unseen=(0,), order=V, states=164_000),
    World("a refreshed row rolled back", (A, A), (R,), Budget(), (("roll", 1), ("fences", 1)), **ROW, states=7_000),
]  # fmt: skip

REPLAYS = [
    World("a range replayed", (A, B), (V,), Budget(), (("replay", 2),), readers=1, states=600),
    World("a row replayed twice", (A, A), (R,), Budget(), (("replay", 2), ("entries", 1)), **ROW, states=2_000),
    World("a deleted row replayed", (A, DELETE), (R,), Budget(beats=1), (("replay", 2),), **ONE, states=30_000),
    World("a row of two partitions replayed", (A, DELETE_B, A), (R,), Budget(), (("replay", 2), ("entries", 1)),
          partitions=PARTITIONS_A, readers=1, states=5_000),
    World("a truncated table replayed", (TRUNCATE_A, B, A), (R,), Budget(), (("replay", 1), ("entries", 1)),
          partitions=PARTITIONS_A, readers=1, states=7_000),
    World("replayed under lost fences", (A, A), (R,), Budget(), (("replay", 2), ("fences", 1), ("entries", 1)), **ONE, states=2_000),
    World("replayed where redis is rolled back", (A, A), (R,), Budget(), (("replay", 1), ("roll", 1)), **ONE, states=1_000),
    World("both views replayed", (A, A), (V, R), Budget(), (("replay", 2),), owned=ALL, records_max=2, readers=1),
]  # fmt: skip
"""Records that are applied once more, without rows, at any time."""

SLOW_REPLAYS = [
    World("a range replayed, one heartbeat", (A, B), (V,), Budget(beats=1), (("replay", 1),), readers=1, states=89_000),
    World("replayed where redis restarts empty", (A,), (R,), Budget(beats=3), (("replay", 1), ("everything", 1)),
          beats_at_once=True, **ONE, states=449_000),
    World("replayed in a new epoch", (A,), (R,), Budget(beats=3, epoch=1), (("replay", 1),), beats_at_once=True, **ONE,
          states=353_000),
    World("a view replayed in a new epoch", (A, B), (V,), Budget(beats=3, epoch=1), (("replay", 1),), beats_at_once=True,
          readers=1, deep=True),
]  # fmt: skip

TO_THE_END = [
    World("scripts that run later, rolled back", (A, A), (V,), Budget(beats=1), (("hold", 1), ("roll", 1)), **ONE),
]  # fmt: skip

DEEP = [
    World("a new epoch, two writers", (A, A), (V,), Budget(beats=3, epoch=1), beats_at_once=True, **ONE),
    World("three writers, heartbeat", (A, B, A2), (V, V2), Budget(beats=1)),
    World("two faults at once", (A, B), (V,), Budget(beats=1), (("roll", 1), ("fences", 1)), readers=1),
    World("rolled back beyond an epoch", (A, A), (V,), Budget(beats=3, epoch=1), (("roll", 1),), beats_at_once=True, **ONE),
    World("rolled back beyond what expired", (A, A), (V,), Budget(beats=3, expire=1), (("roll", 1),), beats_at_once=True,
          **ONE),
    World("restarted empty, sent again", (A,), (V,), Budget(beats=3, redeliver=1), (("everything", 1),),
          beats_at_once=True, **ONE),
    World("a late heartbeat", (A,), (V,), Budget(beats=3, late=1), (("everything", 1),), beats_at_once=True, **ONE),
    World("a truncate meets closed scopes", (TRUNCATE_A, A), (V,), Budget(beats=3), (("everything", 1),),
          beats_at_once=True, **ONE),
    World("slow closings", (A, A), (V,), Budget(beats=3, expire=1), (("hold", 1),), beats_at_once=True, **ONE),
    World("a refreshed row, restarted empty", (A, A), (R,), Budget(beats=3), (("everything", 1),), beats_at_once=True, **ONE),
    World("two late heartbeats", (A,), (V,), Budget(beats=3, late=2), cold=True, beats_at_once=True, **ONE),
    World("a standby behind, lost fences", (A, B), (V,), Budget(beats=1), (("fences", 1),), reads_from="standby"),
]  # fmt: skip
"""Too large to be searched to their ends."""

SLOW = [*TO_THE_END, *(world._replace(deep=True) for world in DEEP)]
