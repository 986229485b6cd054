"""The reader's logic, once for sync and async: it yields what it needs done and a driver does it. Pure.

    near cache -> look in Redis -> judge -> join another's load, or take a lease -> load -> judge -> fill

In flow keys and a Need; out flow values, each judged. Whatever Redis does not answer is loaded; only the database's own
errors, Overloaded and Unproven reach the caller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from cdc.errors import BadRecord, FatalError, TransientError
from invalidator import entry as entries
from invalidator.guard import Fill, Outcome
from invalidator.herd import Breaker, Flight, Flights, Limits, LoadGate
from invalidator.judging import (
    ANY,
    NOWHERE_NEAR,
    UNKNOWN_MS,
    DatabaseClock,
    Evidence,
    Need,
    Watermark,
    objection,
    of_entry,
    of_load,
    parse_watermark,
)
from invalidator.layout import Layout
from invalidator.loading import ClockReading, FillMaker, Loaded
from invalidator.near import Kept, Near, NearCache
from invalidator.reader_acts import AWAY, AskClock, Flow, Found, Lease, Load, Look, Offer, Pause, Wait
from invalidator.reader_commands import Looked
from invalidator.sessions import SourceFault
from invalidator.tokens import Relation, Token, is_shown, relation
from invalidator.typed_views import OnDoubt, TypedView, render
from invalidator.views import View

T = TypeVar("T")

PAUSE_SECONDS = (0.004, 0.012)
"""Between two looks of who waits for another process's load; longer each time."""

PAUSE_SECONDS_MAX = 0.1

RENEWED_MAX = 256
"""Ageing values that are looked for in the background, at a time."""

LOOK_EVERY = 4
"""Who waits for room in the region looks in every so many pauses whether the value is there."""

PATIENCE = 0.5
"""After this share of `wait_seconds` who waits for a lease of a key loads it beside its holder."""


class Overloaded(TransientError):
    """As many loads as allowed are under way, and none ended in time."""


class Unproven(TransientError):
    """The value may be older than what was asked for, even from the primary."""


class Counts(Counter[str]):
    """What happened to the reads.

    hit, near, miss, old, token, closed, cold, down, bypassed (Redis was left alone), foreign (an alarm), undecodable;
    loaded, shared, waited, overloaded, beyond_bound, clock_unknown, aside_failed; filled, superseded, unproven,
    oversize, refused, refused:<reason>.
    """


_CLOCK = "clock"
"""The flight of a question for the database's time; those of loads are named by view and key."""

REDIS_FAULTS = (TransientError, FatalError)
"""What a region raises, whether it passes by itself or a person must mend it: the database has the values anyway."""


class _Visit(msgspec.Struct):
    """What one call has learnt so far."""

    view: TypedView[Any]
    need: Need
    snapshot: Any
    deadline: float
    patient_until: float
    found: dict[str, Found] = {}
    marks: dict[int, Watermark] = {}
    spares: dict[str, Found] = {}
    fields: dict[str, str] = {}
    away: bool = False
    fillable: bool = True


