"""The report of `staleproof selfcheck`: plain lines for programs, a table for people, JSON, and the exit code."""

from __future__ import annotations

import io
import json

import pytest
from typer.testing import CliRunner

from consumers import cli, selfcheck
from consumers.doubts import RegionFacts
from consumers.selfcheck import examine, report
from invalidator.layout import Layout
from tests.unit.consumers.test_doubts import VIEWS, closed, header

VIEWS_TEXT = """\
version: 1
views:
  contact: {key: "contact:{id}", tables: {public.contacts: {}}}
  template: {key: "template:{id}", tables: {public.templates: {}}}
"""
CLOSED = {"s:contact": closed(VIEWS.views["contact"].digest)}


class MemoryRegion:
    """A Region's two questions, answered from headers."""

    def __init__(self, *headers: dict[str, str]) -> None:
        self.name, self.layout = "eu", Layout(shards=len(headers))
        self.headers = headers

    def header(self, shard: int) -> dict[str, str]:
        return self.headers[shard]

    def fence_count(self, shard: int) -> int:
        return 3 + shard


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def facts(*headers: dict[str, str]) -> RegionFacts:
    return examine(MemoryRegion(*headers), VIEWS, max_age_seconds=10**9)


def test_plain_lines_name_every_scope_and_row_and_end_with_the_verdict():
    out = io.StringIO()
    report(facts(header(), {}), out)
    lines = out.getvalue().splitlines()
    assert lines[0] == "shard 0  epoch: 5, method own, history 77:1"
    assert lines[1] == "shard 0  fences: 3 in use"
    assert "shard 0  the region: open, raised at 16/600 of epoch 5" in lines
    assert "shard 0  view contact: open, raised at 16/600 of epoch 5, as in the views file" in lines
    assert (
        "shard 0  row shop.public.contacts/0: next offset 12, sequence 7, at 16/600 of epoch 5, stamp 744,"
        f" leader epoch 3, topic {'ab' * 16}, as in the views file"
    ) in lines
    assert "shard 0  newest heartbeat: at 16/600 of epoch 5, stamp 744" in lines
    assert any(line.startswith("shard 0  watermark: everything up to 16/600 of epoch 5 is applied") for line in lines)
    assert lines[-4:] == [
        "shard 1  header: not there",
        "region eu: 1 of 2 shards, 3 fences in use, 0 of 3 scopes closed, 1 rows",
        "doubt: shard 1: the shard is not there: a running worker makes it, closed until heartbeats prove it",
        "in doubt",
    ]


def test_a_closed_scope_is_shown_with_its_count():
    out = io.StringIO()
    report(facts(header(**CLOSED)), out)
    assert "shard 0  view contact: closed, 1 of 3 heartbeats since control offset 31, raised at" in out.getvalue()


def test_a_terminal_gets_a_table():
    out = Terminal()
    report(facts(header()), out)
    assert "┃" in out.getvalue()
    assert "view contact" in out.getvalue()
    assert out.getvalue().endswith("ok\n")


@pytest.fixture
def config(tmp_path):
    (tmp_path / "views.yaml").write_text(VIEWS_TEXT)
    path = tmp_path / "staleproof.yaml"
    path.write_text(
        'source: {name: shop, dsn: "postgresql://u@h/d"}\nkafka: {bootstrap_servers: "k:9092"}\n'
        'regions: {eu: {url: "redis://e"}}\n'
    )
    return str(path)


@pytest.mark.parametrize(
    ("fields", "limit", "code"), [(header(), "1e9", 0), (header(**CLOSED), "1e9", 1), (header(), "1", 1)]
)
def test_the_exit_code_and_the_json_agree(config, monkeypatch, fields, limit, code):
    monkeypatch.setattr(selfcheck, "open_region", lambda settings, name: MemoryRegion(fields))
    options = ["selfcheck", "--region", "eu", "--max-age-seconds", limit, "--json", "--config", config]
    result = CliRunner().invoke(cli.app, options)
    assert result.exit_code == code
    printed = json.loads(result.stdout)
    assert printed["ok"] == (code == 0) == (printed["doubts"] == [])
    assert printed["region"] == "eu"
    assert printed["sum"]["fences"] == 3


def test_an_unknown_region_is_exit_2(config):
    result = CliRunner().invoke(cli.app, ["selfcheck", "--region", "e", "--config", config])
    assert result.exit_code == 2
    assert result.stderr == "staleproof: there is no region 'e' in the settings; did you mean \"eu\"?\n"
