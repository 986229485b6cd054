"""A rebuild of one region of the running demonstration: `staleproof replay database`, killed twice and gone on with.

In flow the settings file and how many keys there are; out flows the summary of the run that completed it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psycopg

from infra.demo.crew import DemoError, last_line
from infra.demo.data import SLEEPERS_FIRST

REGION = "eu"
KILL_AT_SHARES = (0.2, 0.5)
"""How far it is, of all keys, when it is killed."""

KEYS_PER_SECOND_MIN = 2_000
"""Slower than this, on a machine that does everything else as well, it has failed."""


def load_sleepers(connection: psycopg.Connection[Any], keys: int, first: int = SLEEPERS_FIRST) -> None:
    """Contacts that the workload does not write to: what makes a cache large."""
    connection.execute(
        "INSERT INTO contacts SELECT n, 'c' || n || '@example.com', 'Ada', 'Sleeper', 'Lima', 'es', 'subscribed',"
        " jsonb_build_object('points', mod(n, 5000), 'tier', 'C')"
        " FROM generate_series(%s::bigint, %s::bigint) AS n",
        (first, first + keys - 1),
    )
    connection.execute("ANALYZE contacts")


class Replay:
    """The command, again and again until it is complete."""

    def __init__(self, place: Path, environment: Mapping[str, str], keys: int) -> None:
        self._state = place / "replay.json"
        self._log = place / "logs" / "replay.log"
        self._environment = environment
        self._keys = keys
        self._command = [
            *(sys.executable, "-m", "consumers.cli", "replay", "database", "--view", "contact", "--region", REGION),
            *("--json", "--config", str(place / "staleproof.yaml"), "--state", str(self._state)),
        ]

    def run(self, tick: Callable[[str], None]) -> dict[str, Any]:
        """Kill it, kill it again, let it end. `tick` is called meanwhile, with what is going on."""
        began = time.monotonic()
        killed_at = [self._until(share, tick) for share in KILL_AT_SHARES]
        with self._log.open("ab") as sink:
            process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=sink, env=dict(self._environment))
        try:
            while process.poll() is None:
                self._check_time(began)
                tick(f"rebuilding after two kills, {self._done():,} keys done")
            assert process.stdout is not None
            out = process.stdout.read()
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            raise DemoError(f"the rebuild ended with {process.returncode}: {last_line(self._log)} (see {self._log})")
        summary = json.loads(out)
        return {
            "keys": summary["views"]["contact"]["read"],
            "filled": summary["views"]["contact"][f"filled {REGION}"],
            "killed_at": killed_at,
            "seconds": round(time.monotonic() - began, 1),
            "last_run_keys_per_second": summary["keys_per_second"],
        }

    def _until(self, share: float, tick: Callable[[str], None]) -> int:
        """Start it, and kill it when so much is done; how many keys were."""
        began = time.monotonic()
        with self._log.open("ab") as sink:
            process = subprocess.Popen(self._command, stdout=sink, stderr=sink, env=dict(self._environment))
        try:
            while self._done() < share * self._keys:
                if process.poll() is not None:
                    raise DemoError(f"the rebuild ended too early: {last_line(self._log)} (see {self._log})")
                self._check_time(began)
                tick(f"rebuilding, {self._done():,} keys done")
        finally:
            process.kill()
            process.wait()
        return self._done()

    def _check_time(self, began: float) -> None:
        if time.monotonic() - began > 60 + self._keys / KEYS_PER_SECOND_MIN:
            raise DemoError(f"the rebuild is slower than {KEYS_PER_SECOND_MIN} keys per second (see {self._log})")

    def _done(self) -> int:
        try:
            progress = json.loads(self._state.read_text(encoding="utf-8"))["progress"]
        except FileNotFoundError:
            return 0
        return int(progress["done"])
