"""What `staleproof check` says about the facts: pure judgements, each with the statement that mends it.

FAIL: something would be refused, or go stale or unseen. WARN: it works, but not as well as was probably meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from consumers.database import (
    ColumnFacts,
    PublicationFacts,
    PublishedTable,
    ReplicaIdentity,
    ServerFacts,
    SlotFacts,
    TableFacts,
    quoted,
)
from consumers.kafka_facts import KafkaFacts
from consumers.settings import RegionSettings, Settings, SourceSettings
from invalidator.document import nearest
from invalidator.redis_facts import RedisFacts
from invalidator.redis_url import Topology
from invalidator.views import Mode, Rule, View, Views

OPERATIONS = ("insert", "update", "delete", "truncate")
OLDEST_POSTGRES = 140_000
"""14 is the first whose pgoutput carries logical messages, which heartbeats are."""

OLDEST_KAFKA = (2, 8)
"""The first with topic ids, which tell a re-created topic from the old one."""

OLDEST_REDIS = {"redis": (7, 0), "valkey": (7, 2)}
"""The first with functions."""

_EXACT_TYPES = frozenset(
    {"smallint", "integer", "bigint", "oid", "boolean", "text", "character varying", "uuid", "name", "numeric"}
)
_RENDERED_TYPES = {
    "date": "days since 1970",
    "timestamp without time zone": "micro- or milliseconds since 1970",
    "time without time zone": "micro- or milliseconds",
    "timestamp with time zone": "text in UTC, such as 2026-01-02T03:04:05Z",
    "bytea": "base64",
    "character": "text padded with spaces",
    "citext": "text as written, so that A and a are different keys",
}


class Level(StrEnum):
    """How bad it is."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One judgement about `subject`; `fix` is a statement, a command or a setting, ready to be used."""

    level: Level
    subject: str
    text: str
    fix: str | None = None


def failed(findings: Iterable[Finding]) -> bool:
    """Whether any of them must be mended first."""
    return any(finding.level is Level.FAIL for finding in findings)


def judge_server(server: ServerFacts, slot: SlotFacts | None, source: SourceSettings) -> Iterator[Finding]:
    """Whether this server can be captured."""
    subject = "source"
    major, minor = divmod(server.version, 10_000)
    if server.version < OLDEST_POSTGRES:
        yield _fail(subject, f"PostgreSQL {major} cannot be captured: upgrade to {OLDEST_POSTGRES // 10_000} or later")
    else:
        yield _ok(subject, f"PostgreSQL {major}.{minor}, database {server.database}")
    if server.wal_level != "logical":
        fix = "ALTER SYSTEM SET wal_level = 'logical';  -- then restart PostgreSQL"
        yield _fail(subject, f"wal_level is {server.wal_level}: changes are not in the log", fix)
    if server.in_recovery:
        yield _fail(
            subject, "is a standby, and heartbeats are written by the primary", "source.dsn: the primary's address"
        )
    if server.encoding == "SQL_ASCII":
        yield _fail(subject, "the database's encoding is SQL_ASCII, so its text has no meaning: use a UTF8 database")
    if not server.may_replicate:
        fix = f"ALTER ROLE {quoted(server.user)} REPLICATION;  -- on Amazon RDS: GRANT rds_replication TO …"
        yield _warn(subject, f"role {server.user} has no REPLICATION attribute", fix)
    yield from _judge_slot(server, slot, source)


def _judge_slot(server: ServerFacts, slot: SlotFacts | None, source: SourceSettings) -> Iterator[Finding]:
    subject = f"slot {source.slot}"
    if slot is None:
        if server.slots_in_use >= server.max_replication_slots:
            fix = f"ALTER SYSTEM SET max_replication_slots = {server.slots_in_use + 4};  -- then restart PostgreSQL"
            yield _fail(subject, f"all {server.max_replication_slots} replication slots are in use", fix)
        else:
            yield _ok(subject, "does not exist yet: capture creates it")
        return
    drop = f"SELECT pg_drop_replication_slot('{source.slot}');"
    if slot.plugin != "pgoutput" or slot.database != server.database or slot.two_phase:
        kind = f"plugin {slot.plugin}, database {slot.database}, two_phase {str(slot.two_phase).lower()}"
        need = f"pgoutput, {server.database}, false"
        yield _fail(subject, f"is another one's: {kind} instead of {need}", "source.slot: a name of our own")
    elif slot.wal_status == "lost":
        text = "its log is gone, so changes were lost: capture starts a new epoch and every region is closed meanwhile"
        yield _warn(subject, text, f"{drop}  -- capture does so itself; see max_slot_wal_keep_size")
    else:
        yield _ok(subject, "is in use" if slot.active else "exists")


