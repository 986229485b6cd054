"""The recorder beside a rebuild: a key that moves back is counted, and nothing else is."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import msgspec

from infra.demo.child import Tally
from infra.demo.watch import Watch, recorded
from invalidator import entry as entries
from invalidator.reader_commands import Looked

KEYS = 1_000


class Region:
    """Shows the first recorded contact in one version after the other; None: without an entry."""

    def __init__(self, stop, shown):
        self.stop = stop
        self.shown = list(shown)

    def look(self, shard, keys, view, digest):
        version = self.shown.pop(0)
        if not self.shown:
            self.stop.set()
        first = None if version is None else entry(keys[0], version)
        return Looked("OPEN", "", "", [first, *[None] * (len(keys) - 1)])


def entry(key, version):
    value = msgspec.json.encode({"attributes": {"version": version} if version else {}})
    tail = entries.TailEncoder(view="contact", seen="", as_of_ms=0, expires_ms=0).encode(key, value)
    return entries.lead(entries.Kind.FILL, entries.Content.VALUE).encode() + b"0" * 64 + tail


def counted(monkeypatch, *shown):
    monkeypatch.setenv("DEMO_REDIS", "redis://127.0.0.1:1")
    orders, tally = SimpleNamespace(stop=threading.Event()), Tally()
    watch = Watch("eu", KEYS, 1, orders, tally)
    watch._region = Region(orders.stop, shown)
    watch.record()
    return tally.now()


def test_a_key_that_moves_back_is_counted_also_after_it_was_gone(monkeypatch):
    assert counted(monkeypatch, 0, 4, None, 9, 9, None, 4, 9) == {"moved_on": 3, "moved_back": 1}
    assert counted(monkeypatch, 4, 0)["moved_back"] == 1


def test_keys_that_only_move_on_or_go_do_not_move_back(monkeypatch):
    assert counted(monkeypatch, 0, 1, 1, None, 2, None, 2) == {"moved_on": 2}


def test_the_recorded_keys_are_spread_over_all():
    numbers = recorded(KEYS)
    assert len(set(numbers)) == len(numbers)
    assert numbers[-1] - numbers[0] > 0.9 * KEYS
