"""guard.lua on real servers equals guard.py: a random command runs on both, and both must say and hold the same."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from invalidator import guard
from invalidator.entry import Content, Kind, lead
from invalidator.guard import Batch, Beat, Close, Closing, ControlStep, Fill, KeyChange, Pass, RowStep, ScopeRaise
from invalidator.layout import REGION_SCOPE, Fence, Row, view_scope
from invalidator.node import library
from invalidator.region import Region
from tests.fix_redis import redis_of
from tests.property.guard_cases import (
    CONTROL,
    EXAMPLES,
    KEYS,
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
    many_stamps,
    positions,
    proofs,
    put,
    raises,
    refreshes,
    rows,
    stamps,
    steps,
    tail,
)


class Twins(RuleBasedStateMachine):
    region: Region
    client: redis.Redis

    @initialize(there=st.sampled_from([True] * 4 + [False]))
    def start(self, there: bool) -> None:
        self.shard = guard.Shard()
        self.ends: dict[str, bool] = {}
        put(self.region, self.shard)
        if there:
            self.cold(0, False, Row(next_offset=0))
            self.hear(Row(next_offset=1, digest="c" * 16), "", "0" * 16, 0, 0, "00000001", None, "", "a" * 16)
            self.heartbeats(3, f"{1:016x}", "a" * 16, True)

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
        raised=raises,
        closing=closings,
    )
    def apply(
        self, data: st.DataObject, plain: list[KeyChange], beat: Beat | None, raised: ScopeRaise | None,
        closing: Closing | None,
    ) -> None:  # fmt: skip
        batch = Batch(
            rows=data.draw(steps(self.shard)) if data.draw(st.integers(0, 6)) else (),
            closings=() if closing is None else (closing,),
            raises=() if raised is None else (raised,),
            changes=tuple(plain),
            refreshes=data.draw(refreshes(without=plain)),
            beat=beat,
        )
        before = dict(self.shard.entries)
        reply = self.region.apply(0, batch)
        event(f"apply {reply.outcome} u{min(reply.unlinked, 1)} k{min(reply.kept, 1)} w{min(reply.written, 1)}")
        assert msgspec.structs.astuple(reply) == guard.apply(self.shard, batch)
        for refresh in batch.refreshes:
            key = refresh.change.key
            if self.shard.entries.get(key) != before.get(key):
                self.ends[key] = refresh.ttl_ms > 0

    @rule(
        row=rows, position=st.just("") | positions, stamp=stamps, slip=st.sampled_from([0, 0, 0, 1, -1]),
        owned=st.sampled_from([0, 0, 1]), epoch=st.sampled_from(["", "", "", "00000001", "00000002"]), closing=closings,
        key=st.sampled_from(["", "", *KEYS]), instance=instances,
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
            instance=instance, epoch=epoch, closings=() if closing is None else (closing,), key=key,
            stripe=STRIPES.get(key, ""), owned=((ROWS[0], self.next_of(ROWS[0]) + owned),),
        )  # fmt: skip
        reply = self.region.hear(0, request)
        event(f"hear {reply.outcome}")
        assert msgspec.structs.astuple(reply) == guard.hear(self.shard, request)

    @rule(position=positions, stamp=stamps, slip=st.sampled_from([0, 0, 1]))
    def pass_heartbeat(self, position: str, stamp: str, slip: int) -> None:
        barriers = tuple((field, self.next_of(field) + slip) for field in ROWS)
        request = Pass(position=position, stamp=stamp, time_ms=7, proof="p" + stamp * 2, barriers=barriers)
        assert msgspec.structs.astuple(self.region.pass_heartbeat(0, request)) == guard.pass_heartbeat(
            self.shard, request
        )

    @rule(count=st.integers(1, 3), stamp=stamps, instance=instances, also_passed=st.booleans())
    def heartbeats(self, count: int, stamp: str, instance: str, also_passed: bool) -> None:
        """Some that count, and perhaps are passed at once: the way that every scope opens, and not before the third."""
        if not self.shard.header:
            return
        epoch = self.shard.epoch
        position = self.shard.header.get("b", "")[:32]
        for _ in range(count):
            at = self.next_of(CONTROL)
            newest = max(int(position[8:24] or "0", 16), 1) + 1
            position = f"{epoch}{newest:016x}{0:08x}"
            request = ControlStep(
                step=RowStep(CONTROL, at, Row(next_offset=at + 9, digest="c" * 16)), position=position, stamp=stamp,
                limit=f"{15:016x}", history="h1", instance=instance,
            )  # fmt: skip
            assert msgspec.structs.astuple(self.region.hear(0, request)) == guard.hear(self.shard, request)
        if also_passed:
            self.pass_heartbeat(position, stamp, 0)

    @rule(
        key=st.sampled_from(KEYS), seen=proofs(), wide=st.booleans(),
        history=st.sampled_from(["h1", "h1", "h1", "h2"]), digest=st.sampled_from(["a" * 16, "a" * 16, "e" * 16]),
        ttl_ms=lifetimes,
    )  # fmt: skip
    def fill(self, key: str, seen: str, wide: bool, history: str, digest: str, ttl_ms: int) -> None:
        if wide:
            seen = f"p{9:016x}{10:016x}" if seen[:1] != "g" else f"g{0:016x}{9:016x}{1 << 48:016x}{1 << 48 | 9:016x}"
        request = Fill(
            key=key, stripe=STRIPES[key], view="contact", digest=digest, history=history,
            lead=lead(Kind.FILL, Content.VALUE), tail=tail(key, "contact", seen, b"[1]"), ttl_ms=ttl_ms,
        )  # fmt: skip
        reply = self.region.fill(0, request)
        event(f"fill {seen[:1]} {reply.outcome} {reply.reason}")
        assert (reply.outcome, reply.reason) == guard.fill(self.shard, request)
        if reply.outcome is guard.Outcome.APPLIED:
            self.ends[key] = ttl_ms > 0

    @rule(key=st.sampled_from(KEYS), view=st.sampled_from([*VIEWS, ("contact", "e" * 16)]))
    def read(self, key: str, view: tuple[str, str]) -> None:
        found = self.region.read(0, key, *view)
        event(f"read {found.status}")
        assert (found.status, found.entry) == guard.read(self.shard, key, *view)
        assert found.watermark == self.shard.header.get("w", "")

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
        there, ends = held(self.region)
        assert there == self.shard
        assert ends == {key: self.ends[key] for key in self.shard.entries}


@pytest.fixture(scope="session")
def lua(redis_url: str) -> Callable[..., str]:
    """Calls one local function of the library, through EVAL: library text, then the call."""
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    text = "".join(part for part in library().splitlines(keepends=True)[1:] if "register_function" not in part)

    def call(function: str, *args: str) -> str:
        names = ", ".join(f"ARGV[{i + 1}]" for i in range(len(args)))
        return str(client.eval(f"{text}\nreturn tostring({function}({names}))", 0, *args))

    return call


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


def test_lua_and_python_decide_alike(region: Region) -> None:
    machine = type("Bound", (Twins,), {"region": region, "client": redis_of(region)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("missing", ["library"])
def test_a_missing_library_is_loaded_and_the_request_sent_again(region: Region, missing: str) -> None:
    redis_of(region).execute_command("FUNCTION", "FLUSH")
    assert region.cold(0, 0, VIEWS, []) is guard.Outcome.APPLIED
