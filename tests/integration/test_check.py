"""`staleproof check` and `init` as a person runs them, on real PostgreSQL, Kafka and Redis."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from redis import Redis

from infra.stack import Stack

ROOT = Path(__file__).resolve().parents[2]
VIEWS = """\
version: 1
views:
  contact:
    key: "contact:{id}"
    mode: invalidate
    tables:
      public.contacts:
"""
_serial = itertools.count()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace | Stack]:
    """A stack of our own, or the one that a developer keeps running: JSON of its addresses in STALEPROOF_TEST_STACK."""
    if kept := os.environ.get("STALEPROOF_TEST_STACK"):
        yield SimpleNamespace(**json.loads(Path(kept).read_text()))
        return
    with Stack.start(tmp_path_factory.mktemp("stack"), ("eu",)) as started:
        yield started


@dataclass
class Place:
    """A directory with settings and views, and a database of its own."""

    directory: Path
    dsn: str
    environment: dict[str, str]

    def sql(self, *statements: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def views(self, text: str) -> None:
        (self.directory / "views.yaml").write_text(text)

    def staleproof(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [sys.executable, "-m", "consumers.cli", *arguments],
            cwd=self.directory,
            env={"PYTHONPATH": str(ROOT), **self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in result.stdout + result.stderr
        assert "hunter2" not in result.stdout + result.stderr
        return result

    def findings(self, **environment: str) -> list[dict[str, str]]:
        """What is not OK, as JSON says it; the exit code agrees."""
        result = self.staleproof("check", "--json", **environment)
        assert result.stderr == ""
        report = json.loads(result.stdout)
        assert result.returncode == (0 if report["ok"] else 1)
        return [finding for finding in report["findings"] if finding["level"] != "OK"]


@pytest.fixture
def place(stack: Stack, tmp_path: Path) -> Iterator[Place]:
    name = f"check{os.getpid()}_{next(_serial)}"
    with psycopg.connect(stack.postgres_dsn, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    dsn = stack.postgres_dsn.rpartition("/")[0] + f"/{name}"
    settings = {
        "source": {"name": name, "dsn": dsn},
        "kafka": {"bootstrap_servers": stack.kafka_bootstrap, "request_timeout_seconds": 10},
        "regions": {"eu": {"url": stack.redis_urls["eu"]}},
    }
    (tmp_path / "staleproof.yaml").write_text(json.dumps(settings))  # JSON is YAML
    made = Place(tmp_path, dsn, {"PATH": os.environ["PATH"]})
    made.views(VIEWS)
    made.sql("CREATE TABLE contacts (id bigint PRIMARY KEY, email text, plan int)")
    yield made
    with psycopg.connect(stack.postgres_dsn, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name}")


def test_a_good_set_up_passes(place):
    place.sql("CREATE PUBLICATION staleproof FOR TABLE contacts")
    result = place.staleproof("check")
    assert result.returncode == 0, result.stdout
    assert "0 FAIL" in result.stdout
    assert "OK    kafka: version 4." in result.stdout


def test_a_missing_publication_is_one_clear_message(place):
    result = place.staleproof("check")
    assert result.returncode == 1
    assert [line for line in result.stdout.splitlines() if line.startswith("FAIL")] == [
        "FAIL  publication staleproof: does not exist"
    ]
    assert '      fix: CREATE PUBLICATION "staleproof" FOR TABLE "public"."contacts";' in result.stdout.splitlines()


MENDED_BY_ITS_STATEMENTS = {
    "no publication": ("", ""),
    "nothing covered": ("", "CREATE PUBLICATION staleproof"),
    "no deletes": ("", "CREATE PUBLICATION staleproof FOR TABLE contacts WITH (publish = 'insert,update')"),
    "all tables": ("CREATE TABLE log (at timestamptz)", "CREATE PUBLICATION staleproof FOR ALL TABLES"),
    "row filter": ("", "CREATE PUBLICATION staleproof FOR TABLE contacts WHERE (id > 5)"),
    "key outside of the replica identity": ("{email}", "CREATE PUBLICATION staleproof FOR TABLE contacts"),
    "column list": ("[email]", "CREATE PUBLICATION staleproof FOR TABLE contacts (id)"),
    "odd names": (
        'CREATE TABLE "public"."odd ""table" ("my id" int PRIMARY KEY)',
        "CREATE PUBLICATION staleproof FOR TABLE contacts",
    ),
    "partitions": (
        """
        DROP TABLE contacts;
        CREATE TABLE contacts (id bigint PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE contacts_1 PARTITION OF contacts FOR VALUES FROM (0) TO (10)
        """,
        "CREATE PUBLICATION staleproof FOR TABLE contacts",
    ),
}


@pytest.mark.parametrize("case", MENDED_BY_ITS_STATEMENTS)
def test_each_failure_is_mended_by_its_own_statement(place, case):
    """What `fix` says is run as it stands until nothing fails; a statement that does not help is a fault of ours."""
    before, publication = MENDED_BY_ITS_STATEMENTS[case]
    if before.startswith("{"):
        place.views(VIEWS.replace("{id}", before))
    elif before.startswith("["):
        place.views(VIEWS.replace("public.contacts:", f"public.contacts: {{columns: {before}}}"))
    elif before:
        place.sql(before)
    if publication:
        place.sql(publication)
    for _ in range(3):
        failures = [finding for finding in place.findings() if finding["level"] == "FAIL"]
        if not failures:
            break
        for failure in failures:
            if "…" not in failure["fix"]:
                place.sql(failure["fix"])
    else:
        pytest.fail(f"three rounds did not mend: {failures}")


def test_a_failure_that_is_mended_was_one(place):
    """The test above would also pass if nothing ever failed."""
    for case in ("nothing covered", "no deletes", "all tables", "row filter"):
        place.sql("DROP PUBLICATION IF EXISTS staleproof", MENDED_BY_ITS_STATEMENTS[case][1])
        assert [finding for finding in place.findings() if finding["level"] == "FAIL"], case


def test_wrong_views_are_one_message_with_file_line_and_remedy(place):
    place.sql("CREATE PUBLICATION staleproof FOR TABLE contacts")
    place.views(VIEWS.replace("mode: invalidate", "mode: invalidat"))
    (finding,) = place.findings()
    where, _, what = finding["text"].partition(": ")
    assert where.endswith("views.yaml:5")
    assert what == "views.contact.mode: unknown mode 'invalidat'; did you mean \"invalidate\"?"


def test_views_that_the_database_does_not_know_fail(place):
    place.sql("CREATE PUBLICATION staleproof FOR TABLE contacts")
    place.views(VIEWS + "      public.segments: {parts: {id: contact_id}}\n")
    (finding,) = place.findings()
    assert "public.segments does not exist" in finding["text"]
    place.views(VIEWS.replace("{id}", "{ident}"))
    (finding,) = place.findings()
    assert "public.contacts has no column ident" in finding["text"]


def test_unreachable_kafka_is_one_message(place):
    place.sql("CREATE PUBLICATION staleproof FOR TABLE contacts")
    overrides = {
        "STALEPROOF_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "STALEPROOF_KAFKA__REQUEST_TIMEOUT_SECONDS": "2",
    }
    (finding,) = place.findings(**overrides)
    assert finding["subject"] == "kafka"
    assert finding["text"].startswith("Kafka at 127.0.0.1:1 cannot be reached within 2 s")


def test_an_unreachable_database_is_one_message_without_the_password(place):
    (finding,) = place.findings(STALEPROOF_SOURCE__DSN="postgresql://ann:hunter2@127.0.0.1:1/x")
    expected = "PostgreSQL at 127.0.0.1:1 cannot be reached: Connection refused: start it, or correct source.dsn"
    assert (finding["subject"], finding["text"]) == ("source", expected)


def test_a_dsn_that_cannot_be_read_is_not_quoted(place):
    (finding,) = place.findings(STALEPROOF_SOURCE__DSN="postgresql://ann:hun/ter2@127.0.0.1/x")
    assert finding["text"].startswith("source.dsn is not a connection string: write postgresql://")
    assert "hun/" not in finding["text"]


@pytest.mark.parametrize("dsn_part", ["/nowhere", "user"])
def test_a_database_that_refuses_says_what_to_correct(place, dsn_part):
    dsn = (
        place.dsn.rpartition("/")[0] + "/nowhere"
        if dsn_part == "/nowhere"
        else place.dsn.replace("postgres@", "nobody@")
    )
    (finding,) = place.findings(STALEPROOF_SOURCE__DSN=dsn)
    assert "does not exist: correct source.dsn" in finding["text"]


def test_an_unreachable_region_is_one_message_and_the_others_are_judged(place):
    place.sql("CREATE PUBLICATION staleproof FOR TABLE contacts")
    (finding,) = place.findings(STALEPROOF_REGIONS__US__URL="redis://:hunter2@127.0.0.1:1")
    expected = "Redis cannot be reached (connection refused): start it, or correct url"
    assert (finding["subject"], finding["text"]) == ("region us", expected)


def test_a_wrong_eviction_policy_warns_with_its_command(place, stack):
    place.sql("CREATE PUBLICATION staleproof FOR TABLE contacts")
    with Redis.from_url(stack.redis_urls["eu"]) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            (finding,) = place.findings()
            assert (finding["level"], finding["subject"]) == ("WARN", "region eu")
            client.execute_command(*finding["fix"].split())
            assert place.findings() == []
        finally:
            client.config_set("maxmemory-policy", "noeviction")


def test_a_redis_user_without_functions_fails(place, stack):
    place.sql("CREATE PUBLICATION staleproof FOR TABLE contacts")
    with Redis.from_url(stack.redis_urls["eu"]) as client:
        client.acl_setuser("checker", enabled=True, passwords=["+hunter2"], commands=["+info", "+client", "+hello"])
        try:
            overrides = {"STALEPROOF_REGIONS__EU__USERNAME": "checker", "STALEPROOF_REGIONS__EU__PASSWORD": "hunter2"}
            (finding,) = place.findings(**overrides)
            assert "the ACL of our user denies FUNCTION" in finding["text"]
            overrides["STALEPROOF_REGIONS__EU__PASSWORD"] = "hunter2hunter2"
            (finding,) = place.findings(**overrides)
            assert "refuses the login" in finding["text"]
        finally:
            client.acl_deluser("checker")


def test_init_from_a_database_then_its_own_next_step_passes_check(place, stack):
    place.sql(
        "CREATE TABLE members (segment int, contact int, PRIMARY KEY (segment, contact))", "CREATE TABLE log (x int)"
    )
    done = place.staleproof("init", "--dsn", place.dsn, "--output", "new")
    assert done.returncode == 0, done.stderr
    statement = next(line for line in done.stdout.splitlines() if "CREATE PUBLICATION" in line).partition(":  ")[2]
    place.sql(statement)
    overrides = {
        "STALEPROOF_KAFKA__BOOTSTRAP_SERVERS": stack.kafka_bootstrap,
        "STALEPROOF_REGIONS__EU__URL": stack.redis_urls["eu"],
        "STALEPROOF_CONFIG": "new/staleproof.yaml",
    }
    assert place.findings(**overrides) == []
