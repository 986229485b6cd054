"""What is shipped: the wheel, installed in a fresh environment, runs and holds its data files."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

from infra.stack import Stack
from tests.adopter import EXAMPLE, ROOT, environment


def run(*command: object, cwd: Path) -> str:
    alone = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=alone, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


def test_the_wheel_runs_in_a_fresh_environment(tmp_path: Path, stack: Stack) -> None:
    tree = tmp_path / "tree"  # a copy: building leaves files behind, and would pack those of an earlier build
    for part in ("cdc", "invalidator", "consumers", "infra"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, tree)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, tree, cwd=tmp_path)
    (wheel,) = tmp_path.glob("staleproof-*.whl")
    venv.create(tmp_path / "fresh", with_pip=True)
    fresh = tmp_path / "fresh" / "bin"
    locked = (line.split(" ")[0] for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line)
    (tmp_path / "constraints.txt").write_text("\n".join(line for line in locked if not line.startswith("#")))
    run(fresh / "python", "-m", "pip", "install", "-q", "-c", tmp_path / "constraints.txt", wheel, cwd=tmp_path)
    assert "invalidate" in run(fresh / "staleproof", "--help", cwd=tmp_path)
    where = "import invalidator, invalidator.node as r; print(invalidator.__file__); assert 'sp1_fill' in r.library()"
    assert str(tmp_path) in run(fresh / "python", "-c", where, cwd=tmp_path)
    for module in (
        "consumers.capture",
        "consumers.invalidate",
        "consumers.check",
        "consumers.starter",
        "consumers.replay_kafka",
    ):
        run(fresh / "python", "-c", f"import {module}", cwd=tmp_path)  # every dependency is declared
    shutil.copytree(EXAMPLE, tmp_path / "shop", ignore=shutil.ignore_patterns("__pycache__"))
    run(fresh / "python", "-m", "pip", "install", "-q", "-c", tmp_path / "constraints.txt", "pytest", cwd=tmp_path)
    options = ("-W", "error", f"--staleproof-servers={stack.directory}", "--staleproof-regions=eu us")
    said = run(fresh / "pytest", *options, cwd=tmp_path / "shop")
    assert "4 passed" in said  # the plugin is found, and runs the processes of this environment


def test_the_extra_for_testing_holds_the_servers_of_the_extra_for_the_stack() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras["stack"]) < set(extras["testing"])
