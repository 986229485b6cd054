"""Every interleaving of a world, its workers, its readers and its faults, around one shard of the shipped guard.

A state is a tuple of small numbers, one per part (environment, shard, workers, readers, saved copy, what is left of the
faults, a script under way); each part's moves are worked out once and remembered, because there are far fewer shards
and environments than states. Nothing of the guard is written anew: all that changes a shard is a call of its functions.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Hashable, Iterator
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple

import msgspec
import structlog

from invalidator import entry, guard
from invalidator.guard import Fill
from invalidator.layout import row_field
from tests.model import worker as workers
from tests.model import world as worlds
from tests.model.worker import CONTROL_FIELD, LAYOUT, Mind, Step
from tests.model.world import Env, World

STATES_MAX = 3_000_000

Faults = tuple[tuple[str, int], ...]
Frozen = tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...], tuple[tuple[str, bytes], ...]]
Moves = list[tuple[Any, ...]]


class Read(NamedTuple):
    """What a reader holds and may store: key, proof, and what it was shown."""

    key: int
    seen: str
    payload: bytes


class Result(NamedTuple):
    """What an exploration found. `trace` leads to the first violation, in words."""

    states: int
    complete: bool
    violation: str
    trace: tuple[str, ...]
    admitted: int
    """Distinct shards in which a fill was stored: a guard that refuses everything is no proof."""


IDLE = -1
NOTHING = -1


class _Numbers:
    """Values by number and back."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[Hashable, int] = {}

    def __call__(self, value: Hashable) -> int:
        number = self._numbers.get(value)
        if number is None:
            number = self._numbers[value] = len(self.values)
            self.values.append(value)
        return number


def explore(world: World, shipped: ModuleType = guard, *, states_max: int = STATES_MAX) -> Result:
    """Visit every state of `world`; stop at the first violation."""
    with structlog.testing.capture_logs():
        return _Explorer(world, shipped).run(states_max)


