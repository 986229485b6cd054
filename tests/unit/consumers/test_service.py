"""Health pages over HTTP, signals and logs."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import threading

import pytest
import structlog
from prometheus_client import CollectorRegistry, Counter

from cdc.errors import ConfigError
from consumers.service import Health, Pulse, configure_logging, host_is_ours, serve_http, stopped_by_signals
from tests.waiting import wait_until


def get(port: int, path: str, host: str = "localhost") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={"Host": host})
    response = connection.getresponse()
    return response.status, response.read().decode()


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("sp_test", "A test.", registry=registry).inc()
    return registry


@pytest.mark.parametrize(
    ("health", "live", "ready"),
    [
        (Health(live=True, ready=True), 200, 200),
        (Health(live=True, ready=False, reason="behind"), 200, 503),
        (Health(live=False, ready=True, reason="stalled"), 503, 503),
    ],
)
def test_pages_tell_what_the_callback_judges(registry, health, live, ready):
    with serve_http(host="127.0.0.1", port=0, health=lambda: health, registry=registry) as port:
        assert get(port, "/live")[0] == live
        status, body = get(port, "/ready")
        assert status == ready
        assert json.loads(body)["reason"] == health.reason
        assert "sp_test_total 1.0" in get(port, "/metrics")[1]
        assert get(port, "/")[0] == 404


def test_a_failing_health_check_is_not_healthy_and_quotes_nothing(registry):
    def health() -> Health:
        raise RuntimeError("hunter2")

    with serve_http(host="127.0.0.1", port=0, health=health, registry=registry) as port:
        status, body = get(port, "/live")
    assert status == 503
    assert "hunter2" not in body


def test_a_foreign_host_is_refused(registry):
    with serve_http(host="127.0.0.1", port=0, health=lambda: Health(live=True, ready=True), registry=registry) as port:
        assert get(port, "/metrics", "evil.example")[0] == 421


@pytest.mark.parametrize(
    ("header", "ours"),
    [
        ("localhost:9101", True),
        ("127.0.0.1", True),
        ("10.1.2.3:9101", True),
        ("[::1]:9101", True),
        ("worker.internal:1", True),
        ("WORKER.internal", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        ("[", False),
        (":80", False),
    ],
)
def test_host_headers(header, ours):
    assert host_is_ours(header, "worker.internal") is ours


def test_the_port_is_free_again_afterwards_and_taken_meanwhile(registry):
    def healthy() -> Health:
        return Health(live=True, ready=True)

    refusal = pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1:.*free port or 0")
    with serve_http(host="127.0.0.1", port=0, health=healthy, registry=registry) as port, refusal:
        serve_http(host="127.0.0.1", port=port, health=healthy, registry=registry).__enter__()
    with serve_http(host="127.0.0.1", port=port, health=healthy, registry=registry) as again:
        assert again == port


def test_an_address_of_another_machine_is_refused(registry):
    with pytest.raises(ConfigError, match="http_host"):
        serve_http(
            host="203.0.113.1", port=0, health=lambda: Health(live=True, ready=True), registry=registry
        ).__enter__()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_stop_and_handlers_are_put_back(number):
    before = signal.getsignal(number)
    stop = threading.Event()
    with stopped_by_signals(stop):
        signal.raise_signal(number)
        assert stop.is_set()
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_the_process_at_once(number, code, tmp_path):
    mark = tmp_path / "mark"
    script = (
        "import pathlib, sys, threading, time\n"
        "from consumers.service import stopped_by_signals\n"
        "stop = threading.Event()\n"
        "with stopped_by_signals(stop):\n"
        "    pathlib.Path(sys.argv[1]).write_text('ready')\n"
        "    stop.wait(); pathlib.Path(sys.argv[1]).write_text('stopping'); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(mark)])
    try:
        wait_until(lambda: mark.exists() and mark.read_text() == "ready", "the process waits")
        process.send_signal(number)
        wait_until(lambda: mark.read_text() == "stopping", "the first signal is heard")
        process.send_signal(number)
        assert process.wait(10) == code
    finally:
        process.kill()
        process.wait()


def test_logs_are_json_lines_with_a_constant_event(capsys):
    configure_logging(as_json=True)
    structlog.get_logger("x").info("batch_applied", keys=3)
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["keys"], line["level"]) == ("batch_applied", 3, "info")
    assert line["timestamp"].endswith("Z")
    structlog.get_logger("x").debug("hidden")
    assert capsys.readouterr().err == ""


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("consumers.service.time.monotonic", lambda: self.now)


def test_a_loop_that_stops_reporting_is_not_live(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pulse = Pulse(stalled_after_seconds=10)
    pulse.beat(clock.now)
    assert pulse.health() == Health(live=True, ready=True)
    clock.now += 11
    assert not pulse.health().live


def test_without_heartbeats_a_turning_loop_is_live_and_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pulse = Pulse(stalled_after_seconds=10)
    pulse.beat(None)
    assert (pulse.health().live, pulse.health().ready) == (True, False)
    passed_at = clock.now
    clock.now += 11
    pulse.beat(passed_at)
    assert (pulse.health().live, pulse.health().ready) == (True, False)


def test_a_doubt_is_not_ready_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pulse = Pulse(stalled_after_seconds=10)
    pulse.beat(clock.now, "2 scopes are closed")
    assert pulse.health() == Health(live=True, ready=False, reason="2 scopes are closed")


def test_waiting_is_live_for_as_long_as_was_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pulse = Pulse(stalled_after_seconds=10)
    pulse.wait("opening", limit_seconds=60)
    clock.now += 59
    assert pulse.health() == Health(live=True, ready=False, reason="opening")
    clock.now += 2
    assert not pulse.health().live
