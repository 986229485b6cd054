"""What a replay of Kafka has done: kept in the state file while it runs, printed at its end. Pure.

In flow counts; out flow lines that can be pasted into a ticket, or the same as JSON.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from cdc.events import Offset
from consumers.stream import Extent, Partition


class Standing(msgspec.Struct, kw_only=True):
    """How far a replay is.

    Partitions are written `topic/number`; `range` holds the offsets that were fixed, `next` those to go on from.
    Of them only the positions from `since` up to, not including, `until` are meant. `seconds` are of all runs.
    """

    range: dict[str, tuple[int, int]]
    since: str
    until: str
    topic_ids: dict[str, str]
    next: dict[str, int]
    counts: dict[str, int] = {}
    regions: dict[str, dict[str, int]] = {}
    causes: dict[str, dict[str, int]] = {}
    alarms: dict[str, list[str]] = {}
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """Offsets in the range."""
        return sum(end - begin for begin, end in self.range.values())

    @property
    def done(self) -> int:
        """Offsets of the range that are behind us."""
        return sum(self.next[name] - begin for name, (begin, _) in self.range.items())

    @property
    def left(self) -> dict[Partition, Extent]:
        """What is still to be read."""
        return {
            partition_of(name): Extent(Offset(self.next[name]), Offset(end)) for name, (_, end) in self.range.items()
        }


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The result. `samples`: a few keys per view, of a dry run only."""

    complete: bool
    dry_run: bool
    range: dict[str, tuple[int, int]]
    records: int
    ignored: int
    undecodable: int
    earlier_epoch: int
    raises_left_to_workers: int
    keys: int
    causes: dict[str, dict[str, int]]
    regions: dict[str, dict[str, int]]
    alarms: dict[str, list[str]]
    seconds: float
    records_per_second: int
    samples: dict[str, list[str]] = {}


def summary(standing: Standing, *, complete: bool, dry_run: bool, samples: dict[str, list[str]]) -> Summary:
    """The result of what was done so far."""
    counts = Counter(standing.counts)
    return Summary(
        complete=complete,
        dry_run=dry_run,
        range=standing.range,
        records=counts["records"],
        ignored=counts["ignored"],
        undecodable=counts["undecodable"],
        earlier_epoch=counts["earlier_epoch"],
        raises_left_to_workers=counts["whole_views"],
        keys=counts["keys"],
        causes=standing.causes,
        regions=standing.regions,
        alarms=standing.alarms,
        seconds=round(standing.seconds, 1),
        records_per_second=round(counts["records"] / standing.seconds) if standing.seconds else 0,
        samples=samples,
    )


def lines_of(result: Summary) -> list[str]:
    """For people."""
    heads = {(True, False): "replayed", (False, False): "stopped; replayed so far", (True, True): "would replay"}
    lines = [f"{heads.get((result.complete, result.dry_run), 'stopped; would replay')}:"]
    lines += [f"  {topic}: {', '.join(parts)}" for topic, parts in _by_topic(result.range).items()]
    lines.append(
        f"records: {result.records:,} read, {result.ignored:,} ignored, {result.undecodable:,} undecodable,"
        f" {result.earlier_epoch:,} of an earlier epoch"
    )
    lines.append(f"keys: {result.keys:,} changes")
    for view, causes in sorted(result.causes.items()):
        told = ", ".join(f"{cause} {count:,}" for cause, count in sorted(causes.items()))
        keys = f"; such as {', '.join(result.samples[view])}" if result.samples.get(view) else ""
        lines.append(f"  view {view}: {told}{keys}")
    if result.raises_left_to_workers:
        lines.append(
            f"raises of views: {result.raises_left_to_workers:,}, left to the workers, who raise each once:"
            " `staleproof fence --view` empties a view"
        )
    for region, counts in sorted(result.regions.items()):
        lines.append(f"region {region}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    alarms = [f"{region} {kind}" for region, kinds in sorted(result.alarms.items()) for kind in kinds]
    lines.append(f"took {result.seconds:,.1f} s, {result.records_per_second:,} records/s")
    lines.append(f"alarms: {', '.join(alarms) or 'none'}")
    return lines


def partition_name(partition: Partition) -> str:
    """`topic/number`."""
    return f"{partition[0]}/{partition[1]}"


def partition_of(name: str) -> Partition:
    """The partition behind `topic/number`."""
    topic, _, number = name.rpartition("/")
    return topic, int(number)


def _by_topic(ranges: dict[str, tuple[int, int]]) -> dict[str, list[str]]:
    by_topic: dict[str, list[str]] = {}
    for name, (begin, end) in sorted(ranges.items(), key=lambda item: partition_of(item[0])):
        topic, number = partition_of(name)
        by_topic.setdefault(topic, []).append(f"partition {number} offsets {begin} to {end}")
    return by_topic