class _Explorer:
    def __init__(self, world: World, shipped: ModuleType) -> None:
        self._world = world
        self._guard = shipped
        self._envs, self._shards, self._minds, self._reads = _Numbers(), _Numbers(), _Numbers(), _Numbers()
        self._faults, self._steps, self._held = _Numbers(), _Numbers(), _Numbers()
        self._env_moves: dict[int, list[tuple[str, int]]] = {}
        self._replay_steps: dict[int, list[tuple[str, int]]] = {}
        self._mind_moves: dict[tuple[int, int, int], Moves] = {}
        self._sent: dict[tuple[int, int], tuple[str, int]] = {}
        self._read_moves: dict[int, list[tuple[str, int]]] = {}
        self._fills: dict[tuple[int, int], tuple[str, int]] = {}
        self._stale: dict[tuple[int, int], str] = {}
        self._steady: dict[tuple[int, int], str] = {}
        self._live: dict[tuple[int, ...], str] = {}
        self._held_reads = _Numbers()
        self._parted: dict[int, list[tuple[int, int]]] = {}
        self._look_moves: dict[tuple[int, int], list[tuple[int, str]]] = {}
        self._spent: dict[tuple[int, str], int | None] = {}
        self._stored = 0
        self._keys = [f"{view}:{k}" for view, k in world.keys]

    # -- the search --------------------------------------------------------------------------------------------------

    def run(self, states_max: int) -> Result:
        first = self._first()
        parents: dict[tuple[int, ...], tuple[int, ...] | None] = {first: None}
        waiting = deque([first])  # breadth first unless the world is deep: the first trace is a shortest one
        while waiting:
            state = waiting.pop() if self._world.deep else waiting.popleft()
            violation = self._judge(state)
            if violation:
                return self._result(parents, state, violation, complete=False)
            moved = False
            for following, broken, _ in self._all(state):
                moved = True
                if broken:
                    parents.setdefault(following, state)
                    return self._result(parents, following, broken, complete=False)
                if following not in parents:
                    parents[following] = state
                    waiting.append(following)
            if not moved:
                violation = self._outlook(state)
                if violation:
                    return self._result(parents, state, violation, complete=False)
            if len(parents) > states_max:
                return self._result(parents, state, "", complete=False)
        return self._result(parents, first, "", complete=True)

    def _first(self) -> tuple[int, ...]:
        """A shard that is open, with both workers at its ends; or none at all, and workers that must make it."""
        world, env = self._world, worlds.first_env(self._world)
        shard, minds = self._guard.Shard(), [Mind(owned) for owned in world.owned]
        if not world.cold:
            for end in (1, len(env.control)):
                shard, minds = _settle(self._guard, world, env._replace(control=env.control[:end]), shard, minds)
            # Earlier ones stand before every transaction, as the last one does: none of them is ever looked for.
            minds = [mind._replace(beats=mind.beats[-1:]) for mind in minds]
        readers = tuple([IDLE] * world.readers)
        return (
            self._envs(env), self._shards(freeze(shard)), *(self._minds(mind) for mind in minds), self._reads(readers),
            NOTHING, self._faults(world.faults), NOTHING,
        )  # fmt: skip

    def _result(self, parents: dict[Any, Any], state: Any, violation: str, *, complete: bool) -> Result:
        trace: list[str] = []
        if violation:
            path = [state]
            while parents[path[-1]] is not None:
                path.append(parents[path[-1]])
            path.reverse()
            for before, after in pairwise(path):
                trace.append(next(self._labels(before, after)))
            trace.append(violation)
        return Result(len(parents), complete, violation, tuple(trace), self._stored)

    # -- moves -------------------------------------------------------------------------------------------------------

    def _labels(self, before: tuple[int, ...], after: tuple[int, ...]) -> Iterator[str]:
        for following, _, label in self._all(before):
            if following == after:
                movers = [i for i in range(len(self._world.owned)) if before[2 + i] != after[2 + i]]
                yield f"worker {movers[0]}: {label}" if movers else label

    def _all(self, state: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], str, str]]:
        """Each next state, what the step itself broke, and its description."""
        env, shard, *minds, readers, saved, faults, held = state
        count = len(minds)
        left = self._faults.values[faults]
        for label, env2 in self._env_moves.get(env) or self._move_env(env):
            yield (env2, *state[1:]), "", label
        for i in range(count):
            mind = minds[i]
            moves = self._mind_moves.get((env, shard, mind))
            if moves is None:
                moves = self._move_mind(env, shard, mind)
            head, tail = state[2 : 2 + i], state[3 + i :]
            for label, shard2, mind2, lost, step, broken in moves:
                yield (env, shard2, *head, mind2, *tail), broken, label
                if left and step != NOTHING:
                    yield from self._unlucky(state, i, label, shard2, lost, step)
        for readers2, shard2, broken, label in self._move_readers(env, shard, readers):
            yield (env, shard2, *minds, readers2, saved, faults, held), broken, label
        if held != NOTHING:
            step, text = self._held.values[held], "the script that was under way runs"
            outcome, shard2 = self._send(shard, step)
            yield (
                (env, shard2, *minds, readers, saved, faults, NOTHING),
                self._time_travel(shard, shard2),
                f"{text}: {outcome}",
            )
        if left:
            yield from self._befall(state, left)

    def _unlucky(
        self, state: tuple[int, ...], i: int, label: str, shard2: int, lost: int, step: int
    ) -> Iterator[tuple[tuple[int, ...], str, str]]:
        """A reply that is swallowed, after which the worker sends again or looks again; a script that runs later."""
        env, shard, *minds, readers, saved, faults, held = state
        spent = self._spend(faults, "swallow")
        if self._steps.values[step][0] in ("cold", "close"):
            spent = None  # the worker looks again in either case: as if it restarted
        if spent is not None:
            minds[i] = lost
            yield (env, shard2, *minds, readers, saved, spent, held), "", f"{label}; the reply is swallowed"
            minds[i] = state[2 + i]
            yield (env, shard2, *minds, readers, saved, spent, held), "", f"{label}; it will send again"
        spent = self._spend(faults, "hold")
        if spent is not None and held == NOTHING:
            minds[i] = lost
            later = self._held(step)
            yield (
                (env, shard, *minds, readers, saved, spent, later),
                "",
                f"{label}, which takes long; it gives up",
            )

    def _spend(self, faults: int, name: str) -> int | None:
        """What is left of the faults after one of these; None where none is left."""
        if (faults, name) not in self._spent:
            left = dict(self._faults.values[faults])
            count = left.get(name, 0)
            left[name] = count - 1
            rest = tuple((fault, count) for fault, count in left.items() if count > 0)
            self._spent[faults, name] = self._faults(rest) if count else None
        return self._spent[faults, name]

    def _befall(self, state: tuple[int, ...], left: Faults) -> Iterator[tuple[tuple[int, ...], str, str]]:
        env, shard, *minds, readers, saved, faults, held = state
        for name, _ in left:
            if name in ("swallow", "hold"):
                continue
            spent = self._spend(faults, name)
            assert spent is not None
            if name == "restart":
                for i, mind in enumerate(minds):
                    fresh = self._minds(Mind(self._minds.values[mind].owned))
                    others = [*minds[:i], fresh, *minds[i + 1 :]]
                    yield (env, shard, *others, readers, saved, spent, held), "", f"worker {i} restarts"
            elif name == "steal":
                everything = tuple(range(len(self._world.partitions)))
                taker = self._minds(Mind(everything, beats=self._minds.values[minds[-1]].beats))
                others = [*minds[:-1], taker]
                yield (env, shard, *others, readers, saved, spent, held), "", "the last worker gets all partitions too"
            elif name == "roll":
                if saved == NOTHING:
                    yield (env, shard, *minds, readers, shard, faults, held), "", "redis is saved"
                else:
                    yield (env, saved, *minds, readers, NOTHING, spent, held), "", "REDIS IS ROLLED BACK"
            elif name == "replay":
                for label, step in self._replays(env):
                    outcome, shard2 = self._send(shard, step)
                    broken = self._time_travel(shard, shard2) or self._overreach(env, shard, shard2)
                    yield (env, shard2, *minds, readers, saved, spent, held), broken, f"{label}: {outcome}"
            else:
                lost = self._lose(shard, name)
                if lost != shard:
                    yield (env, lost, *minds, readers, saved, spent, held), "", f"REDIS LOSES: {name}"

    def _replays(self, number: int) -> list[tuple[str, int]]:
        """Scripts that a replay may send: of any record that was ever sent, or of all of them at once."""
        if number not in self._replay_steps:
            self._replay_steps[number] = [
                (label, self._steps(("apply", batch)))
                for label, batch in workers.replays(self._world, self._envs.values[number])
            ]
        return self._replay_steps[number]

    def _overreach(self, env_number: int, before: int, after: int) -> str:
        """P4: what a replay writes is the newest that the rows have passed, nothing before it and nothing ahead."""
        if before == after:
            return ""
        env = self._envs.values[env_number]
        shards = [thaw(self._guard, self._shards.values[number]) for number in (before, after)]
        for key, (view, k) in enumerate(self._world.keys):
            old, new = (served_payload(self._guard, self._world, shard, key) for shard in shards)
            if view == "r" and new is not None and new != old:
                newest = workers.newest_passed(self._world, env, shards[0], k)
                if msgspec.json.decode(new)["n"] != newest:
                    return f"OVERREACH: {self._keys[key]} is written as {new.decode()}, the rows have passed {newest}"
        return ""

    def _lose(self, number: int, name: str) -> int:
        header, fences, found = self._shards.values[number]
        match name:
            case "fences":
                return self._shards((header, (), found))
            case "header":
                return self._shards(((), fences, found))
            case "guard":
                return self._shards(((), (), found))
            case "entries":
                return self._shards((header, fences, ()))
            case "everything":
                return self._shards(((), (), ()))
        raise AssertionError(name)

    def _move_env(self, number: int) -> list[tuple[str, int]]:
        env = self._envs.values[number]
        found = [(label, self._envs(following)) for label, following in worlds.moves(self._world, env)]
        self._env_moves[number] = found
        return found

    def _move_mind(self, env_number: int, shard: int, number: int) -> Moves:
        """Label, shard, mind, mind if the reply is lost, step, what broke."""
        env, mind = self._envs.values[env_number], self._minds.values[number]
        found: Moves = []
        if mind.lost or workers.is_gap(env, mind):
            changed = thaw(self._guard, self._shards.values[shard])
            gap = "" if mind.lost else "records are gone"
            mind2 = workers.find(self._guard, self._world, env, changed, mind, gap)
            shard2 = self._shards(freeze(changed))
            travel = self._time_travel(shard, shard2)
            request = workers.first_request(
                self._guard, self._world, env, thaw(self._guard, self._shards.values[shard]), mind, gap
            )
            step = NOTHING if request is None else self._steps(request)
            lost = self._minds(mind.astray())
            found.append((f"looks for its rows {gap}", shard2, self._minds(mind2), lost, step, travel))
        else:
            astray = self._minds(mind.astray())
            for step in workers.steps(self._world, env, mind):
                call = self._steps((step.call, step.request))
                outcome, shard2 = self._send(shard, call)
                # What a heartbeat that passed opens is told by the next one as well: REFUSED changes no belief.
                kept = outcome == "APPLIED" or (step.call == "pass" and outcome != "COLD")
                mind2 = self._minds(step.mind) if kept else astray
                travel = self._time_travel(shard, shard2)
                found.append((f"{step.label}: {outcome}", shard2, mind2, astray, call, travel))
        self._mind_moves[env_number, shard, number] = found
        return found

    def _send(self, shard: int, step: int) -> tuple[str, int]:
        known = self._sent.get((shard, step))
        if known is None:
            call, request = self._steps.values[step]
            changed = thaw(self._guard, self._shards.values[shard])
            outcome = send(self._guard, changed, call, request)
            known = self._sent[shard, step] = (outcome, self._shards(freeze(changed)))
        return known

    def _move_readers(self, env: int, shard: int, number: int) -> Iterator[tuple[int, int, str, str]]:
        """Readers are alike, so only the numbers of what they hold matter, sorted; one that has filled is gone."""
        for held, others in self._parted.get(number) or self._part(number):
            if held == IDLE:
                moves = self._look_moves.get((env, number))
                if moves is None:
                    moves = self._look_moves[env, number] = [
                        (self._reads(tuple(sorted((*self._reads.values[others], read)))), label)
                        for label, read in self._read_moves.get(env) or self._look(env)
                    ]
                for readers2, label in moves:
                    yield readers2, shard, "", label
            else:
                label, shard2 = self._fills.get((shard, held)) or self._fill(shard, held)
                yield others, shard2, self._time_travel(shard, shard2), label

    def _part(self, number: int) -> list[tuple[int, int]]:
        """What one of them holds, and the others."""
        readers = self._reads.values[number]
        parted = {held: (*readers[:i], *readers[i + 1 :]) for i, held in enumerate(readers)}
        self._parted[number] = [(held, self._reads(others)) for held, others in parted.items()]
        return self._parted[number]

    def _look(self, number: int) -> list[tuple[str, int]]:
        env, found = self._envs.values[number], []
        for seen, xids in worlds.proof(self._world, env):
            for key in range(len(self._keys)):
                read = Read(key, seen, worlds.shown(self._world, env, key, xids))
                label = f"a reader reads {self._keys[key]} = {read.payload.decode()}, {_short(seen)}"
                found.append((label, self._held_reads(read)))
        self._read_moves[number] = found
        return found

    def _fill(self, shard: int, held: int) -> tuple[str, int]:
        read = self._held_reads.values[held]
        changed = thaw(self._guard, self._shards.values[shard])
        outcome, why = self._guard.fill(changed, fill_of(self._world, read))
        label = f"a reader fills {self._keys[read.key]} = {read.payload.decode()}: {outcome} {why}"
        self._stored += outcome == "APPLIED"
        known = (label, self._shards(freeze(changed)))
        self._fills[shard, held] = known
        return known

    # -- judgement ---------------------------------------------------------------------------------------------------

    def _judge(self, state: tuple[int, ...]) -> str:
        """P1: nothing is under way, everything is applied, and yet an entry is served that is not the database's."""
        place = state[0], state[1]
        known = self._stale.get(place)
        if known is None:
            known = self._stale[place] = self._find_stale(*place)
        if known and state[-1] == NOTHING and all(held == IDLE for held in self._reads.values[state[-4]]):
            return known
        return ""

    def _find_stale(self, env_number: int, shard_number: int) -> str:
        env: Env = self._envs.values[env_number]
        if any(isinstance(item, int) and worlds.xid_of(item) not in env.seen for item in env.log) or env.broken:
            return ""
        if "order" not in env.control and any(item in self._world.unseen for item in env.log):
            return ""  # nobody has been told yet
        shard = thaw(self._guard, self._shards.values[shard_number])
        ends = [(row_field(*p), len(of)) for p, of in zip(self._world.partitions, env.records, strict=True)]
        if any(shard.next_offset(name) < end for name, end in [*ends, (CONTROL_FIELD, len(env.control))]):
            return ""
        for key, name in enumerate(self._keys):
            served = served_payload(self._guard, self._world, shard, key)
            right = worlds.shown(self._world, env, key, env.seen)
            if served is not None and served != right:
                return f"STALE: {name} is served as {served.decode()}, the database has {right.decode()}"
        return ""

    def _time_travel(self, before: int, after: int) -> str:
        """P4: no step of a worker or reader moves a refreshed key back."""
        if before == after:
            return ""
        known = self._steady.get((before, after))
        if known is None:
            known = ""
            shards = [thaw(self._guard, self._shards.values[number]) for number in (before, after)]
            for key, (view, _) in enumerate(self._world.keys):
                served = [served_payload(self._guard, self._world, shard, key) for shard in shards]
                if view == "r" and served[0] is not None and served[1] is not None:
                    old, new = (msgspec.json.decode(payload)["n"] for payload in served if payload)
                    if new < old:
                        known = f"BACK IN TIME: {self._keys[key]} was {served[0].decode()}, is {served[1].decode()}"
            self._steady[before, after] = known
        return known

    def _outlook(self, state: tuple[int, ...]) -> str:
        """Liveness: once heartbeats go on, everything opens and a fresh read is stored."""
        env_number, shard_number, *minds = state[:-4]
        place = (env_number, shard_number, *minds)
        if place in self._live:
            return self._live[place]
        env = self._envs.values[env_number]
        shard = thaw(self._guard, self._shards.values[shard_number])
        found = ""
        for _ in range(5):
            env = beat_once(self._world, env)
            shard, changed = _settle(self._guard, self._world, env, shard, [self._minds.values[m] for m in minds])
            minds = [self._minds(mind) for mind in changed]
        seen, xids = worlds.proof(self._world, env)[-1]
        for key, name in enumerate(self._keys):
            read = Read(key, seen, worlds.shown(self._world, env, key, xids))
            outcome, why = self._guard.fill(shard, fill_of(self._world, read))
            if served_payload(self._guard, self._world, shard, key) != read.payload:
                found = f"NOT LIVE: after five more heartbeats a fresh read of {name} is {outcome} {why}"
        self._live[place] = found
        return found


