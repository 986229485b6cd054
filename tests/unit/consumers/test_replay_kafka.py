"""The command `replay kafka`: its options, what it prints, how it ends; and a region that fails."""

from __future__ import annotations

import itertools
import sys
import threading
import types
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

import consumers
from cdc.errors import ConfigError, GapError, TransientError
from consumers import cli, replay_kafka, replay_regions
from consumers.progress import Progress, RateLimit
from consumers.replay_kafka import Request
from consumers.replay_planning import RangePlanner, Wave
from consumers.replay_regions import Target, begin, finish
from consumers.replay_summary import Standing, lines_of, summary
from consumers.resume import Resume
from consumers.stream import Record
from invalidator.guard import Batch, Outcome
from invalidator.layout import Layout
from invalidator.plan import Invalidation
from invalidator.region import Applied
from invalidator.views import load_views
from tests.unit.consumers.test_replay_planning import record

SETTINGS = """\
source: {name: shop, dsn: "postgresql://u:hunter2@h/d"}
kafka: {bootstrap_servers: "k:9092"}
regions: {eu: {url: "redis://e"}, us: {url: "redis://u"}}
"""
VIEWS = load_views('version: 1\nviews: {contact: {key: "contact:{id}", tables: {public.contacts: {}}}}', place="v")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "staleproof.yaml"
    path.write_text(SETTINGS)
    return str(path)


@pytest.fixture
def command(monkeypatch):
    """Stands in for the replay; notes what it was asked for."""
    module = types.SimpleNamespace(requests=[], complete=True, error=None, Request=Request)

    def run(settings, request, stop):
        module.requests.append(request)
        if module.error:
            raise module.error
        return module.complete

    module.run = run
    monkeypatch.setitem(sys.modules, "consumers.replay_kafka", module)
    monkeypatch.setattr(consumers, "replay_kafka", module)
    return module


def invoke(*arguments: str):
    return CliRunner().invoke(cli.app, ["replay", "kafka", *arguments])


def test_every_option_arrives(config, command):
    text = (
        "--from offset:5 --to time:9 --table public.a --table public.b --view v --key v:1 --region us --region eu"
        " --topic shop.public.a --partition 3 --topic-prefix old --allow-holes --rate 500 --state s.json --dry-run --json"
    )
    assert invoke(*text.split(), "--config", config).exit_code == 0
    assert command.requests == [
        Request(
            start="offset:5", end="time:9", tables=("public.a", "public.b"), views=("v",), keys=("v:1",),
            regions=("eu", "us"), topic="shop.public.a", partition=3, topic_prefix="old", allow_holes=True,
            records_per_second=500.0, state=Path("s.json"), dry_run=True, as_json=True,
        )
    ]  # fmt: skip


def test_only_the_beginning_has_to_be_named(config, command):
    assert invoke("--from", "beginning", "--config", config).exit_code == 0
    assert command.requests == [Request(start="beginning")]
    assert invoke("--config", config).exit_code == 2


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigError("x"), 2), (GapError("x"), 3), (TransientError("x"), 1), (KeyError("x"), 70)]
)
def test_each_kind_of_error_has_its_exit_code(config, command, error, code):
    command.error = error
    assert invoke("--from", "beginning", "--config", config).exit_code == code


def test_one_that_was_stopped_ends_with_130_and_says_how_to_go_on(config, command):
    command.complete = False
    result = invoke("--from", "beginning", "--config", config)
    assert result.exit_code == 130
    assert result.stderr == (
        "staleproof: stopped before the end: staleproof-replay-kafka.json knows where; the same command again goes on\n"
    )
    result = invoke("--from", "beginning", "--dry-run", "--config", config)
    assert (result.exit_code, result.stderr) == (130, "staleproof: stopped before the end\n")


def test_an_unknown_region_names_the_known_ones(config, command):
    result = invoke("--from", "beginning", "--region", "ue", "--config", config)
    assert result.exit_code == 2
    assert command.requests == []


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (Request(start="beginning", partition=1), "--partition is of one topic: name it with --topic"),
        (Request(start="beginning", topic="x"), "--topic 'x' is none of those that are replayed: shop.public.contacts"),
    ],
)
def test_a_topic_that_is_not_replayed_is_refused(request_, complaint):
    settings = types.SimpleNamespace(source=types.SimpleNamespace(name="shop"))
    with pytest.raises(ConfigError, match=complaint):
        replay_kafka._tables(settings, request_, VIEWS)


