"""The same behind PgBouncer in transaction mode: only the pool differs."""

from psycopg_pool import ConnectionPool

from tests.examples.plain_psycopg import Pool


def make_pool(dsn: str) -> Pool:
    """Statements that psycopg prepares live in a server connection, and the next transaction may get another one."""
    return ConnectionPool(dsn, kwargs={"autocommit": True, "prepare_threshold": None}, max_size=16, open=True)
