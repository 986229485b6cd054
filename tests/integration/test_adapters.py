"""The examples of docs/adapters.md on real servers: each reads, writes and reads its own write, with its own driver.

One site with two regions for all of them; every test has contacts of its own.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import ModuleType
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import class_row, dict_row, namedtuple_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import create_engine, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

from cdc import ConfigError
from consumers.regions import open_region, redis_connection
from infra import postgres
from infra.pgbouncer import PgBouncer
from infra.prerequisites import MissingPrerequisite
from infra.proxy import FaultProxy
from infra.site_maker import SiteMaker
from infra.standby import Standby
from invalidator import (
    AsyncCacheReader,
    AsyncRegion,
    CachedView,
    CacheReader,
    Layout,
    Near,
    Region,
    Unproven,
    connect_async,
)
from tests.backends import go_without
from tests.examples import fastapi_sqlalchemy, pgbouncer, plain_psycopg, read_replicas, redirect
from tests.examples.contact import Contact
from tests.fix_stack import SCHEMA, VIEWS, Site

NOWHERE = "postgresql://postgres@127.0.0.1:1/none"
_serial = itertools.count(1)


@pytest.fixture(scope="module")
def site(staleproof_factory: SiteMaker) -> Iterator[Site]:
    with staleproof_factory.make(schema=SCHEMA, views=VIEWS, regions=["eu", "us"]) as site:
        yield site


@pytest.fixture
def contact_id(site: Site) -> int:
    """A subscribed contact that no other test knows."""
    number = next(_serial)
    site.change_and_wait("INSERT INTO contacts VALUES (%s, 'a@example.org', 'subscribed')", [number])
    return number


def subscribed(contact_id: int) -> Contact:
    return Contact(contact_id, "a@example.org", "subscribed")


def region_of(site: Site, name: str = "eu") -> Region:
    return open_region(site.settings, name)


def async_region_of(site: Site, name: str = "eu") -> AsyncRegion:
    known = site.settings.regions[name]
    layout = Layout(prefix=known.prefix, shards=known.shards, stripes=known.stripes)
    return AsyncRegion(name, connect_async(redis_connection(known)), layout)


def engine_of(dsn: str, **arguments: Any) -> AsyncEngine:
    return create_async_engine(dsn.replace("postgresql://", "postgresql+psycopg://"), **arguments)


def set_status(site: Site, contact_id: int, status: str) -> None:
    """By somebody else."""
    site.change_and_wait("UPDATE contacts SET status = %s WHERE id = %s", [status, contact_id])


@contextmanager
def frozen_worker(site: Site, region: str) -> Iterator[None]:
    """Nothing is invalidated there meanwhile: what its cache holds gets old."""
    (worker,) = site.running("invalidate", "--region", region)
    worker.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        worker.send_signal(signal.SIGCONT)
    site.wait_drained()


@contextmanager
def contacts_on(site: Site, pool: plain_psycopg.Pool, region: str = "eu") -> Iterator[plain_psycopg.Contacts]:
    with pool:
        contacts = plain_psycopg.Contacts(region_of(site, region), site.views, pool)
        yield contacts
        contacts.reader.close()


@pytest.fixture(scope="module")
def pooler(site: Site) -> Iterator[PgBouncer]:
    """PgBouncer with two server connections to the site's database, which it takes in turn."""
    with started_pgbouncer(site) as pooler:
        use_both_connections(pooler.dsn(site.name))
        yield pooler


@contextmanager
def started_pgbouncer(site: Site, **arguments: Any) -> Iterator[PgBouncer]:
    with ExitStack() as last:
        try:
            pooler = last.enter_context(PgBouncer.start(site.servers, **arguments))
        except MissingPrerequisite as error:
            go_without("pgbouncer", str(error))
        yield pooler


def use_both_connections(dsn: str) -> None:
    """Two transactions at the same time: from here on PgBouncer has two server connections."""
    with psycopg.connect(dsn, prepare_threshold=None) as one, psycopg.connect(dsn, prepare_threshold=None) as other:
        assert one.execute("SELECT pg_backend_pid()").fetchone() != other.execute("SELECT pg_backend_pid()").fetchone()


