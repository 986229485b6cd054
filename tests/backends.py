"""Which backend the session's servers run on: STALEPROOF_BACKEND is `processes` (unless told otherwise) or `containers`."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from infra import containers
from infra.servers import Servers
from infra.stack import Stack

VARIABLE = "STALEPROOF_BACKEND"
ALLOW_SKIP = "ALLOW_SKIP"


def start_servers(directory: Path, backend: str | None = None) -> AbstractContextManager[Servers]:
    """The usual servers, on the session's backend or the one named."""
    backend = backend or os.environ.get(VARIABLE, "processes")
    if backend == "processes":
        return Stack.start(directory)
    if backend == "containers":
        require_containers()
        return containers.start_servers(directory)
    raise pytest.UsageError(f"{VARIABLE} is {backend!r}: say processes or containers")


def require_containers() -> None:
    """Skip where containers can't be used; in CI, where nobody reads what was skipped, fail unless that is allowed."""
    reason = containers.unavailable()
    if reason is None:
        return
    message = f"the containers backend can't be used: {reason}"
    if os.environ.get("CI") and "containers" not in os.environ.get(ALLOW_SKIP, "").split(","):
        pytest.fail(f"{message} ({ALLOW_SKIP}=containers lets CI go without)", pytrace=False)
    pytest.skip(message)
