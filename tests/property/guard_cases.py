"""What the twin tests draw from: small ranges, so that equal, adjacent and older positions and stamps meet often."""

from __future__ import annotations

import os
from collections.abc import Sequence

import redis
from hypothesis import strategies as st

from cdc.events import Position
from invalidator.entry import Content, Kind, encode_tail, lead
from invalidator.guard import Beat, Closing, KeyChange, KeyRefresh, RowStep, ScopeRaise, Shard
from invalidator.layout import (
    EMPTY_FENCE,
    FORMAT,
    NO_DIGEST,
    NO_INSTANCE,
    REGION_SCOPE,
    ZERO_POSITION,
    Fence,
    Row,
    Scope,
    offset_text,
    row_field,
    view_scope,
)
from invalidator.region import Region
from tests.fix_redis import redis_of

KEYS = ["contact:1", "contact:2", "contact:3", "tpl:1"]
STRIPES = {"contact:1": "0001", "contact:2": "0001", "contact:3": "0002", "tpl:1": "0002"}
VIEWS = [("contact", "a" * 16), ("tpl", "b" * 16)]
ROWS = [row_field("s.t", 0), row_field("s.t", 1)]
CONTROL = row_field("s.c", 0)
EXAMPLES = int(os.environ.get("STALEPROOF_TWIN_EXAMPLES", "60"))

positions = st.builds(Position, st.sampled_from([1] * 9 + [2]), st.integers(2, 6), st.just(0)).map(lambda p: p.text)
# Now and then one of a second origin, as GTIDs have it.
stamps = st.builds(lambda origin, s: f"{origin:04x}{s:012x}", st.sampled_from([0] * 9 + [1]), st.integers(0, 9))
stamp_sets = st.sets(stamps, min_size=1, max_size=2).map(lambda s: tuple(sorted(s)))
many_stamps = st.sets(stamps, min_size=1, max_size=10).map(lambda s: tuple(sorted(s)))


@st.composite
def proofs(draw: st.DrawFn, kinds: str = "pppsgg") -> str:
    kind = draw(st.sampled_from(kinds))
    if kind == "g":
        return "g" + draw(gtids())
    low, high = sorted((draw(st.integers(0, 10)), draw(st.integers(0, 10))))
    if draw(st.integers(0, 2)) == 0:  # wide: room for stamps that ran beside some that did not
        low, high = draw(st.integers(0, 2)), draw(st.integers(8, 10))
    if draw(st.integers(0, 19)) == 0:  # nothing that a reader of ours would send
        return draw(st.sampled_from("psgx")) + "".join(draw(st.lists(stamps, max_size=4)))
    if kind == "s":
        return f"s{low:016x}{draw(st.integers(1, 7)):016x}"
    running = sorted(draw(st.sets(st.integers(low, high), max_size=3)) - {high})
    if draw(st.integers(0, 9)) == 0:
        running = list(range(20))  # longer than the apply script reads
    return "p" + "".join(f"{s:016x}" for s in (low, high, *running))


@st.composite
def gtids(draw: st.DrawFn) -> str:
    """Intervals of two origins; some reach beyond what a proof may claim, some over both, some are cut short."""
    if draw(st.integers(0, 2)) == 0:
        return f"{0:016x}{draw(st.integers(8, 17)):016x}"
    ends = draw(st.sets(st.sampled_from([*range(18), *(1 << 48 | n for n in range(6))]), max_size=8))
    text = "".join(f"{end:016x}" for end in sorted(ends))
    if draw(st.integers(0, 9)) == 0:
        text = "".join(f"{2 * n:016x}{2 * n:016x}" for n in range(8))  # longer than the scripts read of an entry
    return text[: draw(st.sampled_from([len(text)] * 9 + [20]))]


