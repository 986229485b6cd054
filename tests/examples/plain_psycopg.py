"""Plain psycopg: a pool, a loader, and a write whose token the next read presents."""

from typing import Any

from psycopg import Connection
from psycopg.rows import class_row
from psycopg_pool import ConnectionPool

from invalidator import CacheReader, Region, Token, Views
from tests.examples.contact import Contact

Pool = ConnectionPool[Connection[Any]]


def make_pool(dsn: str) -> Pool:
    return ConnectionPool(dsn, kwargs={"autocommit": True}, max_size=16, open=True)


def load_contact(connection: Connection[Any], contact_id: int) -> Contact | None:
    with connection.cursor(row_factory=class_row(Contact)) as cursor:
        return cursor.execute("SELECT id, email, status FROM contacts WHERE id = %s", [contact_id]).fetchone()


class Contacts:
    def __init__(self, region: Region, views: Views, pool: Pool) -> None:
        self._pool = pool
        self.reader = CacheReader(region, views, pool.connection)
        self.contact = self.reader.view("contact", load_contact, type=Contact, max_staleness=5)

    def set_status(self, contact_id: int, status: str) -> Token:
        with self._pool.connection() as connection:
            with self.reader.write_token(connection) as write:
                connection.execute("UPDATE contacts SET status = %s WHERE id = %s", [status, contact_id])
            return write.token
