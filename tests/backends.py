"""One backend or the other, for tests of the backends themselves; all other tests take the plugin's servers."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

import pytest

from infra import backends, containers
from infra.servers import Servers
from infra.stack import Stack


def start_servers(directory: Path, backend: str) -> AbstractContextManager[Servers]:
    """The usual servers, on the backend named."""
    if backend == backends.PROCESSES:
        return Stack.start(directory)
    require_containers()
    return containers.start_servers(directory)


def require_containers() -> None:
    """Skip where containers can't be used, or fail: see `go_without`."""
    reason = backends.why_no_containers()
    if reason is not None:
        go_without(backends.CONTAINERS, f"the containers backend can't be used: {reason}")


def go_without(what: str, message: str) -> NoReturn:
    """Skip the test; in CI, where nobody reads what was skipped, fail it unless ALLOW_SKIP names `what`."""
    if backends.must_run(what, os.environ):
        pytest.fail(f"{message} (ALLOW_SKIP={what} lets CI go without)", pytrace=False)
    pytest.skip(message)
