"""docs/reliability.md shows the mutants and the tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

from tests.mutants.table import EQUIVALENT, MUTANTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_the_page_shows_every_mutant_and_no_other() -> None:
    rows = [f"| {m.name} | {m.clause} | `{m.path}` | `{m.killer}` |" for m in MUTANTS]
    table = PAGE.split("## Mutants")[1]
    assert [line for line in table.splitlines() if line.startswith("| ") and "`" in line] == rows
    for name, why in EQUIVALENT.items():
        assert f"- *{name}*: {why}." in table


def test_every_clause_has_a_mutant_and_every_mutant_a_name_of_its_own() -> None:
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) >= 40
    clauses = " ".join(m.clause for m in MUTANTS)
    assert all(clause in clauses for clause in ("P1", "P2", "P4", "P5", *(f"§4.{n}" for n in range(9))))


def test_every_fault_that_the_page_names_has_its_test() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*/**/*.py"))
    named = set(re.findall(r"`(test_[a-z_0-9]+)`", PAGE.split("## Mutants")[0]))
    missing = {name for name in named if f"def {name}(" not in tests}
    assert not missing - {"test_review"}
