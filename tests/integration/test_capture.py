"""`capture` on a real PostgreSQL and a real Kafka; the topics are read by an independent client."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from psycopg import sql
from psycopg.conninfo import make_conninfo

from cdc.connectors.pg_values import UNAVAILABLE
from cdc.control import EpochStarted, Heartbeat, Raise, decode_control
from cdc.envelope import decode_header
from cdc.errors import ConfigError, FatalError, TransientError
from cdc.events import Position, parse_lsn
from consumers import capture
from consumers.settings import Settings

ROOT = Path(__file__).parents[2]
CHILD = """
import json, signal, sys, threading
from consumers.capture import run
from consumers.settings import Settings
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
run(Settings.model_validate(json.load(sys.stdin)), stop)
"""


def until(condition, seconds=30.0, what="the condition"):
    """The first true value of `condition()`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come true within {seconds} s")


class Place:
    """One test's database, publication and topics."""

    def __init__(self, stack, name):
        self.stack = stack
        self.name = name
        self.dsn = make_conninfo(stack.postgres_dsn, dbname=name)
        self.fields = {
            "source": {
                "name": name,
                "dsn": self.dsn,
                "slot": name,
                "connect_timeout_seconds": 5,
                "status_interval_ms": 200,
                "ddl_interval_ms": 100,
            },
            "kafka": {"bootstrap_servers": stack.kafka_bootstrap, "partitions": 3},
            "regions": {"eu": {"url": "redis://unused"}},
        }
        self.settings = Settings.model_validate(self.fields)

    def connect(self):
        return psycopg.connect(self.dsn, autocommit=True)

    def slot(self):
        with self.connect() as db:
            row = db.execute(
                "SELECT confirmed_flush_lsn::text, active_pid FROM pg_replication_slots WHERE slot_name = %s",
                [self.name],
            ).fetchone()
        return row and (parse_lsn(row[0] or "0/0"), row[1])  # null while the slot is being made

    def acked(self):
        return self.slot()[0]

    def log_end(self):
        with self.connect() as db:
            return parse_lsn(db.execute("SELECT pg_current_wal_lsn()::text").fetchone()[0])

    def records(self, topic):
        """Everything in `<name>.<topic>` now, per partition in order."""
        consumer = KafkaConsumer(bootstrap_servers=self.stack.kafka_bootstrap, isolation_level="read_committed")
        try:
            partitions = consumer.partitions_for_topic(f"{self.name}.{topic}") or ()
            places = [TopicPartition(f"{self.name}.{topic}", p) for p in partitions]
            if not places:
                return []
            consumer.assign(places)
            consumer.seek_to_beginning(*places)
            ends = consumer.end_offsets(places)
            found = []
            while any(consumer.position(place) < end for place, end in ends.items()):
                for batch in consumer.poll(timeout_ms=500).values():
                    found.extend(batch)
            return found
        finally:
            consumer.close()

    def control(self):
        return [decode_control(record.value) for record in self.records("staleproof.control")]

    def heartbeats(self):
        return [record for record in self.control() if isinstance(record, Heartbeat)]

    def epochs(self):
        return [record for record in self.control() if isinstance(record, EpochStarted)]

    def raised(self):
        """How often each table was raised."""
        return Counter(record.table for record in self.control() if isinstance(record, Raise))

    def looked_at(self, db, name):
        """Wait until the watch has looked: the raise of a table that nothing else touches has come."""
        count = self.raised()["public.note"]
        db.execute(sql.SQL("ALTER TABLE note ADD COLUMN {} int").format(sql.Identifier(name)))
        until(lambda: self.raised()["public.note"] > count, what="the raise of the table that shows a look")

    def drained(self):
        """Wait until the slot has acknowledged everything that is in the log now."""
        end = self.log_end()
        until(lambda: self.acked() >= end, what="the slot's acknowledgement of everything")

    @contextmanager
    def capturing(self):
        """Capture in a thread of this process; its failure is the test's."""
        stop, failures = threading.Event(), []

        def work():
            try:
                capture.run(self.settings, stop)
            except Exception as error:  # noqa: BLE001 - the test looks at it
                failures.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            until(lambda: failures or ((slot := self.slot()) and slot[1]), what="capture on its slot")
            # DDL before an epoch starts is part of what it starts from, and raises nothing
            until(lambda: failures or self.epochs(), what="the first epoch")
            yield failures
        finally:
            stop.set()
            thread.join(20)
        assert not thread.is_alive()

    def child(self):
        """Capture in a process of its own, so that it can be killed."""
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        process.stdin.write(json.dumps(self.fields).encode())
        process.stdin.close()
        return process


