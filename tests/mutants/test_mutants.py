"""Break the code on purpose and see the named test fail, in a copy of the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.mutant import Mutant
from tests.mutants.table import MUTANTS

ROOT = Path(__file__).parents[2]
PARTS = ["cdc", "invalidator", "consumers", "infra", "tests", "pyproject.toml"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The tree, to break; what the stack fetched is shared."""
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / part)
    (tmp_path / ".staleproof").mkdir()
    (tmp_path / ".staleproof" / "kafka").symlink_to(ROOT / ".staleproof" / "kafka")
    return tmp_path


@pytest.mark.parametrize(
    "mutant", [pytest.param(m, id=m.name, marks=() if m.quick else pytest.mark.slow) for m in MUTANTS]
)
def test_the_mutant_is_killed(copy: Path, mutant: Mutant) -> None:
    path = copy / mutant.path
    text = path.read_text()
    assert text.count(mutant.old) == 1, "the mutant does not fit the code any more"
    path.write_text(text.replace(mutant.old, mutant.new))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutant.killer],
        cwd=copy, capture_output=True, text=True, timeout=240, check=False, env=os.environ | {"PYTHONPATH": str(copy)},
    )  # fmt: skip
    assert run.returncode == 1, (
        f"exit {run.returncode}: a failed test was expected\n{run.stdout[-3000:]}{run.stderr[-2000:]}"
    )
    assert f"FAILED {mutant.killer}" in run.stdout
    assert "error" not in run.stdout.splitlines()[-1], "the test must fail, not its set-up"