@pytest.mark.parametrize(("rate", "at_once"), [(None, 1_000), (100_000, 1_000), (400, 100), (2, 1), (0.5, 1)])
def test_a_slow_replay_takes_few_records_at_once(rate, at_once):
    settings = types.SimpleNamespace(worker=types.SimpleNamespace(batch_records=1_000))
    assert replay_kafka._records_at_once(settings, Request(start="end", records_per_second=rate)) == at_once


def standing() -> Standing:
    return Standing(
        range={"shop.public.a/0": (5, 25), "shop.public.a/1": (0, 3), "shop.public.b/0": (1, 1)},
        since="", until="g", topic_ids={}, next={"shop.public.a/0": 15, "shop.public.a/1": 3, "shop.public.b/0": 1},
        counts={"records": 1_013, "ignored": 4, "whole_views": 2, "keys": 9},
        regions={"eu": {"unlinked": 1_234, "kept": 5, "written": 0}, "us": {"unlinked": 0, "kept": 0, "written": 7}},
        causes={"contact": {"change": 9, "truncate": 2}}, alarms={"us": ["guard_lost"]}, seconds=2.0,
    )  # fmt: skip


def test_the_standing_knows_what_is_left():
    assert (standing().total, standing().done) == (23, 13)
    assert {place: (e.begin, e.end) for place, e in standing().left.items()} == {
        ("shop.public.a", 0): (15, 25), ("shop.public.a", 1): (3, 3), ("shop.public.b", 0): (1, 1),
    }  # fmt: skip


def test_the_summary_can_be_pasted_into_a_ticket():
    lines = lines_of(summary(standing(), complete=True, dry_run=False, samples={}))
    assert lines == [
        "replayed:",
        "  shop.public.a: partition 0 offsets 5 to 25, partition 1 offsets 0 to 3",
        "  shop.public.b: partition 0 offsets 1 to 1",
        "records: 1,013 read, 4 ignored, 0 undecodable, 0 of an earlier epoch",
        "keys: 9 changes",
        "  view contact: change 9, truncate 2",
        "raises of views: 2, left to the workers, who raise each once: `staleproof fence --view` empties a view",
        "region eu: 1,234 unlinked, 5 kept, 0 written",
        "region us: 0 unlinked, 0 kept, 7 written",
        "took 2.0 s, 506 records/s",
        "alarms: us guard_lost",
    ]


def test_the_summary_says_what_it_is_of():
    heads = {
        (complete, dry_run): lines_of(summary(standing(), complete=complete, dry_run=dry_run, samples={}))[0]
        for complete, dry_run in itertools.product((True, False), repeat=2)
    }
    assert heads == {
        (True, False): "replayed:", (False, False): "stopped; replayed so far:",
        (True, True): "would replay:", (False, True): "stopped; would replay:",
    }  # fmt: skip
    told = lines_of(summary(standing(), complete=True, dry_run=True, samples={"contact": ["contact:1", "contact:2"]}))
    assert "  view contact: change 9, truncate 2; such as contact:1, contact:2" in told


class FailingRegion:
    """Fails so many times, then answers."""

    name = "eu"
    layout = Layout()

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.sent = 0

    def prepare(self) -> None:
        pass

    def submit(self, shard: int, batch: Batch):
        self.sent += 1
        if self.failures:
            self.failures -= 1
            raise TransientError("redis is away")
        return types.SimpleNamespace(batch=batch, applied=lambda: Applied(Outcome.APPLIED, unlinked=1))

    def abandon(self) -> None:
        pass


def one_key() -> Wave:
    invalidation = Invalidation("contact", "contact:1", "0" * 32, ("0" * 16,))
    return Wave({("contact", "contact:1"): invalidation}, {}, Counter(), Counter())


