"""Judgements on facts, without any server: what fails, what warns, and the statement that mends it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from consumers.database import (
    ColumnFacts,
    PublicationFacts,
    PublishedTable,
    ReplicaIdentity,
    ServerFacts,
    SlotFacts,
    TableFacts,
)
from consumers.findings import Finding, Level, judge_kafka, judge_publication, judge_redis, judge_server, judge_views
from consumers.kafka_facts import KafkaFacts
from consumers.settings import RegionSettings, Settings
from invalidator.redis_facts import RedisFacts
from invalidator.views import Views, load_views

SETTINGS = Settings.model_validate(
    {
        "source": {"name": "shop", "dsn": "postgresql://h/d"},
        "kafka": {"bootstrap_servers": "k:9092", "replication_factor": 3},
        "regions": {"eu": {"url": "redis://r"}},
    }
)
SERVER = ServerFacts(
    version=180_006,
    wal_level="logical",
    max_replication_slots=10,
    slots_in_use=0,
    in_recovery=False,
    system_identifier="1",
    database="d",
    encoding="UTF8",
    user="ann",
    may_replicate=True,
)
SLOT = SlotFacts(
    name="staleproof", plugin="pgoutput", database="d", active=False, two_phase=False, wal_status="reserved"
)
REDIS = RedisFacts(
    product="redis",
    version=(7, 0, 1),
    eviction_policy="noeviction",
    maxmemory_bytes=0,
    is_replica=False,
    is_cluster=False,
    refusal=None,
)
KAFKA = KafkaFacts(brokers=3, version="4.3", partitions={}, compacted=frozenset())


def table(name: str = "public.contacts", **facts: Any) -> TableFacts:
    columns = facts.pop("columns", {"id": "bigint", "email": "text", "plan": "integer"})
    defaults = {
        "primary_key": ("id",),
        "identity": ReplicaIdentity.DEFAULT,
        "old_columns": frozenset({"id"}),
        "partitioned": False,
    }
    return TableFacts(
        name=name,
        columns=tuple(ColumnFacts(name=c, type=t, may_be_toasted=t == "text") for c, t in columns.items()),
        **{**defaults, **facts},
    )


FULL = {"identity": ReplicaIdentity.FULL, "old_columns": frozenset({"id", "email", "plan"})}


def views(key: str = "contact:{id}", mode: str = "invalidate", rule: str = "{}") -> Views:
    text = f'version: 1\nviews: {{contact: {{key: "{key}", mode: {mode}, tables: {{public.contacts: {rule}}}}}}}'
    return load_views(text, place="views.yaml")


def publication(**facts: Any) -> PublicationFacts:
    defaults = {
        "name": "staleproof",
        "all_tables": False,
        "operations": frozenset({"insert", "update", "delete", "truncate"}),
        "via_root": False,
        "tables": {"public.contacts": PublishedTable(columns=None, filtered=False)},
    }
    return PublicationFacts(**{**defaults, **facts})


def troubles(findings: Any) -> list[tuple[str, str, str | None]]:
    """Level, text and remedy of whatever is not OK."""
    found: list[Finding] = list(findings)
    assert found
    return [(f.level.value, f.text, f.fix) for f in found if f.level is not Level.OK]


def test_a_good_server_has_no_findings_but_ok():
    assert troubles(judge_server(SERVER, SLOT, SETTINGS.source)) == []
    assert troubles(judge_server(SERVER, None, SETTINGS.source)) == []


@pytest.mark.parametrize(
    ("facts", "level", "text", "fix"),
    [
        ({"wal_level": "replica"}, "FAIL", "wal_level is replica", "ALTER SYSTEM SET wal_level = 'logical'"),
        ({"version": 130_002}, "FAIL", "PostgreSQL 13 cannot be captured: upgrade to 14", None),
        ({"in_recovery": True}, "FAIL", "is a standby", "source.dsn"),
        ({"encoding": "SQL_ASCII"}, "FAIL", "encoding is SQL_ASCII", None),
        ({"may_replicate": False}, "WARN", "role ann has no REPLICATION", 'ALTER ROLE "ann" REPLICATION;'),
        ({"slots_in_use": 10}, "FAIL", "all 10 replication slots are in use", "ALTER SYSTEM SET max_replication_slots = 14"),
    ],
)  # fmt: skip
def test_a_server_that_cannot_be_captured_is_told_why(facts, level, text, fix):
    ((found_level, found_text, found_fix),) = troubles(judge_server(replace(SERVER, **facts), None, SETTINGS.source))
    assert found_level == level
    assert text in found_text
    assert (found_fix or "").startswith(fix or "")


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        ({"plugin": "wal2json"}, "FAIL"),
        ({"database": "other"}, "FAIL"),
        ({"two_phase": True}, "FAIL"),
        ({"wal_status": "lost"}, "WARN"),
    ],
)
def test_a_slot_of_another_kind_or_without_its_log_is_reported(facts, level):
    ((found, _, fix),) = troubles(judge_server(SERVER, replace(SLOT, **facts), SETTINGS.source))
    assert found == level
    assert fix


def judged(facts: PublicationFacts | None, *tables: TableFacts, of: Views | None = None):
    known = {t.name: t for t in tables or (table(),)}
    return troubles(judge_publication(facts, SETTINGS.source, of or views(), known))


def test_a_publication_that_covers_the_views_is_good():
    assert judged(publication()) == []


def test_a_missing_publication_comes_with_its_statement():
    fix = 'CREATE PUBLICATION "staleproof" FOR TABLE "public"."contacts";'
    assert judged(None) == [("FAIL", "does not exist", fix)]


def test_a_partitioned_table_is_published_under_its_own_name():
    ((_, _, fix),) = judged(None, table(partitioned=True))
    assert fix.endswith('"public"."contacts" WITH (publish_via_partition_root = true);')


@pytest.mark.parametrize("operation", ["insert", "update", "delete", "truncate"])
def test_a_publication_without_an_operation_fails(operation):
    ((level, text, fix),) = judged(publication(operations=publication().operations - {operation}))
    assert (level, text) == ("FAIL", f"does not send {operation}")
    assert fix == "ALTER PUBLICATION \"staleproof\" SET (publish = 'insert, update, delete, truncate');"


def test_a_publication_without_a_view_table_fails():
    ((level, text, fix),) = judged(publication(tables={}))
    assert (level, text) == ("FAIL", "does not cover public.contacts")
    assert fix == 'ALTER PUBLICATION "staleproof" ADD TABLE "public"."contacts";'


def test_a_publication_that_sends_partitions_fails():
    ((level, _, fix),) = judged(publication(tables={}), table(partitioned=True))
    assert (level, fix) == ("FAIL", 'ALTER PUBLICATION "staleproof" SET (publish_via_partition_root = true);')


def test_a_partitioned_table_that_is_left_out_is_added():
    ((_, _, fix),) = judged(publication(tables={}, via_root=True), table(partitioned=True))
    assert fix == 'ALTER PUBLICATION "staleproof" ADD TABLE "public"."contacts";'


@pytest.mark.parametrize(
    "sent",
    [
        PublishedTable(columns=None, filtered=True),
        PublishedTable(columns=frozenset({"email"}), filtered=False),
        PublishedTable(columns=frozenset({"id"}), filtered=False),
    ],
)
def test_a_publication_of_some_rows_or_columns_fails(sent):
    ((level, text, _),) = judged(publication(tables={"public.contacts": sent}), of=views(rule="{columns: [email]}"))
    assert level == "FAIL"
    assert "only some rows or columns of public.contacts" in text


def test_a_publication_for_all_tables_fails_and_names_tables_that_refuse_updates():
    bare = table("public.log", primary_key=(), old_columns=frozenset())
    everything = {name: PublishedTable(columns=None, filtered=False) for name in ("public.contacts", "public.log")}
    found = judged(publication(all_tables=True, tables=everything), table(), bare)
    assert [level for level, _, _ in found] == ["FAIL", "FAIL"]
    assert found[0][2].startswith('DROP PUBLICATION "staleproof"; CREATE PUBLICATION "staleproof" FOR TABLE')
    assert found[1][2].startswith('ALTER TABLE "public"."log" ADD PRIMARY KEY')


def test_a_published_table_without_primary_key_but_full_identity_warns():
    ((level, text, _),) = judged(publication(), table(primary_key=(), **FULL))
    assert level == "WARN"
    assert "no primary key" in text


def judged_view(of: Views, *tables: TableFacts):
    return troubles(judge_views(of, {t.name: t for t in tables or (table(),)}))


def test_a_view_on_the_primary_key_is_good():
    assert judged_view(views()) == []


def test_a_key_from_a_column_outside_the_replica_identity_fails():
    ((level, text, fix),) = judged_view(views("contact:{email}"))
    assert level == "FAIL"
    assert "old value of public.contacts.email" in text
    assert fix == 'ALTER TABLE "public"."contacts" REPLICA IDENTITY FULL;'


@pytest.mark.parametrize("facts", [FULL, {"identity": ReplicaIdentity.INDEX, "old_columns": frozenset({"email"})}])
def test_a_key_inside_the_replica_identity_is_good(facts):
    assert judged_view(views("contact:{email}"), table(**facts)) == []


def test_a_primary_key_under_replica_identity_nothing_fails():
    ((level, _, _),) = judged_view(views(), table(identity=ReplicaIdentity.NOTHING, old_columns=frozenset()))
    assert level == "FAIL"


def test_a_view_of_a_table_that_is_not_there_fails():
    ((level, text, _),) = judged_view(views(), table("public.other"))
    assert (level, "public.contacts does not exist" in text) == ("FAIL", True)


def test_unknown_columns_of_a_view_are_named_with_the_nearest():
    found = judged_view(views("contact:{idd}", rule="{columns: [emial]}"))
    assert [level for level, _, _ in found] == ["FAIL", "FAIL"]
    assert 'has no column emial; did you mean "email"?' in found[0][1]


def test_columns_without_old_values_warn_that_they_save_nothing():
    ((level, text, fix),) = judged_view(views(rule="{columns: [plan]}"))
    assert level == "WARN"
    assert "saves nothing" in text
    assert "REPLICA IDENTITY FULL" in fix
    assert judged_view(views(rule="{columns: [plan]}"), table(**FULL)) == []


@pytest.mark.parametrize(
    ("kind", "level"),
    [("double precision", "FAIL"), ("real", "FAIL"), ("date", "WARN"), ("citext", "WARN"), ("bytea", "WARN"), ("integer[]", "WARN")],
)  # fmt: skip
def test_key_columns_without_a_plain_text_form_are_reported(kind, level):
    ((found, text, _),) = judged_view(views(), table(columns={"id": kind}))
    assert found == level
    assert f"public.contacts.id is {kind}" in text


@pytest.mark.parametrize("kind", ["bigint", "uuid", "text", "boolean", "numeric"])
def test_key_columns_with_a_text_form_are_good(kind):
    assert judged_view(views(), table(columns={"id": kind})) == []


def test_a_refresh_view_with_large_values_warns_unless_old_values_are_sent():
    ((level, text, _),) = judged_view(views(mode="refresh"))
    assert level == "WARN"
    assert "(email)" in text
    assert judged_view(views(mode="refresh"), table(**FULL)) == []
    assert judged_view(views(mode="refresh", rule="{columns: [plan]}")) == []


def test_a_refresh_view_whose_key_may_name_several_rows_warns():
    ((level, text, _),) = judged_view(views("contact:{plan}", "refresh"), table(**FULL))
    assert level == "WARN"
    assert "primary key" in text


def judged_kafka(**facts: Any):
    return troubles(judge_kafka(replace(KAFKA, **facts), SETTINGS, views()))


def test_kafka_findings():
    assert judged_kafka() == []
    assert judged_kafka(partitions={"shop.staleproof.control": 1, "shop.public.contacts": 4}) == []
    ((level, text, fix),) = judged_kafka(brokers=1)
    assert (level, fix) == ("FAIL", "kafka.replication_factor: 1")
    ((level, text, _),) = judged_kafka(partitions={"shop.staleproof.control": 2})
    assert (level, "2 partitions instead of 1" in text) == ("FAIL", True)
    topic = "shop.public.contacts"
    ((level, _, fix),) = judged_kafka(partitions={topic: 4}, compacted=frozenset({topic}))
    assert level == "WARN"
    assert fix == f"kafka-configs.sh --alter --topic {topic} --add-config cleanup.policy=delete"
    ((level, _, _),) = judged_kafka(version="2.7")
    assert level == "FAIL"


@pytest.mark.parametrize(
    ("facts", "level", "fix"),
    [
        ({}, None, None),
        ({"eviction_policy": "volatile-lru"}, None, None),
        ({"eviction_policy": "allkeys-lru"}, "WARN", "CONFIG SET maxmemory-policy noeviction"),
        ({"version": (6, 2, 14)}, "FAIL", None),
        ({"product": "valkey", "version": (7, 2, 0)}, None, None),
        ({"product": "valkey", "version": (7, 1, 9)}, "FAIL", None),
        ({"is_replica": True}, "FAIL", "regions.eu.url: the primary's address"),
        ({"is_cluster": True}, "FAIL", "regions.eu.topology: cluster"),
        ({"refusal": "denied"}, "FAIL", "ACL SETUSER <user> +function +fcall +fcall_ro"),
    ],
)
def test_redis_findings(facts, level, fix):
    judged = judge_redis("eu", [replace(REDIS, **facts)], SETTINGS.regions["eu"])
    found = [(found_level, found_fix) for found_level, _, found_fix in troubles(judged)]
    assert found == ([] if level is None else [(level, fix)])


@pytest.mark.parametrize(("shards", "warned"), [(1, True), (5, True), (6, False)])
def test_a_cluster_with_few_shards_is_warned_of(shards, warned):
    region = RegionSettings(url="redis://a,b", topology="cluster", shards=shards)
    servers = [replace(REDIS, is_cluster=True, server=f"{name}:6379") for name in "abc"]
    found = list(troubles(judge_redis("eu", servers, region)))
    assert [level for level, _, _ in found] == (["WARN"] if warned else [])
    assert not warned or found[0][2].startswith("regions.eu.shards: 24 ")


def test_a_finding_about_one_of_several_servers_names_it():
    region = RegionSettings(url="redis://a,b", topology="cluster", shards=24)
    servers = [
        replace(REDIS, is_cluster=True, server="a:1"),
        replace(REDIS, is_cluster=True, server="b:2", refusal="no"),
    ]
    (failed,) = (finding for finding in judge_redis("eu", servers, region) if finding.level is Level.FAIL)
    assert failed.subject == "region eu, b:2"
