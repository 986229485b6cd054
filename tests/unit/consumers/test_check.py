"""The report of `staleproof check`: plain lines for programs, a table for people, JSON."""

from __future__ import annotations

import io
import json

import pytest

from cdc.errors import ConfigError
from consumers.check import as_json_text, report
from consumers.findings import Finding, Level
from consumers.regions import read_views

FINDINGS = [
    Finding(level=Level.OK, subject="kafka", text="version 4.3"),
    Finding(level=Level.FAIL, subject="source", text="[bold]bad[/bold]", fix="ALTER SYSTEM SET wal_level = 'logical';"),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_keep_each_statement_whole():
    out = io.StringIO()
    report(FINDINGS, out)
    assert out.getvalue() == (
        "OK    kafka: version 4.3\n"
        "FAIL  source: [bold]bad[/bold]\n"
        "      fix: ALTER SYSTEM SET wal_level = 'logical';\n"
        "1 OK, 0 WARN, 1 FAIL\n"
    )


def test_a_terminal_gets_a_table_without_interpreting_markup():
    out = Terminal()
    report(FINDINGS, out)
    assert "[bold]bad[/bold]" in out.getvalue()
    assert "→ ALTER SYSTEM" in out.getvalue()


def test_json_says_whether_all_is_well():
    decoded = json.loads(as_json_text(FINDINGS))
    assert decoded["ok"] is False
    assert decoded["findings"][0] == {"level": "OK", "subject": "kafka", "text": "version 4.3", "fix": None}
    assert json.loads(as_json_text(FINDINGS[:1]))["ok"] is True


def test_a_missing_views_file_points_to_init(tmp_path):
    with pytest.raises(ConfigError, match="staleproof init"):
        read_views(tmp_path / "views.yaml")
