"""`staleproof check`: ask everything, say what is wrong, and the statement that mends it.

Asking is here, judging in `findings.py`. Servers are asked side by side, so one that is away costs its own deadline.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import TextIO

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cdc.errors import ConfigError, StaleproofError
from consumers.database import open_database, publication_facts, server_facts, slot_facts, table_facts
from consumers.findings import (
    Finding,
    Level,
    failed,
    judge_kafka,
    judge_publication,
    judge_redis,
    judge_server,
    judge_views,
    topics_of,
)
from consumers.kafka_facts import describe_cluster
from consumers.redis_users import plain_patterns
from consumers.regions import read_views, redis_connection
from consumers.rights import judge_rights, trials
from consumers.settings import RegionSettings, Settings
from invalidator.redis_facts import describe
from invalidator.views import Views, index_views

_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


def run(settings: Settings, *, as_json: bool) -> bool:
    """Print all findings; True when nothing failed."""
    findings = examine(settings)
    if as_json:
        sys.stdout.write(as_json_text(findings) + "\n")
    else:
        report(findings, sys.stdout)
    return not failed(findings)


def examine(settings: Settings) -> list[Finding]:
    """Ask the views' file, the database, Kafka and every region; what cannot be asked is a finding too."""
    findings, views = _views(settings)
    questions: list[tuple[str, Callable[[], list[Finding]]]] = [
        ("source", partial(_source, settings, views)),
        ("kafka", partial(_kafka, settings, views)),
        *((f"region {name}", partial(_region, name, region, views)) for name, region in settings.regions.items()),
    ]
    with ThreadPoolExecutor(max_workers=min(len(questions), 8)) as pool:
        for answers in pool.map(lambda question: _answered(*question), questions):
            findings += answers
    return findings


def as_json_text(findings: list[Finding]) -> str:
    """`{"ok": …, "findings": [{"level", "subject", "text", "fix"}, …]}`."""
    return msgspec.json.encode({"ok": not failed(findings), "findings": [asdict(f) for f in findings]}).decode()


def report(findings: list[Finding], out: TextIO) -> None:
    """A table for people; plain lines, which can be searched and copied, where nobody looks at a terminal."""
    if out.isatty():
        Console(file=out).print(_table(findings))
    else:
        out.writelines(f"{line}\n" for finding in findings for line in _lines(finding))
    counts = [f"{sum(f.level is level for f in findings)} {level.value}" for level in Level]
    out.write(", ".join(counts) + "\n")


def _table(findings: list[Finding]) -> Table:
    table = Table(show_lines=False, expand=False)
    for heading in ("", "subject", "finding"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        text = Text(finding.text)
        if finding.fix:
            text.append(f"\n→ {finding.fix}", style="bold")
        table.add_row(Text(finding.level.value, style=_COLOURS[finding.level]), Text(finding.subject), text)
    return table


def _lines(finding: Finding) -> Iterator[str]:
    yield f"{finding.level.value:<4}  {finding.subject}: {finding.text}"
    if finding.fix:
        yield f"      fix: {finding.fix}"


def _views(settings: Settings) -> tuple[list[Finding], Views]:
    """The views; none of them when their file is wrong, so that everything else is still judged."""
    try:
        return [], read_views(settings.views)
    except ConfigError as error:
        return [Finding(level=Level.FAIL, subject="views", text=str(error))], index_views(())


def _answered(subject: str, question: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return question()
    except StaleproofError as error:
        return [Finding(level=Level.FAIL, subject=subject, text=str(error))]


def _source(settings: Settings, views: Views) -> list[Finding]:
    source = settings.source
    with open_database(source.dsn.get_secret_value(), timeout_seconds=source.connect_timeout_seconds) as database:
        server = server_facts(database)
        slot = slot_facts(database, source.slot)
        publication = publication_facts(database, source.publication)
        tables = table_facts(database, {*views.by_table, *(publication.tables if publication else ())})
    findings = list(judge_server(server, slot, source))
    findings += judge_publication(publication, source, views, tables)
    return [*findings, *judge_views(views, tables)]


def _kafka(settings: Settings, views: Views) -> list[Finding]:
    return list(judge_kafka(describe_cluster(settings.kafka, topics_of(settings, views)), settings, views))


def _region(name: str, region: RegionSettings, views: Views) -> list[Finding]:
    plain = plain_patterns(views)
    servers = describe(redis_connection(region), trials(region, plain))
    return [*judge_redis(name, servers, region), *judge_rights(name, servers, region, plain)]
