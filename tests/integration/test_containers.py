"""What only containers have: they go with their owner, their image is chosen, and a reason is given where there are none."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import docker
import pytest

from infra import container_warden, containers
from infra.container_handle import START_LIMIT_SECONDS
from infra.images import roles
from infra.processes import StackError
from tests.backends import require_containers
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
DEAD = f"{socket.gethostname()}/an-earlier-boot/1/1/0"
REDIS = roles.ROLES["redis"]

# The owner forks a child that outlives it, and one of its servers is paused: neither may keep a container.
OWNER = """
import json, os, signal, sys
from pathlib import Path
from infra.containers import ContainerServers

servers = ContainerServers.start(Path(sys.argv[1]), ["eu"])
servers.processes["redis-eu"].pause()
orphan = os.fork()
if orphan:
    print(json.dumps({"ids": [h.container_id for h in servers.processes.values()], "orphan": orphan}), flush=True)
signal.pause()
"""


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    require_containers()
    with closing(docker.from_env()) as client:
        yield client


def living(client: docker.DockerClient, ids: list[str]) -> set[str]:
    return {c.id for c in client.containers.list(all=True, ignore_removed=True)} & set(ids)


def test_kill_9_of_the_owner_leaves_no_container(client: docker.DockerClient, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        told = json.loads(owner.stdout.readline())
        try:
            assert len(living(client, told["ids"])) == 3
            volumes = {mount["Name"] for i in told["ids"] for mount in client.containers.get(i).attrs["Mounts"]}
            owner.kill()
            owner.wait(5)
            wait_until(lambda: not living(client, told["ids"]), "no container is left", seconds=20)
            assert not volumes & {volume.name for volume in client.volumes.list()}
        finally:
            os.kill(told["orphan"], signal.SIGKILL)
            for left in living(client, told["ids"]):
                client.containers.get(left).remove(force=True, v=True)


def test_leaving_with_removes_the_containers_and_keeps_their_logs(client: docker.DockerClient, tmp_path: Path) -> None:
    with containers.ContainerServers.start(tmp_path, []) as servers:
        ids = [handle.container_id for handle in servers.processes.values()]
        assert len(living(client, ids)) == 2
        ports = [client.containers.get(i).ports for i in ids]
        published = [address["HostIp"] for port in ports for addresses in port.values() for address in addresses]
        assert published == ["127.0.0.1"] * 2
        assert all(seconds < START_LIMIT_SECONDS for seconds in servers.start_seconds.values())
    assert living(client, ids) == set()
    assert "ready to accept connections" in (tmp_path / "logs" / "postgres.log").read_text()


def test_what_a_dead_owner_left_is_removed_and_what_a_living_one_has_is_not(client: docker.DockerClient) -> None:
    image = roles.choose(client, REDIS, {})
    mine = containers.owner_text()
    ids = {
        owner: client.containers.create(image, labels={container_warden.LABEL: owner}).id
        for owner in (DEAD, mine, "elsewhere/boot/1/1/0")
    }
    try:
        assert containers.remove_orphans(client) == 1
        assert living(client, list(ids.values())) == set(ids.values()) - {ids[DEAD]}
    finally:
        for left in living(client, list(ids.values())):
            client.containers.get(left).remove(force=True, v=True)


def test_a_server_that_does_not_start_says_why_and_leaves_nothing(client: docker.DockerClient, tmp_path: Path) -> None:
    before = {c.id for c in client.containers.list(all=True, ignore_removed=True)}
    began = time.monotonic()
    with pytest.raises(StackError, match=r"redis-eu (.|\n)*no-such-setting"):
        containers.ContainerServers.start(tmp_path, ["eu"], redis_settings={"no-such-setting": "1"})
    labelled = client.containers.list(all=True, filters={"label": container_warden.LABEL}, ignore_removed=True)
    mine = [c.id for c in labelled if c.labels[container_warden.LABEL].split("/")[2] == str(os.getpid())]
    assert not set(mine) - before
    assert time.monotonic() - began < START_LIMIT_SECONDS / 4  # its end was seen, not waited for


def test_an_image_that_was_asked_for_is_the_one_that_is_used(
    client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = roles.choose(client, REDIS, {})
    monkeypatch.setenv("STALEPROOF_IMAGE_REDIS", "valkey/valkey:8")
    assert roles.choose(client, REDIS, {}) == "valkey/valkey:8"
    assert roles.choose(client, REDIS, {"redis": "redis:7.4"}) == "redis:7.4"
    monkeypatch.setenv("STALEPROOF_IMAGE_REDIS", "")
    assert roles.choose(client, REDIS, {}) == usual
