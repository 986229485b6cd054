"""PostgreSQL: the door. A replication stream, and ordinary questions about its source.

In flows a DSN, out flow stream items (`base.py`) and facts about publication, slot and server. Every failure leaves as
one of our errors: a connection that is gone is Transient, a slot that is gone is a Gap, what the operator must mend
names its statement.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from select import POLLIN, poll
from typing import Any, LiteralString

import msgspec
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import DiagnosticField, ExecStatus

from cdc.connectors.assembler import PG_EPOCH_MS, Assembler
from cdc.connectors.base import Progress, StreamItem
from cdc.connectors.pgoutput import decode
from cdc.errors import ConfigError, FatalError, GapError, StaleproofError, TransientError
from cdc.events import History, parse_lsn

HEARTBEAT_PREFIX = "staleproof.heartbeat"

_READ_ITEMS = 500  # then the caller gets a turn: about 10 ms of decoding
_XLOG_HEADER = 25  # kind, start, end, server time
_KEEPALIVE = struct.Struct(">cqqB")
_STATUS = struct.Struct(">cqqqqB")
_LSN_AT = struct.Struct(">q").unpack_from
_DATA, _ALIVE = b"w"[0], b"k"[0]

# pgoutput renders values with the session's settings; pg_values.py reads exactly these.
_SESSION = "-c datestyle=ISO -c timezone=UTC -c bytea_output=hex -c extra_float_digits=1 -c intervalstyle=postgres"


_FINGERPRINTS: LiteralString = """
WITH RECURSIVE member AS (
    SELECT p.schemaname || '.' || p.tablename AS name, c.oid AS root, to_jsonb(p) AS listed, c.relreplident,
        (SELECT jsonb_agg(e.oid ORDER BY e.oid) FROM (
            SELECT r.oid FROM pg_publication_rel r WHERE r.prpubid = b.oid
                AND (r.prrelid = c.oid OR r.prrelid IN (SELECT relid FROM pg_partition_ancestors(c.oid)))
        ) e) AS entries
    FROM pg_publication_tables p
    JOIN pg_publication b ON b.pubname = p.pubname
    JOIN pg_namespace n ON n.nspname = p.schemaname
    JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = p.tablename
    WHERE p.pubname = %s
), tree AS (
    SELECT root, root AS relid FROM member
    UNION
    SELECT t.root, i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.relid
), columns AS (
    SELECT t.root,
        jsonb_agg(jsonb_build_array(t.relid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attisdropped,
            CASE WHEN a.attgenerated <> '' THEN
                jsonb_build_array(a.attgenerated, (SELECT d.adbin::text FROM pg_attrdef d
                    WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum)) END,
            (SELECT jsonb_agg(jsonb_build_array(v.oid, v.enumlabel) ORDER BY v.oid) FROM pg_enum v
                JOIN pg_type y ON v.enumtypid IN (y.oid, y.typelem, y.typbasetype) WHERE y.oid = a.atttypid)
        ) ORDER BY t.relid, a.attnum) AS shape,
        jsonb_agg(jsonb_build_array(t.relid, a.attnum, a.xmin::text) ORDER BY t.relid, a.attnum) AS versions
    FROM tree t LEFT JOIN pg_attribute a ON a.attrelid = t.relid AND a.attnum > 0
    GROUP BY t.root
), files AS (
    SELECT t.root, jsonb_agg(jsonb_build_array(t.relid, c.relfilenode) ORDER BY t.relid) AS files
    FROM tree t LEFT JOIN pg_class c ON c.oid = t.relid
    GROUP BY t.root
)
SELECT m.name,
    left(md5(jsonb_build_array(m.root, m.listed, m.relreplident, m.entries, c.shape)::text), 16),
    left(md5(c.versions::text), 16),
    left(md5(f.files::text), 16)
