"""The plugin's options and what it costs those who do not use it; no server is started."""

import re

import pytest

from infra.testing import _VARIABLES
from tests.adopter import ROOT, run_pytest

USES_SERVERS = "def test_it(staleproof): pass\n"

# What a run that asks for nothing must not load: the clients, the settings' machinery, our own modules.
HEAVY = (
    "psycopg",
    "redis",
    "kafka",
    "confluent_kafka",
    "pydantic",
    "yaml",
    "testcontainers",
    "infra.stack",
    "infra.site",
)
USES_NOTHING = f"""
import sys
def test_it():
    assert "infra.testing" in sys.modules
    assert [name for name in {HEAVY} if name in sys.modules] == []
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def test_a_project_that_does_not_use_it_loads_nothing_of_it(project):
    (project / "test_it.py").write_text(USES_NOTHING)
    done = run_pytest(project, "-p", "no:valkey", "-W", "error")
    assert done.returncode == 0, done.stdout
    assert "staleproof:" not in done.stdout  # pytest's own header may name it among the plugins
    assert sorted(path.name for path in project.iterdir() if path.name != "__pycache__") == ["pytest.ini", "test_it.py"]


def test_an_unknown_backend_is_refused_before_anything_runs(project):
    done = run_pytest(project, "--staleproof-backend=podman")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "there is no backend 'podman'; known are auto, containers, processes" in done.stderr


def test_the_option_overrules_the_environment_and_that_the_ini_file(project):
    (project / "pytest.ini").write_text("[pytest]\nstaleproof_backend = from_ini\n")
    assert "'from_ini'" in run_pytest(project).stderr
    assert "'from_environment'" in run_pytest(project, STALEPROOF_BACKEND="from_environment").stderr
    done = run_pytest(project, "--staleproof-backend=processes", STALEPROOF_BACKEND="from_environment")
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED


def test_the_variables_that_the_makefile_sets_are_those_that_are_looked_at():
    """One that nobody looks at would run the tests on the other backend, and pass."""
    assert set(re.findall(r"(STALEPROOF_\w+)=", (ROOT / "Makefile").read_text())) <= set(_VARIABLES.values())


@pytest.mark.parametrize(
    ("variables", "outcome"),
    [
        ({}, "1 skipped"),
        ({"CI": "true", "ALLOW_SKIP": "containers"}, "1 error"),
    ],
)
def test_an_absent_backend_skips_and_in_ci_fails_unless_it_is_named(project, variables, outcome):
    (project / "test_it.py").write_text(USES_SERVERS)
    done = run_pytest(project, "-rs", "--staleproof-backend=processes", KAFKA_HOME=str(project), **variables)
    assert outcome in done.stdout
    assert f"backend processes is not available: KAFKA_HOME is {project}" in done.stdout.replace("\n", " ")
    assert ("name it in ALLOW_SKIP" in done.stdout) == ("error" in outcome)


def test_servers_that_do_not_run_are_named_with_the_way_to_start_them(project):
    (project / "test_it.py").write_text(USES_SERVERS)
    done = run_pytest(project, "--staleproof-servers=nowhere")
    assert f"no servers run in {project / 'nowhere'}: start them with `python -m infra.stack up`" in done.stdout