@pytest.fixture
def place(stack):
    name = f"t{uuid4().hex[:12]}"
    with psycopg.connect(stack.postgres_dsn, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        made = Place(stack, name)
        with made.connect() as db:
            db.execute("CREATE TABLE contact (id bigint PRIMARY KEY, email text, score numeric, notes text)")
            db.execute("ALTER TABLE contact ALTER notes SET STORAGE EXTERNAL")
            db.execute("CREATE TABLE note (body text)")
            db.execute("CREATE PUBLICATION staleproof FOR TABLE contact, note")
        yield made
        until(lambda: not (made.slot() or (0, None))[1], what="the end of the slot's reader")
        admin.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", [name]
        )
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def header(record):
    return decode_header(dict(record.headers)["staleproof"])


def summary(record):
    key = record.key and json.loads(record.key)
    if record.value is None:
        return (key, None)
    value = json.loads(record.value)
    return (key, value["op"], value["before"], value["after"])


def test_every_operation_arrives_in_order_with_its_place_and_stamp(place):
    with place.capturing() as failures, place.connect() as db:
        with db.transaction():
            stamp = int(db.execute("SELECT pg_current_xact_id()::text").fetchone()[0])
            db.execute("INSERT INTO contact VALUES (1, 'a@x', 1.50, repeat('n', 5000))")
            db.execute("UPDATE contact SET email = 'b@x' WHERE id = 1")
            db.execute("UPDATE contact SET id = 2 WHERE id = 1")
            db.execute("DELETE FROM contact WHERE id = 2")
        db.execute("TRUNCATE contact")
        db.execute("INSERT INTO note VALUES ('no key')")
        place.drained()
        assert not failures

    records = sorted(place.records("public.contact"), key=lambda r: (header(r).position, r.value is None))
    row = {"id": 1, "email": "a@x", "score": "1.50", "notes": "n" * 5000}
    changed = row | {"email": "b@x", "notes": UNAVAILABLE}
    assert [summary(r) for r in records] == [
        ({"id": 1}, "c", None, row),
        ({"id": 1}, "u", None, changed),
        ({"id": 1}, "d", {"id": 1}, None),
        ({"id": 1}, None),
        ({"id": 2}, "c", None, changed | {"id": 2}),
        ({"id": 2}, "d", {"id": 2}, None),
        ({"id": 2}, None),
        (None, "t", None, None),
    ]
    places = [Position.parse(header(r).position) for r in records]
    assert [p.order for p in places] == [0, 1, 2, 2, 3, 4, 4, 0]
    assert len({p.lsn for p in places[:7]}) == 1
    assert {int(header(r).stamp, 16) for r in records[:7]} == {stamp}
    source = json.loads(records[0].value)["source"]
    assert (source["txId"], source["db"], source["schema"], source["table"]) == (stamp, place.name, "public", "contact")
    (note,) = place.records("public.note")
    assert (note.key, note.partition, json.loads(note.value)["after"]) == (None, 0, {"body": "no key"})


def test_each_partition_is_numbered_without_a_hole_across_restarts(place):
    for start in (0, 500):
        with place.capturing(), place.connect() as db:
            db.execute("INSERT INTO contact SELECT g FROM generate_series(%s::int, %s::int) g", [start, start + 499])
            place.drained()
    for partition in range(3):
        headers = [header(r) for r in place.records("public.contact") if r.partition == partition]
        assert [(h.sequence, h.previous) for h in headers] == [(n + 1, n) for n in range(len(headers))]
        assert len(headers) > 100


