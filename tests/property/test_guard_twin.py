"""guard.lua on real servers equals guard.py: a random command runs on both, and both must say and hold the same."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from cdc.events import Position
from invalidator import guard
from invalidator.entry import Content, Kind, encode_tail, lead
from invalidator.guard import (
    Batch,
    Beat,
    Close,
    Closing,
    ControlStep,
    Fill,
    KeyChange,
    KeyRefresh,
    Pass,
    RowStep,
    ScopeRaise,
)
from invalidator.layout import EMPTY_FENCE, FORMAT, REGION_SCOPE, Fence, Layout, Row, Scope, row_field, view_scope
from invalidator.region import Region, library

KEYS = ["contact:1", "contact:2", "contact:3", "tpl:1"]
STRIPES = {"contact:1": "0001", "contact:2": "0001", "contact:3": "0002", "tpl:1": "0002"}
VIEWS = [("contact", "a" * 16), ("tpl", "b" * 16)]
ROWS = [row_field("s.t", 0), row_field("s.t", 1)]
CONTROL = row_field("s.c", 0)
EXAMPLES = int(os.environ.get("STALEPROOF_TWIN_EXAMPLES", "60"))

# Small ranges, so that equal, adjacent and older positions and stamps meet often.
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


class Twins(RuleBasedStateMachine):
    region: Region
    client: redis.Redis

    @initialize(there=st.sampled_from([True] * 4 + [False]))
    def start(self, there: bool) -> None:
        self.shard = guard.Shard()
        self.client.flushdb()
        if there:
            self.cold(0, False, Row(next_offset=0))
            self.hear(Row(next_offset=1, digest="c" * 16), "", "0" * 16, 0, 0, "00000001", None, "", "a" * 16)
            self.open_everything()

    def next_of(self, field: str) -> int:
        return self.shard.next_offset(field)

    @rule(offset=st.integers(0, 4), known=st.booleans(), row=rows)
    def cold(self, offset: int, known: bool, row: Row) -> None:
        new_rows = [(ROWS[0], row)] if known else []
        assert self.region.cold(0, offset, VIEWS, new_rows) == guard.cold(self.shard, offset, VIEWS, new_rows)

    @rule(
        scope=st.sampled_from([REGION_SCOPE, view_scope("contact"), view_scope("new")]),
        offset=st.integers(0, 4),
        digest=st.sampled_from(["", "e" * 16]),
        row=st.none() | rows,
        restart=st.none() | st.integers(0, 4),
        planned=st.sampled_from(["", "", "", "c" * 16]),
    )
    def close(
        self, scope: str, offset: int, digest: str, row: Row | None, restart: int | None, planned: str
    ) -> None:  # fmt: skip
        jump = () if row is None else ((ROWS[1], row),)
        closings = (Closing(scope, offset, "" if scope == REGION_SCOPE else digest or "f" * 16),)
        request = Close(closings=closings, control_restart=restart, rows_digest=planned, rows=jump)
        assert self.region.close(0, request) == guard.close(self.shard, request)

    @rule(
        data=st.data(),
        plain=changes(),
        beat=beats,
        raised=st.none()
        | st.builds(ScopeRaise, st.sampled_from([view_scope("contact"), "s:none"]), positions, stamp_sets),
        row=rows,
        slip=st.sampled_from([0, 0, 0, 0, -1, 1]),
        both=st.booleans(),
        closing=closings,
    )
    def apply(
        self, data: st.DataObject, plain: list[KeyChange], beat: Beat | None, raised: ScopeRaise | None, row: Row,
        slip: int, both: bool, closing: Closing | None,
    ) -> None:  # fmt: skip
        refreshed = data.draw(changes().map(lambda cs: [c for c in cs if c.key not in {p.key for p in plain}]))
        refreshes = tuple(
            KeyRefresh(c, "contact", tail(c.key, "contact", c.position + "".join(c.stamps), b"{}"), 0)
            for c in refreshed
        )
        steps = tuple(RowStep(f, max(0, self.next_of(f) + slip), row) for f in (ROWS if both else ROWS[:1]))
        raises = () if raised is None else (raised,)
        batch = Batch(
            rows=steps,
            closings=() if closing is None else (closing,),
            raises=raises,
            changes=tuple(plain),
            refreshes=refreshes,
            beat=beat,
        )
        reply = self.region.apply(0, batch)
        event(f"apply {reply.outcome} u{min(reply.unlinked, 1)} k{min(reply.kept, 1)} w{min(reply.written, 1)}")
        assert msgspec.structs.astuple(reply) == guard.apply(self.shard, batch)

    @rule(
        row=rows, position=st.just("") | positions, stamp=stamps, slip=st.sampled_from([0, 0, 0, 1, -1]),
        owned=st.sampled_from([0, 0, 1]), epoch=st.sampled_from(["", "", "", "00000001", "00000002"]), closing=closings,
        key=st.sampled_from(["", "", *KEYS]), instance=st.sampled_from(["a" * 16, "a" * 16, "b" * 16]),
    )  # fmt: skip
    def hear(
        self, row: Row, position: str, stamp: str, slip: int, owned: int, epoch: str, closing: Closing | None, key: str,
        instance: str,
    ) -> None:  # fmt: skip
        step = RowStep(
            CONTROL, max(0, self.next_of(CONTROL) + slip), msgspec.structs.replace(row, next_offset=row.next_offset + 1)
        )
        request = ControlStep(
            step=step, position=position, stamp=stamp, limit=f"{15:016x}" if position else "", history="h1",
            instance=instance, epoch=epoch, closings=() if closing is None else (closing,), key=key, stripe=STRIPES.get(key, ""),
            owned=((ROWS[0], self.next_of(ROWS[0]) + owned),),
        )  # fmt: skip
        reply = self.region.hear(0, request)
        event(f"hear {reply.outcome}")
        assert msgspec.structs.astuple(reply) == guard.hear(self.shard, request)

    @rule(position=positions, stamp=stamps, slip=st.sampled_from([0, 0, 1]))
    def pass_heartbeat(self, position: str, stamp: str, slip: int) -> None:
        barriers = tuple((field, self.next_of(field) + slip) for field in ROWS)
        request = Pass(position=position, stamp=stamp, time_ms=7, barriers=barriers)
        assert msgspec.structs.astuple(self.region.pass_heartbeat(0, request)) == guard.pass_heartbeat(
            self.shard, request
        )

    @rule()
    def open_everything(self) -> None:
        """Three heartbeats heard and passed: the way every scope opens; without it few fills would be admitted."""
        if not self.shard.header:
            return
        epoch = self.shard.epoch
        for _ in range(3):
            at = self.next_of(CONTROL)
            newest = max(int(self.shard.header.get("b", "0" * 32)[8:24], 16), 1)
            step = RowStep(CONTROL, at, Row(next_offset=at + 9, digest="c" * 16))
            request = ControlStep(
                step=step,
                position=f"{epoch}{newest + 1:016x}{0:08x}",
                stamp=f"{1:016x}",
                limit=f"{15:016x}",
                history="h1",
            )
            assert msgspec.structs.astuple(self.region.hear(0, request)) == guard.hear(self.shard, request)
        self.pass_heartbeat(f"{epoch}{newest + 1:016x}{0:08x}", f"{1:016x}", 0)

    @rule(
        key=st.sampled_from(KEYS), seen=proofs(), wide=st.booleans(),
        history=st.sampled_from(["h1", "h1", "h1", "h2"]), digest=st.sampled_from(["a" * 16, "a" * 16, "e" * 16]),
    )  # fmt: skip
    def fill(self, key: str, seen: str, wide: bool, history: str, digest: str) -> None:
        if wide:
            seen = f"p{9:016x}{10:016x}" if seen[:1] != "g" else f"g{0:016x}{9:016x}{1 << 48:016x}{1 << 48 | 9:016x}"
        request = Fill(
            key=key, stripe=STRIPES[key], view="contact", digest=digest, history=history,
            lead=lead(Kind.FILL, Content.VALUE), tail=tail(key, "contact", seen, b"[1]"), ttl_ms=0,
        )  # fmt: skip
        reply = self.region.fill(0, request)
        event(f"fill {seen[:1]} {reply.outcome} {reply.reason}")
        assert (reply.outcome, reply.reason) == guard.fill(self.shard, request)

    @rule(key=st.sampled_from(KEYS), view=st.sampled_from(VIEWS))
    def read(self, key: str, view: tuple[str, str]) -> None:
        found = self.region.read(0, key, *view)
        event(f"read {found.status}")
        assert (found.status, found.entry) == guard.read(self.shard, key, *view)

    @rule()
    def lose_fences(self) -> None:
        self.shard.fences = {}
        self.client.delete(self.region.layout.fences_key(0))

    @rule(which=st.sampled_from(["header", "entries"]))
    def lose(self, which: str) -> None:
        if which == "header":
            self.shard.header = {}
            self.client.delete(self.region.layout.header_key(0))
        else:
            self.shard.entries = {}
            self.client.delete(*(self.region.layout.entry_key(0, key) for key in KEYS))

    @invariant()
    def both_hold_the_same(self) -> None:
        layout: Layout = self.region.layout
        assert self.region.header(0) == self.shard.header
        fences = self.client.hgetall(layout.fences_key(0))
        assert {k.decode(): v.decode() for k, v in fences.items()} == self.shard.fences
        stored = {key: self.client.get(layout.entry_key(0, key)) for key in KEYS}
        assert {k: v for k, v in stored.items() if v is not None} == self.shard.entries


@pytest.fixture(scope="session")
def lua(redis_url: str) -> Callable[..., str]:
    """Calls one local function of the library, through EVAL: library text, then the call."""
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    text = "".join(part for part in library().splitlines(keepends=True)[1:] if "register_function" not in part)

    def call(function: str, *args: str) -> str:
        names = ", ".join(f"ARGV[{i + 1}]" for i in range(len(args)))
        return str(client.eval(f"{text}\nreturn tostring({function}({names}))", 0, *args))

    return call


fences = st.builds(
    lambda exact, position, kept: Fence(exact, position, kept if exact else (kept[0], kept[-1])),
    st.booleans(), positions, many_stamps.map(lambda kept: kept[:8]),
)  # fmt: skip


@settings(max_examples=EXAMPLES * 10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fence=fences, position=positions, added=many_stamps, beat=beats, seen=proofs(), limit=stamps)
@example(
    fence=Fence(True, "0" * 32, (f"{3:016x}",)), position="0" * 32, added=(f"{3:016x}",), beat=None,
    seen=f"x{0:016x}{9:016x}", limit=f"{9:016x}",
)  # fmt: skip
def test_lua_and_python_merge_and_admit_alike(
    lua: Callable[..., str],
    fence: Fence,
    position: str,
    added: tuple[str, ...],
    beat: Beat | None,
    seen: str,
    limit: str,
) -> None:
    merged = lua("merge", fence.text, position, "".join(added), beat.text if beat else "")
    assert merged == guard.merge(fence, position, added, beat).text
    assert lua("admits", fence.text, seen) == str(guard.admits(fence, seen)).lower()
    assert lua("forged", seen, limit) == str(guard.forged(seen, limit)).lower()


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


@settings(max_examples=EXAMPLES * 10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    region_scope=scopes, view=scopes, default=low_fences, stripe=st.none() | fences, entry=st.none() | shown(),
    seen=proofs(),
    limit=st.sampled_from([f"{15:016x}"] * 4 + ["", f"{9:016x}", f"{1 << 48 | 3:016x}"]), method=st.sampled_from("ood"),
)  # fmt: skip
@example(
    region_scope=OPEN, view=OPEN, default=EMPTY_FENCE, stripe=None, entry=(Kind.FILL, f"p{3:016x}{5:016x}"),
    seen=f"g{8:016x}{9:016x}", limit=f"{15:016x}", method="o",
)  # fmt: skip
def test_lua_and_python_fill_alike(
    region: Region, region_scope: Scope, view: Scope, default: Fence, stripe: Fence | None,
    entry: tuple[Kind, str] | None, seen: str, limit: str, method: str,
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
    client, layout = region._client, region.layout
    client.flushdb()
    client.hset(layout.header_key(0), mapping=shard.header)
    client.hset(layout.fences_key(0), mapping=shard.fences)
    for key, value in shard.entries.items():
        client.set(layout.entry_key(0, key), value)
    request = Fill(
        key=KEYS[0], stripe=STRIPES[KEYS[0]], view=name, digest=view.digest, history="h1",
        lead=lead(Kind.FILL, Content.VALUE), tail=tail(KEYS[0], name, seen, b"[1]"), ttl_ms=0,
    )  # fmt: skip
    reply = region.fill(0, request)
    event(f"fill {seen[:1]} over {entry[0] + entry[1][:1] if entry else 'nothing'}: {reply.outcome} {reply.reason}")
    assert (reply.outcome, reply.reason) == guard.fill(shard, request)
    assert client.get(layout.entry_key(0, KEYS[0])) == shard.entries.get(KEYS[0])


def test_lua_and_python_decide_alike(region: Region) -> None:
    machine = type("Bound", (Twins,), {"region": region, "client": region._client})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("missing", ["library"])
def test_a_missing_library_is_loaded_and_the_request_sent_again(region: Region, missing: str) -> None:
    region._client.execute_command("FUNCTION", "FLUSH")
    assert region.cold(0, 0, VIEWS, []) is guard.Outcome.APPLIED
