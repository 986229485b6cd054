"""What DDL did to the captured tables: changes of values and rows that no record of the log tells.

In flow fingerprints of the published tables, asked of the source again and again on a connection and a thread of its
own; out flow those that differ. The fingerprints' SQL and its reasons are `PostgresSource.fingerprints`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping

import structlog

from cdc.connectors.postgres import Fingerprint, PostgresSource
from cdc.errors import StaleproofError
from consumers import telemetry
from consumers.settings import SourceSettings

log = structlog.get_logger("staleproof.capture")

Fingerprints = Mapping[str, Fingerprint]
"""`schema.table` -> what DDL can change of it, for every table of the publication."""


def altered(known: Fingerprints | None, seen: Fingerprints) -> dict[str, str]:
    """Tables whose entries can be wrong since `known`, and why.

    A table that was not published before is not among them: its views are closed until heartbeats name it. `known`
    None, in a state written by a release that watched no DDL, proves nothing of any table.
    """
    if known is None:
        return dict.fromkeys(seen, "nothing is remembered of its definition")
    reasons = {table: _difference(before, seen.get(table)) for table, before in known.items()}
    return {table: reason for table, reason in reasons.items() if reason is not None}


def _difference(before: Fingerprint, now: Fingerprint | None) -> str | None:
    if now is None:
        return "dropped, renamed or no longer published"
    if before.shape != now.shape:
        return "its columns, partitions or publication changed"
    if before.versions != now.versions and before.files != now.files:
        return "its rows were rewritten under changed columns"
    return None


class SchemaWatch:
    """Asks for the fingerprints every `source.ddl_interval_ms`; a slow or absent database stalls nobody but itself."""

    def __init__(self, source: SourceSettings) -> None:
        self._source = source
        self._ended = threading.Event()
        self._newest: deque[Fingerprints] = deque(maxlen=1)
        threading.Thread(target=self._work, name="schema_watch", daemon=True).start()

    def newest(self) -> Fingerprints | None:
        """What was seen since the last call; None where nothing was."""
        try:
            return self._newest.pop()
        except IndexError:
            return None

    def stop(self) -> None:
        """End the thread after what it is doing."""
        self._ended.set()

    def _work(self) -> None:
        connection: PostgresSource | None = None
        while not self._ended.is_set():
            try:
                connection = connection or PostgresSource(
                    dsn=self._source.dsn.get_secret_value(), timeout_seconds=self._source.connect_timeout_seconds
                )
                self._newest.append(connection.fingerprints(self._source.publication))
            except StaleproofError as error:
                telemetry.CAPTURE_SCHEMA_FAILURES.inc()
                log.warning("schema_watch_failed", reason=str(error))
                if connection is not None:
                    connection.close()
                connection = None
            self._ended.wait(self._source.ddl_interval_ms / 1000)
        if connection is not None:
            connection.close()
