"""The plugin in pytest runs of another project: with a wrong view it fails helpfully, and a killed run leaves nothing."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from infra import warden
from infra.stack import Stack
from infra.waiting import wait_until
from infra.warden import Identity
from tests.adopter import EXAMPLE, ROOT, environment, pytest_command, run_pytest


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The example project as an adopter has it: far from this repository."""
    copy = tmp_path / "shop"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def test_the_example_fails_with_a_view_that_forgets_a_table_and_says_what_is_forgotten(
    project: Path, stack: Stack
) -> None:
    views = project / "views.yaml"
    right = views.read_text()
    wrong = right.replace("      public.prices: {parts: {id: product_id}}\n", "")
    assert wrong != right
    views.write_text(wrong)
    done = run_pytest(
        project, f"--staleproof-servers={stack.directory}", "--staleproof-regions=eu us", "-W", "error", "test_views.py"
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stderr
    for line in (
        "E       AssertionError: product 7 is stale in region eu:",
        "E         prices.EUR: not served, the database says 1900",
        "E       product 7 is stale in region us:",
        "E         its loader also reads public.prices, which the view does not name",
        "E         the last change_and_wait changed public.prices: INSERT INTO prices VALUES (7, 'EUR', 1900)",
        "- staleproof invalidate-1.log -",  # and what the processes logged
        '"event": "worker_started"',
        "staleproof: PostgreSQL, Kafka and 2 Redis (eu, us) attached in",
    ):
        assert line in done.stdout
    assert done.stdout.count(".py:") < 6  # the assertion is shown where it stands in the test, not what is inside of it
    assert "infra/freshness.py" not in done.stdout


# Its test kills the run that it is part of, in the middle of everything.
SUICIDE = """
import json, os, signal
from pathlib import Path
from infra import warden
from infra.stack import Stack
from shop import load_product

HERE = Path(__file__).parent

def test_it(staleproof, staleproof_servers):
    site = staleproof(schema=HERE / "schema.sql", views=HERE / "views.yaml", loaders={"product": load_product})
    site.processes[1].send_signal(signal.SIGSTOP)
    ours = [warden.identify(process.pid) for process in site.processes]
    servers = [process.identity for process in staleproof_servers.processes.values()]
    (HERE / "told.json").write_text(json.dumps({"ours": ours, "servers": servers}))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_of_the_run_leaves_neither_processes_of_its_sites_nor_servers(project: Path) -> None:
    (project / "test_suicide.py").write_text(SUICIDE)
    (project / ".staleproof").symlink_to(ROOT / ".staleproof")
    options = ("--staleproof-backend=processes", "--staleproof-regions=eu", f"--basetemp={project.parent / 'base'}")
    done = subprocess.run(
        pytest_command(*options, "test_suicide.py"), cwd=project, env=environment(), timeout=120, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stdout
    told = json.loads((project / "told.json").read_text())
    everyone = [Identity(*one) for one in (*told["ours"], *told["servers"])]
    assert len(everyone) == 2 + 3
    wait_until(lambda: not any(map(warden.is_alive, everyone)), "nothing of the run is left", seconds=20)
