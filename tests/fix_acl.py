"""Fixtures: servers that load the ACL file which `staleproof acl` prints, and nobody else may log in to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from consumers.redis_users import Role, lines, name_of
from consumers.settings import RegionSettings
from invalidator.layout import Layout
from invalidator.nodes import Connection, connect
from invalidator.region import Region
from tests.fix_redis import BINARIES, start_redis

ADMIN = "admin"
PASSWORDS = {role: f"{role}-secret" for role in Role}


class Guarded:
    """One server whose only users are those of the file, and `admin` of the tests' own."""

    def __init__(self, port: int, settings: RegionSettings) -> None:
        self.port, self.settings = port, settings
        self.layout = Layout(prefix=settings.prefix, shards=settings.shards, stripes=settings.stripes)
        self.admin = self.client(ADMIN, ADMIN)

    def client(self, name: str, password: str) -> redis.Redis:
        return redis.Redis(port=self.port, username=name, password=password)

    def login(self, role: Role) -> dict[str, str]:
        return {"username": name_of(self.settings, role), "password": PASSWORDS[role]}

    def as_(self, role: Role) -> redis.Redis:
        """What somebody with the role's login could send by hand."""
        return self.client(**{"name" if key == "username" else key: value for key, value in self.login(role).items()})

    def connection(self, role: Role) -> Connection:
        return Connection(url=self.url, **self.login(role))

    def region(self, role: Role) -> Region:
        return Region("test", connect(self.connection(role)), self.layout)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def denials(self) -> list[Any]:
        """What the server noted as refused, and forgets."""
        found = [(entry["username"], entry["reason"], entry["object"]) for entry in self.admin.acl_log()]
        self.admin.acl_log_reset()
        return found


@pytest.fixture(scope="module", params=["valkey", "redis"])
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    directory = tmp_path_factory.mktemp(f"acl-{request.param}")
    settings = RegionSettings.model_validate(
        {"url": "redis://localhost", "prefix": "app", "stripes": 256, "shards": 12}
    )
    users = [f"user {ADMIN} on >{ADMIN} ~* &* +@all", *lines(settings, list(Role), PASSWORDS)]
    file = directory / "users.acl"
    file.write_text("\n".join(users) + "\n")
    process, port = start_redis(BINARIES[request.param], directory, "--aclfile", str(file))
    server = Guarded(port, settings)
    server.admin.acl_setuser("default", enabled=False)
    yield server
    process.terminate()
    process.wait(10)
    shutil.rmtree(directory)
