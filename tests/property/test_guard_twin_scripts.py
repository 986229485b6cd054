"""One script at a time on a shard as it may lie in Redis: guard.lua and guard.py must say and leave the same.

The state machine beside this file finds what several steps do together; it rarely meets a proof with fences, a refresh
with each kind of entry, or a lost fence with rows that several workers moved. Here every example does.
"""

from __future__ import annotations

import copy

import msgspec
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from invalidator import guard
from invalidator.entry import Content, Kind, lead
from invalidator.guard import Batch, Closing, ControlStep, Fill, Pass, RowStep, ScopeRaise
from invalidator.layout import EMPTY_FENCE, FORMAT, REGION_SCOPE, Fence, Row, Scope, row_field, view_scope
from invalidator.region import Region
from tests.property.guard_cases import (
    CONTROL,
    EXAMPLES,
    KEYS,
    LONG_MS,
    OPEN,
    ROWS,
    STRIPES,
    VIEWS,
    beats,
    changes,
    closings,
    fences,
    held,
    instances,
    lifetimes,
    low_fences,
    positions,
    proofs,
    put,
    raises,
    refreshes,
    rows,
    scopes,
    shards,
    shown,
    stamps,
    steps,
    tail,
)

NEW_ROW = row_field("s.new", 0)
"""Of a partition that no shard knows yet: nothing refuses its batch."""

often = settings(max_examples=EXAMPLES * 5, deadline=None, suppress_health_check=list(HealthCheck))


@settings(often, max_examples=EXAMPLES * 3)
@given(
    shard=shards(), data=st.data(), plain=changes(), raised=raises, beat=beats, closing=st.none() | closings,
    lifetime_ms=lifetimes,
)  # fmt: skip
def test_lua_and_python_apply_alike(
    region: Region, shard: guard.Shard, data: st.DataObject, plain: list[guard.KeyChange], raised: ScopeRaise | None,
    beat: guard.Beat | None, closing: Closing | None, lifetime_ms: int,
) -> None:  # fmt: skip
    """Changes and refreshes of keys with entries of every kind, raises with heartbeats, rows of two workers."""
    batch = Batch(
        rows=data.draw(steps(shard)),
        closings=() if closing is None else (closing,),
        raises=() if raised is None else (raised,),
        changes=tuple(plain),
        refreshes=_once_more(shard, data, data.draw(refreshes(without=plain))),
        beat=beat,
    )
    before = copy.deepcopy(shard)
    put(region, shard, lifetime_ms)
    reply = region.apply(0, batch)
    assert msgspec.structs.astuple(reply) == guard.apply(shard, batch)
    event(f"{reply.outcome} k{min(reply.kept, 1)} w{min(reply.written, 1)} restored {reply.restored}")
    asked = {refresh.change.key: refresh.ttl_ms for refresh in batch.refreshes}
    _both_hold(region, before, shard, asked, lifetime_ms)


@settings(often, max_examples=EXAMPLES * 10)
@given(
    shard=shards(open_of_ten=10, keys=KEYS[:3], kept_fences=fences), data=st.data(), plain=changes(), beat=beats,
    lifetime_ms=lifetimes,
)  # fmt: skip
def test_lua_and_python_change_entries_alike(
    region: Region, shard: guard.Shard, data: st.DataObject, plain: list[guard.KeyChange], beat: guard.Beat | None,
    lifetime_ms: int,
) -> None:  # fmt: skip
    """As above without anything that refuses the batch or closes a scope: every example gets to the entries."""
    drawn = data.draw(refreshes(without=plain))
    row = Row(next_offset=shard.next_offset(NEW_ROW) + 1, digest="c" * 16)
    batch = Batch(
        rows=(RowStep(NEW_ROW, 0, row),), changes=tuple(plain), refreshes=_once_more(shard, data, drawn), beat=beat
    )
    _both_apply(region, shard, batch, lifetime_ms)


@settings(often, max_examples=EXAMPLES * 10)
@given(
    shard=shards(keys=KEYS[:3], kept_fences=fences), data=st.data(), plain=changes(), beat=beats, raised=raises,
    lifetime_ms=lifetimes,
)  # fmt: skip
def test_lua_and_python_replay_alike(
    region: Region, shard: guard.Shard, data: st.DataObject, plain: list[guard.KeyChange], beat: guard.Beat | None,
    raised: ScopeRaise | None, lifetime_ms: int,
) -> None:  # fmt: skip
    """A batch without rows; often it repeats exactly what the stripe's fence met last."""
    drawn = _as_the_fence_met_it(shard, data, data.draw(refreshes(without=plain)))
    batch = Batch(rows=(), changes=tuple(plain), refreshes=drawn, beat=beat, raises=() if raised is None else (raised,))
    fences_before = dict(shard.fences)
    _both_apply(region, shard, batch, lifetime_ms)
    assert {**shard.fences, **fences_before} == shard.fences == fences_before | {"*": shard.fences["*"]}


