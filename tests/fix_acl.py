"""Fixtures: servers that load the ACL file which `staleproof acl` prints, and nobody else may log in to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

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


SHARDS = 12


class Guarded:
    """One server whose only users are those of the file, and `admin` of the tests' own."""

    def __init__(self, port: int, settings: RegionSettings) -> None:
        self.port, self.settings = port, settings
        self.layout = Layout(prefix=settings.prefix, shards=settings.shards, stripes=settings.stripes)
        self.admin = redis.Redis(port=port, username=ADMIN, password=ADMIN)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def login(self, role: Role) -> dict[str, str]:
        return {"username": name_of(self.settings, role), "password": PASSWORDS[role]}

    def as_(self, role: Role) -> redis.Redis:
        """What somebody with the role's login could send by hand."""
        return redis.Redis.from_url(self.url, **self.login(role))

    def connection(self, role: Role) -> Connection:
        return Connection(url=self.url, **self.login(role))

    def region(self, role: Role) -> Region:
        return Region("test", connect(self.connection(role)), self.layout)

    def set_rules(self, role: Role, *rules: str) -> None:
        """As an operator would by hand; `restore` undoes it."""
        self._acl("SETUSER", name_of(self.settings, role), *rules)

    def restore(self) -> None:
        """The users as the file has them."""
        self._acl("LOAD")
        self.denials()

    def denials(self) -> list[tuple[str, str, str]]:
        """What the server noted as refused since the last time: user, reason, object."""
        log = self.admin.acl_log()
        self.admin.acl_log_reset()
        return [(e["username"], e["reason"], e["object"]) for e in log for _ in range(int(e["count"]))]

    def _acl(self, *words: str) -> None:
        self.admin.execute_command("ACL", *words)


@pytest.fixture(scope="module", params=["valkey", "redis"])
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """The library is loaded by nobody yet."""
    directory = tmp_path_factory.mktemp(f"acl-{request.param}")
    known = {
        "url": "redis://localhost",
        "prefix": "app",
        "shards": SHARDS,
        "stripes": 256,
        "reader_username": "app-reader",
    }
    settings = RegionSettings.model_validate(known)
    users = [
        "user default off",
        f"user {ADMIN} on >{ADMIN} ~* &* +@all",
        *lines(settings, list(Role), PASSWORDS, plain=["app:contact:*"]),
    ]
    file = directory / "users.acl"
    file.write_text("\n".join(users) + "\n")
    process, port = start_redis(BINARIES[request.param], directory, "--aclfile", str(file))
    yield Guarded(port, settings)
    process.terminate()
    process.wait(10)
    shutil.rmtree(directory)
