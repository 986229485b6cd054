"""The command: options, exit codes and one line for each error."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner

import consumers
from cdc.errors import BadRecord, ConfigError, FatalError, GapError, TransientError
from consumers.cli import app, exit_code

SETTINGS = """\
source: {name: shop, dsn: "postgresql://u:hunter2@h/d"}
kafka: {bootstrap_servers: "k:9092"}
regions: {eu: {url: "redis://e"}, us: {url: "redis://u"}}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "staleproof.yaml"
    path.write_text(SETTINGS)
    return str(path)


@pytest.fixture
def worker(monkeypatch):
    """Stands in for the processes; notes how it was called and raises what it is told to."""
    module = types.SimpleNamespace(calls=[], error=None)

    def run(*arguments):
        module.calls.append(arguments)
        if module.error:
            raise module.error

    module.run = run
    for name in ("capture", "invalidate"):
        monkeypatch.setitem(sys.modules, f"consumers.{name}", module)
        monkeypatch.setattr(consumers, name, module, raising=False)
    return module


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_capture_gets_settings_and_stop(config, worker):
    assert invoke("capture", "--config", config).exit_code == 0
    ((settings, stop),) = worker.calls
    assert settings.source.name == "shop"
    assert not stop.is_set()


def test_invalidate_gets_its_region(config, worker):
    assert invoke("invalidate", "--region", "us", "--config", config).exit_code == 0
    ((_, region, _),) = worker.calls
    assert region == "us"


def test_an_unknown_region_names_the_known_ones(config, worker):
    result = invoke("invalidate", "--region", "ue", "--config", config)
    assert result.exit_code == 2
    assert result.stderr == "staleproof: there is no region 'ue' in the settings; known here: eu, us\n"
    assert worker.calls == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (GapError("x"), 3),
        (FatalError("x"), 1),
        (TransientError("x"), 1),
        (BadRecord("x"), 1),
        (KeyError("hunter2"), 70),
    ],
)
def test_each_kind_of_error_has_its_exit_code_and_one_line(config, worker, error, code):
    worker.error = error
    result = invoke("capture", "--config", config)
    assert result.exit_code == code == exit_code(error)
    assert result.stderr.startswith("staleproof: ")
    assert result.stderr.count("\n") == 1
    assert "hunter2" not in result.stderr


def test_debug_shows_the_traceback(config, worker):
    worker.error = FatalError("x")
    result = invoke("capture", "--debug", "--config", config)
    assert result.exception is worker.error


def test_the_environment_names_the_settings_file(config, worker, monkeypatch):
    monkeypatch.setenv("STALEPROOF_CONFIG", config)
    assert invoke("capture").exit_code == 0


def staleproof(*arguments: str, cwd) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "consumers.cli", *arguments]
    root = str(Path(consumers.__file__).parent.parent)
    return subprocess.run(
        command, cwd=cwd, env={"PYTHONPATH": root}, capture_output=True, text=True, timeout=60, check=False
    )


def test_missing_settings_are_one_line_and_exit_2(tmp_path):
    result = staleproof("check", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == (
        "staleproof: there is no settings file staleproof.yaml: run `staleproof init` to write one, or name yours with --config\n"
    )


def test_init_then_help_and_version_work(tmp_path):
    assert staleproof("init", cwd=tmp_path).returncode == 0
    assert "invalidate" in staleproof("--help", cwd=tmp_path).stdout
    assert staleproof("version", cwd=tmp_path).returncode == 0
    again = staleproof("init", cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1


def test_acl_prints_lines_that_can_be_loaded_and_says_the_rest_elsewhere(config, tmp_path):
    (tmp_path / "pw").write_text("hunter3")
    done = invoke("acl", "--config", config, "--role", "reader", "--password-file", f"reader={tmp_path}/pw")
    assert done.exit_code == 0
    (line,) = done.stdout.splitlines()
    assert line.startswith("user staleproof-reader reset on #")
    assert "hunter" not in done.output
    assert "ACL LOAD" in done.stderr
    assert invoke("acl", "--config", config, "--region", "eus").exit_code == 2
    assert "no views file" in invoke("acl", "--config", config).stderr  # of plain views the workers' line depends