def _as_the_fence_met_it(
    shard: guard.Shard, data: st.DataObject, drawn: tuple[guard.KeyRefresh, ...]
) -> tuple[guard.KeyRefresh, ...]:
    """Refreshes whose position is, half of the time, that of the newest change in their stripe."""
    replace = msgspec.structs.replace
    return tuple(
        replace(r, change=replace(r.change, position=shard.fences[r.change.stripe][1:33]))
        if r.change.stripe in shard.fences and data.draw(st.booleans())
        else r
        for r in drawn
    )


def _both_apply(region: Region, shard: guard.Shard, batch: Batch, lifetime_ms: int) -> None:
    before = copy.deepcopy(shard)
    put(region, shard, lifetime_ms)
    reply = region.apply(0, batch)
    assert msgspec.structs.astuple(reply) == guard.apply(shard, batch)
    event(f"u{min(reply.unlinked, 1)} k{min(reply.kept, 1)} w{min(reply.written, 1)}")
    _both_hold(region, before, shard, {refresh.change.key: refresh.ttl_ms for refresh in batch.refreshes}, lifetime_ms)


@often
@given(
    shard=shards(open_of_ten=4, keys=KEYS[:1]), row=rows, position=st.just("") | positions | positions, stamp=stamps,
    slip=st.sampled_from([0] * 6 + [1, -1, -9]), owned=st.sampled_from([ROWS[:1], ROWS[1:], ROWS, []]),
    behind=st.sampled_from([0] * 6 + [1, -1]), epoch=st.sampled_from(["", "", "", "00000001", "00000002", "00000003"]),
    closing=closings, key=st.sampled_from(["", "", *KEYS[:2]]), instance=instances,
)  # fmt: skip
def test_lua_and_python_hear_alike(
    region: Region, shard: guard.Shard, row: Row, position: str, stamp: str, slip: int, owned: list[str], behind: int,
    epoch: str, closing: Closing | None, key: str, instance: str,
) -> None:  # fmt: skip
    """Heartbeats, epochs, closings and orders for a key, on scopes with any count of heartbeats."""
    at = max(0, shard.next_offset(CONTROL) + slip)
    request = ControlStep(
        step=RowStep(CONTROL, at, msgspec.structs.replace(row, next_offset=at + 1, digest="c" * 16)),
        position=position, stamp=stamp, limit=f"{15:016x}" if position else "", history="h1",
        instance=instance, epoch=epoch,
        closings=() if closing is None else (closing,), key=key, stripe=STRIPES.get(key, ""),
        owned=tuple((name, max(0, shard.next_offset(name) + behind)) for name in owned),
    )  # fmt: skip
    before = copy.deepcopy(shard)
    put(region, shard)
    reply = region.hear(0, request)
    event(f"{reply.outcome} restored {reply.restored}")
    assert msgspec.structs.astuple(reply) == guard.hear(shard, request)
    _both_hold(region, before, shard, {}, 0)


@often
@given(
    shard=shards(open_of_ten=4, keys=()),
    position=positions,
    stamp=stamps,
    behind=st.lists(st.sampled_from([0] * 5 + [-1, 1]), min_size=2, max_size=2),
)
def test_lua_and_python_pass_alike(
    region: Region, shard: guard.Shard, position: str, stamp: str, behind: list[int]
) -> None:
    """Scopes with any count of heartbeats, fences lost or kept, rows that raises left beyond the heartbeat."""
    barriers = tuple((n, max(0, shard.next_offset(n) + by)) for n, by in zip(ROWS, behind, strict=True))
    request = Pass(position=position, stamp=stamp, time_ms=9, proof="p" + stamp * 2, barriers=barriers)
    before = copy.deepcopy(shard)
    put(region, shard)
    reply = region.pass_heartbeat(0, request)
    event(f"{msgspec.structs.astuple(reply)}")
    assert msgspec.structs.astuple(reply) == guard.pass_heartbeat(shard, request)
    _both_hold(region, before, shard, {}, 0)