# --- plain psycopg ----------------------------------------------------------------------------------------------------


def check_reads_and_writes(site: Site, contact_id: int, eu: plain_psycopg.Contacts, us: plain_psycopg.Contacts) -> None:
    """A miss, a hit, and a write that is read in the other region, whose cache does not know of it yet."""
    for contacts in (eu, us):
        assert contacts.contact(contact_id) == subscribed(contact_id)
        assert contacts.contact(contact_id) == subscribed(contact_id)
        assert contacts.reader.counts["hit"] == contacts.reader.counts["filled"] == 1
    with frozen_worker(site, "us"):
        token = eu.set_status(contact_id, "unsubscribed")
        assert us.contact.get(contact_id, max_staleness=60) == subscribed(contact_id)
        shown = us.contact.get(contact_id, token=token.text)
        assert shown is not None
        assert shown.status == "unsubscribed"
        assert not us.reader.passed(token)
    assert us.reader.passed(token)
    assert token.lsn.strip("0")  # a position of the log is known, so that any entry shows it once that is applied


def test_plain_psycopg(site: Site, contact_id: int) -> None:
    make = plain_psycopg.make_pool
    with contacts_on(site, make(site.dsn)) as eu, contacts_on(site, make(site.dsn), "us") as us:
        check_reads_and_writes(site, contact_id, eu, us)


def test_a_pool_whose_rows_are_dictionaries(site: Site, contact_id: int) -> None:
    pool: Any = ConnectionPool(site.dsn, kwargs={"autocommit": True, "row_factory": dict_row}, open=True)
    with contacts_on(site, pool) as eu, contacts_on(site, plain_psycopg.make_pool(site.dsn), "us") as us:
        check_reads_and_writes(site, contact_id, eu, us)


def test_a_connection_whose_application_chose_other_rows(site: Site, contact_id: int) -> None:
    with contacts_on(site, plain_psycopg.make_pool(site.dsn)) as contacts, contacts._pool.connection() as connection:
        connection.row_factory = namedtuple_row
        assert contacts.contact(contact_id) == subscribed(contact_id)
        with contacts.reader.snapshot(connection) as snapshot:
            assert contacts.contact.get(contact_id, strong=True, snapshot=snapshot) == subscribed(contact_id)
        assert contacts.reader.counts["unproven"] == 0


def test_psycopg_in_asyncio(site: Site, contact_id: int) -> None:
    async def load_contact(connection: Any, contact_id: int) -> Contact | None:
        async with connection.cursor(row_factory=class_row(Contact)) as cursor:
            await cursor.execute("SELECT id, email, status FROM contacts WHERE id = %s", [contact_id])
            found: Contact | None = await cursor.fetchone()
            return found

    async def run() -> None:
        async with AsyncConnectionPool(site.dsn, kwargs={"autocommit": True, "row_factory": dict_row}) as pool:
            reader = AsyncCacheReader(async_region_of(site), site.views, pool.connection)
            contact = reader.view("contact", load_contact, type=Contact, max_staleness=5)
            for _ in range(2):
                assert await contact(contact_id) == subscribed(contact_id)
            assert reader.counts["hit"] == reader.counts["filled"] == 1
            async with pool.connection() as connection, reader.write_token(connection) as write:
                await connection.execute("UPDATE contacts SET status = 'unsubscribed' WHERE id = %s", [contact_id])
            assert status_of(await contact.get(contact_id, token=write.text)) == "unsubscribed"
            assert write.token.lsn.strip("0")
            await reader.aclose()

    asyncio.run(run())


# --- FastAPI and SQLAlchemy -------------------------------------------------------------------------------------------


@contextmanager
def fastapi_client(site: Site, region: str, dsn: str, **arguments: Any) -> Iterator[TestClient]:
    app = fastapi_sqlalchemy.make_app(async_region_of(site, region), site.views, engine_of(dsn, **arguments))
    with TestClient(app) as client:
        yield client


