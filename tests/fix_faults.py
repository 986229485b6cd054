"""Fixtures: a server of each kind that a test may kill, roll back or replace."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import cache
from infra.processes import ServerProcess, Warden, free_port
from infra.redis_faults import RedisFaults
from tests.fix_redis import BINARIES


@pytest.fixture(params=sorted(BINARIES))
def mortal_redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisFaults]:
    """One test's own Redis, then its own Valkey, with the stack's settings."""
    guard = Warden(log=tmp_path / "warden.log")
    server = cache.server(
        program=BINARIES[request.param],
        region="eu",
        directory=tmp_path / "redis-eu",
        log=tmp_path / "redis-eu.log",
        port=free_port(),
        extra={},
    )
    process = ServerProcess(server, guard)
    process.start()
    yield RedisFaults(process)
    process.kill()
    guard.close()
