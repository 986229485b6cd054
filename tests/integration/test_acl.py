"""Redis's users of `staleproof acl`, on servers that load them from a file: each does all of its work, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import psycopg
import pytest
import redis

from cdc.errors import FatalError
from consumers import selfcheck
from consumers.findings import Finding, Level
from consumers.redis_users import Role
from consumers.rights import forbidden_to_readers, judge_rights, reader_needs, trials
from consumers.settings import RegionSettings
from infra.site import Site
from invalidator import AsyncCacheReader, AsyncRegion, CacheReader, connect_async
from invalidator.guard import Close
from invalidator.redis_errors import DENIED, judge
from invalidator.redis_facts import describe
from invalidator.region import Region
from invalidator.region_faults import RegionFault
from tests.contacts import load_contact
from tests.fix_acl import Guarded
from tests.fix_plain import PlainWorld
from tests.fix_stack import SCHEMA, VIEWS
from tests.fix_world import VIEWS as VIEWS_OF_WORLD
from tests.fix_world import World
from tests.integration.test_reader_live import paused
from tests.waiting import wait_until

OWNER = "o" * 16


@pytest.fixture
def world(guarded: Guarded) -> Iterator[World]:
    """Its worker has the worker's login; the shards are empty at first, and the users as the file has them at last."""
    guarded.admin.flushall()
    guarded.denials()
    region = guarded.region(Role.WORKER)
    region.prepare()
    yield World(region)
    guarded.restore()


def as_reader(world: World, guarded: Guarded) -> World:
    """What the world reads and fills, it does with the readers' login from now on."""
    world.worker.turn()
    world.region = guarded.region(Role.READER)
    return world


def test_workers_and_readers_do_their_work_and_nothing_of_it_is_refused(world: World, guarded: Guarded) -> None:
    world.open()
    as_reader(world, guarded)
    for number in range(24):  # keys of every shard
        key = f"contact:{number}"
        shard, _ = guarded.layout.place(key)
        assert world.region.lease(shard, [key], OWNER, 10_000, 100) == ["GRANTED"]
        assert world.fill(key).outcome == "APPLIED"
        assert world.read(key) == b"1"
        assert world.region.lease(shard, [key], OWNER, 0, 100) == ["RELEASED"]
    world.change({"id": 3})
    world.change({"id": 7, "body": "x"}, partition=("shop.public.templates", 0))
    world.drain()
    assert (world.read("contact:3"), world.read("contact:4")) == (None, b"1")
    assert world.read("template:7") is not None
    region = guarded.region(Role.WORKER)
    assert len(set(region.keys("contact:"))) == 23
    region.unlink(guarded.layout.place("contact:4")[0], ["contact:4"])
    assert region.is_full() is False
    assert guarded.denials() == []


def test_workers_remove_plain_keys_and_nothing_of_it_is_refused(world: World, guarded: Guarded) -> None:
    plain = PlainWorld(world.region)
    guarded.admin.mset({"app:contact:1": "x", "app:contact:2": "x", "another-application": "x"})
    plain.open()  # sweeps
    guarded.admin.mset({"app:contact:1": "x", "app:contact:2": "x"})
    plain.change({"id": 1})
    plain.drain()
    assert set(guarded.admin.keys("a*n*")) == {b"app:contact:2", b"another-application"}
    plain.beat()
    assert guarded.denials() == []


def test_whatever_a_reader_may_not_is_refused_when_it_is_sent(world: World, guarded: Guarded) -> None:
    world.open()
    before = [guarded.admin.hgetall(guarded.layout.header_key(shard)) for shard in range(guarded.layout.shards)]
    with guarded.as_(Role.READER) as reader:
        for command in forbidden_to_readers(guarded.settings):
            with pytest.raises(redis.exceptions.NoPermissionError):
                reader.execute_command(*command)
    after = [guarded.admin.hgetall(guarded.layout.header_key(shard)) for shard in range(guarded.layout.shards)]
    assert before == after


@pytest.mark.parametrize("rules", [(), ("+fcall",)], ids=["as made", "if it might call every function"])
def test_no_function_writes_the_guard_for_a_reader(world: World, guarded: Guarded, rules: tuple[str, ...]) -> None:
    """Naming a function as its first argument is called deprecated by Redis: without it the keys alone must hold."""
    world.open()
    guarded.set_rules(Role.READER, *rules)
    guard = (guarded.layout.header_key(0), guarded.layout.fences_key(0))
    before = [guarded.admin.hgetall(key) for key in guard]
    assert all(before)
    reader = guarded.region(Role.READER)
    world.region = reader
    world.fill("contact:1")
    layout = guarded.layout
    calls: list[list[Any]] = [
        ["FCALL", "sp1_close", 2, *guard, "1", "", "", 1, "s:", "0" * 16, ""],
        ["FCALL", "sp1_apply", 2, *guard, "1", "", 0, 1, 0, "s:", "f" * 32 + "0" * 16, 0],
        ["FCALL", "sp1_lease", 1, layout.header_key(0), "1", OWNER, 10_000, 100, "v"],
        ["FCALL", "sp1_lease", 1, layout.entry_key(0, "x}:l"), "1", OWNER, 10_000, 100, "v"],
    ]
    with guarded.as_(Role.READER) as client:
        for call in calls:
            with pytest.raises(redis.ResponseError) as refused:
                client.execute_command(*call)
            is_denied = isinstance(refused.value, redis.exceptions.NoPermissionError)
            assert is_denied or judge(str(refused.value)) is DENIED
    assert [guarded.admin.hgetall(key) for key in guard] == before