FROM member m JOIN columns c ON c.root = m.root JOIN files f ON f.root = m.root
"""


class Identity(msgspec.Struct, frozen=True):
    """Who answers: IDENTIFY_SYSTEM. `wal_end` is the end of its flushed log."""

    system_identifier: str
    timeline: int
    wal_end: int
    database: str

    @property
    def history(self) -> History:
        """What snapshots, heartbeats and tokens of this server carry."""
        return f"{self.system_identifier}:{self.timeline}"


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """A slot as the server reports it. `lost` says why its log is gone, None when it is not."""

    confirmed_lsn: int
    active_pid: int | None
    lost: str | None


class Fingerprint(msgspec.Struct, frozen=True, array_like=True):
    """What DDL can change of one table; 16 hexadecimal digits each. See `PostgresSource.fingerprints`."""

    shape: str
    versions: str
    files: str


class PostgresSource:
    """Ordinary questions to the primary, each with the connect timeout as its deadline. One thread uses it."""

    def __init__(self, *, dsn: str, timeout_seconds: int) -> None:
        self._connection = _connect(dsn, timeout_seconds, f"-c statement_timeout={timeout_seconds}s")

    def close(self) -> None:
        """Leave. Never raises."""
        with suppress(psycopg.Error):
            self._connection.close()

    def check_server(self) -> None:
        """Raises ConfigError, with the remedy, unless the server can be captured."""
        row = self._row("SELECT current_setting('wal_level'), pg_is_in_recovery(), current_setting('server_encoding')")
        wal_level, standby, encoding = row
        if standby:
            raise ConfigError("source.dsn names a standby; heartbeats are written by the primary: connect to that")
        if wal_level != "logical":
            raise ConfigError(
                f"wal_level is {wal_level!r}; run `ALTER SYSTEM SET wal_level = 'logical'` and restart PostgreSQL"
            )
        if encoding == "SQL_ASCII":
            raise ConfigError("the database's encoding is SQL_ASCII, so its text has no meaning: use a UTF8 database")

    def published_tables(self, publication: str) -> list[str]:
        """The tables (`schema.table`) of `publication`. Raises ConfigError, with the statement that mends it."""
        row = self._maybe(
            "SELECT puballtables, pubinsert AND pubupdate AND pubdelete AND pubtruncate"
            " FROM pg_publication WHERE pubname = %s",
            publication,
        )
        quoted = sql.Identifier(publication).as_string()
        if row is None:
            raise ConfigError(
                f"publication {publication!r} does not exist; run `CREATE PUBLICATION {quoted} FOR TABLE ...`"
                " with the tables whose changes invalidate views"
            )
        if row[0]:
            raise ConfigError(
                f"publication {publication!r} is FOR ALL TABLES, which makes updates of tables without a primary key"
                f" fail; run `DROP PUBLICATION {quoted}; CREATE PUBLICATION {quoted} FOR TABLE ...`"
            )
        if not row[1]:
            raise ConfigError(
                f"publication {publication!r} leaves out some operations; run"
                f" `ALTER PUBLICATION {quoted} SET (publish = 'insert, update, delete, truncate')`"
            )
        return self._tables(publication, quoted)

    def _tables(self, publication: str, quoted: str) -> list[str]:
        rows = self._all(
            "SELECT p.schemaname || '.' || p.tablename, to_jsonb(p) ->> 'rowfilter' FROM pg_publication_tables p"
            " WHERE p.pubname = %s ORDER BY 1",
            publication,
        )
        if not rows:
            raise ConfigError(
                f"publication {publication!r} has no tables; run `ALTER PUBLICATION {quoted} ADD TABLE ...`"
            )
        filtered = [table for table, row_filter in rows if row_filter]
        if filtered:
            raise ConfigError(
                f"publication {publication!r} filters the rows of {filtered[0]}, so changes would go unseen;"
                f" run `ALTER PUBLICATION {quoted} SET TABLE ...` without WHERE"
            )
        return [table for table, _ in rows]

    def fingerprints(self, publication: str) -> dict[str, Fingerprint]:
        """The tables (`schema.table`) of `publication`, each with what DDL changes when no row event tells.

        A table stands for itself and all its partitions and children. Values or rows may be others where

        - `shape` differs: oid, columns (number, name, type, modifier, dropped, generated and from what), labels of
          their enums, the partitions and children, replica identity (what the log repeats), and the publication's own
          entry (columns, filter, oid: a table that was taken out and put back between two looks);
        - or both of the others do: `versions` are those of the columns' catalogue rows, `files` where the data lies.
          ALTER TYPE ... USING to the same type is seen by nothing else. `files` alone is VACUUM FULL, CLUSTER, SET
          LOGGED, or TRUNCATE, which the log tells; `versions` alone is a default, a statistics target, NOT NULL.

        Told too often, never too seldom: ADD VALUE to an enum, and the first VACUUM FULL after ADD COLUMN with a
        constant default, look like more than they are. Reads the catalogue only, but waits while DDL holds a table.
        """
        rows = self._all(_FINGERPRINTS, publication)
        return {table: Fingerprint(shape, versions, files) for table, shape, versions, files in rows}

    def primary_key(self, table: str) -> list[str]:
        """The names of `schema.table`'s primary key columns, in their order; empty without one."""
        rows = self._all(
            "SELECT a.attname FROM pg_index i"
            " JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
            " CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k(attnum, place)"
            " JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum"
            " WHERE i.indisprimary AND n.nspname || '.' || c.relname = %s AND k.place <= i.indnkeyatts"
            " ORDER BY k.place",
            table,
        )
        return [name for (name,) in rows]

    def slot(self, name: str) -> Slot | None:
        """The slot, None when there is none. Raises ConfigError when it is of another kind or database."""
        row = self._maybe(
            "SELECT to_jsonb(s), current_database() FROM pg_replication_slots s WHERE slot_name = %s", name
        )
        if row is None:
            return None
        facts, database = row
        if facts["plugin"] != "pgoutput" or facts["database"] != database or facts.get("two_phase"):
            raise ConfigError(
                f"slot {name!r} has plugin {facts['plugin']}, database {facts['database']}, two_phase"
                f" {facts.get('two_phase')}; staleproof needs pgoutput, {database}, false: choose another source.slot"
            )
        reason = facts.get("invalidation_reason") or ("wal_removed" if facts["wal_status"] == "lost" else None)
        confirmed = facts["confirmed_flush_lsn"]
        return Slot(confirmed_lsn=parse_lsn(confirmed) if confirmed else 0, active_pid=facts["active_pid"], lost=reason)

    def drop_slot(self, name: str) -> None:
        """Remove a slot whose log is gone: it can't be read any more and only holds back vacuum."""
        self._row("SELECT pg_drop_replication_slot(%s)", name)

    def complete_transaction(self) -> int:
        """A transaction of our own, completed when this returns: who sees its id reads what stands now.

        Its commit waits for no standby.
        """
        row = self._row("SELECT pg_current_xact_id()::text, set_config('synchronous_commit', 'local', true)")
        return int(row[0])

    def newest_xid(self) -> int:
        """The next 64-bit transaction id that nobody has completed."""
        (xid,) = self._row("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")
        return int(xid)

    def commit_heartbeat(self, *, source: str, instance: str, number: int) -> None:
        """Commit one heartbeat through the log: a transactional message, which the stream will show.

        The statement's snapshot is older than its own transaction id, so the heartbeat never covers itself. Its commit
        waits for no standby: one that is away must not stop the proof of progress.
        """
        self._row(
            "SELECT set_config('synchronous_commit', 'local', true), pg_logical_emit_message(true, %s,"
            " json_build_object('source', %s::text, 'instance', %s::text, 'number', %s::int,"
            " 'stamp', pg_current_xact_id()::text::bigint, 'snapshot', pg_current_snapshot()::text,"
            " 'time_ms', (extract(epoch FROM clock_timestamp()) * 1000)::bigint)::text)",
            HEARTBEAT_PREFIX,
            source,
            instance,
            number,
        )

    def _all(self, statement: LiteralString, *arguments: Any) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(statement, arguments).fetchall()
        except psycopg.Error as error:
            raise _failure(error, "the source database") from error

    def _maybe(self, statement: LiteralString, *arguments: Any) -> tuple[Any, ...] | None:
        rows = self._all(statement, *arguments)
        return rows[0] if rows else None

    def _row(self, statement: LiteralString, *arguments: Any) -> tuple[Any, ...]:
        return self._all(statement, *arguments)[0]