def test_an_orderly_stop_leaves_nothing_to_send_again(place):
    place.fields["source"]["status_interval_ms"] = 20_000  # so that only the stop itself tells the slot
    with place.connect() as db:
        for start in (0, 300):
            before = len(place.heartbeats())
            child = place.child()
            try:
                until(lambda least=before + 2: len(place.heartbeats()) >= least, what="two more heartbeats")
                db.execute(
                    "INSERT INTO contact SELECT g FROM generate_series(%s::int, %s::int) g", [start, start + 299]
                )
                until(lambda least=start + 300: len(place.records("public.contact")) >= least, what="the records")
                child.send_signal(signal.SIGTERM)
                assert child.wait(15) == 0
            finally:
                child.kill()
                child.wait()
    positions = [header(r).position for r in place.records("public.contact")]
    assert len(positions) == len(set(positions)) == 600


@contextmanager
def writing(place, seed):
    """Random changes until the block ends."""
    stop = threading.Event()
    rng = random.Random(seed)

    def work():
        with place.connect() as db:
            while not stop.is_set():
                key = rng.randrange(200)
                with db.transaction():
                    for _ in range(rng.choice((1, 1, 1, 5, 200))):
                        db.execute(
                            "INSERT INTO contact VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET email = excluded.email",
                            [key, str(rng.random())],
                        )
                        key = (key + 1) % 200
                    if rng.random() < 0.2:
                        db.execute("DELETE FROM contact WHERE id = %s", [rng.randrange(200)])

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_after_kill_9_no_change_is_missing_and_none_is_numbered_twice(place):
    seed = random.randrange(2**32)
    print("seed", seed)  # noqa: T201 - to run it again
    with writing(place, seed):
        for _ in range(3):
            child = place.child()
            try:
                before = len(place.records("public.contact"))
                until(
                    lambda before=before: len(place.records("public.contact")) > before + 300, what="300 more records"
                )
            finally:
                child.kill()
                child.wait()
    with place.capturing() as failures:
        until(lambda: place.slot()[1], what="capture on its slot")
        place.drained()
        assert not failures

    records = place.records("public.contact")
    rebuilt, newest = {}, {}
    for record in records:
        key = json.loads(record.key)["id"]
        position = header(record).position
        if record.value is not None and position >= newest.get(key, ""):
            newest[key] = position
            after = json.loads(record.value)["after"]
            rebuilt[key] = after and after["email"]
    with place.connect() as db:
        table = dict(db.execute("SELECT id, email FROM contact").fetchall())
    assert {key: email for key, email in rebuilt.items() if email is not None} == table
    for partition in range(3):
        headers = [header(r) for r in records if r.partition == partition]
        assert [h.sequence for h in headers] == list(range(1, len(headers) + 1))
    assert [epoch.reason for epoch in place.epochs()] == ["first start"]


def test_the_log_is_acknowledged_only_after_kafka_did(place):
    with place.capturing() as failures, place.connect() as db:
        db.execute("INSERT INTO contact VALUES (1)")
        place.drained()
        place.stack.processes["kafka"].pause()
        try:
            db.execute("INSERT INTO contact VALUES (2)")
            committed = place.log_end()
            time.sleep(2.5)  # twelve status intervals in which it must not happen
            assert place.acked() < committed
            assert place.slot()[1], "the connection was lost meanwhile"
        finally:
            place.stack.processes["kafka"].resume()
        until(lambda: place.acked() >= committed, what="the acknowledgement after Kafka is back")
        assert not failures
    assert sorted(json.loads(r.key)["id"] for r in place.records("public.contact")) == [1, 2]


def test_heartbeats_promise_only_what_is_below_their_barriers(place):
    with place.capturing() as failures, place.connect() as db:
        for i in range(400):
            db.execute("INSERT INTO contact SELECT g FROM generate_series(%s::int, %s::int) g", [i * 5, i * 5 + 4])
        place.drained()
        until(lambda: len(place.heartbeats()) > 4, what="five heartbeats")
        assert not failures
    records = place.records("public.contact")
    heartbeats = place.heartbeats()
    topic = f"{place.name}.public.contact"
    for heartbeat in heartbeats:
        assert set(heartbeat.barriers) == {topic, f"{place.name}.public.note"}
        assert len(heartbeat.barriers[topic]) == 3
        for record in records:
            if header(record).position < heartbeat.position:
                assert record.offset < heartbeat.barriers[topic][record.partition]
        assert not heartbeat.seen.covers(heartbeat.own_stamp)
    # What a closed scope opens with: a heartbeat began after the one before it was published, so its stamp is beyond
    # every change before that one. Not beyond all changes before itself: those that overtook its commit are younger.
    for earlier, later in pairwise(heartbeats):
        assert all(int(header(r).stamp, 16) < later.stamp for r in records if header(r).position < earlier.position)
    assert heartbeats[-1].barriers[topic] == [sum(r.partition == p for r in records) for p in range(3)]