def check_web(site: Site, contact_id: int, eu: TestClient, us: TestClient) -> None:
    path = f"/contacts/{contact_id}"
    for client in (eu, us):
        for _ in range(2):
            assert client.get(path).json() == {"id": contact_id, "email": "a@example.org", "status": "subscribed"}
    assert site.is_cached("contact", contact_id, region="us")
    with frozen_worker(site, "us"):
        assert eu.put(f"{path}/status", params={"status": "unsubscribed"}).status_code == 204
        assert us.get(path).json()["status"] == "subscribed"  # nobody told it of the write
        us.cookies = eu.cookies
        assert us.get(path).json()["status"] == "unsubscribed"
    assert eu.get("/contacts/0").status_code == 404


def test_fastapi_and_sqlalchemy(site: Site, contact_id: int) -> None:
    with fastapi_client(site, "eu", site.dsn) as eu, fastapi_client(site, "us", site.dsn) as us:
        check_web(site, contact_id, eu, us)


def test_fastapi_answers_503_while_the_database_is_away(site: Site, contact_id: int) -> None:
    with fastapi_client(site, "eu", NOWHERE) as client:
        answer = client.get(f"/contacts/{contact_id}")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


def test_sqlalchemy_without_asyncio(site: Site, contact_id: int) -> None:
    """Its Session and its Connection."""
    engine = create_engine(site.dsn.replace("postgresql://", "postgresql+psycopg://"))
    sessions = sessionmaker(engine)
    row = fastapi_sqlalchemy.ContactRow

    def load_contact(session: Any, contact_id: int) -> Contact | None:
        query = select(row.id, row.email, row.status).where(row.id == contact_id)
        found = session.execute(query).one_or_none()
        return None if found is None else Contact(*found)

    for number, lend in enumerate((sessions.begin, engine.begin)):
        reader = CacheReader(region_of(site), site.views, lend)
        contact = reader.view("contact", load_contact, type=Contact, max_staleness=5)
        for strong in (True, False):
            assert status_of(contact.get(contact_id, strong=strong)) == ("subscribed", "written 0")[number]
        assert (reader.counts["loaded"], reader.counts["hit"], reader.counts["unproven"]) == (1, 1, 0)
        with lend() as session:
            session.execute(update(row).where(row.id == contact_id).values(status=f"written {number}"))
            token = reader.token(session)
        assert status_of(contact.get(contact_id, token=token)) == f"written {number}"
        site.wait_drained()
        assert reader.passed(token)
    engine.dispose()


