"""`staleproof init`: a commented staleproof.yaml and views.yaml, proposed from a database's own catalogue.

What is written is pure text; the files are created here and never replaced. A dsn with a password goes to a file of
its own that only its owner can read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cdc.errors import ConfigError
from consumers.database import TableFacts, catalogue, has_password, open_database
from consumers.findings import create_publication
from invalidator.views import MAX_PARTS

SETTINGS_FILE, VIEWS_FILE, SECRET_FILE = "staleproof.yaml", "views.yaml", "staleproof.dsn"
CONNECT_TIMEOUT_SECONDS = 10
MAX_PROPOSED = 200
"""More views than anybody reads at once; the rest is left to the reader."""

_UNFIT_TYPES = frozenset({"real", "double precision", "json", "jsonb", "bytea"})
_SETTINGS = """\
# staleproof: settings. Every value can be overridden by the environment: STALEPROOF_SOURCE__DSN=… sets source.dsn.
# Secrets can be kept in files: dsn_file, url_file, password_file, sasl_password_file.
# Paths are relative to this file.

source:                                # the database that is captured
  name: app                            # begins the name of every topic
  {dsn}
  publication: staleproof
  slot: staleproof
  # heartbeat_interval_ms: 250         # how often progress is proven
  # ddl_interval_ms: 1000              # how often table definitions are compared

kafka:
  bootstrap_servers: localhost:9092
  partitions: 4                        # of each topic that capture creates
  replication_factor: 1                # 3 in production
  # security_protocol: SASL_SSL        # or SSL, SASL_PLAINTEXT, PLAINTEXT
  # sasl_mechanism: SCRAM-SHA-512
  # sasl_username: staleproof
  # sasl_password_file: kafka.password
  # ssl_ca_location: ca.pem

regions:                               # one Redis (7.0 or later) or Valkey (7.2 or later) each
  eu:
    url: redis://localhost:6379/0      # rediss:// for TLS; url_file where it holds a password
    # username: staleproof
    # password_file: redis.password
    # reader_username: staleproof-reader   # the applications' user: `check` tries it, `staleproof acl` makes it
    # tls_ca_location: ca.pem
    # topology: sentinel               # or cluster; url may name several servers: redis://a:26379,b:26379
    # sentinel_master: mymaster        # the primary's name at its Sentinels
    # shards: 1                        # 24 for a cluster of three primaries: each shard lies on one
    # prefix: sp                       # keeps our keys apart from other applications'
    # timeout_ms: 1000

views: views.yaml                      # what is cached, and which tables it comes from

# capture:                             # limits of `staleproof capture`
#   http_port: 9101                    # /metrics, /live, /ready; 0 = a free port, see the log
# worker:                              # limits of `staleproof invalidate`
#   http_port: 9102
#   batch_records: 1000                # fetched at a time
#   script_keys: 250                   # keys of one script: about a millisecond of Redis
#   mass_change_keys: 10000            # one transaction that changes more of a view raises the whole view
"""
_VIEWS = """\
# staleproof: views. Each describes one kind of cached object: its key, and the tables whose changes reach it.
#
#   contact:
#     key: "contact:{id}"              # columns in braces; everything else stands as written
#     mode: invalidate                 # or refresh: write the new row instead (one table only)
#     ttl_seconds: 86400               # leave out for no expiry
#     tables:
#       public.contacts:
#         columns: [email, status]     # only changes of these matter; leave out for all
#       public.segment_members:
#         parts: {id: contact_id}      # key part: column, where their names differ

version: 1
views:
"""
_PLACEHOLDER = """\
  contact:
    key: "contact:{id}"
    mode: invalidate
    tables:
      public.contacts:
