"""Failpoints: what they do to a process, that a wrong text never goes unnoticed, and that the table is the truth."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cdc.errors import ConfigError, TransientError
from consumers import failpoints
from consumers.failpoints import POINTS, Action, Armed, Failpoints, failpoint, parse, perform
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
POINT = "capture.after_produce"
OTHER = "capture.after_memory"
PASSING = f"""
import time
from consumers.failpoints import failpoint
for number in range(5):
    print(number, flush=True)
    failpoint("{POINT}")
"""


def passing(text):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "STALEPROOF_FAILPOINTS": text}
    return subprocess.Popen(
        [sys.executable, "-c", PASSING], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def numbers(out):
    """The printed numbers, without the log's lines between them."""
    return [int(line) for line in out.splitlines() if line.isdigit()]


def test_a_text_arms_points_by_action_and_passing():
    assert parse(f"{POINT}=kill@3, {OTHER}=sleep:500@1,{OTHER}=stop@12,{OTHER}=error@2") == (
        Armed(point=POINT, action=Action.KILL, at=3),
        Armed(point=OTHER, action=Action.SLEEP, at=1, sleep_ms=500),
        Armed(point=OTHER, action=Action.STOP, at=12),
        Armed(point=OTHER, action=Action.ERROR, at=2),
    )


@pytest.mark.parametrize("text", ["", " "])
def test_no_text_arms_nothing(text):
    assert parse(text) == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (f"{POINT}=kill", "write point=kill@3"),
        (f"{POINT}=kill@0", "write point=kill@3"),
        (f"{POINT}=explode@1", "write point=kill@3"),
        (f"{POINT}=sleep@1", "write point=kill@3"),
        (f"{POINT}=kill:5@1", "write point=kill@3"),
        (f"{POINT}=kill@1,", "'' is no failpoint"),
        (f"{POINT}=sleep:600001@1", "at most 600000 ms"),
        ("capture.after_lunch=kill@1", "there is no point 'capture.after_lunch'; known are capture.after_announce"),
    ],
)
def test_a_wrong_text_is_an_error_that_names_the_variable_and_the_remedy(text, complaint):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert str(caught.value).startswith("environment variable STALEPROOF_FAILPOINTS: ")
    assert complaint in str(caught.value)


def test_a_wrong_text_stops_the_command_with_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "views.yaml").write_text("version: 1\nviews: {}\n")
    (tmp_path / "staleproof.yaml").write_text(
        "source: {name: a, dsn: 'postgresql://127.0.0.1/x', slot: a}\nkafka: {bootstrap_servers: '127.0.0.1:1'}\n"
        "regions: {eu: {url: 'redis://127.0.0.1:1'}}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "consumers.cli", "capture", "--config", tmp_path / "staleproof.yaml"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "STALEPROOF_FAILPOINTS": "nonsense"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("staleproof: environment variable STALEPROOF_FAILPOINTS: 'nonsense' is no failpoint")
    assert len(done.stderr.splitlines()) == 1


def test_only_the_named_passing_of_the_named_point_acts():
    done = []
    points = Failpoints(parse(f"{POINT}=error@2,{POINT}=kill@4,{OTHER}=stop@1"), done.append)
    acted = []
    for _ in range(5):
        points.passing(POINT)
        acted.append(len(done))
    assert acted == [0, 1, 1, 2, 2]
    points.passing(OTHER)
    assert [one.action for one in done] == [Action.ERROR, Action.KILL, Action.STOP]


def test_an_error_is_transient_and_names_the_point():
    with pytest.raises(TransientError, match=rf"failpoint {POINT} at passing 2"):
        perform(Armed(point=POINT, action=Action.ERROR, at=2))


def test_a_sleep_lasts_as_long_as_it_says():
    began = time.monotonic()
    perform(Armed(point=POINT, action=Action.SLEEP, at=1, sleep_ms=80))
    assert time.monotonic() - began >= 0.08


def test_a_kill_ends_the_process_at_that_passing_without_a_last_word():
    with passing(f"{POINT}=kill@3") as process:
        out, _ = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert numbers(out) == [0, 1, 2]
    assert "failpoint" in out


def test_a_stop_freezes_the_process_until_it_is_continued():
    with passing(f"{POINT}=stop@2") as process:

        def stopped():
            assert process.poll() is None
            return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

        wait_until(stopped, "the process stops itself")
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert numbers(out) == [0, 1, 2, 3, 4]


def test_without_the_variable_nothing_is_even_counted(monkeypatch):
    assert failpoints._armed == ()
    monkeypatch.setattr(failpoints, "_failpoints", None)
    failpoint(POINT)


def test_every_point_of_the_table_is_passed_in_one_place_and_every_call_is_in_the_table():
    called = [
        call.args[0].value
        for path in sorted(ROOT.glob("consumers/*.py"))
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "failpoint"
    ]
    assert sorted(called) == sorted(POINTS)
