"""Real PostgreSQL and Kafka. `stack` comes from the tests' own conftest where there is one, else from here."""

import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

if not (Path(__file__).parents[1] / "fix_stack.py").exists():

    @dataclass
    class _Process:
        pid: int

        def pause(self):
            psutil.Process(self.pid).suspend()

        def resume(self):
            psutil.Process(self.pid).resume()

    @dataclass
    class _Attached:
        postgres_dsn: str
        kafka_bootstrap: str
        processes: dict

    @pytest.fixture(scope="session")
    def stack(tmp_path_factory):
        """A running stack named by STALEPROOF_STACK (a file: DSN, bootstrap servers, Kafka's pid), or a new one."""
        if place := os.environ.get("STALEPROOF_STACK"):
            dsn, bootstrap, pid = Path(place).read_text().split()
            yield _Attached(dsn, bootstrap, {"kafka": _Process(int(pid))})
            return
        from infra.stack import Stack

        with Stack.start(tmp_path_factory.mktemp("stack"), ()) as started:
            yield started