def test_a_fill_cannot_be_sent_under_the_guards_own_keys(world: World, guarded: Guarded) -> None:
    world.open()
    as_reader(world, guarded)
    header = guarded.layout.header_key(guarded.layout.place("contact:1")[0])
    before = guarded.admin.hgetall(header)
    send = world.region._nodes.ask

    def misdirected(key: str, *command: Any) -> Any:
        return send(key, *(header if str(part).endswith(":e:contact:1") else part for part in command))

    world.region._nodes.ask = misdirected  # type: ignore[method-assign]  # as somebody who speaks the protocol might
    with pytest.raises(FatalError, match="grant the user what `staleproof acl` prints"):
        world.fill("contact:1")
    assert guarded.admin.hgetall(header) == before


# -- without the library ------------------------------------------------------------------------------------------------


def test_a_reader_that_may_not_load_the_library_waits_for_who_may(world: World, guarded: Guarded) -> None:
    world.open()
    as_reader(world, guarded)
    guarded.admin.function_flush()
    for _ in range(3):
        with pytest.raises(RegionFault) as fault:
            world.read()
        assert fault.value.kind == "NOFUNCTION"
    assert guarded.denials() == [("app-reader", "command", "function|list")]  # and not one for every read
    assert asyncio.run(kinds_of_faults(guarded, 3)) == ["NOFUNCTION"] * 3
    assert len(guarded.denials()) == 1
    guarded.region(Role.WORKER).prepare()
    assert world.fill().outcome == "APPLIED"
    assert world.read() == b"1"


async def kinds_of_faults(guarded: Guarded, reads: int) -> list[str]:
    region = AsyncRegion("eu", connect_async(guarded.connection(Role.READER)), guarded.layout)
    kinds = []
    for _ in range(reads):
        with pytest.raises(RegionFault) as fault:
            await region.look(0, ["contact:1"], "contact", "0" * 16)
        kinds.append(fault.value.kind)
    await region.aclose()
    return kinds


# -- what check says ----------------------------------------------------------------------------------------------------


def findings(guarded: Guarded, role: Role = Role.WORKER, **changed: Any) -> list[Finding]:
    login = guarded.login(role)
    settings = RegionSettings.model_validate(
        {**guarded.settings.model_dump(), **login, "url": guarded.url, "topology": "single", **changed}
    )
    plain = ["app:contact:*"]
    return list(judge_rights("eu", describe(guarded.connection(role), trials(settings, plain)), settings, plain))


@pytest.mark.parametrize("role", [Role.WORKER, Role.OPERATOR])
def test_check_finds_the_users_as_they_were_made(world: World, guarded: Guarded, role: Role) -> None:
    (finding,) = findings(guarded, role)
    assert (finding.level, finding.subject) == (Level.OK, "region eu")
    assert "app-reader may read and fill, and nothing else" in finding.text
    assert guarded.denials() == []


WRONG_READERS = {
    "everything": (["+@all", "~*"], "may do more than read and fill: FLUSHALL, FLUSHDB, SWAPDB 0, KEYS *"),
    "the header": (["+hset"], "may do more than read and fill: HSET {app:0}:h, HSET {app:0}:f"),
    "all functions": (["+fcall"], "may do more than read and fill: FCALL sp1_apply, FCALL sp1_hear"),
    "no keys": (["clearselectors"], "cannot read and fill: denied are HGET {app:0}:h, HMGET {app:0}:h"),
    "no fills": (["-fcall"], "cannot read and fill: denied are FCALL sp1_fill, FCALL sp1_lease"),
}


@pytest.mark.parametrize("case", WRONG_READERS)
def test_check_says_what_a_readers_user_has_too_much_or_too_little(world: World, guarded: Guarded, case: str) -> None:
    rules, text = WRONG_READERS[case]
    guarded.set_rules(Role.READER, *rules)
    finding = findings(guarded)[0]
    assert finding.level is Level.FAIL
    assert text in finding.text
    assert finding.fix == "staleproof acl --region eu --role reader  # prints user app-reader: load it"


def test_check_says_that_a_reader_is_not_there_and_that_it_may_not_ask(world: World, guarded: Guarded) -> None:
    (finding,) = findings(guarded, reader_username="nobody")
    assert (finding.level, "there is no user nobody" in finding.text) == (Level.FAIL, True)
    guarded.set_rules(Role.WORKER, "-acl|dryrun")
    (finding,) = findings(guarded)
    assert (finding.level, finding.fix) == (Level.WARN, "ACL SETUSER <user> +acl|dryrun")
    assert findings(guarded, reader_username=None) == []


