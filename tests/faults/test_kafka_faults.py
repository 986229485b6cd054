"""Each silent row of the fault table under Kafka: safe, and a person hears of it where something was lost.

Safe: while contacts change and are read without pause, nothing is served in the end that differs from the database.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator

import psutil
import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient
from kafka.structs import TopicPartition

from cdc.envelope import HEADER_NAME
from consumers.kafka_admin import Admin
from consumers.stream import Extent
from infra.kafka_faults import cut_log
from infra.stack import Stack
from invalidator.layout import Row, row_field
from tests.contacts import Load, cached_key, load_contact
from tests.fix_faults import Stopwatch
from tests.fix_stack import Site
from tests.waiting import wait_until

WORKER = ("invalidate", "--region", "eu")


@pytest.fixture
def admin(stack: Stack) -> Iterator[KafkaAdminClient]:
    admin = KafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap)
    yield admin
    admin.close()


@pytest.fixture
def worker(site: Site) -> subprocess.Popen[bytes]:
    """The site's only worker; capture runs too, and the region is open."""
    site.start("capture")
    worker = site.start(*WORKER)
    site.wait_open("eu")
    return worker


def contacts_topic(site: Site) -> str:
    return site.settings.source.topic("public.contacts")


def extents(site: Site) -> list[Extent]:
    with Admin(site.settings.kafka) as admin:
        return admin.extents([contacts_topic(site)])[contacts_topic(site)]


def row(site: Site, partition: int) -> Row:
    return Row.parse(site.header("eu")[row_field(contacts_topic(site), partition)])


def wait_unread(site: Site) -> None:
    """Until every partition of the contacts holds records that the region does not have."""
    wait_until(
        lambda: all(extent.end > row(site, p).next_offset + 5 for p, extent in enumerate(extents(site))),
        "records wait in Kafka",
    )


def forget_records(site: Site, admin: KafkaAdminClient) -> None:
    """As if Kafka's retention had passed for everything that is there now."""
    topic = contacts_topic(site)
    admin.delete_records({TopicPartition(topic, partition): -1 for partition in range(len(extents(site)))})