beats = st.none() | st.builds(Beat, positions, proofs("pppg"))
rows = st.builds(
    Row,
    next_offset=st.integers(0, 6),
    leader_epoch=st.integers(0, 2),
    sequence=st.integers(0, 9),
    position=positions,
    stamp=stamps,
    digest=st.sampled_from(["c" * 16] * 12 + ["d" * 16]),
)

closings = st.none() | st.builds(
    Closing, st.sampled_from([REGION_SCOPE, view_scope("contact"), view_scope("tpl")]), st.integers(0, 4),
    st.sampled_from(["", "", "e" * 16]),
)  # fmt: skip


@st.composite
def changes(draw: st.DrawFn) -> list[KeyChange]:
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True, max_size=3))
    return [KeyChange(key, STRIPES[key], draw(positions), draw(stamp_sets)) for key in keys]


def tail(key: str, view: str, seen: str, payload: bytes) -> bytes:
    return encode_tail(view=view, key=key, seen=seen, payload=payload, as_of_ms=5)


fences = st.builds(
    lambda exact, position, kept: Fence(exact, position, kept if exact else (kept[0], kept[-1])),
    st.booleans(), positions, many_stamps.map(lambda kept: kept[:8]),
)  # fmt: skip


low_fences = st.integers(0, 3).flatmap(lambda n: fences if n == 0 else st.just(EMPTY_FENCE))
scopes = st.builds(
    lambda fence, generation, digest: Scope(generation=generation, digest=digest, fence=fence),
    low_fences, positions, st.just("a" * 16),
)  # fmt: skip
OPEN = Scope(generation="0" * 32, digest="a" * 16, fence=EMPTY_FENCE)


@st.composite
def shown(draw: st.DrawFn) -> tuple[Kind, str]:
    """Kind and proof of an entry that is there already."""
    kind = draw(st.sampled_from(Kind))
    return kind, draw(proofs()) if kind is Kind.FILL else draw(positions) + "".join(draw(stamp_sets))


LONG_MS = 3_600_000
"""A lifetime that no test outlasts."""

instances = st.sampled_from(["a" * 16, "b" * 16])
"""Captures that send heartbeats."""

lifetimes = st.sampled_from([0, 0, LONG_MS])


@st.composite
def refreshes(draw: st.DrawFn, without: Sequence[KeyChange] = ()) -> tuple[KeyRefresh, ...]:
    """New values of keys that are not in `without`: a batch names each key once."""
    taken = {change.key for change in without}
    return tuple(
        KeyRefresh(c, "contact", tail(c.key, "contact", c.position + "".join(c.stamps), b"{}"), draw(lifetimes))
        for c in draw(changes())
        if c.key not in taken
    )


raises = st.none() | st.builds(
    ScopeRaise, st.sampled_from([view_scope("contact")] * 3 + [REGION_SCOPE, "s:none"]), positions, stamp_sets
)


@st.composite
def steps(draw: st.DrawFn, shard: Shard) -> tuple[RowStep, ...]:
    """One row or both, each moved by a worker of its own: expected where they are, or each of them a little off."""
    moved = draw(st.sampled_from([ROWS, ROWS[:1], ROWS[1:], ROWS[::-1]]))
    slips = st.sampled_from([-1, 0, 1] if draw(st.integers(0, 5)) == 0 else [0])
    return tuple(RowStep(f, max(0, shard.next_offset(f) + draw(slips)), draw(rows)) for f in moved)


# --- shards as they may lie in Redis ---------------------------------------------------------------------------------

closed_scopes = st.builds(
    lambda generation, at, count, instance, third: Scope(
        generation=generation, digest="a" * 16, closed_at=offset_text(at), heartbeats=count,
        instance=instance if count else NO_INSTANCE, third=third if count == 3 else "",
    ),
    st.just(ZERO_POSITION) | positions, st.integers(0, 4), st.integers(0, 3), instances, positions,
)  # fmt: skip


