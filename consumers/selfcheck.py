"""`staleproof selfcheck`: what a region's Redis says about its own guard, and whether it can be relied on.

Asking and printing are here, reading in `shard_facts.py`, judging in `doubts.py`. Nothing is changed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TextIO

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consumers.doubts import HEARTBEATS_NEEDED, RegionFacts, judge
from consumers.regions import open_region, read_views
from consumers.settings import Settings
from consumers.shard_facts import RowFacts, ScopeFacts, ShardFacts, place_text, read_shard, scope_text
from invalidator.region import Region
from invalidator.views import Views


def run(settings: Settings, region: str, *, max_age_seconds: float, as_json: bool) -> bool:
    """Print what the region says; True when nothing of it is a reason for doubt. Raises RegionFault, FatalError."""
    facts = examine(open_region(settings, region), read_views(settings.views), max_age_seconds=max_age_seconds)
    if as_json:
        sys.stdout.write(msgspec.json.encode(facts).decode() + "\n")
    else:
        report(facts, sys.stdout)
    return facts.ok


def examine(region: Region, views: Views, *, max_age_seconds: float) -> RegionFacts:
    """Ask every shard. Raises RegionFault, FatalError."""
    shards = []
    for shard in range(region.layout.shards):
        header = region.header(shard)
        fences = region.fence_count(shard)
        shards.append(read_shard(shard, header, fences, views, now_ms=int(time.time() * 1000)))
    return judge(region.name, shards, views, max_age_seconds=max_age_seconds)


def report(facts: RegionFacts, out: TextIO) -> None:
    """A table for people; plain lines where nobody looks at a terminal. The verdict comes last."""
    lines = [line for shard in facts.shards for line in _lines(shard)]
    if out.isatty():
        Console(file=out).print(_table(lines))
    else:
        out.writelines(f"shard {shard}  {subject}: {text}\n" for shard, subject, text in lines)
    total = facts.sum
    out.write(
        f"region {facts.region}: {total.there} of {total.shards} shards, {total.fences} fences in use,"
        f" {total.closed_scopes} of {total.scopes} scopes closed, {total.rows} rows\n"
    )
    out.writelines(f"doubt: shard {doubt.shard}: {doubt.text}\n" for doubt in facts.doubts)
    out.write("ok\n" if facts.ok else "in doubt\n")


def _table(lines: list[tuple[int, str, str]]) -> Table:
    table = Table(show_lines=False, expand=False)
    for heading in ("shard", "what", "state"):
        table.add_column(heading, overflow="fold")
    for shard, subject, text in lines:
        table.add_row(str(shard), Text(subject), Text(text))
    return table


def _lines(facts: ShardFacts) -> Iterator[tuple[int, str, str]]:
    shard = facts.shard
    if not facts.there:
        yield shard, "header", "not there"
        return
    yield shard, "epoch", f"{facts.epoch or 'unknown'}, method {facts.method}, history {facts.history or 'unknown'}"
    yield shard, "fences", f"{facts.fences} in use"
    for scope in facts.scopes:
        yield shard, scope_text(scope), _state(scope)
    yield from ((shard, f"row {row.topic}/{row.partition}", _row_text(row)) for row in facts.rows)
    if facts.heartbeat is not None:
        beat = facts.heartbeat
        yield shard, "newest heartbeat", f"at {place_text(beat.position)}, stamp {int(beat.stamp, 16)}"
    if facts.watermark is not None:
        mark = facts.watermark
        age = f"{mark.age_seconds_by_this_clock:.1f} s ago by this machine's clock"
        yield shard, "watermark", f"everything up to {place_text(mark.position)} is applied, as of {age}"


def _row_text(row: RowFacts) -> str:
    return (
        f"next offset {row.next_offset}, sequence {row.sequence}, at {place_text(row.position)},"
        f" stamp {int(row.stamp, 16)}, leader epoch {_known(row.leader_epoch)}, topic {_known(row.topic_id)},"
        f" {_views_text(row.digest_matches)}"
    )


def _state(scope: ScopeFacts) -> str:
    views = "" if scope.view is None else f", {_views_text(scope.digest_matches)}"
    since = f"raised at {place_text(scope.generation)}{views}"
    if scope.open:
        return f"open, {since}"
    counted = f"{scope.heartbeats} of {HEARTBEATS_NEEDED} heartbeats since control offset {scope.closed_at}"
    return f"closed, {counted}, {since}"


def _views_text(matches: bool | None) -> str:
    return {True: "as in the views file", False: "other views", None: "not in the views file"}[matches]


def _known(value: object) -> str:
    return "unknown" if value is None else str(value)
