"""Where a worker's time goes: its loop in this process, once with a stopwatch at the doors and once under cProfile."""

from __future__ import annotations

import cProfile
import pstats
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from consumers.invalidate import Limits, Worker
from consumers.kafka import RecordStream
from consumers.regions import open_region, read_views
from consumers.service import configure_logging
from consumers.settings import Settings as Staleproof
from consumers.telemetry import WorkerMetrics
from tests.benchmarks.harness import Bench, Results

IDLE_TURNS = 5
LINES = 45


class Stopwatch:
    """Seconds spent inside functions, by name."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Count the time of `owner.method` under `name`."""
        function: Callable[..., Any] = getattr(owner, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[name] += time.perf_counter() - began

        setattr(owner, method, timed)


def profile(settings: Staleproof, region: str, records: int, bench: Bench) -> Results:
    """Microseconds per record by door over the first half of the records; the second half goes under cProfile."""
    configure_logging(as_json=True)
    watch = Stopwatch()
    with _open_worker(settings, region, watch) as worker:
        bench.say("with a stopwatch")
        began = time.perf_counter()
        watched = _turn_until(worker, records // 2)
        watch.seconds["whole"] = time.perf_counter() - began
        bench.say("under cProfile")
        profiler = cProfile.Profile()
        profiler.enable()
        profiled = _turn_until(worker, records - watched)
        profiler.disable()
    for order in ("tottime", "cumulative"):
        pstats.Stats(profiler, stream=sys.stderr).sort_stats(order).print_stats(LINES)
    us = {name: round(seconds * 1e6 / watched, 2) for name, seconds in watch.seconds.items()}
    us["apply, our side"] = round(us["apply"] - us["redis"], 2)
    us["decode, plan, batch and the rest"] = round(us["whole"] - us["fetch"] - us["apply"] - us["control"], 2)
    for name, value in us.items():
        print(f"{value:8.2f} us per record  {name}", file=sys.stderr)
    return {"watched_records": watched, "profiled_records": profiled, "us_per_record": us}


@contextmanager
def _open_worker(settings: Staleproof, region: str, watch: Stopwatch) -> Iterator[Worker]:
    """As `consumers.invalidate.run` makes it, without HTTP, with the stopwatch at its doors."""
    streams = [
        RecordStream(settings.kafka, group="bench", queued_kilobytes=settings.worker.queued_kilobytes) for _ in range(2)
    ]
    known = open_region(settings, region)
    watch.wrap(streams[0], "fetch", "fetch")
    watch.wrap(known, "apply", "apply")
    watch.wrap(known, "hear", "control")
    watch.wrap(known, "pass_heartbeat", "control")
    watch.wrap(known._client, "execute_command", "redis")
    try:
        yield Worker(
            source=settings.source.name,
            region=known,
            views=read_views(settings.views),
            data=streams[0],
            control=streams[1],
            metrics=WorkerMetrics(CollectorRegistry()),
            limits=Limits(batch_records=settings.worker.batch_records, script_keys=settings.worker.script_keys),
        )
    finally:
        for stream in streams:
            stream.close()


def _turn_until(worker: Worker, records: int) -> int:
    """Turn until so many records are applied, or nothing more comes; how many were."""
    done = idle = 0
    while done < records and idle < IDLE_TURNS:
        applied = worker.turn()
        done, idle = done + applied, 0 if applied else idle + 1
    return done
