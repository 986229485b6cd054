"""Where a worker's time goes: its loop in this process, once with a stopwatch at the doors and once under cProfile."""

from __future__ import annotations

import cProfile
import pstats
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from prometheus_client import CollectorRegistry

from consumers.invalidate import Limits, Worker
from consumers.kafka import RecordStream
from consumers.regions import open_region, read_views
from consumers.service import configure_logging
from consumers.settings import Settings as Staleproof
from consumers.telemetry import WorkerMetrics
from invalidator.plan import Planner
from invalidator.region import Region
from tests.benchmarks.harness import Bench, Results
from tests.fix_redis import redis_of

IDLE_TURNS = 100  # joining the group takes some
LINES = 45


class Stopwatch:
    """Seconds spent inside functions, by name. `resources` take it off again."""

    def __init__(self, resources: ExitStack) -> None:
        self.seconds: Counter[str] = Counter()
        self._resources = resources

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Count the time of `owner.method` under `name`."""
        function: Callable[..., Any] = getattr(owner, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[name] += time.perf_counter() - began

        self._resources.enter_context(patch.object(owner, method, timed))


def profile(settings: Staleproof, region: str, records: int, bench: Bench) -> Results:
    """Microseconds per record by door over the first half of the records; the second half goes under cProfile.

    `redis` is what the other doors waited for: the time inside redis-py, the server's own included.
    """
    configure_logging(as_json=True)
    views = read_views(settings.views)
    topics = [settings.source.topic(table) for table in views.by_table]
    streams = [
        RecordStream(settings.kafka, group="bench", queued_kilobytes=settings.worker.queued_kilobytes, shared=shared)
        for shared in (topics, ())
    ]
    known = open_region(settings, region)
    worker = Worker(
        source=settings.source.name,
        region=known,
        views=views,
        data=streams[0],
        control=streams[1],
        metrics=WorkerMetrics(CollectorRegistry()),
        limits=Limits(batch_records=settings.worker.batch_records, script_keys=settings.worker.script_keys),
    )
    with ExitStack() as resources:
        for stream in streams:
            resources.callback(stream.close)
        bench.say("with a stopwatch")
        us, watched = _watch(worker, streams[0], known, records // 2)
        bench.say("under cProfile")
        profiler = cProfile.Profile()
        profiler.enable()
        profiled = _turn_until(worker, records - watched)
        profiler.disable()
    for order in ("tottime", "cumulative"):
        pstats.Stats(profiler, stream=sys.stderr).sort_stats(order).print_stats(LINES)
    for name, value in us.items():
        print(f"{value:8.2f} us per record: {name}", file=sys.stderr)
    return {"watched_records": watched, "profiled_records": profiled, "us_per_record": us}


def _watch(worker: Worker, stream: RecordStream, region: Region, records: int) -> tuple[Results, int]:
    """Microseconds per record by door, and over how many records."""
    with ExitStack() as resources:
        watch = Stopwatch(resources)
        watch.wrap(stream, "fetch", "fetch")
        watch.wrap(Planner, "plan", "plan")
        watch.wrap(region, "submit", "send")
        watch.wrap(region, "_answer", "answers")
        watch.wrap(region, "hear", "control")
        watch.wrap(region, "pass_heartbeat", "control")
        watch.wrap(redis_of(region), "execute_command", "redis")
        began = time.perf_counter()
        watched = _turn_until(worker, records)
        watch.seconds["whole"] = time.perf_counter() - began
    seconds = watch.seconds
    seconds["decode, coalesce and the rest"] = seconds["whole"] - sum(
        seconds[name] for name in ("fetch", "plan", "send", "answers", "control")
    )
    return {name: round(spent * 1e6 / watched, 2) for name, spent in seconds.items()}, watched


def _turn_until(worker: Worker, records: int) -> int:
    """Turn until so many records are applied, or nothing more comes; how many were."""
    done = idle = 0
    while done < records and idle < IDLE_TURNS:
        applied = worker.turn()
        done, idle = done + applied, 0 if applied else idle + 1
    return done
