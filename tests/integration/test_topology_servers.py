"""The servers of `infra/redis_cluster.py` and `redis_sentinel.py` themselves: that they end with whoever started them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra import warden
from infra.warden import Identity
from tests.fix_redis import BINARIES
from tests.fix_stack import ROOT
from tests.waiting import wait_until

OWNER = """
import json, sys, time
from pathlib import Path
from infra import redis_cluster, redis_sentinel
from infra.processes import Warden

directory, program = map(Path, sys.argv[1:])
guard = Warden(log=directory / "warden.log")
with (
    redis_sentinel.running(program=program, directory=directory, guard=guard) as watched,
    redis_cluster.running(program=program, directory=directory, guard=guard) as cluster,
):
    processes = [*watched.servers.values(), *watched.sentinels.values(), *(m.process for m in cluster.members)]
    print(json.dumps([process.identity for process in processes]), flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_all_servers_end_when_their_owner_is_killed(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), str(BINARIES["valkey"])],
        cwd=ROOT, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert owner.stdout is not None
    servers = [Identity(*identity) for identity in json.loads(owner.stdout.readline())]
    assert len(servers) == 12
    assert all(map(warden.is_alive, servers))
    owner.kill()
    owner.wait()
    wait_until(lambda: not any(map(warden.is_alive, servers)), "every server has ended")
    owner.stdout.close()
