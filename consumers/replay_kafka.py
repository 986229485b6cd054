"""`staleproof replay kafka`: apply a range of the captured topics once more, beside workers and readers.

In flow the records of a range that is fixed at the start; out flow batches without rows: entries that their changes
outdate are removed, what the region knows as newest may be written, and no fence, generation or row moves
(docs/protocol.md, rule 12). So it may be repeated, and killed, at any point.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from cdc.errors import ConfigError, GapError, TransientError
from consumers.failpoints import failpoint
from consumers.kafka_log import KafkaLog
from consumers.kafka_range import Asked, check_held, fix_range, parse_edge
from consumers.progress import Every, Progress, RateLimit
from consumers.range_reader import RangeReader
from consumers.regions import open_region, read_views
from consumers.replay_planning import RangePlanner, Wave, check_keys, chosen_views
from consumers.replay_regions import Begun, Target, begin, finish
from consumers.replay_summary import Standing, Summary, lines_of, partition_name, summary
from consumers.resume import Resume
from consumers.settings import Settings
from consumers.stream import Partition
from invalidator.views import Views

DEFAULT_STATE = Path("staleproof-replay-kafka.json")
SAVE_SECONDS = 1.0

_FETCH_SECONDS = 0.2
_NO_EPOCH = "00000000"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line asks for. Empty filters mean everything; `topic_prefix` None: the source's own topics."""

    start: str
    end: str = "end"
    tables: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    topic: str | None = None
    partition: int | None = None
    topic_prefix: str | None = None
    allow_holes: bool = False
    records_per_second: float | None = None
    state: Path = DEFAULT_STATE
    dry_run: bool = False
    as_json: bool = False


def run(settings: Settings, request: Request, stop: threading.Event) -> bool:
    """Replay, print the summary; False where `stop` ended it before its end.

    Raises ConfigError, GapError where records of the range are gone, TransientError where a server is away; what was
    done until then is kept in the state file.
    """
    views = chosen_views(read_views(settings.views), request.views, request.tables)
    check_keys(views, request.keys)
    tables = _tables(settings, request, views)
    regions = request.regions or tuple(sorted(settings.regions))
    resume = Resume(request.state, _plan(settings, request, views, tables, regions))
    group = f"staleproof-replay-{settings.source.name}"
    with KafkaLog(settings.kafka, group=group) as log:
        saved = None if request.dry_run else resume.load()
        standing = _standing(log, request, tables, saved, settings.capture.inflight_records)
    targets = (
        [] if request.dry_run else [Target(open_region(settings, name), views, wait=stop.wait) for name in regions]
    )
    since_epoch = min((target.prepare() for target in targets), default=_NO_EPOCH)
    planner = RangePlanner(
        views, tables, keys=frozenset(request.keys), since=standing.since, until=standing.until,
        since_epoch=since_epoch, wave_keys=settings.worker.script_keys,
    )  # fmt: skip
    replay = _Replay(standing, planner, targets, None if request.dry_run else resume, stop)
    with ExitStack() as resources:
        reader = resources.enter_context(
            RangeReader(
                settings.kafka, group=group, queued_kilobytes=settings.worker.queued_kilobytes, extents=standing.left
            )
        )
        shown = resources.enter_context(Progress(standing.total, "records", request.as_json))
        limit = RateLimit(request.records_per_second, wait=stop.wait)
        complete = replay.run(reader, shown, limit, settings, records_max=_records_at_once(settings, request))
    _print(replay.result(complete=complete), as_json=request.as_json)
    return complete


def _records_at_once(settings: Settings, request: Request) -> int:
    """So many that a slow replay still moves several times a second."""
    wanted, rate = settings.worker.batch_records, request.records_per_second
    return wanted if rate is None else max(1, min(wanted, round(rate / 4)))


def _tables(settings: Settings, request: Request, views: Views) -> dict[str, str]:
    """Topic to table, of what is read. Raises ConfigError."""
    prefix = settings.source.name if request.topic_prefix is None else request.topic_prefix
    tables = {f"{prefix}.{table}": table for table in views.by_table if not request.tables or table in request.tables}
    if request.partition is not None and request.topic is None:
        raise ConfigError("--partition is of one topic: name it with --topic")
    if request.topic is None:
        return tables
    if request.topic not in tables:
        raise ConfigError(f"--topic {request.topic!r} is none of those that are replayed: {', '.join(tables)}")
    return {request.topic: tables[request.topic]}


def _plan(
    settings: Settings, request: Request, views: Views, tables: dict[str, str], regions: Sequence[str]
) -> dict[str, Any]:
    """What a state file has to agree on: what is read, what it means, and where it goes."""
    return {
        "command": "replay kafka",
        "source": settings.source.name,
        "from": request.start,
        "to": request.end,
        "topics": sorted(tables),
        "partition": request.partition,
        "views": {view.name: view.digest for view in views.views.values()},
        "keys": sorted(request.keys),
        "regions": list(regions),
    }


