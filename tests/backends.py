"""One backend or the other, for tests of the backends themselves; all other tests take the plugin's servers."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

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
    """Skip where containers can't be used; in CI, where nobody reads what was skipped, fail unless that is allowed."""
    reason = backends.why_no_containers()
    if reason is None:
        return
    message = f"the containers backend can't be used: {reason}"
    if backends.must_run(backends.CONTAINERS, os.environ):
        pytest.fail(f"{message} (ALLOW_SKIP=containers lets CI go without)", pytrace=False)
    pytest.skip(message)