@settings(often, max_examples=EXAMPLES * 2)
@given(
    shard=shards(keys=KEYS[:2]), key=st.sampled_from(KEYS[:2]),
    view=st.sampled_from(["contact", "contact", "tpl", "none"]), digest=st.sampled_from(["a" * 16] * 4 + ["e" * 16]),
)  # fmt: skip
def test_lua_and_python_read_alike(region: Region, shard: guard.Shard, key: str, view: str, digest: str) -> None:
    put(region, shard)
    found = region.look(0, [key], view, digest)
    status = found.status if found.status != "OPEN" else "MISS" if found.entries[0] is None else "HIT"
    event(status)
    assert (status, found.entries[0]) == guard.read(shard, key, view, digest)
    assert (found.watermark, found.epoch) == (shard.header.get("w", ""), shard.header.get("e", ""))


@often
@given(
    region_scope=scopes, view=scopes, default=low_fences, stripe=st.none() | fences, entry=st.none() | shown(),
    seen=proofs(),
    limit=st.sampled_from([f"{15:016x}"] * 4 + ["", f"{9:016x}", f"{1 << 48 | 3:016x}"]), method=st.sampled_from("ood"),
    lifetime_ms=lifetimes, others=st.lists(st.tuples(st.sampled_from(KEYS), proofs()), max_size=3),
)  # fmt: skip
@example(
    region_scope=OPEN, view=OPEN, default=EMPTY_FENCE, stripe=None, entry=(Kind.FILL, f"p{3:016x}{5:016x}"),
    seen=f"g{8:016x}{9:016x}", limit=f"{15:016x}", method="o", lifetime_ms=0, others=[],
)  # fmt: skip
def test_lua_and_python_fill_alike(
    region: Region, region_scope: Scope, view: Scope, default: Fence, stripe: Fence | None,
    entry: tuple[Kind, str] | None, seen: str, limit: str, method: str, lifetime_ms: int,
    others: list[tuple[str, str]],
) -> None:  # fmt: skip
    """Open scopes, so that a proof meets fences and what is there, which the state machine rarely gets to."""
    name = VIEWS[0][0]
    shard = guard.Shard(header={"v": FORMAT, "e": f"00000001{method}h1", REGION_SCOPE: region_scope.text})
    shard.header[view_scope(name)] = view.text
    if limit:
        shard.header["b"] = "0" * 48 + limit
    shard.fences = {"*": default.text} | ({} if stripe is None else {STRIPES[KEYS[0]]: stripe.text})
    if entry is not None:
        head = lead(entry[0], Content.VALUE) + region_scope.generation + view.generation
        shard.entries[KEYS[0]] = head.encode() + tail(KEYS[0], name, entry[1], b"[0]")
    before = copy.deepcopy(shard)
    put(region, shard)
    requests = [
        Fill(
            key=key, stripe=STRIPES[key], view=name, digest=view.digest, history="h1",
            lead=lead(Kind.FILL, Content.VALUE), tail=tail(key, name, proof, b"[%d]" % number), ttl_ms=lifetime_ms,
        )
        for number, (key, proof) in enumerate([(KEYS[0], seen), *others], start=1)
    ]  # fmt: skip
    replies = region.fill_many(0, requests)
    shown = entry[0] + entry[1][:1] if entry else "nothing"
    event(f"fill {seen[:1]} over {shown}: {replies[0].outcome} {replies[0].reason}")
    assert [(reply.outcome, reply.reason) for reply in replies] == [guard.fill(shard, request) for request in requests]
    _both_hold(region, before, shard, dict.fromkeys(KEYS, lifetime_ms), 0)


def _once_more(
    shard: guard.Shard, data: st.DataObject, drawn: tuple[guard.KeyRefresh, ...]
) -> tuple[guard.KeyRefresh, ...]:
    """Now and then a refresh is at the very position that its key's entry shows already."""
    result = []
    for refresh in drawn:
        shown_at = shard.entries.get(refresh.change.key, b"")[104:136].decode("ascii", "replace")
        if len(shown_at) == 32 and shown_at[0] == "0" and data.draw(st.booleans()):
            change = msgspec.structs.replace(refresh.change, position=shown_at)
            again = tail(change.key, "contact", shown_at + "".join(change.stamps), b"{}")
            refresh = msgspec.structs.replace(refresh, change=change, tail=again)  # noqa: PLW2901 - the same, moved
        result.append(refresh)
    return tuple(result)


def _both_hold(
    region: Region, before: guard.Shard, after: guard.Shard, asked_ms: dict[str, int], lifetime_ms: int
) -> None:
    """Redis holds `after`; an entry that was written ends by itself if that was asked for, another as before."""
    there, ends = held(region)
    assert there == after
    for key, data in after.entries.items():
        expected_ms = lifetime_ms if before.entries.get(key) == data else asked_ms[key]
        assert ends[key] == (expected_ms == LONG_MS), f"entry {key} with a lifetime of {expected_ms} ms"
