"""Running pytest as another project does: in a directory of its own, which knows nothing of this one."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "tests" / "example_project"
RUN_LIMIT_SECONDS = 120

_OURS = ("CI", "ALLOW_SKIP", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER")
_INSTALLED = any(point.value == "infra.testing" for point in entry_points(group="pytest11"))


def pytest_command(*arguments: str | Path) -> list[str]:
    """The plugin is found by its entry point, which an editable install knows once it was installed again."""
    plugin = () if _INSTALLED else ("-p", "infra.testing")
    return [sys.executable, "-m", "pytest", *plugin, "-p", "no:cacheprovider", *map(str, arguments)]


def environment(**extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in _OURS and not k.startswith("STALEPROOF_")}
    return kept | {"PYTHONPATH": str(ROOT)} | extra


def run_pytest(directory: Path, *arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        pytest_command(*arguments), cwd=directory, env=environment(**extra), capture_output=True, text=True,
        timeout=RUN_LIMIT_SECONDS, check=False,
    )  # fmt: skip