def test_one_heartbeat_at_a_time(place):
    with place.capturing():
        until(lambda: len(place.heartbeats()) > 6, what="seven heartbeats")
    published = [r for r in place.records("staleproof.control") if b'"heartbeat"' in r.value]
    heartbeats = [decode_control(r.value) for r in published]
    assert [h.number for h in heartbeats] == list(range(1, len(heartbeats) + 1))
    assert all(a.position < b.position and a.stamp < b.stamp for a, b in pairwise(heartbeats))
    for record, following in zip(published, heartbeats[1:], strict=False):
        assert record.timestamp <= following.time_ms, "committed before the one before it was published"


def test_no_heartbeat_is_published_while_kafka_lacks_a_record_before_it(place):
    with place.capturing() as failures:
        until(lambda: len(place.heartbeats()) > 2, what="three heartbeats")
        place.stack.processes["kafka"].pause()
        with place.connect() as db:
            stamp = int(db.execute("INSERT INTO contact VALUES (1) RETURNING pg_current_xact_id()::text").fetchone()[0])
        time.sleep(1.0)  # four heartbeat intervals in which none must be published
        place.stack.processes["kafka"].resume()
        count = len(place.heartbeats())
        until(lambda: len(place.heartbeats()) > count + 2, what="three more heartbeats")
        assert not failures
    (record,) = place.records("public.contact")
    later = [h for h in place.heartbeats() if h.stamp > stamp]
    assert len(later) > 1
    assert all(h.barriers[record.topic][record.partition] == record.offset + 1 for h in later)


def test_heartbeats_of_another_process_are_not_published(place):
    with place.capturing(), place.connect() as db:
        until(lambda: len(place.heartbeats()) > 2, what="three heartbeats")
        for number in range(50):
            beat = {
                "source": place.name,
                "instance": "other",
                "number": number,
                "stamp": 1,
                "snapshot": "1:1:",
                "time_ms": 1,
            }
            db.execute("SELECT pg_logical_emit_message(true, 'staleproof.heartbeat', %s)", [json.dumps(beat)])
        place.drained()
        count = len(place.heartbeats())
        until(lambda: len(place.heartbeats()) > count, what="one more heartbeat")
    assert all(h.time_ms > 1 for h in place.heartbeats())


def capture_some(place, key):
    with place.capturing() as failures, place.connect() as db:
        db.execute("INSERT INTO contact VALUES (%s)", [key])
        until(lambda: any(json.loads(r.key)["id"] == key for r in place.records("public.contact")), what="the record")
        place.drained()
        assert not failures


def epoch_of(place, key):
    (record,) = [r for r in place.records("public.contact") if json.loads(r.key)["id"] == key]
    return Position.parse(header(record).position).epoch


def test_a_restart_goes_on_in_the_same_epoch(place):
    capture_some(place, 1)
    capture_some(place, 2)
    (started,) = place.epochs()
    assert started.reason == "first start"
    assert epoch_of(place, 1) == epoch_of(place, 2) == started.epoch
    records = place.records("public.contact")
    assert 0 < started.lsn <= min(Position.parse(header(r).position).lsn for r in records)
    # A transaction that was running when the epoch was announced has a smaller stamp; none has a much larger one.
    assert all(abs(int(header(r).stamp, 16) - started.stamp) < 10_000 for r in records)
    assert started.stamp > 0


def test_a_dropped_slot_starts_an_epoch(place):
    capture_some(place, 1)
    with place.connect() as db:
        db.execute("SELECT pg_drop_replication_slot(%s)", [place.name])
    capture_some(place, 2)
    first, second = place.epochs()
    assert second.epoch > first.epoch
    assert "was lost" in second.reason
    assert (epoch_of(place, 1), epoch_of(place, 2)) == (first.epoch, second.epoch)


