"""`staleproof replay kafka` on real PostgreSQL, Kafka and Redis, beside a capture and a worker."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from kafka.admin import KafkaAdminClient
from kafka.structs import TopicPartition

from cdc.errors import ConfigError, GapError, TransientError
from cdc.events import POSITION_WIDTH
from consumers import replay_kafka
from consumers.kafka import Producer
from consumers.kafka_admin import COMPACTED, KEPT, Admin, Topic
from consumers.range_reader import RangeReader
from consumers.regions import open_region
from consumers.replay_kafka import Request
from consumers.stream import Extent, Record
from infra.site_maker import SiteMaker
from invalidator.entry import decode
from tests.contacts import load_contact
from tests.fix_stack import DEFAULT_HEARTBEAT, ROOT, SCHEMA, VIEWS, Site
from tests.waiting import wait_until

CONTACTS = 60
EVERYTHING = Request(start="beginning", regions=("eu",), as_json=True)


@pytest.fixture(scope="module")
def site(staleproof_factory: SiteMaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Contacts and templates that changed; a region that has applied it and whose contacts are all filled."""
    made = staleproof_factory.make(
        schema=SCHEMA, views=VIEWS, start=False, directory=tmp_path_factory.mktemp("replay"), source=DEFAULT_HEARTBEAT
    )
    try:
        made.start("capture")
        made.start("invalidate", "--region", "eu")
        made.wait_open("eu")
        for round_ in range(3):
            made.database.execute(
                "INSERT INTO contacts SELECT i, %s, 's' FROM generate_series(1, %s) i"
                " ON CONFLICT (id) DO UPDATE SET email = excluded.email",
                (f"r{round_}", CONTACTS),
            )
        made.database.execute("INSERT INTO templates SELECT i, 'a' FROM generate_series(1, 20) i")
        for identity in range(1, 21):
            made.database.execute("UPDATE templates SET body = 'b' WHERE id = %s", (identity,))
        made.database.execute("DELETE FROM templates WHERE id <= 5")
        made.database.execute("INSERT INTO templates SELECT i, 'c' FROM generate_series(1, 3) i")
        made.wait_drained("eu")
        fill_contacts(made)
        yield made
    finally:
        made.end()


def fill_contacts(site: Site) -> None:
    reader = site.reader("eu")
    wait_until(
        lambda: (
            all(reader.get("contact", i, load_contact(i))["email"] for i in range(1, CONTACTS + 1))
            and sum(b":e:contact:" in name for name in entries(site)) == CONTACTS
        ),
        "every contact is cached",
    )


def entries(site: Site) -> dict[bytes, bytes]:
    """Every entry of the region, as it lies there."""
    settings = site.settings.regions["eu"]
    with redis.Redis.from_url(settings.url.get_secret_value()) as client:
        names = sorted(client.scan_iter(f"{{{settings.prefix}:0}}:e:*"))
        return dict(zip(names, client.mget(names), strict=True)) if names else {}


