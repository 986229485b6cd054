"""The demonstration's verdict, its measuring and its plain cache's worker: what counts as shown."""

from __future__ import annotations

import fcntl
from pathlib import Path

import msgspec
import pytest

from infra.demo import crew, demo, naive, probe, regions
from infra.demo.demo import Counted, Options

GUARDED = Options(seconds=30, rate=300, seed=1, json_only=True, naive=False, directory=Path())
NAIVE = msgspec.structs.replace(GUARDED, naive=True)
GATE = {"gate_acknowledged": 240, "gate_sent": 900, "gate_checks_after": 600, "gate_violations": 0}
GOOD = Counted(
    changes=9_000, reads=20_000, hits=14_000, refused=3, samples=600, timeouts=0, unfilled=0, p50_ms=9.0, p99_ms=30.0,
    gate=GATE,
)  # fmt: skip
VERDICT = {"checked": 5_000, "changed": 2_000, "stale": 0}


def test_the_last_line_is_what_was_promised():
    assert demo.result(GOOD, VERDICT) == {
        "changes": 9_000,
        "regions": 3,
        "invalidation_ms": {"p50": 9.0, "p99": 30.0},
        "reads": 20_000,
        "hit_ratio": 0.7,
        "fills_refused": 3,
        "checked_entries": 5_000,
        "checked_changed_entries": 2_000,
        "stale_entries": 0,
        "gate": {"acknowledged": 240, "sent": 900, "checks_after": 600, "violations": 0},
    }


def test_a_good_run_has_no_shortcoming():
    assert demo.shortcomings(GOOD, VERDICT, GUARDED) == []


@pytest.mark.parametrize(
    "change",
    [
        *({"hits": 9_999}, {"samples": 89}, {"timeouts": 1}, {"unfilled": 1}, {"changes": 7_199}),
        *({"gate": GATE | {name: 59}} for name in GATE if name != "gate_violations"),
        {"gate": GATE | {"gate_violations": 1}},
    ],
)
def test_what_was_not_shown_is_named(change):
    assert len(demo.shortcomings(msgspec.structs.replace(GOOD, **change), VERDICT, GUARDED)) == 1


def test_one_stale_entry_fails_the_guard_and_is_what_the_plain_cache_should_show():
    stale = {**VERDICT, "stale": 1}
    assert len(demo.shortcomings(GOOD, stale, GUARDED)) == 1
    assert demo.shortcomings(GOOD, stale, NAIVE) == []
    assert len(demo.shortcomings(GOOD, VERDICT, NAIVE)) == 1


REBUILT = msgspec.structs.replace(GOOD, rebuilt={"keys": 10}, watched={"moved_on": 500, "deleted": 500})


def test_a_rebuild_stands_beside_the_rest():
    assert demo.result(REBUILT, VERDICT)["rebuild"] == {"keys": 10, "moved_on": 500, "deleted": 500}
    assert demo.shortcomings(REBUILT, VERDICT, GUARDED) == []


@pytest.mark.parametrize("change", [{"moved_back": 1}, {"moved_on": 3}, {"deleted": 0}])
def test_a_key_that_moved_back_and_a_rebuild_beside_nothing_are_shortcomings(change):
    counted = msgspec.structs.replace(REBUILT, watched={**REBUILT.watched, **change})
    assert len(demo.shortcomings(counted, VERDICT, GUARDED)) == 1


@pytest.mark.parametrize(
    "arguments",
    [["--seconds", "0"], ["--rate", "-1"], ["--fast"], ["--rebuild", "9"], ["--rebuild", "10000", "--naive"]],
)
def test_wrong_options_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        demo.parse(arguments)
    assert caught.value.code == 2
    assert "error" in capsys.readouterr().err


def test_options_of_the_command_line():
    options = demo.parse(["--seconds", "60", "--rate", "2000", "--json-only"])
    assert (options.seconds, options.rate, options.json_only, options.naive) == (60, 2000, True, False)


@pytest.mark.parametrize(
    ("values", "p50", "p99"), [([], 0.0, 0.0), ([4.0], 4.0, 4.0), ([float(n) for n in range(100, 0, -1)], 50.0, 99.0)]
)
def test_percentiles(values, p50, p99):
    assert (probe.percentile(values, 50), probe.percentile(values, 99)) == (p50, p99)


def test_a_region_that_was_never_served_is_not_open():
    assert regions.standing({}) == regions.Standing()


def test_a_closed_scope_or_no_watermark_is_not_open():
    watermark = "0000000a" + f"{0x1234:016x}" + "0" * 8 + f"{77:012x}"
    assert regions.standing({"s:": "o", "s:x": "o", "w": watermark}) == regions.Standing(
        open=True, lsn=0x1234, time_ms=77
    )
    assert not regions.standing({"s:": "o", "s:x": "c", "w": watermark}).open
    assert not regions.standing({"s:": "o"}).open


@pytest.mark.parametrize(
    ("table", "change", "keys"),
    [
        ("contacts", {"before": {"id": 1}, "after": {"id": 2}}, {"contact:1", "contact:2"}),
        ("templates", {"before": None, "after": {"id": 5}}, {"template:5"}),
        ("segment_members", {"before": {"segment_id": 3, "contact_id": 1}, "after": None}, {"segment:3"}),
        ("tracking_events", {"before": {"id": 1, "contact_id": 9}, "after": {"id": 1, "contact_id": 8}},
         {"contact_stats:9", "contact_stats:8"}),
    ],
)  # fmt: skip
def test_the_plain_worker_deletes_the_keys_of_both_images(table, change, keys):
    assert set(naive.keys_of(table, change)) == keys


def test_a_run_leaves_its_logs_and_nothing_else(tmp_path):
    with demo.run_directory(tmp_path) as place:
        (place / demo.SERVERS / "logs").mkdir(parents=True)
        (place / demo.SERVERS / "logs" / "kafka.log").write_text("x")
        (place / demo.SERVERS / "data").write_text("x")
    assert [path.relative_to(place).as_posix() for path in place.rglob("*")] == ["logs", "logs/kafka.log"]


def test_what_a_killed_run_left_is_cleared_and_a_running_one_is_left_alone(tmp_path):
    for name in ("1-killed", "2-running"):
        (tmp_path / name / "logs").mkdir(parents=True)
        (tmp_path / name / demo.SERVERS).mkdir()
        (tmp_path / name / demo.SERVERS / "stack.lock").touch()
    with (tmp_path / "2-running" / demo.SERVERS / "stack.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        demo.tidy(tmp_path)
    assert not (tmp_path / "1-killed" / demo.SERVERS).exists()
    assert (tmp_path / "2-running" / demo.SERVERS).exists()


def test_only_the_newest_runs_are_kept(tmp_path):
    for number in range(demo.KEPT_RUNS + 3):
        (tmp_path / f"{number}" / "logs").mkdir(parents=True)
    demo.tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4", "5", "6"]


def test_a_process_that_ended_is_named_with_its_last_words(tmp_path):
    log = tmp_path / "x.log"
    log.write_text("first\nstaleproof: no such topic\n\n")
    assert crew.ending("capture", 2, log) == f"capture ended with status 2: staleproof: no such topic (see {log})"
    assert crew.ending("capture", -9, log) == f"capture was killed by SIGKILL (see {log})"