def test_check_says_that_a_worker_lacks_something(world: World, guarded: Guarded) -> None:
    guarded.set_rules(Role.WORKER, "-unlink", "-function|load")
    finding, _ = findings(guarded)
    assert finding.level is Level.FAIL
    assert "denied are FUNCTION LOAD, UNLINK {app:0}:f, UNLINK {app:0}:e:staleproof-check" in finding.text


def test_check_warns_of_a_door_beside_the_door(world: World, guarded: Guarded) -> None:
    guarded.admin.acl_setuser("default", enabled=True, nopass=True, commands=["+@all"], keys=["*"])
    _, finding = findings(guarded)
    assert finding.level is Level.WARN
    assert (finding.fix or "").startswith("ACL SETUSER default off")
    guarded.admin.acl_setuser("default", enabled=True, nopass=True, commands=["-@all", "+ping"])
    assert len(findings(guarded)) == 1


def test_what_a_reader_needs_is_what_it_is_allowed(world: World, guarded: Guarded) -> None:
    """Each right of the file is tried by check, and the other way round: without any one of them it complains."""
    needed = {command[0].lower() for command in reader_needs(guarded.settings)}
    listed = guarded.admin.acl_getuser("app-reader")
    rules = [*listed["commands"], *(rule for selector in listed["selectors"] for rule in selector[1::2])]
    granted = {word.lstrip("+").split("|")[0] for text in rules for word in str(text).split() if word[0] == "+"}
    assert granted - {"ping"} == needed


def test_an_operator_looks_and_cannot_do_more(world: World, guarded: Guarded) -> None:
    world.open()
    operator = guarded.region(Role.OPERATOR)
    facts = selfcheck.examine(operator, VIEWS_OF_WORLD, max_age_seconds=1e12)
    assert (facts.ok, len(facts.shards)) == (True, guarded.layout.shards)
    assert guarded.denials() == []
    guarded.admin.function_flush()
    for attempt in (operator.prepare, partial(operator.close, 0, Close()), partial(operator.unlink, 0, ["contact:1"])):
        with pytest.raises(FatalError, match="grant the user"):
            attempt()


# -- the whole path -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(staleproof_factory: Any, guarded: Guarded) -> Iterator[Site]:
    """Worker and capture as processes; the region's login is the worker's."""
    guarded.admin.flushall()
    settings = guarded.settings
    region = {
        **guarded.login(Role.WORKER), "reader_username": settings.reader_username,
        "prefix": settings.prefix, "shards": settings.shards, "stripes": settings.stripes,
    }  # fmt: skip
    with staleproof_factory.make(
        schema=SCHEMA, views=VIEWS, redis_urls={"eu": guarded.url}, regions={"eu": region}
    ) as made:
        yield made


@pytest.mark.slow  # servers of its own; what the users may and may not is tried one by one above
@pytest.mark.parametrize("guarded", ["valkey", "redis"], indirect=True, scope="module")
def test_applications_read_as_the_reader_beside_a_worker_and_bypass_a_server_without_the_library(
    site: Site, guarded: Guarded
) -> None:
    guarded.denials()
    site.database.execute("INSERT INTO contacts VALUES (1, 'first', 's')")
    region = Region("eu", guarded.region(Role.READER)._nodes, guarded.layout)
    reader = CacheReader(region, site.views, lambda: psycopg.connect(site.dsn, autocommit=True))
    load = load_contact(1)
    wait_until(lambda: reader.get("contact", 1, load) and reader.counts["hit"], "it is cached", seconds=20)
    assert asyncio.run(email_twice(site, guarded)) == {"hit": 2}
    site.change_and_wait("UPDATE contacts SET email = 'second' WHERE id = 1")
    assert reader.get("contact", 1, load)["email"] == "second"
    assert guarded.denials() == []

    with paused(site, "invalidate", "--region", "eu"):
        guarded.admin.function_flush()
        down = reader.counts["down"]
        assert reader.get("contact", 1, load)["email"] == "second"
        assert reader.counts["down"] > down
    wait_until(lambda: hits(reader, load), "the worker has loaded the library", seconds=20)
    reader.close()


def hits(reader: CacheReader, load: Any) -> bool:
    before = reader.counts["hit"]
    reader.get("contact", 1, load)
    return reader.counts["hit"] > before


async def email_twice(site: Site, guarded: Guarded) -> dict[str, int]:
    @asynccontextmanager
    async def lend() -> Any:
        async with await psycopg.AsyncConnection.connect(site.dsn, autocommit=True) as connection:
            yield connection

    async def load(connection: Any) -> Any:
        pytest.fail("it is cached")

    region = AsyncRegion("eu", connect_async(guarded.connection(Role.READER)), guarded.layout)
    reader = AsyncCacheReader(region, site.views, lend)
    for _ in range(2):
        assert (await reader.get("contact", 1, load))["email"] == "first"
    counts = dict(reader.counts)
    await reader.aclose()
    return counts
