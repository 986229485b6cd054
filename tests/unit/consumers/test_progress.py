"""Progress as lines or a bar, and the rate limit, on a clock of the test's own."""

from __future__ import annotations

import json
import sys

import pytest

from consumers.progress import Every, Progress, RateLimit
from consumers.service import configure_logging


class Clock:
    """Seconds that pass when told to; `waits` lists what was slept."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def test_a_limit_holds_on_average_and_gives_nothing_back_after_a_pause():
    clock = Clock()
    limit = RateLimit(100, clock=clock, wait=clock.wait)
    for _ in range(3):
        limit.spend(50)
    assert clock.waits == [0.5, 0.5]
    clock.now += 60
    limit.spend(50)
    limit.spend(50)
    assert clock.waits == [0.5, 0.5, 0.5]


def test_without_a_limit_nothing_waits():
    clock = Clock()
    RateLimit(None, clock=clock, wait=clock.wait).spend(1_000_000)
    assert clock.waits == []


def test_it_is_due_once_per_interval():
    clock = Clock()
    every = Every(1.0, clock)
    assert not every.due()
    clock.now += 1.5
    assert [every.due(), every.due()] == [True, False]
    clock.now += 0.9
    assert not every.due()
    clock.now += 0.1
    assert every.due()


def test_without_a_terminal_a_line_every_five_seconds_says_rate_rest_and_counts(capsys):
    configure_logging(as_json=True)
    clock = Clock()
    with Progress(1_000, "records", False, clock=clock) as progress:
        for _ in range(12):
            clock.now += 1
            progress.advance(10, unlinked=2, kept=0)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["done"] for line in lines] == [50, 100]
    assert {name: lines[1][name] for name in ("unit", "total", "per_second", "eta_seconds", "unlinked", "kept")} == {
        "unit": "records", "total": 1_000, "per_second": 10, "eta_seconds": 90, "unlinked": 20, "kept": 0,
    }  # fmt: skip


def test_what_an_earlier_run_did_counts_as_done_and_not_for_the_rate():
    clock = Clock()
    with Progress(1_000, "records", True, clock=clock) as progress:
        progress.begin_at(900, {"unlinked": 5})
        clock.now += 2
        progress.advance(50, unlinked=1)
        assert (progress.done, progress.per_second, progress.eta_seconds) == (950, 25, 2)
        assert progress.counts == {"unlinked": 6}


def test_an_unknown_total_has_no_rest():
    clock = Clock()
    with Progress(None, "keys", True, clock=clock) as progress:
        clock.now += 1
        progress.advance(5)
        assert progress.eta_seconds is None


@pytest.mark.parametrize(("as_json", "has_bar"), [(False, True), (True, False)])
def test_on_a_terminal_people_see_a_bar_and_stdout_stays_clean(monkeypatch, capsys, as_json, has_bar):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    clock = Clock()
    with Progress(100, "records", as_json, clock=clock) as progress:
        clock.now += 1
        progress.advance(50, unlinked=7)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("50/100" in captured.err) == has_bar
    assert ("unlinked 7" in captured.err.replace("\n", " ")) == has_bar
