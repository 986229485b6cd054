"""Plain views: every interleaving of commits, visibility, heartbeats, two workers, a crash, and fillers that know no guard.

The decisions are the shipped ones (`invalidator/plain.py`). What must hold: a value that misses a transaction, and was
stored before some removal that followed a heartbeat which has seen that transaction, is gone in the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import pytest

from cdc.events import Position
from invalidator import plain
from invalidator.guard import Beat
from invalidator.layout import Fence
from invalidator.plain import Debt

is_visible = plain.is_visible
"""Of the world itself, whatever a test breaks."""

KEY, VIEW = "v:1", "v"
XIDS = (16, 32)
OWED_MAX = 10


class Worker(NamedTuple):
    """`heard`: heartbeats. `phase`: what it is in the middle of, and `beat` the newest heartbeat when that began."""

    heard: int = 0
    phase: tuple[str, int | str] | None = None
    beat: Beat | None = None


class State(NamedTuple):
    """Of each transaction: whether it is logged, and visible. `data`: the records, as transactions and positions."""

    logged: tuple[bool, ...] = (False, False)
    visible: tuple[bool, ...] = (False, False)
    lsn: int = 100
    data: tuple[tuple[int, str], ...] = ()
    beats: tuple[Beat, ...] = ()
    row: int = 0
    owed: str = ""
    value: tuple[tuple[bool, ...], bool] | None = None  # what its read saw, and whether it must go
    proven: tuple[bool, ...] = (False, False)  # a removal followed a heartbeat that had seen it
    workers: tuple[Worker, ...] = (Worker(), Worker())
    fillers: tuple[tuple[bool, ...] | None, ...] = (None,)
    fills: int = 1
    beats_left: int = 2
    crashes: int = 1


def put(things: tuple, at: int, thing: object) -> tuple:
    return (*things[:at], thing, *things[at + 1 :])


def snapshot(state: State) -> str:
    """As PostgreSQL gives it: xmax is the last completed xid + 1."""
    done = [xid for xid, seen in zip(XIDS, state.visible, strict=True) if seen]
    running = [xid for xid, seen in zip(XIDS, state.visible, strict=True) if not seen]
    xmax = max(done, default=0) + 1
    below = [xid for xid in running if xid < xmax]
    return "p" + "".join(f"{xid:016x}" for xid in (min([*below, xmax]), xmax, *below))


def after_removal(state: State, beat: Beat | None) -> State:
    """The key is gone; and what `beat` has seen, this removal came after."""
    proven = tuple(
        was or any(number == i and is_visible(at, (f"{XIDS[i]:016x}",), beat) for number, at in state.data)
        for i, was in enumerate(state.proven)
    )
    return state._replace(value=None, proven=proven)


def source_steps(state: State) -> Iterator[State]:
    for i in range(len(XIDS)):
        if not state.logged[i]:
            record = (i, Position(1, state.lsn, 0).text)
            yield state._replace(logged=put(state.logged, i, True), data=(*state.data, record), lsn=state.lsn + 10)
        elif not state.visible[i]:
            yield state._replace(visible=put(state.visible, i, True))
    if state.beats_left:
        beat = Beat(Position(1, state.lsn, 0).text, snapshot(state))
        yield state._replace(beats=(*state.beats, beat), lsn=state.lsn + 10, beats_left=state.beats_left - 1)


def filler_steps(state: State) -> Iterator[State]:
    for i, seen in enumerate(state.fillers):
        if seen is None and state.fills:
            yield state._replace(fillers=put(state.fillers, i, state.visible), fills=state.fills - 1)
        elif seen is not None:
            must_go = any(not saw and not known for saw, known in zip(seen, state.proven, strict=True))
            yield state._replace(fillers=put(state.fillers, i, None), value=(seen, must_go))


def worker_steps(state: State, at: int) -> Iterator[State]:
    worker = state.workers[at]

    def now(state: State, phase: tuple[str, int | str] | None, beat: Beat | None) -> State:
        return state._replace(workers=put(state.workers, at, Worker(worker.heard, phase, beat)))

    newest = state.beats[worker.heard - 1] if worker.heard else None
    match worker.phase:
        case None:
            if worker.heard < len(state.beats):
                yield state._replace(workers=put(state.workers, at, Worker(worker.heard + 1)))
            if state.row < len(state.data):
                number, position = state.data[state.row]
                stamps = (f"{XIDS[number]:016x}",)
                owed = {KEY: state.owed} if state.owed else {}
                if not plain.is_visible(position, stamps, newest):
                    plain.owe(owed, [Debt(KEY, VIEW, position, stamps)], newest, OWED_MAX)
                yield now(state._replace(owed=owed.get(KEY, "")), ("owed", state.row), newest)
            if newest is not None and state.owed and plain.is_due(state.owed, newest):
                yield now(state, ("due", state.owed), newest)
        case ("owed", int(row)):
            yield now(after_removal(state, worker.beat), ("removed", row), None)
        case ("removed", int(row)):
            yield now(state._replace(row=row + 1) if state.row == row else state, None, None)
        case ("due", str(text)):
            yield now(after_removal(state, worker.beat), ("removed again", text), None)
        case ("removed again", text):
            yield now(state._replace(owed="") if state.owed == text else state, None, None)
    if state.crashes and worker != Worker():
        yield state._replace(workers=put(state.workers, at, Worker()), crashes=state.crashes - 1)


def ended(state: State) -> State:
    """Everything becomes visible; workers finish what they began, apply the rest and hear one more heartbeat."""
    for i in range(len(XIDS)):
        while not state.visible[i]:
            state = next(s for s in source_steps(state) if s.logged[i] != state.logged[i] or s.visible[i])
    beat = Beat(Position(1, state.lsn, 0).text, snapshot(state))
    for at in range(len(state.workers)):
        while state.workers[at].phase is not None:
            state = next(worker_steps(state, at))
    while state.row < len(state.data):
        first, *others = [s for s in worker_steps(state, 0) if s.workers[0].phase is not None or s.row != state.row]
        state = others[0] if others and first.workers[0].phase and first.workers[0].phase[0] == "due" else first
    return after_removal(state, beat)._replace(owed="") if state.owed and plain.is_due(state.owed, beat) else state


def explore(start: State) -> int:
    seen, left = {start}, [start]
    while left:
        state = left.pop()
        if state.value is not None and state.value[1]:
            end = ended(state)
            assert end.value is None, f"stale for good: {state}"
        for following in (
            *source_steps(state),
            *filler_steps(state),
            *chain(*(worker_steps(state, at) for at in range(len(state.workers)))),
        ):
            if following not in seen:
                seen.add(following)
                left.append(following)
    return len(seen)


WORLDS = {
    "one worker, killed once": State(workers=(Worker(),)),
    "two workers, one of them killed": State(beats_left=1),
    "two workers, two heartbeats": State(crashes=0),
}


@pytest.mark.parametrize(
    "world", [pytest.param(name, marks=() if name.startswith("one") else pytest.mark.slow) for name in WORLDS]
)
def test_no_value_that_must_go_stays(world: str) -> None:
    assert explore(WORLDS[world]) > 20_000


BROKEN = {
    "nothing is owed": ("owe", lambda _: lambda *_: None),
    "debts are due at once": ("is_due", lambda _: lambda *_: True),
    "a heartbeat makes every change visible": (
        "is_visible", lambda real: lambda at, stamps, beat: beat is not None or real(at, stamps, beat)
    ),
    "the newest change is owed only": ("merge", lambda _: lambda _, at, stamps, beat: Fence(True, at, stamps)),
}  # fmt: skip


@pytest.mark.parametrize("clause", BROKEN)
def test_the_model_sees_a_decision_that_is_wrong(monkeypatch: pytest.MonkeyPatch, clause: str) -> None:
    name, made = BROKEN[clause]
    monkeypatch.setattr(plain, name, made(getattr(plain, name)))
    with pytest.raises(AssertionError, match="stale for good"):
        explore(WORLDS["one worker, killed once"])
