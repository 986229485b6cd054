"""Which connection a reader's next request uses: after a fault, and in a child of the process."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from invalidator import connect_async
from invalidator.nodes import Connection, connect
from invalidator.redis_errors import UNANSWERED, UNREACHABLE, Fault, judge


@pytest.mark.parametrize(
    ("fault", "same"), [(judge("READONLY"), False), (UNREACHABLE, False), (UNANSWERED, True), (judge("OOM"), True)]
)
def test_no_reader_keeps_connections_to_what_may_be_another_server_now(
    redis_url: str, fault: Fault, same: bool
) -> None:
    nodes = connect(Connection(url=redis_url))
    before = nodes.ask("a", "CLIENT", "ID")
    nodes.doubt(fault)
    assert (nodes.ask("a", "CLIENT", "ID") == before) is same

    async def both() -> tuple[Any, Any]:
        nodes = connect_async(Connection(url=redis_url))
        before = await nodes.call("a", "CLIENT", "ID")
        nodes.doubt(fault)
        after = await nodes.call("a", "CLIENT", "ID")
        await nodes.aclose()
        return before, after

    first, second = asyncio.run(both())
    assert (first == second) is same


def test_a_child_does_not_talk_on_its_parents_connections(redis_url: str) -> None:
    nodes = connect(Connection(url=redis_url))
    ours = nodes.ask("a", "CLIENT", "ID")
    pid = os.fork()
    if not pid:
        status = 2
        try:
            status = int(nodes.ask("a", "CLIENT", "ID") == ours)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert nodes.ask("a", "CLIENT", "ID") == ours