@pytest.fixture
def run(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Replays in this process; the summary."""

    def replay(**changes: Any) -> dict[str, Any]:
        request = msgspec.structs.replace(EVERYTHING, **{"state": tmp_path / "state.json"} | changes)
        assert replay_kafka.run(site.settings, request, threading.Event())
        assert not request.state.exists()
        printed: dict[str, Any] = json.loads(capsys.readouterr().out)
        return printed

    return replay


def held(site: Site) -> dict[str, list[Extent]]:
    with Admin(site.settings.kafka) as admin:
        return admin.extents([site.settings.source.topic(f"public.{t}") for t in ("contacts", "members", "templates")])


def all_records(site: Site) -> list[Record]:
    extents = {(topic, n): extent for topic, parts in held(site).items() for n, extent in enumerate(parts)}
    records: list[Record] = []
    with RangeReader(site.settings.kafka, group="test", queued_kilobytes=1_024, extents=extents) as reader:
        while reader.left:
            records += reader.fetch(1_000, 0.5)
    return records


def copy_to(site: Site, prefix: str, records: list[Record], partitions: int = 3) -> None:
    """The same records under another prefix, in this order and anywhere."""
    source = site.settings.source.name
    names = sorted({prefix + record.topic.removeprefix(source) for record in records})
    names = sorted({*names, *(f"{prefix}.public.{table}" for table in ("contacts", "members", "templates"))})
    with Admin(site.settings.kafka) as admin:
        admin.ensure([Topic(name, partitions, KEPT) for name in names])
    producer = Producer(site.settings.kafka, inflight_records=100_000)
    for name in names:
        producer.track(name, [0] * partitions)
    batch = producer.batch()
    place = random.Random(3)
    for record in records:
        topic = prefix + record.topic.removeprefix(source)
        sent = producer.send(
            batch, topic, place.randrange(partitions), key=record.key, value=record.value, header=record.header
        )
        assert sent
    assert producer.flush(20) == 0
    producer.close()


def test_a_range_replayed_twice_over_a_live_region_leaves_every_entry_as_it_is(site, run):
    before = entries(site)
    for _ in range(2):
        result = run()
        assert result["complete"]
        assert result["regions"] == {"eu": {"unlinked": 0, "kept": result["regions"]["eu"]["kept"], "written": 0}}
        assert result["regions"]["eu"]["kept"] >= CONTACTS + 18
        assert entries(site) == before
    assert result["records"] == sum(e.end - e.begin for parts in held(site).values() for e in parts)
    assert (result["undecodable"], result["alarms"]) == (0, {})


def test_copies_in_any_order_and_partition_change_nothing_either(site, run):
    records = all_records(site)
    random.Random(11).shuffle(records)
    prefix = f"{site.settings.source.name}.shuffled"
    copy_to(site, prefix, records)
    before = entries(site)
    for _ in range(2):
        assert run(topic_prefix=prefix)["records"] == len(records)
        assert entries(site) == before


def test_what_a_region_lost_or_never_removed_is_put_right(site, run):
    """An entry that was evicted comes back as it was; one that an older read left behind goes."""
    before = entries(site)
    layout = open_region(site.settings, "eu").layout
    evicted, wrong = (layout.entry_key(0, f"template:{n}").encode() for n in (9, 2))
    older = before[wrong].replace(before[wrong][104:136], b"0" * 32).replace(b'"c"', b'"x"')
    assert older != before[wrong]
    with redis.Redis.from_url(site.settings.regions["eu"].url.get_secret_value()) as client:
        client.delete(evicted)
        client.set(wrong, older)
    assert run(views=("template",))["regions"]["eu"]["written"] == 2
    after = entries(site)
    for name in (evicted, wrong):  # which stamps were coalesced with the newest depends on how the records came
        shown = [decode(all_of[name]) for all_of in (before, after)]
        assert shown[0] == msgspec.structs.replace(shown[1], seen=shown[0].seen)
        assert shown[0].seen[:POSITION_WIDTH] == shown[1].seen[:POSITION_WIDTH]
    assert {**after, evicted: b"", wrong: b""} == {**before, evicted: b"", wrong: b""}


def test_filters_take_only_what_they_name(site, run):
    every = run(dry_run=True)
    assert every["regions"] == {}
    contacts = run(tables=("public.contacts",), dry_run=True)
    assert set(contacts["causes"]) == {"contact"}
    assert set(contacts["range"]) == {f"{site.settings.source.topic('public.contacts')}/{n}" for n in (0, 1)}
    template = run(views=("template",), dry_run=True)
    assert set(template["causes"]) == {"template"}
    assert contacts["records"] + template["records"] == every["records"]
    one = run(keys=("template:9",))
    assert one["causes"] == {"template": {"change": 2}}
    assert one["regions"]["eu"] == {"unlinked": 0, "kept": one["keys"], "written": 0}


def test_a_dry_run_says_causes_and_keys_and_no_values_and_touches_no_redis(site, run, monkeypatch):
    monkeypatch.setattr(replay_kafka, "open_region", lambda *_: pytest.fail("redis was opened"))
    result = run(dry_run=True, as_json=True)
    assert result["causes"] == {"contact": {"change": 3 * CONTACTS}, "template": {"change": 48}}
    assert len(result["samples"]["contact"]) == 5
    assert all(key.startswith("contact:") for key in result["samples"]["contact"])
    assert "r2" not in json.dumps(result)


def test_times_and_positions_name_the_same_records_as_offsets(site, run):
    topic = site.settings.source.topic("public.contacts")
    records = sorted((r for r in all_records(site) if r.topic == topic), key=lambda r: r.header[1:33])
    third = records[2 * CONTACTS].header[1:33].decode()
    second_round = run(
        tables=("public.contacts",),
        start=f"position:{records[CONTACTS].header[1:33].decode()}",
        end=f"position:{third}",
    )
    assert second_round["causes"] == {"contact": {"change": CONTACTS}}
    lsn = f"position:{int(third[8:16], 16):X}/{int(third[16:24], 16):X}"
    assert run(tables=("public.contacts",), start=lsn)["causes"] == {"contact": {"change": CONTACTS}}
    everything = run(tables=("public.contacts",), start="time:1000")
    assert everything["causes"] == {"contact": {"change": 3 * CONTACTS}}
    assert run(tables=("public.contacts",), start="time:2100-01-01T00:00:00Z")["records"] == 0


@pytest.mark.parametrize("offset", [0, 1, 17, 40])
def test_from_a_wrong_offset_nothing_goes_wrong(site, run, offset):
    before = entries(site)
    topic = site.settings.source.topic("public.contacts")
    result = run(start=f"offset:{offset}", topic=topic, partition=0)
    assert result["range"] == {f"{topic}/0": [offset, held(site)[topic][0].end]}
    assert entries(site) == before


def test_what_is_not_there_is_refused_before_anything_is_sent(site, run, tmp_path):
    topic = site.settings.source.topic("public.contacts")
    end = held(site)[topic][0].end
    with pytest.raises(ConfigError, match=rf"{topic}/0: --from is offset {end + 1}, and kafka has 0 to {end}"):
        run(start=f"offset:{end + 1}", topic=topic, partition=0)
    with pytest.raises(ConfigError, match=f"topic {topic} has no partition 9"):
        run(topic=topic, partition=9)
    with pytest.raises(ConfigError, match=r"there is no topic nowhere.public.contacts: .*--topic-prefix"):
        run(topic_prefix="nowhere")
    with pytest.raises(TransientError, match="region us: shard 0 is not there"):
        run(regions=("us",))
    assert not (tmp_path / "state.json").exists()


def test_expired_records_and_compacted_topics_are_refused_unless_holes_are_allowed(site, run):
    prefix = f"{site.settings.source.name}.old"
    records = [record for record in all_records(site) if ".contacts" in record.topic]
    copy_to(site, prefix, records, partitions=1)
    topic = f"{prefix}.public.contacts"
    options = {"topic_prefix": prefix, "tables": ("public.contacts",)}
    client = KafkaAdminClient(bootstrap_servers=site.settings.kafka.bootstrap_servers)
    try:
        client.delete_records({TopicPartition(topic, 0): 50})
    finally:
        client.close()
    with pytest.raises(GapError, match=f"{topic}/0: --from is offset 49, and kafka has 50 to {len(records)}"):
        run(start="offset:49", **options)
    with pytest.raises(GapError, match=f"{topic}/0: --from is at or before offset 50"):
        run(start="time:1000", **options)
    assert run(start="offset:49", allow_holes=True, **options)["records"] == len(records) - 50
    compacted = f"{prefix}.compact.public.contacts"
    with Admin(site.settings.kafka) as admin:
        admin.ensure([Topic(compacted, 1, COMPACTED)])
    with pytest.raises(ConfigError, match=f"topic {compacted} is compacted"):
        run(topic_prefix=f"{prefix}.compact", tables=("public.contacts",))


def command(site: Site, *arguments: str, failpoints: str = "", state: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "consumers.cli", "replay", "kafka", "--from", "beginning", "--region", "eu", "--json",
         "--state", str(state), "--config", str(site.directory / "staleproof.yaml"), *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={"PYTHONPATH": str(ROOT), "STALEPROOF_FAILPOINTS": failpoints,
             "STALEPROOF_WORKER__SCRIPT_KEYS": "10", "STALEPROOF_WORKER__BATCH_RECORDS": "10"},
    )  # fmt: skip


def test_killed_twice_it_goes_on_where_it_stood(site, run, tmp_path):
    every = run()
    before, state = entries(site), tmp_path / "killed.json"
    done = [0]
    for point in ("replay.after_save=kill@1", "replay.after_send=kill@8"):
        process = command(site, "--rate", "60" if "save" in point else "1000", failpoints=point, state=state)
        process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL
        standing = json.loads(state.read_text())["progress"]
        done.append(standing["counts"]["records"])
        assert entries(site) == before
    assert done[1] > 0
    with pytest.raises(ConfigError, match=r"is of another command \(topics was"):
        run(views=("contact",), state=state)
    process = command(site, state=state)
    printed, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    result = json.loads(printed)
    assert result["complete"]
    assert (result["records"], result["causes"]) == (every["records"], every["causes"])
    assert entries(site) == before
    assert not state.exists()


def test_what_expires_or_is_made_again_between_two_runs_is_a_gap(site, run, tmp_path):
    prefix = f"{site.settings.source.name}.between"
    records = [record for record in all_records(site) if ".contacts" in record.topic]
    copy_to(site, prefix, records, partitions=1)
    topic, state = f"{prefix}.public.contacts", tmp_path / "between.json"
    process = command(
        site, "--topic-prefix", prefix, "--table", "public.contacts", "--rate", "1000", failpoints="replay.after_send=kill@4", state=state
    )  # fmt: skip
    process.communicate(timeout=30)
    stood = json.loads(state.read_text())["progress"]["next"][f"{topic}/0"]
    options = {"topic_prefix": prefix, "tables": ("public.contacts",), "state": state}
    client = KafkaAdminClient(bootstrap_servers=site.settings.kafka.bootstrap_servers)
    try:
        client.delete_records({TopicPartition(topic, 0): stood + 5})
        with pytest.raises(
            GapError, match=f"{topic}/0: where this replay goes on is offset {stood}, and kafka has {stood + 5}"
        ):
            run(**options)
        kept = state.read_bytes()
        assert run(allow_holes=True, **options)["records"] == len(records) - 5
        state.write_bytes(kept)
        client.delete_topics([topic])
        wait_until(lambda: topic not in client.list_topics(), "the topic is gone")
    finally:
        client.close()
    copy_to(site, prefix, records, partitions=1)
    with pytest.raises(GapError, match="made again since the state file"):
        run(**options)


def test_stopped_by_a_signal_it_says_how_to_go_on(site, tmp_path):
    state = tmp_path / "stopped.json"
    process = command(site, "--rate", "40", state=state)
    wait_until(lambda: state.exists() and json.loads(state.read_text())["progress"]["counts"], "it has begun")
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"stopped before the end: {state} knows where; the same command again goes on" in errors
    assert json.loads(printed)["complete"] is False
    assert 0 < json.loads(state.read_text())["progress"]["counts"]["records"] < 300


def test_the_workers_group_is_left_alone(site, run):
    client = KafkaAdminClient(bootstrap_servers=site.settings.kafka.bootstrap_servers)
    try:
        before = {group["group_id"] for group in client.list_groups()}
        run()
        assert {group["group_id"] for group in client.list_groups()} == before
    finally:
        client.close()