def stopped(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_offsets_out_of_range_for_a_worker_that_was_away(
    site: Site, worker: subprocess.Popen[bytes], admin: KafkaAdminClient, stopwatch: Stopwatch
) -> None:
    with Load(site, "eu") as load:
        load.wait_changes(100)
        stopped(worker)
        wait_unread(site)
        forget_records(site, admin)
        stopwatch.start()
        site.start(*WORKER)
        site.wait_alarm("gap")
        load.wait_changes(50)
        stopwatch.converged(site, load)
    assert set(site.alarms()) == {"gap"}


@pytest.mark.slow
def test_offsets_out_of_range_under_a_running_worker(
    site: Site, worker: subprocess.Popen[bytes], admin: KafkaAdminClient, stopwatch: Stopwatch
) -> None:
    with Load(site, "eu") as load:
        load.wait_changes(100)
        worker.send_signal(signal.SIGSTOP)
        wait_unread(site)
        forget_records(site, admin)
        stopwatch.start()
        worker.send_signal(signal.SIGCONT)
        site.wait_alarm("gap")
        load.wait_changes(50)
        stopwatch.converged(site, load)
    assert set(site.alarms()) == {"gap"}


def test_group_offsets_deleted(
    site: Site, worker: subprocess.Popen[bytes], admin: KafkaAdminClient, stopwatch: Stopwatch
) -> None:
    """They are for lag displays: the start is the row in Redis. Nothing is lost, so nobody need hear of it."""
    with Load(site, "eu") as load:
        load.wait_changes(100)
        stopped(worker)
        wait_unread(site)
        group = f"staleproof-{site.settings.source.name}-eu"
        assert group in admin.list_group_offsets({group: None})
        admin.delete_groups([group])
        stopwatch.start()
        site.start(*WORKER)
        load.wait_changes(50)
        stopwatch.converged(site, load)
    assert site.alarms() == []


def test_topic_deleted_and_created_again(
    site: Site, worker: subprocess.Popen[bytes], admin: KafkaAdminClient, stopwatch: Stopwatch
) -> None:
    """Capture makes the topic again when it starts; the worker knows the other one by its identity."""
    with Load(site, "eu") as load:
        load.wait_changes(100)
        stopped(site.processes[0])
        stopwatch.start()
        admin.delete_topics([contacts_topic(site)])
        load.wait_changes(50)
        site.start("capture")
        site.wait_alarm("gap")
        load.wait_changes(50)
        stopwatch.converged(site, load)
    assert "gap" in site.alarms()


def test_partitions_added(
    site: Site, worker: subprocess.Popen[bytes], admin: KafkaAdminClient, stopwatch: Stopwatch
) -> None:
    """Keys move to other partitions, and order goes by position: nothing is lost, so nobody need hear of it."""
    with Load(site, "eu") as load:
        load.wait_changes(100)
        stopwatch.start()
        admin.create_partitions({contacts_topic(site): 4})
        stopped(site.processes[0])
        site.start("capture")
        wait_until(lambda: all(extent.end for extent in extents(site)), "every partition is written to", seconds=60)
        load.wait_changes(50)
        stopwatch.converged(site, load)
    assert all(row(site, partition).next_offset for partition in range(4))
    assert site.alarms() == []


def test_zombie_worker(site: Site, stopwatch: Stopwatch) -> None:
    """Frozen with a planned batch in its hands; another takes over; what it sends when it wakes changes nothing."""
    site.start("capture")
    zombie = site.start(*WORKER, failpoints="apply.before_script=stop@20")
    site.wait_open("eu")
    with Load(site, "eu") as load:
        wait_until(lambda: psutil.Process(zombie.pid).status() == psutil.STATUS_STOPPED, "the worker is frozen")
        frozen_at = [row(site, partition).next_offset for partition in range(2)]
        stopwatch.start()
        site.start(*WORKER)
        wait_until(
            lambda: all(row(site, p).next_offset > offset for p, offset in enumerate(frozen_at)), "another took over"
        )
        load.wait_changes(100)
        zombie.send_signal(signal.SIGCONT)
        site.wait_alarm("displaced")
        load.wait_changes(50)
        stopwatch.converged(site, load)
    assert site.alarms() == ["displaced"]


@pytest.mark.parametrize(
    "away",
    [
        pytest.param(True, id="for_a_worker_that_was_away"),
        pytest.param(False, id="under_a_running_worker", marks=pytest.mark.slow),
    ],
)
def test_log_cut_by_an_unclean_election(
    site: Site, stack: Stack, worker: subprocess.Popen[bytes], stopwatch: Stopwatch, away: bool
) -> None:
    """The new leader never had the newest records, and gives their offsets to others: only its epoch tells."""
    with Load(site, "eu") as load:
        load.wait_changes(200)
        stopped(site.processes[0])
        if away:
            stopped(worker)
        else:
            wait_until(
                lambda: all(row(site, p).next_offset == e.end for p, e in enumerate(extents(site))), "all is read"
            )
        ends = [row(site, partition).next_offset for partition in range(2)]
        stopwatch.start()
        stack.processes["kafka"].kill()
        for partition in range(2):
            cut_log(stack.directory / "kafka" / "data", contacts_topic(site), partition, ends[partition] - 5)
        stack.processes["kafka"].start()
        site.start("capture")
        wait_until(
            lambda: all(extent.end > ends[p] + 5 for p, extent in enumerate(extents(site))), "offsets were given again"
        )
        if away:
            site.start(*WORKER)
        site.wait_alarm("gap")
        load.wait_changes(50)
        stopwatch.converged(site, load)
    assert any("truncation" in record["reason"] for record in site.logged("alarm"))


def last_record(site: Site, partition: int) -> object:
    """The newest record of a partition, by an independent client."""
    consumer = KafkaConsumer(bootstrap_servers=site.settings.kafka.bootstrap_servers, enable_auto_commit=False)
    try:
        place = TopicPartition(contacts_topic(site), partition)
        consumer.assign([place])
        consumer.seek(place, consumer.end_offsets([place])[place] - 1)
        return wait_until(lambda: consumer.poll(timeout_ms=500).get(place), "the newest record is read")[-1]
    finally:
        consumer.close()


def produce(site: Site, partition: int, *, key: bytes, value: bytes, header: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=site.settings.kafka.bootstrap_servers)
    try:
        sent = producer.send(
            contacts_topic(site), key=key, value=value, headers=[(HEADER_NAME, header)], partition=partition
        )
        sent.get(20)
    finally:
        producer.close()


@pytest.mark.parametrize("legible", [True, False], ids=["whose_header_is_whole", "whose_header_is_not"])
def test_undecodable_record_passed_over(
    site: Site, worker: subprocess.Popen[bytes], stopwatch: Stopwatch, legible: bool
) -> None:
    """With a header its key dies, without one its views close; it is set aside and the stream goes on."""
    with Load(site, "eu") as load:
        load.wait_changes(200)
        load.stop_writing()
        site.database.execute("INSERT INTO contacts VALUES (1000, 'old', 's')")
        site.wait_drained("eu")
        reader = site.reader("eu")
        wait_until(lambda: reader.get("contact", 1000, load_contact(1000)) and cached_key(reader, 1000), "it is cached")
        partition, record = next((p, record) for p in range(2) if b"1000" in (record := last_record(site, p)).key)
        header = dict(record.headers)[HEADER_NAME]
        (stamp,) = site.database.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
        sequence = header[-32:-16]
        whole = header[:33] + b"%016x" % stamp + 2 * sequence  # follows itself, so that it leaves no hole
        stopwatch.start()
        produce(site, partition, key=record.key, value=b"{gar", header=whole if legible else b"bage")
        site.wait_alarm("undecodable" if legible else "closed")
        wait_until(lambda: row(site, partition).next_offset == record.offset + 2, "it was passed")
        assert not cached_key(reader, 1000)
        site.database.execute("UPDATE contacts SET email = 'new'")
        stopwatch.converged(site, load)
        assert reader.get("contact", 1000, load_contact(1000)) == {"email": "new", "status": "s"}
    assert site.alarms() == ["undecodable" if legible else "closed"]
    assert len(site.logged("record_quarantined")) == 1