class Reading:
    """The logic of one reader. `make_flight` and `clock` (monotonic seconds) are the driver's; so is `alarm`."""

    def __init__(
        self,
        layout: Layout,
        limits: Limits,
        near: Near | None,
        *,
        owner: str,
        clock: Callable[[], float],
        share: Callable[[], float],
        make_flight: Callable[[], Flight],
        alarm: Callable[[str, str], None],
    ) -> None:
        """`share` gives random numbers of 0..1, `owner` is 16 hexadecimal digits that no other process has."""
        self.counts = Counts()
        self._refresh_after = 1.0 if near is None else near.refresh_after
        self._layout = layout
        self._limits = limits
        self._near_settings = near
        self._make_flight = make_flight
        self._clock = clock
        self._share = share
        self._alarm = alarm
        self._breaker = Breaker(limits.breaker_failures, limits.breaker_seconds)
        self._database_clock = DatabaseClock()
        self._closed: set[tuple[str, int]] = set()
        self._last_watermark = ("", "", parse_watermark("", ""))
        self._renewed: set[tuple[str, str]] = set()
        self.begin(owner)

    def begin(self, owner: str) -> None:
        """Also in a child of the process: what others have under way there never ends, and their locks stay taken."""
        self._owner = owner
        self._flights = Flights(self._make_flight)
        self._gate = LoadGate(self._limits.loads, self._make_flight)
        self.near = None if self._near_settings is None else NearCache(self._near_settings)
        self._renewed.clear()

    def get(self, view: TypedView[T], key: object, need: Need = ANY, snapshot: Any = None) -> Flow[Found]:
        """The value of one key, past the near cache (`nearby`)."""
        name = view.name(key)
        seen: dict[int, Looked] = {}
        judgeable = need.bound_ms is None or self._now_ms() is not None
        if judgeable and not need.strong and self._breaker.is_closed:  # the shortest way to the commonest answer
            shard = self._layout.place(name)[0]
            try:
                looked = seen[shard] = yield Look(shard, (name,), view.view)
            except REDIS_FAULTS as error:
                seen[shard] = self._failed(view, error)
            else:
                self._breaker.succeeded()
                data = looked.entries[0]
                if data is not None:
                    found, against = self._judge(view, need, name, data, looked)
                    if found is not None and against is None:
                        self.counts["hit"] += 1
                        return found
        return (yield from self._read(view, {name: key}, need, snapshot, seen))[name]

    def get_many(
        self, view: TypedView[T], keys: Iterable[Any], need: Need = ANY, snapshot: Any = None
    ) -> Flow[dict[Any, Found]]:
        """The values of several keys, in as few requests as there are shards."""
        names = {key: view.name(key) for key in keys}
        wanted: dict[str, Any] = {}
        near: dict[str, Found] = {}
        for key, name in names.items():
            found = self.nearby(view, key, need)
            if found is None:
                wanted[name] = key
            else:
                near[name] = found
        try:
            read = (yield from self._read(view, wanted, need, snapshot)) if wanted else {}
        except BaseException:  # nobody runs their flows now
            self._renewed -= {(view.view.name, name) for name, one in near.items() if one.again is not None}
            raise
        every = near | read
        return {key: every[name] for key, name in names.items()}

    def nearby(self, view: TypedView[T], key: object, need: Need) -> Found | None:
        """What the near cache has, where that is new enough; with a flow to run beside its use where it is ageing."""
        near, bound_ms = self.near, need.bound_ms
        if near is None or bound_ms is None or need.strong:
            return None
        name, title = view.name(key), view.view.name
        kept = near.find(title, name)
        if kept is None:
            return None
        evidence, now_ms = kept.evidence, self._database_clock.at_most_ms(self._clock())
        if now_ms is None or objection(need, evidence, now_ms) is not None:
            return None
        found = Found(kept.value, kept) if kept.view is view else _decoded(view, kept)
        if found is None:
            return None
        self.counts["near"] += 1
        fresh_ms = bound_ms * self._refresh_after
        if now_ms - evidence.fresh_ms <= fresh_ms or (title, name) in self._renewed:
            return found
        if len(self._renewed) >= RENEWED_MAX:
            return found
        self._renewed.add((title, name))
        return Found(found.value, kept, self._renew(view, name, key, Need(bound_ms=int(fresh_ms))))

    def _renew(self, view: TypedView[T], name: str, key: object, need: Need) -> Flow[None]:
        """Look for a newer value, for whoever asks next."""
        try:
            yield from self._read(view, {name: key}, need, None)
        finally:
            self._renewed.discard((view.view.name, name))

    def passed(self, token: Token, view: View) -> Flow[bool]:
        """Whether the whole region has applied what the token names; False too while that cannot be asked."""
        for shard in range(self._layout.shards):
            try:
                looked: Looked = yield Look(shard, (), view)
            except REDIS_FAULTS:
                return False
            mark = parse_watermark(looked.watermark, looked.epoch)
            related = relation(token.history, mark.history)
            if mark.time_ms == UNKNOWN_MS or related is Relation.UNKNOWN:
                return False
            if related is Relation.SAME and not is_shown(token, (mark.proof,), logged_before=mark.lsn):
                return False
        return True

    def forget(self, view: View, key: object) -> None:
        """Drop a value from the near cache."""
        if self.near is not None:
            self.near.forget(view.name, render(view, key))

    # -- the way of a read

    def _read(
        self,
        view: TypedView[Any],
        wanted: Mapping[str, Any],
        need: Need,
        snapshot: Any,
        seen: Mapping[int, Looked] | None = None,
    ) -> Flow[dict[str, Found]]:
        """`seen`: replies that are there already."""
        now = self._clock()
        if need.bound_ms is not None and self._now_ms() is None:
            yield from self._learn_time(now + self._limits.wait_seconds)
        wait = self._limits.wait_seconds
        visit = _Visit(view, need, snapshot, now + wait, now + wait * PATIENCE)
        left = dict(wanted)
        if not need.strong:
            yield from self._look(visit, left, seen or {})
        if left:
            try:
                yield from self._load_once(visit, left)
            except (Overloaded, SourceFault) as error:
                if isinstance(error, Overloaded):
                    self.counts["overloaded"] += 1
                if view.on_doubt is not OnDoubt.OPEN or not left.keys() <= visit.found.keys() | visit.spares.keys():
                    raise
                self.counts["beyond_bound"] += len(left.keys() - visit.found.keys())
                visit.found = visit.spares | visit.found
        return visit.found

    def _learn_time(self, deadline: float) -> Flow[None]:
        """Ask for the database's time; one at a time in this process, the others wait for the answer."""
        flight, leads = self._flights.lead_or_join(_CLOCK)
        if not leads:
            yield Wait(flight, max(0.0, deadline - self._clock()))
            return
        try:
            self._observe((yield AskClock()))
        except SourceFault:
            self.counts["clock_unknown"] += 1  # no age can be proven: the load that follows will say why
        finally:
            self._flights.land(_CLOCK, None)

    def _failed(self, view: TypedView[Any], error: Exception) -> Looked:
        """Redis did not answer."""
        self._breaker.failed(self._clock())
        self._note_fault(view, error)
        return AWAY

    def _note_fault(self, view: TypedView[Any], error: Exception) -> None:
        self.counts["down"] += 1
        if isinstance(error, FatalError):  # a wrong password, say: the application goes on without its cache
            self._alarm("region_refuses", view.view.name)

    def _look(self, visit: _Visit, left: dict[str, Any], seen: Mapping[int, Looked]) -> Flow[None]:
        """Look for what is left in Redis; what may be served is found, and left no more."""
        for shard, names in self._by_shard(left).items():
            looked = seen.get(shard)
            if looked is None:
                if not self._breaker.permits(self._clock()):
                    self.counts["bypassed"] += len(names)
                    visit.away = True
                    return
                try:
                    looked = yield Look(shard, names, visit.view.view)
                except REDIS_FAULTS as error:
                    looked = self._failed(visit.view, error)
            if looked is AWAY:
                visit.away = True
                return
            self._breaker.succeeded()
            self._note_status(visit, shard, looked)
            if looked.status != "OPEN":
                self.counts[looked.status.lower()] += len(names)
                visit.marks[shard] = self._watermark(looked)
                continue
            if not visit.need.nothing or None in looked.entries:
                visit.marks[shard] = self._watermark(looked)
            for name, data in zip(names, looked.entries, strict=True):
                if data is None:
                    self.counts["miss"] += 1
                elif self._serve(visit, looked, name, data):
                    del left[name]

    def _serve(self, visit: _Visit, looked: Looked, name: str, data: bytes) -> bool:
        """Judge one entry; True where it is found."""
        found, against = self._judge(visit.view, visit.need, name, data, looked)
        if found is not None and against is None:
            self.counts["hit"] += 1
            visit.found[name] = found
            return True
        self.counts[str(against)] += 1
        if against == "foreign":
            self._alarm("foreign_entry", visit.view.view.name)
        elif against == "old" and found is not None:
            visit.spares[name] = found
        return False

    def _judge(
        self, view: TypedView[Any], need: Need, name: str, data: bytes, looked: Looked
    ) -> tuple[Found | None, str | None]:
        """What an entry holds, and why it will not do: foreign, undecodable, token or old; None where it will."""
        key = name.encode()
        known = entries.peek(data, view.name_bytes, key)
        if known is None:
            return None, "foreign"
        content, encoding, begins = known
        try:
            if need.nothing:  # no need to copy the payload
                return Found(None if content == "a" else view.coder.decode(encoding, memoryview(data)[begins:])), None
            payload = None if content == "a" else data[begins:]
            value = None if payload is None else view.coder.decode(encoding, payload)
            seen, as_of_ms, event = entries.shown(data, begins - len(view.name_bytes) - len(key))
        except BadRecord:
            return None, "undecodable"
        evidence = of_entry(seen, as_of_ms, self._watermark(looked), event=event)
        kept = self._kept(view, value, payload, encoding, evidence, entries.generations(data) if self.near else "")
        self._keep(view, name, kept)
        return Found(value, kept), objection(need, evidence, self._now_ms())

    def _watermark(self, looked: Looked) -> Watermark:
        """That of a reply; it changes a few times a second, so the last one is remembered."""
        watermark, epoch, mark = self._last_watermark
        if watermark != looked.watermark or epoch != looked.epoch:
            mark = parse_watermark(looked.watermark, looked.epoch)
            self._last_watermark = (looked.watermark, looked.epoch, mark)
        return mark

    def _load_once(self, visit: _Visit, left: dict[str, Any]) -> Flow[None]:
        """Load what is left, each key once in this process: who comes second waits for the first."""
        if visit.need.strong or visit.snapshot is not None:  # what others began is not what was asked for
            yield from self._load_leased(visit, dict(left))
            return
        led: dict[str, Any] = {}
        joined: dict[str, Flight] = {}
        end: Exception | None = None
        try:
            for name, key in left.items():
                flight, leads = self._flights.lead_or_join((visit.view.view.name, name))
                if leads:
                    led[name] = key
                else:
                    joined[name] = flight
            if led:
                yield from self._load_leased(visit, dict(led))
        except Exception as error:
            end = error
            raise
        finally:
            for name in led:
                self._flights.land((visit.view.view.name, name), visit.found.get(name, end))
        again: dict[str, Any] = {}
        abandoned: dict[str, Any] = {}
        for name, flight in joined.items():
            is_over = yield Wait(flight, max(0.0, visit.deadline - self._clock()))
            if is_over and flight.result is None:
                abandoned[name] = left[name]
            elif not self._share_in(visit, name, flight.result):
                again[name] = left[name]
        if abandoned:  # whoever led was cancelled: one of those who waited leads now
            yield from self._load_once(visit, abandoned)
        if again:  # whoever led found it in Redis, asked for less, or takes too long
            yield from self._look_again(visit, again)
            yield from self._load_leased(visit, again)

    def _share_in(self, visit: _Visit, name: str, result: Found | Exception | None) -> bool:
        """Whether what another loaded will do here too; its error is ours."""
        if isinstance(result, Unproven):  # who led may have asked for more
            return False
        if isinstance(result, Exception):
            raise result
        if result is None or result.kept is None:
            return False
        if objection(visit.need, result.kept.evidence, self._now_ms()):
            return False
        found = _decoded(visit.view, result.kept)
        if found is None:
            return False
        self.counts["shared"] += 1
        visit.found[name] = found
        return True

    def _load_leased(self, visit: _Visit, left: dict[str, Any]) -> Flow[None]:
        """Load what this process and the region let us load; meanwhile look whether others have filled the rest."""
        low, high = PAUSE_SECONDS
        is_late = False
        while left:
            is_late |= yield from self._enter(visit)
            try:
                granted = yield from self._take_in_turn(visit, left, is_late=is_late)
                if granted:
                    yield from self._load(visit, {name: left.pop(name) for name in granted})
            except GeneratorExit:  # nobody is there who could still do anything
                raise
            except BaseException:  # a cancelled load too must not keep others from loading
                yield from self._give_back(visit, tuple(visit.fields))
                raise
            finally:
                self._gate.leave(self._clock())
            if granted or not left:
                continue
            yield from self._pause(visit, low, high)
            low, high, is_late = min(low * 1.5, PAUSE_SECONDS_MAX), min(high * 1.5, PAUSE_SECONDS_MAX), True
            yield from self._look_again(visit, left)

    def _take_in_turn(self, visit: _Visit, left: dict[str, Any], *, is_late: bool) -> Flow[list[str]]:
        """Which of these to load now; none while others load them. Who finds the region full keeps its turn."""
        turns = 0
        while left:
            granted, is_held = yield from self._take(visit, left)
            if granted and is_late:  # whoever had the lease has filled it since we looked
                again = {name: left.pop(name) for name in granted}
                yield from self._look_again(visit, again)
                yield from self._give_back(visit, [name for name in granted if name not in again])
                left |= again
                granted = list(again)
            if granted or is_held:
                return granted
            if left:
                yield from self._pause(visit, *PAUSE_SECONDS)
                turns += 1
                is_late = True
                if turns % LOOK_EVERY == 0:
                    yield from self._look_again(visit, left)
        return []

    def _pause(self, visit: _Visit, low: float, high: float) -> Flow[None]:
        remaining = visit.deadline - self._clock()
        if remaining <= 0:
            raise Overloaded(
                f"view {visit.view.view.name}: {self._limits.region_loads} loads are under way in the region and none "
                f"ended within {self._limits.wait_seconds} s: look at the database, or raise Limits"
            )
        self.counts["waited"] += 1
        yield Pause(min(low + (high - low) * self._share(), remaining))

    def _look_again(self, visit: _Visit, left: dict[str, Any]) -> Flow[None]:
        """Whether others have filled what is left, where they can."""
        if visit.fillable and not visit.away and not visit.need.strong:
            yield from self._look(visit, left, {})

    def _take(self, visit: _Visit, left: Mapping[str, Any]) -> Flow[tuple[list[str], bool]]:
        """Which of these may be loaded now, and whether others load one of them.

        While Redis is away only this process's own limit holds.
        """
        limits = self._limits
        if visit.away or not limits.region_loads:
            return list(left), False
        alone = visit.fillable and not visit.need.strong and self._clock() < visit.patient_until
        granted: list[str] = []
        is_held = False
        for shard, names in self._by_shard(left).items():
            fields = names if alone else tuple(f"{name}\0{self._owner}{int(self._share() * 1e9):x}" for name in names)
            visit.fields |= zip(names, fields, strict=True)  # whoever is interrupted here may have them
            try:
                answers = yield Lease(shard, fields, limits.lease_seconds)
            except REDIS_FAULTS as error:
                self._note_fault(visit.view, error)
                for name in names:
                    del visit.fields[name]
                visit.away = True
                return list(left), False
            is_held |= "HELD" in answers
            for name, answer in zip(names, answers, strict=True):
                if answer == "GRANTED":
                    granted.append(name)
                else:
                    del visit.fields[name]
        return granted, is_held

    def _load(self, visit: _Visit, keys: Mapping[str, Any]) -> Flow[None]:
        """One transaction for all of `keys`, judged, and offered to the cache."""
        loaded, evidences = yield from self._prove(visit, keys)
        encoded = {name: self._encode(visit.view, value) for name, value in loaded.value.items()}
        self.counts["loaded"] += len(keys)
        generations = self.near.generations(visit.view.view.name) if self.near else ""
        for name, (encoding, payload) in encoded.items():
            known = evidences.get(name)
            kept = None
            if known is not None and not loaded.own:
                stored = msgspec.structs.replace(known, final=False)
                kept = self._kept(visit.view, loaded.value[name], payload, encoding, stored, generations)
            visit.found[name] = Found(loaded.value[name], kept, own=known if loaded.own else None)
            if kept is not None:
                self._keep(visit.view, name, kept)
        yield from self._store(visit, encoded, None if loaded.own else loaded.stored)

    def _prove(self, visit: _Visit, keys: Mapping[str, Any]) -> Flow[tuple[Loaded, dict[str, Evidence]]]:
        """Load; once more, from the primary, where that does not prove what is asked for."""
        loaded: Loaded = yield Load(visit.view, keys, visit.need.strong, visit.snapshot)
        evidences = self._evidence(visit, keys, loaded)
        if self._against(visit, keys, evidences):
            loaded = yield Load(visit.view, keys, True, None)
            evidences = self._evidence(visit, keys, loaded)
            against = self._against(visit, keys, evidences)
            if against:
                raise Unproven(
                    f"view {visit.view.view.name}: what was loaded is not proven to be what was asked for ({against}): "
                    "lend the reader sessions of the primary, and load without writing"
                )
        return loaded, evidences

    def _evidence(self, visit: _Visit, keys: Collection[str], loaded: Loaded) -> dict[str, Evidence]:
        """What is known of the loaded values, by cache key; nothing where the load is unproven."""
        self._observe(loaded.clock)
        if loaded.proof is None:
            return {}
        seen, known = loaded.proof.snapshot, {}
        asked_for = visit.need.token.history if visit.need.token else ""
        for name in keys:
            mark = visit.marks.get(self._layout.place(name)[0], NOWHERE_NEAR)
            evidence = of_load(seen.history, seen.text, loaded.proof.as_of_ms, mark)
            later = (relation(seen.history, mark.history), relation(seen.history, asked_for))
            replaced = Relation.EARLIER in later  # a server that is the primary no more
            final, fresh_ms = loaded.begun_now and not replaced, UNKNOWN_MS if replaced else evidence.fresh_ms
            known[name] = msgspec.structs.replace(evidence, final=final, fresh_ms=fresh_ms, showed=loaded.showed)
        return known

    def _against(self, visit: _Visit, keys: Collection[str], evidences: Mapping[str, Evidence]) -> str | None:
        if visit.need.nothing:
            return None
        if len(evidences) < len(keys):
            return "unproven"
        now_ms = self._now_ms()
        return next((why for e in evidences.values() if (why := objection(visit.need, e, now_ms))), None)

    def _enter(self, visit: _Visit) -> Flow[bool]:
        """Wait for a turn to load; whether that took time."""
        is_late = False
        while (flight := self._gate.enter(self._clock())) is not None:
            woken = False
            try:
                remaining = visit.deadline - self._clock()
                woken = remaining > 0 and (yield Wait(flight, remaining))
            finally:
                if not woken:
                    self._gate.give_up(flight)
            if not woken:
                raise Overloaded(
                    f"view {visit.view.view.name}: {self._limits.loads} loads are under way in this process and none "
                    f"ended within {self._limits.wait_seconds} s: look at the database, or raise Limits"
                )
            is_late = True
        return is_late

    def _encode(self, view: TypedView[Any], value: Any) -> tuple[str, bytes | None]:
        return ("j", None) if value is None else view.coder.encode(value)

    def _store(self, visit: _Visit, encoded: Mapping[str, tuple[str, bytes | None]], proof: Any) -> Flow[None]:
        """Offer what was loaded to the cache, which may refuse it: the value is good all the same."""
        if visit.away:
            yield from self._give_back(visit, encoded)  # those of shards that answered
            return
        if proof is None:
            self.counts["unproven"] += len(encoded)
        makers: dict[str, FillMaker] = {}
        offers: dict[int, list[Fill]] = {}
        kept_back: list[str] = []
        lifetime = 1 - self._limits.ttl_jitter * self._share()
        for name, (encoding, payload) in encoded.items():
            if proof is None or not proof.storable or len(payload or b"") > self._limits.payload_bytes_max:
                self.counts["oversize"] += proof is not None
                kept_back.append(name)
                continue
            maker = makers.get(encoding)
            if maker is None:
                maker = makers[encoding] = FillMaker(
                    visit.view.view, self._layout, proof, encoding=encoding, lifetime_share=lifetime
                )
            shard, fill = maker.fill(name, payload)
            offers.setdefault(shard, []).append(fill)
        yield from self._give_back(visit, kept_back)
        try:
            for shard, fills in offers.items():
                for filled in (yield Offer(shard, fills)):
                    self.counts["filled" if filled.outcome is Outcome.APPLIED else filled.outcome.lower()] += 1
                    if filled.reason:
                        self.counts[f"refused:{filled.reason}"] += 1
        except REDIS_FAULTS as error:
            self._note_fault(visit.view, error)  # the values are good; only the cache did not take them
            return
        ended = [name for name in encoded if visit.fields.get(name) == name]
        for name in ended:  # by the fill
            del visit.fields[name]
        yield from self._give_back(visit, encoded)

    def _give_back(self, visit: _Visit, names: Collection[str]) -> Flow[None]:
        """End leases that no fill ends; one that cannot be ended expires."""
        fields = {name: visit.fields.pop(name) for name in names if name in visit.fields}
        try:
            for shard, leased in self._by_shard(fields).items():
                yield Lease(shard, tuple(fields[name] for name in leased), 0.0)
        except REDIS_FAULTS as error:
            self._note_fault(visit.view, error)

    # -- small parts

    def _by_shard(self, names: Iterable[str]) -> dict[int, tuple[str, ...]]:
        shards: dict[int, list[str]] = {}
        for name in names:
            shards.setdefault(self._layout.place(name)[0], []).append(name)
        return {shard: tuple(some) for shard, some in shards.items()}

    def _now_ms(self) -> int | None:
        return self._database_clock.at_most_ms(self._clock())

    def _observe(self, reading: ClockReading | None) -> None:
        if reading is not None:
            self._database_clock.observe(reading.time_ms, reading.asked)

    def _note_status(self, visit: _Visit, shard: int, looked: Looked) -> None:
        view = visit.view.view.name
        if looked.status == "OPEN":
            self._closed.discard((view, shard))
            return
        visit.fillable = False
        if (view, shard) in self._closed:  # one that stays closed beside open ones is not raised again and again
            return
        self._closed.add((view, shard))
        self._gate.raised(self._clock())
        if self.near is not None:
            self.near.forget_view(view)

    def _kept(
        self,
        view: TypedView[Any],
        value: Any,
        payload: bytes | None,
        encoding: str,
        evidence: Evidence,
        generations: str,
    ) -> Kept:
        if view.coder.shareable:
            return Kept(payload, encoding, evidence, generations, view, value)
        return Kept(payload, encoding, evidence, generations)

    def _keep(self, view: TypedView[Any], name: str, kept: Kept) -> None:
        if self.near is not None and view.need.bound_ms is not None:
            if kept.generations:
                self.near.moved_on(view.view.name, kept.generations)
            self.near.keep(view.view.name, name, kept)


def _decoded(view: TypedView[Any], kept: Kept) -> Found | None:
    """None where another reader of the same view keeps another type."""
    if kept.view is view:
        return Found(kept.value, kept)
    try:
        return Found(None if kept.payload is None else view.coder.decode(kept.encoding, kept.payload), kept)
    except BadRecord:
        return None
