"""The examples of docs/adapters.md on real servers: each reads, writes and reads its own write, with its own driver.

One site with two regions for all of them; every test has contacts of its own.
"""

from __future__ import annotations

import importlib
import itertools
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient
from psycopg.rows import dict_row, namedtuple_row
from psycopg_pool import ConnectionPool
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import NullPool

from consumers.regions import open_region, redis_connection
from infra.attached import with_database
from infra.pgbouncer import PgBouncer
from infra.prerequisites import MissingPrerequisite
from infra.proxy import FaultProxy
from infra.site_maker import SiteMaker
from infra.standby import Standby
from invalidator import AsyncCacheReader, AsyncRegion, CacheReader, Layout, Region, Token, Unproven, connect_async
from tests.backends import go_without
from tests.examples import fastapi_sqlalchemy, pgbouncer, plain_psycopg, read_replicas, redirect
from tests.examples.contact import Contact
from tests.fix_stack import SCHEMA, VIEWS, Site

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
    with ExitStack() as last:
        try:
            pooler = last.enter_context(PgBouncer.start(site.servers))
        except MissingPrerequisite as error:
            go_without("pgbouncer", str(error))
        use_both_connections(pooler.dsn(site.name))
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
    nowhere = "postgresql://postgres@127.0.0.1:1/none"
    with fastapi_client(site, "eu", nowhere) as client:
        answer = client.get(f"/contacts/{contact_id}")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