def test_a_session_without_a_transaction_proves_nothing(site: Site, contact_id: int) -> None:
    engine = create_engine(site.dsn.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT")
    reader = CacheReader(region_of(site), site.views, engine.connect)
    row = fastapi_sqlalchemy.ContactRow
    contact = reader.view("contact", lambda session, key: session.scalar(select(row.status).where(row.id == key)))
    assert contact(contact_id) == "subscribed"
    assert (reader.counts["filled"], reader.counts["unproven"]) == (0, 1)
    with pytest.raises(Unproven):
        contact.get(contact_id, max_staleness=60)
    engine.dispose()


def test_an_old_snapshot_of_a_sqlalchemy_session_is_served_to_it_and_never_cached(site: Site, contact_id: int) -> None:
    """REPEATABLE READ: the session goes on seeing what was there when it began; the cache, and who asks for more, not."""

    async def run() -> None:
        engine = engine_of(site.dsn)
        sessions = async_sessionmaker(engine)
        old_sessions = async_sessionmaker(engine.execution_options(isolation_level="REPEATABLE READ"))
        region, load, kind = async_region_of(site), fastapi_sqlalchemy.load_contact, fastapi_sqlalchemy.Contact
        reader = AsyncCacheReader(region, site.views, sessions.begin)
        contact = reader.view("contact", load, type=kind)
        async with old_sessions.begin() as session:
            await session.execute(text("SELECT count(*) FROM contacts"))
            await asyncio.to_thread(set_status, site, contact_id, "unsubscribed")
            age = text("SELECT extract(epoch FROM clock_timestamp() - transaction_timestamp())")
            while (await session.execute(age)).scalar_one() < 0.2:
                pass
            async with reader.snapshot(session) as snapshot:
                assert status_of(await contact.get(contact_id, snapshot=snapshot)) == "subscribed"
                assert (reader.counts["filled"], reader.counts["refused"]) == (0, 1)
                fresh = await contact.get(contact_id, snapshot=snapshot, max_staleness=0.15)
                assert status_of(fresh) == "unsubscribed"
            assert reader.counts["filled"] == 1

            lent = AsyncCacheReader(region, site.views, lambda: nullcontext(session), primary=sessions.begin)
            contact = lent.view("contact", load, type=kind, max_staleness=0)
            assert status_of(await contact.get(contact_id)) == "unsubscribed"
        assert status_of(await reader.view("contact", load, type=kind).get(contact_id)) == "unsubscribed"
        assert reader.counts["hit"] == 1
        await reader.aclose()
        await engine.dispose()

    asyncio.run(run())


def status_of(found: Any) -> str:
    assert found is not None
    status: str = found.status
    return status


def test_objects_that_a_sqlalchemy_session_remembers_are_never_cached(site: Site, contact_id: int) -> None:
    """READ COMMITTED: the transaction sees what is new, and the session goes on giving the object that it has."""

    async def run() -> None:
        engine = engine_of(site.dsn)
        sessions = async_sessionmaker(engine)
        reader = AsyncCacheReader(async_region_of(site), site.views, sessions.begin)
        contact = reader.view("contact", fastapi_sqlalchemy.load_contact, type=fastapi_sqlalchemy.Contact)
        async with sessions() as session:
            row = await session.get(fastapi_sqlalchemy.ContactRow, contact_id)
            assert row is not None
            await asyncio.to_thread(set_status, site, contact_id, "unsubscribed")
            async with reader.snapshot(session) as snapshot:
                assert status_of(await contact.get(contact_id, snapshot=snapshot)) == "subscribed"
        assert status_of(await contact.get(contact_id)) == "unsubscribed"
        await asyncio.to_thread(set_status, site, contact_id, "bounced")
        async with sessions() as session, reader.snapshot(session) as snapshot:
            row = await session.get(fastapi_sqlalchemy.ContactRow, contact_id)
            assert row is not None
            row.status = "never written"
            assert status_of(await contact.get(contact_id, snapshot=snapshot)) == "never written"
        assert status_of(await contact.get(contact_id)) == "bounced"
        await reader.aclose()
        await engine.dispose()

    asyncio.run(run())


# --- PgBouncer, transaction mode --------------------------------------------------------------------------------------


def test_psycopg_behind_pgbouncer(site: Site, contact_id: int, pooler: PgBouncer) -> None:
    make, dsn = pgbouncer.make_pool, pooler.dsn(site.name)
    with contacts_on(site, make(dsn)) as eu, contacts_on(site, make(dsn), "us") as us:
        check_reads_and_writes(site, contact_id, eu, us)
        with eu._pool.connection() as connection:
            backends = {connection.execute("SELECT pg_backend_pid()").fetchone() for _ in range(4)}
        assert len(backends) == 2  # one client connection, and each transaction elsewhere: that is what was tested
        for _ in range(30):  # of each connection of the pool more than psycopg waits for before it prepares a statement
            assert status_of(eu.contact.get(contact_id, strong=True)) == "unsubscribed"
        assert eu.reader.counts["unproven"] == 0


def test_the_position_of_a_write_is_right_though_it_is_asked_on_another_connection(
    site: Site, contact_id: int, pooler: PgBouncer
) -> None:
    slot = f"{site.name}_commits"
    site.database.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', true)", [slot])
    with contacts_on(site, pgbouncer.make_pool(pooler.dsn(site.name))) as contacts:
        tokens = [contacts.set_status(contact_id, status) for status in ("one", "two", "three")]
    changes = (
        "pg_logical_slot_get_binary_changes(%s, NULL, NULL, 'proto_version', '1', 'publication_names', 'staleproof')"
    )
    messages = site.database.execute(f"SELECT xid::text, data FROM {changes}".encode(), [slot]).fetchall()
    site.database.execute("SELECT pg_drop_replication_slot(%s)", [slot])
    ends = {int(xid): int.from_bytes(data[10:18]) for xid, data in messages if data[:1] == b"C"}
    for token in tokens:
        (stamp,) = token.stamps
        assert ends[int(stamp, 16)] <= int(token.lsn, 16) < 2 * ends[int(stamp, 16)]


def test_fastapi_and_sqlalchemy_behind_pgbouncer(site: Site, contact_id: int, pooler: PgBouncer) -> None:
    dsn = pooler.dsn(site.name)
    behind: Any = {"poolclass": NullPool, "connect_args": {"prepare_threshold": None}}
    with fastapi_client(site, "eu", dsn, **behind) as eu, fastapi_client(site, "us", dsn, **behind) as us:
        check_web(site, contact_id, eu, us)


# --- replicas behind a router -----------------------------------------------------------------------------------------


@pytest.fixture
def standby(staleproof_standby: Standby) -> Iterator[Standby]:
    """One that has replayed everything, and goes on when the test ends."""
    staleproof_standby.wait_replayed()
    yield staleproof_standby
    staleproof_standby.resume_replay()


@pytest.fixture
def router(standby: Standby) -> Iterator[FaultProxy]:
    """One address for both servers; `use_both_servers` makes connections through it."""
    with FaultProxy(standby.primary_port) as router:
        yield router


def use_both_servers(router: FaultProxy, standby: Standby, connect: Callable[[], AbstractContextManager[Any]]) -> None:
    """Two connections at the same time, one to each server; a pool, or PgBouncer, lends them in turn afterwards."""
    with ExitStack() as lent:
        for port, in_recovery in ((standby.port, True), (standby.primary_port, False)):
            router.retarget(port)
            connection = lent.enter_context(connect())
            assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (in_recovery,)


@contextmanager
def routed(site: Site, pool: plain_psycopg.Pool) -> Iterator[tuple[CachedView[Contact], list[bool]]]:
    """The example's view, and whether a standby answered each of its loads."""
    on_standby = []

    def load_contact(connection: Any, contact_id: int) -> Contact | None:
        on_standby.append(connection.execute("SELECT pg_is_in_recovery()").fetchone()[0])
        return plain_psycopg.load_contact(connection, contact_id)

    with pool, read_replicas.make_pool(site.dsn) as primary, pytest.MonkeyPatch.context() as patched:
        patched.setattr(read_replicas, "load_contact", load_contact)
        yield read_replicas.contacts(region_of(site), site.views, pool, primary), on_standby


@pytest.fixture
def contact_ids(site: Site) -> list[int]:
    """Six of them, so that each kind of server is asked for some."""
    numbers = [next(_serial) for _ in range(6)]
    site.change_and_wait("INSERT INTO contacts SELECT unnest(%s), 'a@example.org', 'subscribed'", [numbers])
    return numbers


def test_reads_through_a_router_are_filled_from_either_kind_of_server(
    site: Site, contact_ids: list[int], standby: Standby, router: FaultProxy
) -> None:
    pool = read_replicas.make_pool(postgres.dsn(router.port, site.name))
    with routed(site, pool) as (contact, on_standby):
        use_both_servers(router, standby, pool.connection)
        for _ in range(2):
            assert contact.get_many(contact_ids[:1]) | {key: contact(key) for key in contact_ids} == {
                key: subscribed(key) for key in contact_ids
            }
        counts = contact._reader.counts
        assert set(on_standby) == {True, False}
        assert (counts["filled"], counts["unproven"]) == (6, 0)
        assert counts["hit"] == 8


def test_a_lagging_replica_behind_a_router_is_found_out(
    site: Site, contact_ids: list[int], standby: Standby, router: FaultProxy
) -> None:
    pool = read_replicas.make_pool(postgres.dsn(router.port, site.name))
    with routed(site, pool) as (contact, on_standby):
        use_both_servers(router, standby, pool.connection)
        standby.pause_replay()
        site.change_and_wait("UPDATE contacts SET status = 'unsubscribed' WHERE id = ANY(%s)", [contact_ids])
        for contact_id in contact_ids:
            assert status_of(contact(contact_id)) == "unsubscribed"
        assert set(on_standby) == {True, False}
        assert contact._reader.counts["filled"] == 6
        for contact_id in contact_ids:
            assert status_of(contact(contact_id)) == "unsubscribed"
        assert contact._reader.counts["hit"] == 6


def test_a_sqlalchemy_session_on_a_replica_proves_how_old_its_reads_are(
    site: Site, contact_ids: list[int], standby: Standby
) -> None:
    on_standby = []

    async def load_contact(session: Any, contact_id: int) -> fastapi_sqlalchemy.Contact | None:
        on_standby.append((await session.execute(text("SELECT pg_is_in_recovery()"))).scalar_one())
        return await fastapi_sqlalchemy.load_contact(session, contact_id)

    async def run() -> None:
        engines = [engine_of(standby.dsn(site.name)), engine_of(site.dsn)]
        lend, primary = (async_sessionmaker(engine).begin for engine in engines)
        reader = AsyncCacheReader(async_region_of(site), site.views, lend, primary=primary)
        contact = reader.view("contact", load_contact, type=fastapi_sqlalchemy.Contact, max_staleness=5)
        for contact_id in contact_ids:
            assert status_of(await contact(contact_id)) == "subscribed"
        assert reader.counts["filled"] == on_standby.count(True) == 6
        assert on_standby.count(False) < 6  # where the standby was behind the region for a moment the primary was asked
        on_standby.clear()
        standby.pause_replay()
        await asyncio.to_thread(set_status, site, contact_ids[0], "unsubscribed")
        assert status_of(await contact.get(contact_ids[0])) == "unsubscribed"
        assert on_standby == [True, False]
        await reader.aclose()
        for engine in engines:
            await engine.dispose()

    asyncio.run(run())


def test_a_pooler_that_changes_the_kind_of_server_under_a_connection(
    site: Site, contact_ids: list[int], standby: Standby, router: FaultProxy
) -> None:
    """What a connection knows of its server is no longer true in its next transaction: never cached on that ground."""
    with started_pgbouncer(site, target_port=router.port) as pooler:
        dsn = pooler.dsn(site.name)
        use_both_servers(router, standby, lambda: psycopg.connect(dsn, prepare_threshold=None))
        standby.pause_replay()
        site.change_and_wait("UPDATE contacts SET status = 'unsubscribed' WHERE id = ANY(%s)", [contact_ids])
        with routed(site, pgbouncer.make_pool(dsn)) as (contact, on_standby):
            for _ in range(2):
                for contact_id in contact_ids:
                    assert status_of(contact(contact_id)) == "unsubscribed"
        assert set(on_standby) == {True, False}


# --- Django -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def django_orm(site: Site) -> Iterator[ModuleType]:
    """The example, which Django lets nobody import before there are settings."""
    import django
    from django.conf import settings
    from django.db import connections

    where = conninfo_to_dict(site.dsn)
    database = {"ENGINE": "django.db.backends.postgresql", "NAME": where["dbname"], "USER": where["user"]}
    settings.configure(DATABASES={"default": database | {"HOST": where["host"], "PORT": where["port"]}})
    django.setup()
    yield importlib.import_module("tests.examples.django_orm")
    connections.close_all()


def test_django(site: Site, contact_id: int, django_orm: ModuleType) -> None:
    check_django(site, contact_id, django_orm)


def test_django_behind_pgbouncer(site: Site, contact_id: int, django_orm: ModuleType, pooler: PgBouncer) -> None:
    from django.db import connection

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(connection.settings_dict, "PORT", str(pooler.port))
        connection.close()
        check_django(site, contact_id, django_orm)
        assert connection.connection.info.port == pooler.port
    connection.close()


def check_django(site: Site, contact_id: int, django_orm: ModuleType) -> None:
    eu, us = (django_orm.Contacts(region_of(site, name), site.views) for name in ("eu", "us"))
    for contacts in (eu, us):
        for _ in range(2):
            assert contacts.contact(contact_id) == subscribed(contact_id)
        assert contacts.reader.counts["hit"] == contacts.reader.counts["filled"] == 1
    with frozen_worker(site, "us"):
        token = eu.set_status(contact_id, "unsubscribed")
        assert us.contact.get(contact_id, max_staleness=60) == subscribed(contact_id)
        assert us.contact.get(contact_id, token=token.text).status == "unsubscribed"
    assert us.reader.passed(token)


def test_what_an_atomic_block_wrote_is_shown_to_it_and_not_cached(
    site: Site, contact_id: int, django_orm: ModuleType
) -> None:
    from django.db import connection, transaction

    contacts = django_orm.Contacts(region_of(site), site.views)
    near = CacheReader(region_of(site), site.views, django_orm.sessions, near=Near())
    nearby = near.view("contact", django_orm.load_contact, type=Contact, max_staleness=5)
    assert [nearby(0), nearby(0)] == [None, None]  # from the second on its near cache knows the view's generation
    with transaction.atomic():
        django_orm.ContactModel.objects.filter(pk=contact_id).update(status="unsubscribed")
        token = contacts.reader.token(connection)
        for need in ({}, {"max_staleness": None}, {"max_staleness": 0}, {"strong": True}, {"token": token}):
            assert contacts.contact.get(contact_id, **need).status == "unsubscribed"
        assert nearby(contact_id).status == "unsubscribed"
        transaction.set_rollback(True)
    before = near.counts["near"]
    assert nearby(contact_id) == subscribed(contact_id)
    assert near.counts["near"] == before
    assert nearby(contact_id) == subscribed(contact_id)
    assert near.counts["near"] == before + 1
    assert contacts.reader.counts["unproven"] == contacts.reader.counts["loaded"] == 5
    assert contacts.reader.counts["filled"] == 0
    assert contacts.contact(contact_id) == subscribed(contact_id)
    assert contacts.reader.counts["hit"] == 1
    with pytest.raises(ConfigError, match="atomic"), contacts.reader.snapshot(connection):
        pass


# --- a web request that writes, redirects and reads its own write in another region -----------------------------------


def test_a_change_that_is_posted_in_one_region_is_shown_in_another(site: Site, contact_id: int) -> None:
    path = f"/contacts/{contact_id}"
    pools = {name: plain_psycopg.make_pool(site.dsn) for name in ("eu", "us")}
    with ExitStack() as last:
        eu, us = (
            last.enter_context(
                TestClient(redirect.make_app(region_of(site, name), site.views, last.enter_context(pool)))
            )
            for name, pool in pools.items()
        )
        assert us.get(path).json()["status"] == "subscribed"
        with frozen_worker(site, "us"):
            posted = eu.post(path, params={"status": "unsubscribed"}, follow_redirects=False)
            assert (posted.status_code, posted.headers["Location"]) == (303, path)
            assert us.get(path).json()["status"] == "subscribed"  # its cache knows nothing yet, and neither does it
            us.cookies = eu.cookies
            assert us.get(posted.headers["Location"]).json()["status"] == "unsubscribed"
        us.cookies = {}
        assert us.get(path).json()["status"] == "unsubscribed"
        us.cookies = {"seen": "forged"}
        assert us.get(path).json()["status"] == "unsubscribed"
