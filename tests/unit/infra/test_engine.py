"""Docker Engine is started only where it is ours to start, and only what was started is stopped; none is needed here."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from infra import warden
from infra.images import build, engine
from infra.prerequisites import MissingPrerequisite
from infra.processes import StackError


@pytest.fixture
def sleeper():
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def record(directory, identity):
    (directory / "dockerd.json").write_text(json.dumps(identity))


def test_one_that_answers_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "absent", lambda: None)
    assert engine.ensure(tmp_path) is None
    assert not engine.is_ours(tmp_path)


@pytest.mark.parametrize(("host", "user"), [("tcp://127.0.0.1:1", 0), (None, 1000)])
def test_another_machines_engine_is_not_started_and_nobody_but_root_starts_one(tmp_path, monkeypatch, host, user):
    monkeypatch.setattr(engine, "absent", lambda: "no Docker Engine answers")
    monkeypatch.setattr(engine, "get_docker_host", lambda: host)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(engine, "install", lambda: pytest.fail("nothing may be installed"))
    with pytest.raises(MissingPrerequisite, match="no Docker Engine answers: start Docker Engine, or set DOCKER_HOST"):
        engine.ensure(tmp_path)


def test_one_that_does_not_start_says_why_and_is_forgotten(tmp_path, monkeypatch):
    program = tmp_path / "dockerd"
    program.write_text("#!/bin/sh\necho 'no permission' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(engine, "absent", lambda: "no Docker Engine answers")
    monkeypatch.setattr(engine, "get_docker_host", lambda: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(engine, "install", lambda: None)
    with pytest.raises(StackError, match=r"dockerd ended with status 3(.|\n)*no permission"):
        engine.ensure(tmp_path / "state")
    assert not (tmp_path / "state" / "dockerd.json").exists()


def test_what_was_started_is_stopped(tmp_path, sleeper):
    record(tmp_path, warden.identify(sleeper.pid))
    assert engine.is_ours(tmp_path)
    engine.stop(tmp_path)
    assert sleeper.wait(5) == -signal.SIGTERM
    assert not engine.is_ours(tmp_path)
    engine.stop(tmp_path)


def test_a_process_that_took_over_a_recorded_pid_is_not_touched(tmp_path, sleeper):
    record(tmp_path, (sleeper.pid, 1))
    assert not engine.is_ours(tmp_path)
    engine.stop(tmp_path)
    assert sleeper.poll() is None


def test_a_command_that_fails_is_named_with_the_end_of_what_it_said():
    with pytest.raises(StackError, match=r"`sh -c echo said; exit 4 ...` ended with status 4:\nsaid"):
        engine.run(["sh", "-c", "echo said; exit 4"], 10)
    with pytest.raises(StackError, match="did not end within 0 s"):
        engine.run(["sleep", "60"], 0.1)


def test_sources_are_those_of_debian_that_apt_uses(monkeypatch):
    told = "Debian deb mirror:one x main\nOther deb mirror:two x main\nDebian deb mirror:one x main\n"
    monkeypatch.setattr(build, "run", lambda *_: told)
    assert build.apt_sources() == ["deb mirror:one x main"]
