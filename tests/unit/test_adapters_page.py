"""docs/adapters.md shows the examples that the tests run, word for word."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")


def test_every_block_of_code_stands_in_the_example_that_its_section_names():
    sections = PAGE.split("\n## ")[1:]
    blocks = 0
    for section in sections:
        (example,) = set(re.findall(r"\]\(\.\./(tests/examples/\w+\.py)\)", section))
        source = (ROOT / example).read_text(encoding="utf-8")
        for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
            assert _lines(block) in _lines(source), f"{example} does not have:\n{block}"
            blocks += 1
    assert blocks >= len(sections)


def _lines(code: str) -> str:
    """Without what the formatter of the page changes: indentation and empty lines."""
    return "\n".join(line.strip() for line in code.splitlines() if line.strip())


def test_every_example_has_a_section():
    named = set(re.findall(r"\]\(\.\./tests/examples/(\w+\.py)\)", PAGE))
    there = {path.name for path in (ROOT / "tests" / "examples").glob("*.py")}
    assert named == there - {"__init__.py", "contact.py"}