def create_publication(name: str, tables: Iterable[TableFacts]) -> str:
    """The statement that publishes these tables, partitioned ones under their own names."""
    listed = list(tables)
    root = " WITH (publish_via_partition_root = true)" if any(table.partitioned for table in listed) else ""
    names = ", ".join(quoted(table.name) for table in listed) or "schema.table"
    return f"CREATE PUBLICATION {quoted(name)} FOR TABLE {names}{root};"


def judge_publication(
    publication: PublicationFacts | None, source: SourceSettings, views: Views, tables: Mapping[str, TableFacts]
) -> Iterator[Finding]:
    """Whether every change that a view needs is sent. `tables` are those of the views and of the publication."""
    subject, name = f"publication {source.publication}", quoted(source.publication)
    needed = sorted(table for table in views.by_table if table in tables)
    create = create_publication(source.publication, [tables[table] for table in needed])
    if publication is None:
        yield _fail(subject, "does not exist", create)
        return
    missing = [operation for operation in OPERATIONS if operation not in publication.operations]
    if missing:
        fix = f"ALTER PUBLICATION {name} SET (publish = '{', '.join(OPERATIONS)}');"
        yield _fail(subject, f"does not send {', '.join(missing)}", fix)
    if publication.all_tables:
        text = "is FOR ALL TABLES: a table without a primary key, today's or tomorrow's, then refuses UPDATE and DELETE"
        yield _fail(subject, text, f"DROP PUBLICATION {name}; {create}")
    yield from _judge_coverage(publication, subject, views, tables, needed)
    yield from _judge_identities(publication, tables)


def _judge_coverage(
    publication: PublicationFacts, subject: str, views: Views, tables: Mapping[str, TableFacts], needed: list[str]
) -> Iterator[Finding]:
    name = quoted(publication.name)
    absent = [table for table in needed if table not in publication.tables]
    if any(tables[table].partitioned for table in absent) and not publication.via_root:
        fix = f"ALTER PUBLICATION {name} SET (publish_via_partition_root = true);"
        yield _fail(subject, "sends partitioned tables under the names of their partitions", fix)
        absent = [table for table in absent if not tables[table].partitioned]
    if absent:
        fix = f"ALTER PUBLICATION {name} ADD TABLE {', '.join(map(quoted, absent))};"
        yield _fail(subject, f"does not cover {', '.join(absent)}", fix)
    narrow = [
        table for table in needed if table in publication.tables and _too_narrow(tables[table], publication, views)
    ]
    for table in narrow:
        fix = (
            f"ALTER PUBLICATION {name} DROP TABLE {quoted(table)}; ALTER PUBLICATION {name} ADD TABLE {quoted(table)};"
        )
        yield _fail(subject, f"sends only some rows or columns of {table}, fewer than the views need", fix)
    if needed and not absent and not narrow:
        yield _ok(subject, f"covers the views' tables: {', '.join(needed)}")


def _too_narrow(table: TableFacts, publication: PublicationFacts, views: Views) -> bool:
    sent: PublishedTable = publication.tables[table.name]
    named = {column for _, rule in views.by_table[table.name] for column in (*rule.parts, *(rule.columns or ()))}
    needed = {column for column in named if table.column(column) is not None}  # the rest is the view's mistake
    return sent.filtered or (sent.columns is not None and not needed <= sent.columns)


def _judge_identities(publication: PublicationFacts, tables: Mapping[str, TableFacts]) -> Iterator[Finding]:
    for name in sorted(publication.tables):
        table = tables.get(name)
        if table is None:
            continue
        if not table.old_columns:
            text = "is published without a primary key or replica identity: its UPDATE and DELETE are refused"
            yield _fail(
                f"table {name}", text, f"ALTER TABLE {quoted(name)} ADD PRIMARY KEY (…);  -- or REPLICA IDENTITY FULL"
            )
        elif not table.primary_key:
            text = "has no primary key: the order of one row's changes is not kept by Kafka"
            yield _warn(f"table {name}", text, f"ALTER TABLE {quoted(name)} ADD PRIMARY KEY (…);")