def test_a_lost_state_and_a_clock_that_went_back_still_start_a_later_epoch(place, monkeypatch):
    capture_some(place, 1)
    producer = KafkaProducer(bootstrap_servers=place.stack.kafka_bootstrap)
    producer.send(f"{place.name}.staleproof.state", key=place.name.encode(), value=None).get(10)
    producer.close()
    monkeypatch.setattr(capture.time, "time", lambda: 1_000_000_000.0)
    capture_some(place, 2)
    first, second = place.epochs()
    assert second.epoch == first.epoch + 1


def test_a_slot_made_again_by_somebody_else_starts_an_epoch(place):
    capture_some(place, 1)
    with place.connect() as db:
        db.execute("SELECT pg_drop_replication_slot(%s)", [place.name])
        db.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [place.name])
    capture_some(place, 2)
    assert "past the acknowledged" in place.epochs()[-1].reason
    assert len(place.epochs()) == 2


def test_a_slot_that_somebody_advanced_starts_an_epoch(place):
    capture_some(place, 1)
    with place.connect() as db:
        db.execute("INSERT INTO contact VALUES (7)")
        db.execute("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", [place.name])
    capture_some(place, 2)
    assert len(place.epochs()) == 2
    assert 7 not in {json.loads(r.key)["id"] for r in place.records("public.contact")}


def test_a_publication_that_was_away_for_a_while_starts_an_epoch(place):
    capture_some(place, 1)
    with place.connect() as db:
        db.execute("DROP PUBLICATION staleproof")
        db.execute("INSERT INTO contact VALUES (7)")
        db.execute("CREATE PUBLICATION staleproof FOR TABLE contact, note")
    with place.capturing() as failures, place.connect() as db:
        until(lambda: failures or len(place.epochs()) == 2, what="the second epoch")
        assert not failures
        db.execute("INSERT INTO contact VALUES (8)")
        until(lambda: len(place.records("public.contact")) > 1, what="the record after the gap")
    assert "publication" in place.epochs()[-1].reason
    assert len(place.epochs()) == 2


def test_a_slot_lost_too_often_stops_the_process(place):
    for key in range(4):
        capture_some(place, key)
        with place.connect() as db:
            db.execute("SELECT pg_drop_replication_slot(%s)", [place.name])
    with pytest.raises(FatalError, match="3 times within an hour"):
        capture.run(place.settings, threading.Event())


def test_a_lost_connection_is_opened_again(place):
    with place.capturing() as failures, place.connect() as db:
        pid = until(lambda: place.slot()[1], what="capture on its slot")
        db.execute("SELECT pg_terminate_backend(%s)", [pid])
        db.execute("INSERT INTO contact VALUES (1)")
        until(lambda: place.records("public.contact"), what="the record")
        place.drained()
        assert not failures
    assert len(place.epochs()) == 1


def test_a_table_added_to_the_publication_is_captured_from_then_on(place):
    with place.capturing() as failures, place.connect() as db:
        db.execute("CREATE TABLE late (id int PRIMARY KEY)")
        db.execute("ALTER PUBLICATION staleproof ADD TABLE late")
        db.execute("INSERT INTO late VALUES (1)")
        place.drained()
        assert not failures
        until(lambda: f"{place.name}.public.late" in place.heartbeats()[-1].barriers, what="its barrier")
    assert [summary(r)[0] for r in place.records("public.late")] == [{"id": 1}]


def test_under_full_identity_the_primary_key_is_still_the_key(place):
    with place.connect() as db:
        db.execute("ALTER TABLE contact REPLICA IDENTITY FULL")
        with place.capturing():
            db.execute("INSERT INTO contact VALUES (1, 'a', 1, repeat('n', 5000))")
            db.execute("UPDATE contact SET email = 'b'")
            place.drained()
    update = place.records("public.contact")[-1]
    old = {"id": 1, "email": "a", "score": "1", "notes": "n" * 5000}
    assert summary(update) == ({"id": 1}, "u", old, old | {"email": "b"})