@st.composite
def shards(
    draw: st.DrawFn,
    *,
    open_of_ten: int = 9,
    keys: Sequence[str] = KEYS,
    kept_fences: st.SearchStrategy[Fence] = low_fences,
) -> Shard:
    """A shard that is there: scopes open and closed, rows of two epochs, fences kept or lost, entries of every kind.

    Entries lie under some of `keys`; `kept_fences` are of stripes.
    """
    header = {"v": FORMAT, "e": f"{draw(st.sampled_from([1, 1, 1, 2])):08x}{draw(st.sampled_from('oood'))}"}
    header["e"] += draw(st.sampled_from(["h1", "h1", ""]))
    for name in (REGION_SCOPE, view_scope("contact"), view_scope("tpl")):
        is_open = draw(st.integers(1, 10)) <= open_of_ten
        header[name] = draw(scopes if is_open else closed_scopes).text
    for field in (*ROWS, CONTROL):
        row = draw(
            st.none() | rows.map(lambda row: row.text[:120] + draw(st.sampled_from(["c" * 16] * 6 + [NO_DIGEST])))
        )
        if row is not None:
            header[field] = row
    if draw(st.integers(0, 3)):
        header["b"] = draw(st.just(ZERO_POSITION) | positions) + draw(stamps) + f"{15:016x}"
    if draw(st.booleans()):
        header["w"] = draw(positions) + f"{7:012x}" + draw(proofs("p"))
    kept = {}
    if draw(st.integers(0, 4)):
        kept["*"] = draw(low_fences).text
        kept |= {stripe: draw(kept_fences).text for stripe in draw(st.sets(st.sampled_from(["0001", "0002"])))}
    shard = Shard(header=header, fences=kept)
    for key in keys:
        if draw(st.integers(0, 3)):
            shard.entries[key] = draw(lying(shard, key))
    return shard


@st.composite
def lying(draw: st.DrawFn, shard: Shard, key: str) -> bytes:
    """What may lie under `key`: an entry of either kind and any proof, of these generations or others, or cut short."""
    kind, seen = draw(shown())
    scopes_met = (shard.header[REGION_SCOPE], shard.header[view_scope("contact")])
    generations = "".join(text[1:33] if draw(st.integers(0, 7)) else draw(positions) for text in scopes_met)
    data = (lead(kind, Content.VALUE) + generations).encode() + tail(key, "contact", seen, b"[0]")
    return data[: draw(st.sampled_from([len(data)] * 15 + [60, 110]))]


def put(region: Region, shard: Shard, lifetime_ms: int = 0) -> None:
    """Make Redis hold exactly `shard`; entries live for `lifetime_ms`, 0 for ever."""
    client, layout = _client(region), region.layout
    pipe = client.pipeline()
    pipe.flushdb()
    if shard.header:
        pipe.hset(layout.header_key(0), mapping=shard.header)
    if shard.fences:
        pipe.hset(layout.fences_key(0), mapping=shard.fences)
    for key, data in shard.entries.items():
        pipe.set(layout.entry_key(0, key), data, px=lifetime_ms or None)
    pipe.execute()


def held(region: Region) -> tuple[Shard, dict[str, bool]]:
    """What Redis holds, and which of its entries end by themselves."""
    client, layout = _client(region), region.layout
    pipe = client.pipeline()
    for key in (layout.header_key(0), layout.fences_key(0)):
        pipe.hgetall(key)
    for key in KEYS:
        pipe.get(layout.entry_key(0, key))
        pipe.pttl(layout.entry_key(0, key))
    header, kept, *rest = pipe.execute()
    lying_there = {key: data for key, data in zip(KEYS, rest[::2], strict=True) if data is not None}
    ends = {key: left > 0 for key, left in zip(KEYS, rest[1::2], strict=True) if key in lying_there}
    return Shard(header=_text(header), fences=_text(kept), entries=lying_there), ends


def _client(region: Region) -> redis.Redis:
    return redis_of(region)


def _text(pairs: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in pairs.items()}