def judge_views(views: Views, tables: Mapping[str, TableFacts]) -> Iterator[Finding]:
    """Whether every view's keys can be told from what the stream carries."""
    for view in views.views.values():
        subject = f"view {view.name}"
        found = [finding for rule in view.rules for finding in _judge_rule(subject, view, rule, tables)]
        yield from found
        if not failed(found):
            how = f"{view.mode.value}, {view.layout.value}" if view.is_plain else view.mode.value
            yield _ok(subject, f"{view.key.text}, {how}, from {', '.join(rule.table for rule in view.rules)}")


def _judge_rule(subject: str, view: View, rule: Rule, tables: Mapping[str, TableFacts]) -> Iterator[Finding]:
    table = tables.get(rule.table)
    if table is None:
        yield _fail(subject, f"table {rule.table} does not exist, or our role does not see it", "correct views.yaml")
        return
    known = [column.name for column in table.columns]
    unknown = sorted({*rule.parts, *(rule.columns or ())} - set(known))
    for column in unknown:
        yield _fail(subject, f"{rule.table} has no column {column}; {nearest(column, known)}", "correct views.yaml")
    if unknown:
        return
    yield from _judge_old_values(subject, rule, table)
    for column in (table.column(part) for part in rule.parts):
        if column is not None:
            yield from _judge_part(subject, rule, column)
    if view.mode is Mode.REFRESH:
        yield from _judge_refresh(subject, rule, table)
    elif rule.columns is not None and table.identity is not ReplicaIdentity.FULL:
        text = f"`columns` of {rule.table} saves nothing: without old values every update invalidates"
        yield _warn(subject, text, f"ALTER TABLE {quoted(rule.table)} REPLICA IDENTITY FULL;  -- or remove `columns`")


def _judge_old_values(subject: str, rule: Rule, table: TableFacts) -> Iterator[Finding]:
    unseen = [part for part in rule.parts if part not in table.old_columns]
    if unseen:
        text = f"its key needs the old value of {rule.table}.{', '.join(unseen)}, which the stream does not carry"
        yield _fail(subject, text, f"ALTER TABLE {quoted(rule.table)} REPLICA IDENTITY FULL;")


def _judge_part(subject: str, rule: Rule, column: ColumnFacts) -> Iterator[Finding]:
    place = f"{rule.table}.{column.name}"
    if column.type in ("real", "double precision"):
        yield _fail(
            subject, f"{place} is {column.type}, which has no single text form", "build the key from another column"
        )
    elif column.type in _RENDERED_TYPES:
        text = f"{place} is {column.type}: readers must ask for it as {_RENDERED_TYPES[column.type]}"
        yield _warn(subject, text, "build the key from an integer, text or uuid column")
    elif column.type not in _EXACT_TYPES:
        text = f"{place} is {column.type}: readers must ask for it in PostgreSQL's own text form"
        yield _warn(subject, text, "build the key from an integer, text or uuid column")


def _judge_refresh(subject: str, rule: Rule, table: TableFacts) -> Iterator[Finding]:
    if not table.primary_key or not set(table.primary_key) <= set(rule.parts):
        text = f"its key does not hold the primary key of {rule.table}: two rows with one key would replace each other"
        yield _warn(subject, text, "mode: invalidate  -- unless the key's columns are unique")
    stored = [c.name for c in table.columns if rule.columns is None or c.name in {*rule.columns, *rule.parts}]
    large = [c.name for c in table.columns if c.may_be_toasted and c.name in stored]
    if large and table.identity is not ReplicaIdentity.FULL:
        text = (
            f"an update that leaves a large value of {rule.table} untouched does not carry it "
            f"({', '.join(large)}): such an update invalidates instead"
        )
        yield _warn(
            subject, text, f"ALTER TABLE {quoted(rule.table)} REPLICA IDENTITY FULL;  -- or name smaller `columns`"
        )