# --- shards as values -----------------------------------------------------------------------------------------------


def freeze(shard: Any) -> Frozen:
    """The shard as a value."""
    return (
        tuple(sorted(shard.header.items())),
        tuple(sorted(shard.fences.items())),
        tuple(sorted(shard.entries.items())),
    )


def thaw(shipped: ModuleType, frozen: Frozen) -> Any:
    """The shard again."""
    header, fences, found = frozen
    return shipped.Shard(header=dict(header), fences=dict(fences), entries=dict(found))


def send(shipped: ModuleType, shard: Any, call: str, request: Any) -> str:
    """Run one script; its outcome."""
    match call:
        case "apply":
            reply = shipped.apply(shard, request)
        case "hear":
            reply = shipped.hear(shard, request)
        case "cold":
            return str(shipped.cold(shard, *request))
        case "close":
            return str(shipped.close(shard, request))
        case "pass":
            reply = shipped.pass_heartbeat(shard, request)
        case _:
            raise AssertionError(call)
    return str(reply[0])


def fill_of(world: World, read: Read) -> Fill:
    """What a reader sends."""
    view, k = world.keys[read.key]
    key = f"{view}:{k}"
    tail = entry.encode_tail(view=view, key=key, seen=read.seen, payload=read.payload, as_of_ms=5)
    return Fill(
        key=key, stripe=LAYOUT.place(key)[1], view=view, digest=worlds.views_of(world).views[view].digest,
        history=worlds.HISTORY, lead=entry.lead(entry.Kind.FILL, entry.Content.VALUE), tail=tail, ttl_ms=0,
    )  # fmt: skip