def test_a_second_capture_on_the_slot_says_who_reads_it(place):
    with place.capturing():
        pid = until(lambda: place.slot()[1], what="capture on its slot")
        with pytest.raises(FatalError, match=str(pid)):
            capture.run(place.settings, threading.Event())
        assert place.slot()[1] == pid


@pytest.mark.parametrize(
    "statement, remedy",
    [
        ("DROP PUBLICATION staleproof", "CREATE PUBLICATION"),
        ("ALTER PUBLICATION staleproof DROP TABLE contact, note", "ADD TABLE"),
        ("ALTER PUBLICATION staleproof SET (publish = 'insert')", "SET .publish"),
        ("ALTER PUBLICATION staleproof SET TABLE contact WHERE (id > 5)", "without WHERE"),
        ("DROP PUBLICATION staleproof; CREATE PUBLICATION staleproof FOR ALL TABLES", "FOR TABLE"),
    ],
)
def test_a_publication_that_would_lose_changes_is_refused_with_the_remedy(place, statement, remedy):
    with place.connect() as db:
        db.execute(statement)
    with pytest.raises(ConfigError, match=remedy):
        capture.run(place.settings, threading.Event())
    assert place.slot() is None


def test_an_unreachable_kafka_is_one_sentence_in_time(place):
    fields = place.fields | {"kafka": {"bootstrap_servers": "127.0.0.1:1", "request_timeout_seconds": 2}}
    begin = time.monotonic()
    with pytest.raises(TransientError, match=r"cannot reach Kafka at 127.0.0.1:1 .kafka.bootstrap_servers."):
        capture.run(Settings.model_validate(fields), threading.Event())
    assert time.monotonic() - begin < 4
    assert place.slot() is None


def test_an_unreachable_database_is_one_sentence(place):
    fields = place.fields | {"source": place.fields["source"] | {"dsn": "host=127.0.0.1 port=1 connect_timeout=2"}}
    with pytest.raises(TransientError, match="cannot connect to the source database"):
        capture.run(Settings.model_validate(fields), threading.Event())


# -- DDL that no row event tells


ALTERING = [
    ("contact", "ALTER TABLE contact ALTER email TYPE text USING upper(email)"),  # the same type: rows are rewritten
    ("contact", "ALTER TABLE contact ALTER score TYPE numeric(9, 1)"),
    ("contact", "ALTER TABLE contact ADD COLUMN token uuid DEFAULT gen_random_uuid()"),
    ("contact", "ALTER TABLE contact ADD COLUMN plan text DEFAULT 'free'"),
    ("contact", "ALTER TABLE contact ADD COLUMN loud text GENERATED ALWAYS AS (upper(email)) STORED"),
    ("contact", "ALTER TABLE contact ALTER loud SET EXPRESSION AS (lower(email))"),
    ("contact", "ALTER TABLE contact RENAME COLUMN notes TO remarks"),
    ("contact", "ALTER TABLE contact DROP COLUMN remarks"),
    ("contact", "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'"),
    ("visit", "ALTER TABLE visit ATTACH PARTITION visit_old FOR VALUES FROM (0) TO (100)"),
    ("visit", "ALTER TABLE visit DETACH PARTITION visit_old"),
    ("visit", "ALTER TABLE visit ADD COLUMN place text DEFAULT 'home'"),
    ("contact", "ALTER TABLE contact REPLICA IDENTITY FULL"),
    ("contact", "ALTER TABLE contact RENAME TO person"),
    ("person", "ALTER TABLE person SET SCHEMA other"),
    ("visit", "DROP TABLE visit"),
]

SILENT = [
    "INSERT INTO contact SELECT g, 'a@x' FROM generate_series(1, 100) g",
    "UPDATE contact SET email = 'b@x'",
    "DELETE FROM contact WHERE id > 50",
    "ANALYZE contact",
    "VACUUM contact",
    "VACUUM FULL contact",
    "CLUSTER contact USING contact_pkey",
    "CREATE INDEX ON contact (email)",
    "REINDEX TABLE contact",
    "ALTER TABLE contact ALTER email SET DEFAULT 'none'",
    "ALTER TABLE contact ALTER email SET STATISTICS 500",
    "CREATE TABLE unrelated (id int PRIMARY KEY)",
    "TRUNCATE contact",
]