def _standing(
    log: KafkaLog, request: Request, tables: dict[str, str], saved: dict[str, Any] | None, repeated_max: int
) -> Standing:
    """Where to begin: at the range as it is now, or where an earlier run stood in the one that it fixed."""
    ids = {} if log.missing(list(tables)) else log.topic_ids(list(tables))
    if saved is None:
        only: Partition | None = None
        if request.topic is not None and request.partition is not None:
            only = (request.topic, request.partition)
        asked = Asked(
            start=parse_edge(request.start, "--from"),
            end=parse_edge(request.end, "--to"),
            topics=tuple(tables),
            only=only,
            allow_holes=request.allow_holes,
            repeated_max=repeated_max,
            in_order=request.topic_prefix is None,
        )
        fixed = fix_range(log, asked)
        extents = {partition_name(p): (int(e.begin), int(e.end)) for p, e in fixed.extents.items()}
        begins = {name: begin for name, (begin, _) in extents.items()}
        return Standing(range=extents, since=fixed.since, until=fixed.until, topic_ids=ids, next=begins)
    try:
        standing = msgspec.convert(saved, Standing)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the state file {request.state} is damaged: {error}: remove it to start anew") from None
    if ids != standing.topic_ids:
        raise GapError(
            f"a topic of the range was made again since the state file {request.state} was written: remove the file and"
            " ask for another range"
        )
    held = log.extents(list(tables))
    for (topic, number), extent in standing.left.items():
        there = held[topic][number]
        if extent.begin < extent.end and not request.allow_holes:
            check_held((topic, number), extent.begin, there, "where this replay goes on")
        name = partition_name((topic, number))
        standing.next[name] = min(max(standing.next[name], int(there.begin)), int(extent.end))
    return standing


class _Replay:
    """One run: reads, plans, applies and keeps the standing; `resume` None: nothing is kept."""

    def __init__(
        self, standing: Standing, planner: RangePlanner, targets: Sequence[Target], resume: Resume | None,
        stop: threading.Event,
    ) -> None:  # fmt: skip
        self._standing = standing
        self._planner = planner
        self._targets = targets
        self._resume = resume
        self._stop = stop
        self._save_due = Every(SAVE_SECONDS)
        self._counts = Counter(standing.counts)
        self._seconds_before = standing.seconds
        self._began = time.monotonic()
        self._causes = Counter({(v, cause): n for v, causes in standing.causes.items() for cause, n in causes.items()})
        for target in targets:
            target.counts.update(standing.regions.get(target.name, {}))
            target.alarms.update(dict.fromkeys(standing.alarms.get(target.name, [])))

    def run(
        self, reader: RangeReader, shown: Progress, limit: RateLimit, settings: Settings, *, records_max: int
    ) -> bool:
        """To the end of the range, or until stopped; whether it came to the end."""
        self._save()
        shown.begin_at(self._standing.done, self._totals())
        begun: Begun | None = None
        silent_since = time.monotonic()
        try:
            while reader.left and not self._stop.is_set():
                records = reader.fetch(records_max, _FETCH_SECONDS)
                now = time.monotonic()
                if records:
                    silent_since = now
                elif reader.left and now - silent_since > settings.kafka.request_timeout_seconds:
                    raise TransientError(f"kafka sends nothing of {min(reader.left)[0]} within the request timeout")
                limit.spend(len(records))
                for wave in self._planner.waves(records):
                    if begun is not None:
                        self._finish(begun, shown)
                        begun = None
                    if self._stop.is_set():
                        break
                    begun = begin(wave, self._targets)
                    failpoint("replay.after_send")
            if begun is not None:
                self._finish(begun, shown)
        except TransientError:
            self._save()
            if not self._stop.is_set():  # else it was not given the time to come back
                raise
            return False
        except BaseException:
            self._save()
            raise
        if reader.left or self._stop.is_set():
            self._save()
            return False
        self._note()
        if self._resume is not None:
            self._resume.done()
        return True

    def result(self, *, complete: bool) -> Summary:
        """What was done so far."""
        samples = {view: list(keys) for view, keys in self._planner.samples.items()} if not self._targets else {}
        return summary(self._standing, complete=complete, dry_run=self._resume is None, samples=samples)

    def _finish(self, begun: Begun, shown: Progress) -> None:
        before = self._totals()
        finish(begun, self._targets, self._stop.is_set)
        wave: Wave = begun.wave
        self._counts.update(wave.counts)
        self._counts["keys"] += len(wave.changes)
        self._causes.update(wave.causes)
        self._standing.next.update({partition_name(p): offset for p, offset in wave.reached.items()})
        after = self._totals()
        shown.advance(wave.counts["records"], **{name: after[name] - before.get(name, 0) for name in after})
        if self._save_due.due():
            self._save()
            failpoint("replay.after_save")

    def _totals(self) -> Counter[str]:
        return sum((target.counts for target in self._targets), Counter())

    def _note(self) -> None:
        standing = self._standing
        standing.counts = dict(self._counts)
        standing.causes = {}
        for (view, cause), count in self._causes.items():
            standing.causes.setdefault(view, {})[cause] = count
        standing.regions = {target.name: dict(target.counts) for target in self._targets}
        standing.alarms = {target.name: list(target.alarms) for target in self._targets if target.alarms}
        standing.seconds = self._seconds_before + time.monotonic() - self._began

    def _save(self) -> None:
        self._note()
        if self._resume is not None:
            self._resume.save(msgspec.to_builtins(self._standing))


def _print(result: Summary, *, as_json: bool) -> None:
    text = msgspec.json.encode(result).decode() if as_json else "\n".join(lines_of(result))
    sys.stdout.write(text + "\n")
