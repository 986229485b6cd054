"""One process of the demonstration: orders come in on standard input, counts go out on standard output as JSON lines.

The rule: a child whose standard input has ended stops, so that none outlives the process that started it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

REPORT_SECONDS = 0.25
LINGER_SECONDS = 15.0
"""A child that was told to stop and did not is ended from within."""


class Orders:
    """What the parent said so far."""

    def __init__(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C belongs to the parent
        self.measure = threading.Event()
        self.drain = threading.Event()
        self.stop = threading.Event()
        threading.Thread(target=self._listen, name="orders", daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            {"measure": self.measure, "drain": self.drain, "stop": self.stop}[line.strip()].set()
        self.stop.set()
        time.sleep(LINGER_SECONDS)
        os._exit(1)


class Tally:
    """Counts of one process, zeroed when measuring begins. Reported four times a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, counts: Mapping[str, int]) -> None:
        """Add to the counts."""
        with self._lock:
            self._counts.update(counts)

    def clear(self) -> None:
        """Begin again."""
        with self._lock:
            self._counts.clear()

    def now(self) -> dict[str, int]:
        """The counts so far."""
        with self._lock:
            return dict(self._counts)


def report(content: Mapping[str, Any]) -> None:
    """Write one line to the parent."""
    sys.stdout.buffer.write(msgspec.json.encode(content) + b"\n")
    sys.stdout.buffer.flush()


def carry_out(orders: Orders, tally: Tally, tasks: Mapping[str, Callable[[], None]]) -> int:
    """Run each task in a thread until they are stopped, with reports in turns and a last one; the exit status.

    An error in any of them stops them all: whatever it is, the demonstration has failed.
    """
    failures: list[str] = []

    def work(name: str, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as error:  # noqa: BLE001 - told below
            failures.append(f"{name}: {type(error).__name__}: {error}")
            orders.stop.set()

    threads = [threading.Thread(target=work, args=task) for task in tasks.items()]
    for thread in threads:
        thread.start()
    report_until_stopped(orders, tally)
    for thread in threads:
        thread.join()
    report(tally.now())
    print("\n".join(failures), file=sys.stderr)
    return 1 if failures else 0


def report_until_stopped(orders: Orders, tally: Tally) -> None:
    """Report in turns; zero the counts once when measuring begins."""
    measuring = False
    while not orders.stop.wait(REPORT_SECONDS):
        if orders.measure.is_set() and not measuring:
            measuring = True
            tally.clear()
        report(tally.now())
