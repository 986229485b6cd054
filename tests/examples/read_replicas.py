"""Replicas behind a router: reads may land anywhere, and what must be the newest asks the primary by its own address."""

from psycopg_pool import ConnectionPool

from invalidator import CachedView, CacheReader, Region, Views
from tests.examples.contact import Contact
from tests.examples.plain_psycopg import Pool, load_contact


def make_pool(dsn: str) -> Pool:
    """Renewed now and then: what a router decides for one connection holds as long as that lives."""
    return ConnectionPool(dsn, kwargs={"autocommit": True}, min_size=0, max_size=16, max_lifetime=600, open=True)


def contacts(region: Region, views: Views, router: Pool, primary: Pool) -> CachedView[Contact]:
    reader = CacheReader(region, views, router.connection, primary=primary.connection)
    return reader.view("contact", load_contact, type=Contact, max_staleness=5)