@pytest.fixture
def varied(place):
    """A place whose tables have an enum and partitions."""
    with place.connect() as db:
        db.execute("CREATE SCHEMA other")
        db.execute("CREATE TYPE mood AS ENUM ('sad', 'ok')")
        db.execute("ALTER TABLE contact ADD COLUMN moods mood[]")
        db.execute("CREATE TABLE visit (id int, day int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)")
        db.execute("CREATE TABLE visit_new PARTITION OF visit FOR VALUES FROM (100) TO (200)")
        db.execute("CREATE TABLE visit_old (id int, day int, PRIMARY KEY (id, day))")
        db.execute("ALTER PUBLICATION staleproof ADD TABLE visit")
        db.execute("ALTER PUBLICATION staleproof SET (publish_via_partition_root = true)")
    return place


def test_each_ddl_that_can_change_values_or_rows_raises_its_table_once(varied):
    expected = Counter()
    with varied.capturing() as failures, varied.connect() as db:
        varied.looked_at(db, "first")
        for number, (table, statement) in enumerate(ALTERING):
            db.execute(statement)
            expected[f"public.{table}"] += 1
            until(lambda: not expected - varied.raised(), what=statement)
            varied.looked_at(db, f"c{number}")
            raised = varied.raised()
            del raised["public.note"]
            assert raised == expected, statement
        assert not failures


def test_what_the_log_tells_and_what_changes_no_value_raises_nothing(varied):
    with varied.capturing() as failures, varied.connect() as db:
        varied.looked_at(db, "first")
        for number, statement in enumerate(SILENT):
            db.execute(statement)
            varied.looked_at(db, f"c{number}")
            assert set(varied.raised()) == {"public.note"}, statement
        assert not failures


def test_ddl_while_capture_is_down_is_raised_at_its_start(place):
    capture_some(place, 1)
    with place.connect() as db:
        db.execute("ALTER TABLE contact ALTER email TYPE text USING upper(email)")
    with place.capturing() as failures, place.connect() as db:
        until(lambda: place.raised()["public.contact"], what="the raise of what happened meanwhile")
        place.looked_at(db, "c")
        assert not failures
    capture_some(place, 2)
    assert place.raised() == {"public.contact": 1, "public.note": 1}
    assert len(place.epochs()) == 1


def test_the_barriers_follow_the_publication(place):
    def listed():
        return [topic.removeprefix(f"{place.name}.public.") for topic in place.heartbeats()[-1].barriers]

    with place.capturing() as failures, place.connect() as db:
        until(lambda: place.heartbeats() and sorted(listed()) == ["contact", "note"], what="both tables")
        db.execute("CREATE TABLE late (id int PRIMARY KEY)")
        db.execute("ALTER PUBLICATION staleproof ADD TABLE late")
        until(lambda: "late" in listed(), what="the new table, though nothing changed in it")
        db.execute("ALTER PUBLICATION staleproof DROP TABLE contact")
        until(lambda: "contact" not in listed(), what="the end of the removed table")
        assert place.raised() == {"public.contact": 1}
        db.execute("ALTER PUBLICATION staleproof ADD TABLE contact")
        until(lambda: "contact" in listed(), what="the table again")
        db.execute(
            "BEGIN; ALTER PUBLICATION staleproof DROP TABLE late; ALTER PUBLICATION staleproof ADD TABLE late; COMMIT"
        )
        until(lambda: place.raised()["public.late"], what="the raise of a table that was away between two looks")
        assert place.raised() == {"public.contact": 1, "public.late": 1}
        assert not failures


def test_a_table_that_ddl_holds_stalls_neither_records_nor_heartbeats(place):
    with place.capturing() as failures, place.connect() as db, place.connect() as holder:
        place.looked_at(db, "first")
        with holder.transaction():
            holder.execute("LOCK TABLE note IN ACCESS EXCLUSIVE MODE")
            db.execute("INSERT INTO contact VALUES (1)")
            place.drained()
            count = len(place.heartbeats())
            until(lambda: len(place.heartbeats()) > count + 3, what="heartbeats while the watch waits")
        assert not failures
