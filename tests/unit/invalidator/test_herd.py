"""Who loads, how many at a time, and when Redis is left alone."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from invalidator.herd import Breaker, Flights, LoadGate


class Flight:
    def __init__(self) -> None:
        self.result: Any = None
        self.finished = False

    def finish(self, result: Any) -> None:
        assert not self.finished
        self.result, self.finished = result, True


def test_the_first_who_asks_leads_and_the_others_get_what_it_found() -> None:
    flights = Flights(Flight)
    first, leads = flights.lead_or_join("a")
    second, joins = flights.lead_or_join("a")
    other, leads_too = flights.lead_or_join("b")
    assert (leads, joins, leads_too) == (True, False, True)
    assert first is second is not other
    flights.land("a", 7)
    assert (first.result, other.result) == (7, None)
    assert flights.lead_or_join("a")[1]


def test_no_more_than_the_limit_are_inside_and_those_in_line_come_in_turn() -> None:
    gate = LoadGate(2, Flight)
    assert [gate.enter(0.0) for _ in range(2)] == [None, None]
    waiting = [gate.enter(0.0) for _ in range(3)]
    gate.leave(0.0)
    assert [flight.finished for flight in waiting if isinstance(flight, Flight)] == [True, False, False]
    assert gate.enter(0.0) is None
    gate.leave(0.0)
    gate.leave(0.0)
    assert [flight.finished for flight in waiting if isinstance(flight, Flight)] == [True, True, True]


def test_who_gives_up_after_being_woken_wakes_the_next() -> None:
    gate = LoadGate(1, Flight)
    assert gate.enter(0.0) is None
    first, second, third = (gate.enter(0.0) for _ in range(3))
    assert isinstance(first, Flight)
    assert isinstance(second, Flight)
    assert isinstance(third, Flight)
    gate.give_up(second)
    gate.leave(0.0)
    assert (first.finished, second.finished, third.finished) == (True, False, False)
    gate.give_up(first)
    assert third.finished


def test_after_a_raise_the_limit_doubles_every_second() -> None:
    gate = LoadGate(16, Flight)
    assert gate.limit(0.0) == 16
    gate.raised(10.0)
    gate.raised(10.5)
    assert [gate.limit(at) for at in (10.0, 10.9, 11.0, 12.0, 12.9, 13.0, 14.0)] == [2, 2, 4, 8, 8, 16, 16]
    gate.raised(20.0)
    assert gate.limit(20.0) == 2
    assert LoadGate(3, Flight).limit(0.0) == 3
    small = LoadGate(3, Flight)
    small.raised(0.0)
    assert [small.limit(at) for at in (0.0, 1.0, 2.0)] == [1, 2, 3]


def test_under_threads_nobody_waits_for_ever_and_the_limit_holds() -> None:
    class Event(Flight):
        def __init__(self) -> None:
            super().__init__()
            self.event = threading.Event()

        def finish(self, result: Any) -> None:
            super().finish(result)
            self.event.set()

    gate, inside, most, lock = LoadGate(3, Event), 0, 0, threading.Lock()

    def load(number: int) -> None:
        nonlocal inside, most
        rng = random.Random(number)
        for _ in range(50):
            while (flight := gate.enter(0.0)) is not None:
                assert isinstance(flight, Event)
                if rng.random() < 0.1:
                    gate.give_up(flight)
                elif not flight.event.wait(10):
                    raise AssertionError("nobody woke this one")
            with lock:
                inside += 1
                most = max(most, inside)
            with lock:
                inside -= 1
            gate.leave(0.0)

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(load, range(12)))
    assert most <= 3


def test_a_redis_that_fails_is_left_alone_and_tried_by_one() -> None:
    breaker = Breaker(2, 1.0)
    breaker.failed(0.0)
    assert breaker.permits(0.0)
    breaker.failed(0.0)
    assert not breaker.is_closed
    assert [breaker.permits(at) for at in (0.5, 1.0, 1.1)] == [False, True, False]
    breaker.failed(1.2)
    assert [breaker.permits(at) for at in (2.1, 2.2)] == [False, True]
    breaker.succeeded()
    assert breaker.permits(2.3)
    assert breaker.is_closed