class PostgresStream:
    """A replication connection; a `ChangeStream` once `start` and `begin` were called. One thread uses it."""

    def __init__(self, *, dsn: str, slot: str, publication: str, timeout_seconds: int, status_interval_ms: int) -> None:
        self._slot = slot
        self._publication = publication
        self._timeout_seconds = timeout_seconds
        self._status_seconds = status_interval_ms / 1000
        self._assembler: Assembler | None = None
        self._warning: str | None = None
        self._received = 0
        self._acked = 0
        self._status_due = 0.0
        self._connection = _connect(dsn, timeout_seconds, _SESSION, replication="database")
        self._connection.add_notice_handler(self._notice)
        self._pg = self._connection.pgconn
        self._poll = poll()
        self._poll.register(self._pg.socket, POLLIN)

    def identify(self) -> Identity:
        """Who the server is. Only before `start`."""
        try:
            row = self._connection.execute("IDENTIFY_SYSTEM").fetchone()
        except psycopg.Error as error:
            raise _failure(error, "the source database") from error
        assert row is not None
        system, timeline, wal_end, database = row
        return Identity(str(system), int(timeline), parse_lsn(wal_end), database)

    def create_slot(self, *, deadline_seconds: float, stopped: Callable[[], bool]) -> int:
        """Create the slot; its consistent point. Waits for all transactions that are running now.

        Raises TransientError at the deadline or when `stopped` says so, FatalError when the slot can't be created.
        """
        statement = sql.SQL("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput NOEXPORT_SNAPSHOT")
        result = self._command(statement.format(sql.Identifier(self._slot)), deadline_seconds, stopped)
        value = result.get_value(0, 1)
        assert value is not None
        return parse_lsn(value.decode())

    def start(self) -> None:
        """Take the slot and start its stream where it was last acknowledged.

        Raises GapError when the slot or its log is gone, FatalError when somebody else reads it.
        """
        statement = sql.SQL("START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names {}, {})")
        names = sql.Literal(sql.Identifier(self._publication).as_string())
        command = statement.format(sql.Identifier(self._slot), names, sql.SQL("messages 'true'"))
        self._command(command, self._timeout_seconds, lambda: False)

    def begin(self, assembler: Assembler, acked: int) -> None:
        """Hand over items from here on, made by `assembler`. `acked` is the slot's confirmed position."""
        self._assembler = assembler
        self._acked = self._received = acked

    def read(self, timeout_seconds: float) -> Sequence[StreamItem]:
        """See ChangeStream."""
        assert self._assembler is not None, "begin() comes first"
        items: list[StreamItem] = []
        waited = False
        try:
            while len(items) < _READ_ITEMS:
                size, data = self._pg.get_copy_data(1)
                if size > 0:
                    self._take(bytes(data), self._assembler, items)
                elif size < 0:
                    raise self._ended()
                elif items or waited:
                    break
                else:
                    waited = self._wait(timeout_seconds)
            self._check_warning()
        except psycopg.Error as error:
            raise _failure(error, f"slot {self._slot!r}") from error
        self.keep_alive()
        return items

    def keep_alive(self) -> None:
        """See ChangeStream."""
        if time.monotonic() >= self._status_due:
            self._send_status()

    def ack(self, mark: int) -> None:
        """See ChangeStream. The server hears of it at once."""
        if mark > self._acked:
            self._acked = mark
            self._received = max(self._received, mark)
            self._send_status()

    def close(self) -> None:
        """See ChangeStream."""
        with suppress(psycopg.Error, StaleproofError):
            if self._assembler is not None:
                self._send_status()
                self._pg.put_copy_end()
                self._drain_writes(time.monotonic() + 1.0)
        with suppress(psycopg.Error):
            self._connection.close()

    def _take(self, data: bytes, assembler: Assembler, items: list[StreamItem]) -> None:
        kind = data[0]
        if kind == _DATA:
            (start,) = _LSN_AT(data, 1)
            self._received = max(self._received, start)
            items.extend(assembler.add(decode(data, _XLOG_HEADER)))
        elif kind == _ALIVE:
            _, wal_end, _time, wants_reply = _KEEPALIVE.unpack(data)
            self._received = max(self._received, wal_end)
            if wants_reply:
                self._status_due = 0.0
            if not assembler.inside:
                items.append(Progress(wal_end))
        else:
            raise FatalError(f"the replication stream sent {kind:#04x}, which is neither data nor keepalive")

    def _wait(self, timeout_seconds: float) -> bool:
        """Read what arrives within the time into libpq's buffer; always True."""
        until_status = max(0.0, self._status_due - time.monotonic())
        self._poll.poll(min(timeout_seconds, until_status) * 1000)
        self._pg.consume_input()
        return True

    def _send_status(self) -> None:
        now_us = int(time.time() * 1_000_000) - PG_EPOCH_MS * 1000
        status = _STATUS.pack(b"r", self._received, self._acked, self._acked, now_us, 0)
        try:
            self._pg.put_copy_data(status)
            self._pg.flush()
        except psycopg.Error as error:
            raise _failure(error, f"slot {self._slot!r}") from error
        self._status_due = time.monotonic() + self._status_seconds

    def _drain_writes(self, deadline: float) -> None:
        while self._pg.flush() and time.monotonic() < deadline:
            self._poll.poll(50)

    def _command(self, statement: sql.Composed, seconds: float, stopped: Callable[[], bool]) -> Any:
        """Run one replication command, watching the clock and the operator."""
        deadline = time.monotonic() + seconds
        try:
            self._pg.nonblocking = 1
            self._pg.send_query(statement.as_bytes(self._connection))
            while self._pg.flush() or self._pg.is_busy():
                if stopped() or time.monotonic() > deadline:
                    self._pg.get_cancel().cancel()
                    raise TransientError(f"gave up after {seconds:g} s: {statement.as_string()}")
                self._poll.poll(100)
                self._pg.consume_input()
            return self._result()
        except psycopg.Error as error:
            raise _failure(error, f"slot {self._slot!r}") from error

    def _result(self) -> Any:
        result = self._pg.get_result()
        if result is None:
            raise TransientError(f"slot {self._slot!r}: the server closed the connection")
        if result.status == ExecStatus.FATAL_ERROR:
            raise _result_failure(result, f"slot {self._slot!r}")
        if result.status != ExecStatus.COPY_BOTH:
            while self._pg.get_result() is not None:  # the end of the command
                pass
        return result

    def _ended(self) -> StaleproofError:
        """Why the copy ended: the error behind it, or a server that shuts down."""
        result = self._pg.get_result()
        if result is not None and result.status == ExecStatus.FATAL_ERROR:
            return _result_failure(result, f"slot {self._slot!r}")
        return TransientError(f"slot {self._slot!r}: the server ended the stream, as it does when it shuts down")

    def _notice(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        # PostgreSQL 18 only warns when a publication is missing at a place of the log, and skips its changes.
        if diagnostic.sqlstate == "55000":
            self._warning = diagnostic.message_primary or "a prerequisite is missing"

    def _check_warning(self) -> None:
        if self._warning is not None:
            warning, self._warning = self._warning, None
            raise GapError(f"slot {self._slot!r} went on without changes: {warning}")


def _connect(dsn: str, timeout_seconds: int, options: str, **extra: str) -> psycopg.Connection[tuple[Any, ...]]:
    given = conninfo_to_dict(dsn)
    conninfo = make_conninfo(
        dsn,
        connect_timeout=timeout_seconds,
        tcp_user_timeout=timeout_seconds * 1000,
        client_encoding="utf8",
        application_name=str(given.get("application_name") or "staleproof"),
        options=f"{given.get('options') or ''} {options}".strip(),
        **extra,
    )
    try:
        return psycopg.connect(conninfo, autocommit=True)
    except psycopg.OperationalError as error:
        what = str(error).strip().splitlines()[0]
        raise TransientError(f"cannot connect to the source database (source.dsn): {what}") from error


def _failure(error: psycopg.Error, what: str) -> StaleproofError:
    return _by_sqlstate(error.sqlstate, str(error).strip(), what)


def _result_failure(result: Any, what: str) -> StaleproofError:
    state, text = (result.error_field(f) for f in (DiagnosticField.SQLSTATE, DiagnosticField.MESSAGE_PRIMARY))
    return _by_sqlstate(state and state.decode(), (text or b"").decode("utf-8", "replace"), what)


def _by_sqlstate(state: str | None, text: str, what: str) -> StaleproofError:
    match state:
        case "55006":
            return FatalError(f"{what}: {text}; only one capture may read a slot: stop the other or name another slot")
        case "55000" | "42704":
            return GapError(f"{what}: {text}")
        case "42501":
            return ConfigError(f"{what}: {text}; grant it, e.g. `ALTER ROLE ... REPLICATION`")
        case "53400":
            return ConfigError(f"{what}: {text}; raise max_replication_slots and max_wal_senders")
        case _:
            return TransientError(f"{what}: {text}")
