"""Replicas behind a router: reads may land anywhere, and what must be the newest asks the primary by its own address."""

from psycopg_pool import ConnectionPool

from invalidator import CachedView, CacheReader, Region, Views
from tests.examples.contact import Contact
from tests.examples.plain_psycopg import Pool, load_contact


def make_pool(dsn: str) -> Pool:
    """A router sends the next connection elsewhere, so connections are renewed: else all would stay on one server."""
    return ConnectionPool(dsn, kwargs={"autocommit": True}, max_lifetime=600, open=True)


def contacts(region: Region, views: Views, router: Pool, primary: Pool) -> CachedView[Contact]:
    reader = CacheReader(region, views, router.connection, primary=primary.connection)
    return reader.view("contact", load_contact, type=Contact, max_staleness=5)