def test_a_region_that_fails_for_a_while_gets_the_wave_again_and_counts_it_once():
    region, waits = FailingRegion(3), []
    target = Target(region, VIEWS, wait=waits.append)
    finish(begin(one_key(), [target]), [target], lambda: False)
    assert (region.sent, target.counts["unlinked"], len(waits)) == (4, 1, 2)


def test_other_regions_are_answered_before_a_failing_one_is_waited_for():
    good = Target(FailingRegion(0), VIEWS)
    good.name = "us"
    bad = Target(FailingRegion(10**6), VIEWS, wait=lambda _: None)
    with pytest.raises(TransientError):
        finish(begin(one_key(), [bad, good]), [bad, good], lambda: True)
    assert good.counts["unlinked"] == 1


class OneFetch:
    """A reader of ten records in one partition."""

    def __init__(self) -> None:
        self.left = {("shop.public.contacts", 0)}

    def fetch(self, records_max: int, timeout_seconds: float) -> list[Record]:
        self.left = set()
        return [record("public.contacts", n, 10 + n, offset=n) for n in range(10)]


def one_run(tmp_path: Path, region: FailingRegion, stop: threading.Event, reader: OneFetch):
    """A replay of ten records in waves of four; and what of it is kept."""
    name = "shop.public.contacts/0"
    state = Resume(tmp_path / "state.json", {})
    begun = Standing(range={name: (0, 10)}, since="", until="g", topic_ids={}, next={name: 0})
    planner = RangePlanner(VIEWS, {"shop.public.contacts": "public.contacts"}, wave_keys=4)
    target = Target(region, VIEWS, wait=lambda _: None)
    replay = replay_kafka._Replay(begun, planner, [target], state, stop)
    settings = types.SimpleNamespace(kafka=types.SimpleNamespace(request_timeout_seconds=0.1))

    def run() -> bool:
        with Progress(10, "records", True) as shown:
            return replay.run(reader, shown, RateLimit(None), settings, records_max=100)

    return run, lambda: (state.load() or {}).get("next", {}).get(name)


def test_what_no_region_has_answered_is_not_kept_as_done(tmp_path, monkeypatch):
    monkeypatch.setattr(replay_regions, "RETRY_SECONDS", 0.0)
    region = FailingRegion(0)
    run, kept = one_run(tmp_path, region, threading.Event(), OneFetch())
    submit = region.submit

    def fail_from_the_second(shard, batch):
        if region.sent >= 1:
            region.failures = 10**6
        return submit(shard, batch)

    region.submit = fail_from_the_second
    with pytest.raises(TransientError):
        run()
    assert kept() == 4


def test_a_stop_ends_the_wave_in_flight_and_keeps_what_it_did(tmp_path):
    stop = threading.Event()
    region = FailingRegion(0)
    run, kept = one_run(tmp_path, region, stop, OneFetch())
    submit = region.submit
    region.submit = lambda shard, batch: stop.set() or submit(shard, batch)
    assert run() is False
    assert (region.sent, kept()) == (1, 4)


def test_a_stop_while_a_region_fails_ends_the_wait(tmp_path):
    stop = threading.Event()
    stop_soon = FailingRegion(10**6)
    run, kept = one_run(tmp_path, stop_soon, stop, OneFetch())
    prepare = stop_soon.prepare
    stop_soon.prepare = lambda: stop.set() or prepare()
    assert run() is False
    assert kept() == 0


def test_at_its_end_no_state_is_left(tmp_path):
    run, kept = one_run(tmp_path, FailingRegion(0), threading.Event(), OneFetch())
    assert run() is True
    assert kept() is None


def test_a_kafka_that_falls_silent_ends_it(tmp_path):
    reader = OneFetch()
    reader.fetch = lambda *_: []
    run, _ = one_run(tmp_path, FailingRegion(0), threading.Event(), reader)
    with pytest.raises(TransientError, match=r"kafka sends nothing of shop\.public\.contacts"):
        run()


def test_a_region_that_fails_for_too_long_ends_the_replay(monkeypatch):
    monkeypatch.setattr(replay_regions, "RETRY_SECONDS", 0.0)
    target = Target(FailingRegion(10**6), VIEWS, wait=lambda _: None)
    with pytest.raises(TransientError, match="redis is away"):
        finish(begin(one_key(), [target]), [target], lambda: False)