def served_payload(shipped: ModuleType, world: World, shard: Any, key: int) -> bytes | None:
    """What a reader is served for a key, if anything."""
    view, k = world.keys[key]
    reply, data = shipped.read(shard, f"{view}:{k}", view, worlds.views_of(world).views[view].digest)
    return entry.decode(data).payload if reply == "HIT" else None


def _short(seen: str) -> str:
    numbers = [str(int(seen[i : i + 16], 16)) for i in range(1, len(seen), 16)]
    return f"proof {seen[0]} {' '.join(numbers)}"


# --- the fair run at the end ----------------------------------------------------------------------------------------


def beat_once(world: World, env: Env) -> Env:
    """Everything that is under way ends, then one more heartbeat is published."""
    env = env._replace(budget=worlds.Budget(beats=1))
    published = len(env.control)
    while True:
        ways = list(worlds.moves(world, env))
        ended = [following for label, following in ways if not label.startswith("transaction") or "visible" in label]
        if not ended:
            ended = [following for _, following in ways]
        if not env.budget.beats and len(env.control) > published and env.running is None and env.outstanding < 0:
            return env
        env = ended[-1]


def _settle(shipped: ModuleType, world: World, env: Env, shard: Any, minds: list[Mind]) -> tuple[Any, list[Mind]]:
    """Both workers go on until neither has anything to do."""
    shard, minds = copy.deepcopy(shard), list(minds)
    for _ in range(400):
        idle = True
        for i, mind in enumerate(minds):
            if mind.lost or workers.is_gap(env, mind):
                minds[i] = workers.find(shipped, world, env, shard, mind, "" if mind.lost else "gone")
                idle = False
                continue
            step: Step | None = next(workers.steps(world, env, mind), None)
            if step is not None:
                outcome = send(shipped, shard, step.call, step.request)
                kept = outcome == "APPLIED" or (step.call == "pass" and outcome != "COLD")
                minds[i] = step.mind if kept else mind.astray()
                idle = False
        if idle:
            return shard, minds
    raise AssertionError("the workers never come to rest")


__all__ = ["Result", "explore"]