def judge_kafka(kafka: KafkaFacts, settings: Settings, views: Views) -> Iterator[Finding]:
    """Whether the cluster and the topics that exist already can be used."""
    subject, source = "kafka", settings.source
    if tuple(map(int, kafka.version.split(".")[:2])) < OLDEST_KAFKA:
        yield _fail(subject, f"version {kafka.version} has no topic ids: upgrade to 4.0 or later")
    else:
        yield _ok(subject, f"version {kafka.version}, brokers: {kafka.brokers}")
    if kafka.brokers < settings.kafka.replication_factor:
        text = f"replication_factor is {settings.kafka.replication_factor}, and brokers: {kafka.brokers}"
        yield _fail(subject, text, f"kafka.replication_factor: {kafka.brokers}")
    if kafka.partitions.get(source.control_topic, 1) != 1:
        text = f"has {kafka.partitions[source.control_topic]} partitions instead of 1, so its order is lost"
        fix = f"kafka-topics.sh --delete --topic {source.control_topic}  # capture creates it"
        yield _fail(f"topic {source.control_topic}", text, fix)
    captured = sorted(map(source.topic, views.by_table))
    for topic in captured:
        if topic in kafka.compacted:
            fix = f"kafka-configs.sh --alter --topic {topic} --add-config cleanup.policy=delete"
            yield _warn(f"topic {topic}", "is compacted: a replay of a range would miss changes", fix)
    absent = [topic for topic in captured if topic not in kafka.partitions]
    if absent:
        yield _ok(subject, f"topics that capture will create: {', '.join(absent)}")


def topics_of(settings: Settings, views: Views) -> tuple[str, ...]:
    """The topics that `judge_kafka` looks at."""
    return (settings.source.control_topic, *map(settings.source.topic, views.by_table))


def judge_redis(region: str, servers: Sequence[RedisFacts], settings: RegionSettings) -> Iterator[Finding]:
    """Whether one region's Redis keeps what the guard stores. `servers`: those that take writes."""
    for redis in servers:
        yield from _judge_server_of(region, redis, settings.topology)
    subject, shards = f"region {region}", settings.shards
    if settings.topology is Topology.CLUSTER and shards < 2 * len(servers):
        alone = "one primary has" if shards == 1 else "some primaries may have"
        text = f"shards is {shards} on {len(servers)} primaries, and a shard is one slot: {alone} all the work"
        fix = f"regions.{region}.shards: {8 * len(servers)}  # before the first start: it starts cold under another"
        yield _warn(subject, text, fix)


def _judge_server_of(region: str, redis: RedisFacts, topology: Topology) -> Iterator[Finding]:
    subject = f"region {region}" + (f", {redis.server}" if redis.server else "")
    least = OLDEST_REDIS[redis.product]
    if redis.version < least:
        text = f"{redis.product} {redis.version_text} has no functions: upgrade to {'.'.join(map(str, least))} or later"
        yield _fail(subject, text)
    else:
        yield _ok(subject, f"{redis.product} {redis.version_text}, {redis.eviction_policy}")
    if redis.is_replica:
        yield _fail(subject, "is a replica, which takes no writes", f"regions.{region}.url: the primary's address")
    if redis.is_cluster and topology is not Topology.CLUSTER:
        text = f"is part of a cluster, and topology is {topology.value}"
        yield _fail(subject, text, f"regions.{region}.topology: cluster")
    if redis.eviction_policy.startswith("allkeys"):
        text = f"maxmemory-policy {redis.eviction_policy} evicts fences: fills are refused until they are rebuilt"
        yield _warn(subject, text, "CONFIG SET maxmemory-policy noeviction")
    if redis.refusal and redis.version >= least:
        yield _fail(
            subject, f"functions cannot be used: {redis.refusal}", "ACL SETUSER <user> +function +fcall +fcall_ro"
        )


def _ok(subject: str, text: str) -> Finding:
    return Finding(level=Level.OK, subject=subject, text=text)


def _warn(subject: str, text: str, fix: str | None = None) -> Finding:
    return Finding(level=Level.WARN, subject=subject, text=text, fix=fix)


def _fail(subject: str, text: str, fix: str | None = None) -> Finding:
    return Finding(level=Level.FAIL, subject=subject, text=text, fix=fix)