"""


def run(dsn: str | None, directory: Path) -> list[str]:
    """Write the files; the next steps, a line each. Raises ConfigError when one of them exists already."""
    tables: Sequence[TableFacts] = ()
    secret = dsn is not None and has_password(dsn)
    files = [SETTINGS_FILE, VIEWS_FILE, *([SECRET_FILE] if secret else [])]
    _refuse_existing(directory, files)
    if dsn is not None:
        with open_database(dsn, timeout_seconds=CONNECT_TIMEOUT_SECONDS) as database:
            tables = catalogue(database)
    texts = {SETTINGS_FILE: settings_text(dsn, secret=secret), VIEWS_FILE: views_text(tables), SECRET_FILE: f"{dsn}\n"}
    _write(directory, {name: texts[name] for name in files})
    return [f"wrote {directory / name}" for name in files] + next_steps(directory, fit_tables(tables))


def settings_text(dsn: str | None, *, secret: bool) -> str:
    """A commented staleproof.yaml; a secret dsn is referred to, not repeated."""
    line = "dsn: postgresql://user@localhost:5432/database"
    if dsn is not None:
        line = f"dsn_file: {SECRET_FILE}" if secret else f"dsn: {json.dumps(dsn)}"
    return _SETTINGS.replace("{dsn}", line)


def views_text(tables: Iterable[TableFacts]) -> str:
    """A commented views.yaml with one invalidate view for each table that has a usable primary key."""
    known = list(tables)
    fit = fit_tables(known)
    names = _view_names(fit)
    proposed = "".join(_view_text(names[table.name], table) for table in fit) or _PLACEHOLDER
    skipped = [table.name for table in known if table not in fit]
    remarks = "".join(f"  # {_comment(name)} is left out: it has no primary key that fits a key\n" for name in skipped)
    return _VIEWS + proposed + remarks


def fit_tables(tables: Iterable[TableFacts]) -> list[TableFacts]:
    """Those that a view is proposed for."""
    return [table for table in tables if _fits(table)][:MAX_PROPOSED]


def next_steps(directory: Path, tables: Iterable[TableFacts]) -> list[str]:
    """What to do now, in order."""
    option = "" if directory == Path() else f" --config {directory / SETTINGS_FILE}"
    return [
        "next:",
        f"  1. edit {directory / SETTINGS_FILE} (Kafka, regions) and {directory / VIEWS_FILE} (keep what you cache)",
        f"  2. in the database:  {create_publication('staleproof', tables)}",
        f"  3. staleproof check{option}",
        f"  4. staleproof capture{option}",
        f"  5. staleproof invalidate --region eu{option}",
    ]


def _fits(table: TableFacts) -> bool:
    types = [column.type for name in table.primary_key if (column := table.column(name)) is not None]
    plain = re.fullmatch(r'[^\s."{}]{1,63}\.[^\s."{}]{1,63}', table.name)
    return bool(plain) and 0 < len(types) <= MAX_PARTS and not _UNFIT_TYPES & set(types)


def _view_names(tables: Iterable[TableFacts]) -> dict[str, str]:
    """A distinct view name for each table: its own, with its schema's where that is not public."""
    names: dict[str, str] = {}
    for table in tables:
        base = re.sub(r"[^a-z0-9_]+", "_", table.name.lower().removeprefix("public.").replace(".", "_")).strip("_")
        base = (base if base[:1].isalpha() else f"t_{base}")[:28]
        name, number = base, 2
        while name in names.values():
            name, number = f"{base}_{number}", number + 1
        names[table.name] = name
    return names


def _view_text(name: str, table: TableFacts) -> str:
    """A field is named after its column where a field can be; otherwise `parts` maps it."""
    fields = [c if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", c) else f"p{i}" for i, c in enumerate(table.primary_key)]
    parts = {field: column for field, column in zip(fields, table.primary_key, strict=True) if field != column}
    key = ":".join([name, *(f"{{{field}}}" for field in fields)])
    lines = [
        f"  {name}:",
        f'    key: "{key}"',
        "    mode: invalidate",
        "    tables:",
        f"      {json.dumps(table.name)}:",
    ]
    if parts:
        lines.append(f"        parts: {json.dumps(parts)}")
    return "\n".join(lines) + "\n"


def _comment(name: str) -> str:
    return json.dumps(name)[1:-1]


def _refuse_existing(directory: Path, files: Iterable[str]) -> None:
    for name in files:
        if (directory / name).exists():
            raise ConfigError(f"{directory / name} exists and is not replaced: remove it, or choose another --output")


def _write(directory: Path, texts: Mapping[str, str]) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            mode = 0o600 if name == SECRET_FILE else 0o644
            handle = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise ConfigError(f"cannot write to {directory}: {error.strerror}: choose another --output") from None
