"""What PostgreSQL says about itself: server, slot, publication and tables, as frozen facts. Door: psycopg queries.

Every function asks one question in one round trip. Nothing here writes; nothing here judges (`check.py` does).
libpq quotes pieces of a connection string it cannot parse, hence such messages are never passed on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from cdc.errors import ConfigError, TransientError

Database: TypeAlias = psycopg.Connection[TupleRow]

_CONFIGURATION = (
    "authentication failed",
    "no pg_hba.conf entry",
    "does not exist",
    "no password supplied",
    "could not translate host name",
    "is not permitted to log in",
    "permission denied for database",
    "certificate",
    "SSL",
)
"""What a refused connection says when only a person can mend it; anything else may pass by itself."""


_PORTS = re.compile(r"[0-9,]*")


class ReplicaIdentity(StrEnum):
    """What an old row carries in the stream; the values are `pg_class.relreplident`."""

    DEFAULT = "d"
    NOTHING = "n"
    FULL = "f"
    INDEX = "i"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerFacts:
    """The server behind the connection. `version` is PostgreSQL's number: 180006."""

    version: int
    wal_level: str
    max_replication_slots: int
    slots_in_use: int
    in_recovery: bool
    system_identifier: str
    database: str
    encoding: str
    user: str
    may_replicate: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotFacts:
    """A replication slot. `wal_status` is `lost` when changes are gone."""

    name: str
    plugin: str | None
    database: str | None
    active: bool
    two_phase: bool
    wal_status: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedTable:
    """A table as its publication sends it; `columns` is None where the server cannot tell (before 15)."""

    columns: frozenset[str] | None
    filtered: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicationFacts:
    """What a publication covers: `tables` by `schema.table`, `operations` of insert, update, delete, truncate."""

    name: str
    all_tables: bool
    operations: frozenset[str]
    via_root: bool
    tables: Mapping[str, PublishedTable]


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnFacts:
    """One column. `may_be_toasted`: a large value is stored apart and not repeated by an update that leaves it."""

    name: str
    type: str
    may_be_toasted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class TableFacts:
    """One table. `old_columns` are those whose old values the stream carries on update and delete."""

    name: str
    columns: tuple[ColumnFacts, ...]
    primary_key: tuple[str, ...]
    identity: ReplicaIdentity
    old_columns: frozenset[str]
    partitioned: bool

    def column(self, name: str) -> ColumnFacts | None:
        """The column of that name, if there is one."""
        return next((column for column in self.columns if column.name == name), None)


@contextmanager
def open_database(
    dsn: str, *, timeout_seconds: int, statement_seconds: int | None = None, session: Mapping[str, str] | None = None
) -> Iterator[Database]:
    """A read-only autocommit connection with deadlines. Raises ConfigError or TransientError in one sentence.

    Also what a query inside the block raises becomes one of these. A statement may take `statement_seconds`, else
    `timeout_seconds`; `session`: settings by name.
    """
    parameters = _parameters(dsn)
    deadlines = {"connect_timeout": timeout_seconds, "tcp_user_timeout": timeout_seconds * 1_000}
    options = {"application_name": "staleproof", **deadlines, **parameters}
    place = _place(parameters)
    try:
        connection = psycopg.connect("", autocommit=True, **options)
    except psycopg.Error as error:
        raise _connect_error(place, error, parameters) from None  # its text may hold pieces of the dsn
    with connection:
        try:
            connection.execute(f"SET statement_timeout = {(statement_seconds or timeout_seconds) * 1_000:d}")
            connection.execute("SET default_transaction_read_only = on")
            for name, value in (session or {}).items():
                connection.execute("SELECT set_config(%s, %s, false)", (name, value))
            yield connection
        except psycopg.errors.InsufficientPrivilege as error:
            message = f"{place} refuses a question: {_first_line(error)}: grant it to the dsn's user"
            raise ConfigError(message) from error
        except psycopg.Error as error:
            raise TransientError(f"{place} did not answer: {_first_line(error)}") from error


def has_password(dsn: str) -> bool:
    """Whether the connection string itself carries a password. Raises ConfigError for one that cannot be read."""
    return "password" in _parameters(dsn)


def quoted(name: str) -> str:
    """A name, or `schema.table`, as SQL writes it."""
    return ".".join(sql.Identifier(piece).as_string() for piece in name.split(".", 1))


def server_facts(database: Database) -> ServerFacts:
    """The server and what the connected role may do there."""
    row = _one(
        database,
        """
        SELECT current_setting('server_version_num')::int, current_setting('wal_level'),
               current_setting('max_replication_slots')::int, (SELECT count(*) FROM pg_replication_slots),
               pg_is_in_recovery(), (SELECT system_identifier::text FROM pg_control_system()),
               current_database(), current_setting('server_encoding'), current_user,
               (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user)
        """,
    )
    assert row is not None
    return ServerFacts(
        version=row[0],
        wal_level=row[1],
        max_replication_slots=row[2],
        slots_in_use=row[3],
        in_recovery=row[4],
        system_identifier=row[5],
        database=row[6],
        encoding=row[7],
        user=row[8],
        may_replicate=bool(row[9]),
    )


def slot_facts(database: Database, name: str) -> SlotFacts | None:
    """The replication slot of that name, if there is one."""
    row = _one(
        database,
        "SELECT plugin, database, active, two_phase, wal_status FROM pg_replication_slots WHERE slot_name = %s",
        (name,),
    )
    if row is None:
        return None
    plugin, base, active, two_phase, wal_status = row
    return SlotFacts(name=name, plugin=plugin, database=base, active=active, two_phase=two_phase, wal_status=wal_status)


def publication_facts(database: Database, name: str) -> PublicationFacts | None:
    """The publication of that name, if there is one."""
    row = _one(
        database,
        """
        SELECT puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot
        FROM pg_publication WHERE pubname = %s
        """,
        (name,),
    )
    if row is None:
        return None
    operations = zip(("insert", "update", "delete", "truncate"), row[1:5], strict=True)
    return PublicationFacts(
        name=name,
        all_tables=row[0],
        operations=frozenset(operation for operation, sent in operations if sent),
        via_root=row[5],
        tables=_published_tables(database, name),
    )


def _published_tables(database: Database, name: str) -> dict[str, PublishedTable]:
    details = "attnames::text[], rowfilter IS NOT NULL" if database.info.server_version >= 150_000 else "NULL, false"
    rows = database.execute(
        f"SELECT schemaname || '.' || tablename, {details} FROM pg_publication_tables WHERE pubname = %s",  # noqa: S608 - two constants
        (name,),
    )
    return {
        table: PublishedTable(columns=None if columns is None else frozenset(columns), filtered=filtered)
        for table, columns, filtered in rows
    }


def table_facts(database: Database, names: Iterable[str]) -> dict[str, TableFacts]:
    """The tables of these names (`schema.table`) that exist."""
    return {table.name: table for table in _tables(database, list(names))}


def catalogue(database: Database) -> tuple[TableFacts, ...]:
    """Every ordinary table of the database, without partitions, system schemas and temporary tables, by name."""
    return _tables(database, None)


_TABLES = """
SELECT n.nspname || '.' || c.relname, c.relkind = 'p', c.relreplident::text,
       ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0
             AND NOT a.attisdropped ORDER BY a.attnum),
       ARRAY(SELECT format_type(a.atttypid, NULL) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0
             AND NOT a.attisdropped ORDER BY a.attnum),
       ARRAY(SELECT a.attlen = -1 AND a.attstorage IN ('x', 'e') FROM pg_attribute a WHERE a.attrelid = c.oid
             AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
       ARRAY(SELECT a.attname::text FROM pg_index i, unnest(i.indkey) WITH ORDINALITY AS k(attnum, nr), pg_attribute a
             WHERE i.indrelid = c.oid AND i.indisprimary AND a.attrelid = c.oid AND a.attnum = k.attnum
             AND k.nr <= i.indnkeyatts ORDER BY k.nr),
       ARRAY(SELECT a.attname::text FROM pg_index i, unnest(i.indkey) WITH ORDINALITY AS k(attnum, nr), pg_attribute a
             WHERE i.indrelid = c.oid AND i.indisreplident AND a.attrelid = c.oid AND a.attnum = k.attnum
             AND k.nr <= i.indnkeyatts ORDER BY k.nr)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
  AND (n.nspname || '.' || c.relname = ANY(%(names)s)
       OR %(names)s::text[] IS NULL AND NOT c.relispartition
          AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema')
ORDER BY 1
"""


def _tables(database: Database, names: list[str] | None) -> tuple[TableFacts, ...]:
    return tuple(_table(row) for row in database.execute(_TABLES, {"names": names}))


def _table(row: TupleRow) -> TableFacts:
    name, partitioned, identity, columns, types, toasted, primary_key, index = row
    return TableFacts(
        name=name,
        columns=tuple(
            ColumnFacts(name=column, type=kind, may_be_toasted=toast)
            for column, kind, toast in zip(columns, types, toasted, strict=True)
        ),
        primary_key=tuple(primary_key),
        identity=ReplicaIdentity(identity),
        old_columns=_old_columns(ReplicaIdentity(identity), columns, primary_key, index),
        partitioned=partitioned,
    )


def _old_columns(
    identity: ReplicaIdentity, columns: list[str], primary_key: list[str], index: list[str]
) -> frozenset[str]:
    known = {
        ReplicaIdentity.FULL: columns,
        ReplicaIdentity.DEFAULT: primary_key,
        ReplicaIdentity.INDEX: index,
        ReplicaIdentity.NOTHING: [],
    }
    return frozenset(known[identity])


def _one(database: Database, query: str, arguments: tuple[object, ...] = ()) -> TupleRow | None:
    return database.execute(query, arguments).fetchone()


def _parameters(dsn: str) -> dict[str, Any]:
    try:
        parameters = conninfo_to_dict(dsn)
    except psycopg.Error:
        parameters = {}
    # With an unescaped @ or / in the password, what libpq takes for host, port or database is a piece of the password.
    strange = "@" in f"{parameters.get('host', '')}{parameters.get('dbname', '')}"
    if not parameters or strange or not _PORTS.fullmatch(str(parameters.get("port", ""))):
        raise ConfigError(
            "source.dsn is not a connection string: write postgresql://user:password@host:5432/database, "
            "and percent-encode special characters of the password"
        )
    return parameters


def _place(parameters: Mapping[str, Any]) -> str:
    host, port = parameters.get("host", parameters.get("hostaddr", "localhost")), parameters.get("port", 5432)
    return f"PostgreSQL at {host}:{port}"


def _connect_error(place: str, error: psycopg.Error, parameters: Mapping[str, Any]) -> ConfigError | TransientError:
    reason = _first_line(error)
    password = parameters.get("password")
    if password and str(password) in reason:
        reason = "the server gave a reason that holds the password"
    if any(sign in reason for sign in _CONFIGURATION):
        return ConfigError(f"{place} refuses the connection: {reason}: correct source.dsn or the server")
    return TransientError(f"{place} cannot be reached: {reason}: start it, or correct source.dsn")


def _first_line(error: psycopg.Error) -> str:
    """The heart of libpq's message: without its place and its hints, which follow on further lines."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    for frame in ("failed: FATAL:", "failed: ", "FATAL: "):
        if frame in text:
            text = text.rpartition(frame)[2]
            break
    return text.strip()
