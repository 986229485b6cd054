"""`python -m infra.demo`: the whole path on real servers, under load, and then the proof that no entry is wrong.

    start servers -> schema and data -> capture, three workers -> writer, readers, probe (warm-up, then measured)
    -> writer stops -> streams drain -> readers stop -> every entry is compared with the database

The last line of the output is one JSON object. The exit code is 0 only if everything that it should show is shown; with
--naive, that is a comparison which finds stale entries.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import msgspec
import psycopg
import yaml

from infra import cache, stack
from infra.demo import screen
from infra.demo.crew import Crew, DemoError, last_line, wait_for
from infra.demo.data import GATE_CONTACTS, GATE_FIRST, Sizes, load
from infra.demo.rebuild import REGION, Replay, load_sleepers
from infra.demo.regions import RegionWatch
from infra.demo.screen import RegionState, Screen, State
from infra.processes import StackError
from infra.redis_faults import RedisFaults

REGIONS = ("eu", "us", "ap")
SOURCE = "demo"
PARTITIONS = 2
HERE = Path(__file__).resolve().parent

WARM_UP_SECONDS = 6.0
MAILS_PER_SECOND = 90.0
"""Each region's. Bounded, so that what is measured is not the queue for two processors."""

LINGER_SECONDS = 2.0
"""Readers go on for so long after the last change was applied."""

READY_LIMIT_SECONDS = 60.0
DRAIN_LIMIT_SECONDS = 60.0
COMPARE_LIMIT_SECONDS = 60.0
COMPARED_PER_SECOND_MIN = 5_000
REBUILT_CHANGED_SHARE_MIN = 0.001
"""Most of what a rebuild fills never changed; of what the load works on, much has."""

TICK_SECONDS = 0.25
RATE_TICKS = 8
"""Rates are shown over so many ticks."""

NO_PROBE: Mapping[str, float] = {"samples": 0, "timeouts": 0, "unfilled": 0, "p50": 0.0, "p99": 0.0}
CUT_OFF, ROLLED_BACK = "us", "ap"
BREAK_SECONDS = 4.0
LATELY_SECONDS = 0.8
GATE_MIN_PER_SECOND = 2
SAMPLES_MIN_PER_SECOND = 3
HIT_RATIO_MIN = 0.5
REBUILD_EVENTS_MIN = 50
REBUILD_KEYS_MIN = 10_000
SERVERS = "servers"
KEPT_RUNS = 4


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says."""

    seconds: float
    rate: float
    seed: int
    json_only: bool
    naive: bool
    directory: Path
    rebuild: int = 0
    breaks: bool = False


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes counted while it was measured."""

    changes: int
    reads: int
    hits: int
    refused: int
    samples: int
    timeouts: int
    unfilled: int
    p50_ms: float
    p99_ms: float
    rebuilt: Mapping[str, Any] | None = None
    watched: Mapping[str, float] = {}
    gate: Mapping[str, float] = {}


class Demo:
    """One run, from prepared servers to the verdict."""

    def __init__(self, options: Options, servers: stack.Stack, place: Path, look: Screen) -> None:
        self._options = options
        self._servers = servers
        self._place = place
        self._look = look
        self._watch = RegionWatch(servers.redis_urls)
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]),
            "DEMO_DSN": servers.postgres_dsn,
            "DEMO_KAFKA": servers.kafka_bootstrap,
            **{f"DEMO_REDIS_{name.upper()}": url for name, url in servers.redis_urls.items()},
        }
        self._baseline = place / "baseline.json"

    def run(self) -> int:
        """Everything; returns the exit code."""
        self._prepare()
        with Crew(self._place / "logs", self._environment) as crew:
            self._start_pipeline(crew)
            self._look.say("under load: writer, readers and probe have started")
            self._start_load(crew)
            counted = self._under_load(crew)
            verdict = self._compare()
            crew.check()
        return self._conclude(counted, verdict)

    # -- before

    def _prepare(self) -> None:
        self._look.say("loading the platform's data")
        with psycopg.connect(self._servers.postgres_dsn, autocommit=True) as connection:
            connection.execute((HERE / "schema.sql").read_text(encoding="utf-8"))
            load(connection, self._options.seed, Sizes())
            load_sleepers(connection, GATE_CONTACTS, GATE_FIRST)
            if self._options.rebuild:
                load_sleepers(connection, self._options.rebuild)
        self._compare_process("baseline")
        shutil.copy(HERE / "views.yaml", self._place / "views.yaml")
        settings = {
            "source": {"name": SOURCE, "dsn": self._servers.postgres_dsn},
            "kafka": {"bootstrap_servers": self._servers.kafka_bootstrap, "partitions": PARTITIONS},
            "regions": {name: {"url": url} for name, url in self._servers.redis_urls.items()},
        }
        (self._place / "staleproof.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")

    def _start_pipeline(self, crew: Crew) -> None:
        """Capture and one worker per region; returns when every region is served."""
        config = ("--config", str(self._place / "staleproof.yaml"))
        crew.service("capture", "consumers.cli", "capture", *config)
        if self._options.naive:
            for name, url in self._servers.redis_urls.items():
                crew.child(f"worker-{name}", "infra.demo.naive", "--source", SOURCE, apart=True, DEMO_REDIS=url)
            wait_for(crew, "the plain workers read", self._naive_workers(crew, "ready"), READY_LIMIT_SECONDS)
            wait_for(crew, "capture has a slot", lambda: self._confirmed_lsn() > 0, READY_LIMIT_SECONDS)
            return
        wait_for(crew, "capture has a slot", lambda: self._confirmed_lsn() > 0, READY_LIMIT_SECONDS)
        for name in REGIONS:
            crew.service(f"worker-{name}", "consumers.cli", "invalidate", "--region", name, *config)
        wait_for(crew, "the regions are open", self._watch.is_open, READY_LIMIT_SECONDS)

    def _naive_workers(self, crew: Crew, count: str) -> Any:
        return lambda: crew.total(count, prefix="worker-") == len(REGIONS)

    def _start_load(self, crew: Crew) -> None:
        seed = ("--seed", str(self._options.seed))
        began = ("--began", f"{time.time():.3f}")
        naive = ("--naive",) if self._options.naive else ()
        for name, url in self._servers.redis_urls.items():
            arguments = ("--region", name, "--rate", str(MAILS_PER_SECOND), *seed, *began, *naive)
            crew.child(f"readers-{name}", "infra.demo.readers", *arguments, DEMO_REDIS=url)
        if not self._options.naive:
            crew.child("gate", "infra.demo.gate", "--regions", *REGIONS, *seed)
        if not self._options.breaks:  # it asks every region, and waits for all of them
            crew.child("probe", "infra.demo.probe", "--regions", *REGIONS, *seed, *naive, apart=True)
        crew.child("writer", "infra.demo.workload", "--rate", str(self._options.rate), *seed, *began, apart=True)

    # -- under load

    def _under_load(self, crew: Crew) -> Counted:
        self._pass_time(crew, "warming up", WARM_UP_SECONDS)
        crew.order("measure")
        rebuilt = self._rebuild(crew) if self._options.rebuild else None
        if self._options.breaks:
            self._break(crew)
        self._pass_time(crew, "under load", self._options.seconds)
        watched = crew.children["watch"].finish() if rebuilt else {}
        gate = {} if self._options.naive else crew.children["gate"].finish()
        writer = crew.children["writer"].finish()
        probe = NO_PROBE if self._options.breaks else crew.children["probe"].finish()
        self._look.say("the last change is committed; draining")
        self._drain(crew)
        self._pass_time(crew, "drained", LINGER_SECONDS)
        for name in REGIONS:
            crew.children[f"readers-{name}"].order("stop")
        for name in REGIONS:
            crew.children[f"readers-{name}"].finish()
        hits = crew.total("hit", prefix="readers-")
        served = ("miss", "closed", "cold", "down", "foreign")
        return Counted(
            changes=int(writer["changes"]),
            reads=hits + sum(crew.total(name, prefix="readers-") for name in served),
            hits=hits,
            refused=crew.total("refused", prefix="readers-"),
            samples=int(probe["samples"]),
            timeouts=int(probe["timeouts"]),
            unfilled=int(probe["unfilled"]),
            p50_ms=probe["p50"],
            p99_ms=probe["p99"],
            rebuilt=rebuilt,
            watched=watched,
            gate=gate,
        )

    def _break(self, crew: Crew) -> None:
        """One region is cut off from its worker; another is rolled back, far and then a little, for a while each."""
        faults = RedisFaults(self._servers.processes[cache.process_name(ROLLED_BACK)])
        dump = faults.take_dump()
        crew.services[f"worker-{CUT_OFF}"].pause()
        self._pass_time(crew, f"{CUT_OFF} is cut off from its worker", BREAK_SECONDS)
        crew.services[f"worker-{CUT_OFF}"].resume()
        self._pass_time(crew, "back again", BREAK_SECONDS)
        self._roll_back(crew, faults, dump)
        dump = faults.take_dump()
        self._pass_time(crew, "under load", LATELY_SECONDS)
        self._roll_back(crew, faults, dump)

    def _roll_back(self, crew: Crew, faults: RedisFaults, dump: Path) -> None:
        worker = crew.services[f"worker-{ROLLED_BACK}"]
        worker.pause()
        faults.roll_back(dump)
        self._pass_time(crew, f"{ROLLED_BACK} was rolled back", BREAK_SECONDS / 2)
        worker.resume()
        self._pass_time(crew, "back again", BREAK_SECONDS)

    def _rebuild(self, crew: Crew) -> dict[str, Any]:
        """Rebuild one region while everything goes on."""
        arguments = ("--region", REGION, "--keys", str(self._options.rebuild), "--seed", str(self._options.seed))
        url = self._servers.redis_urls[REGION]
        crew.child("watch", "infra.demo.watch", *arguments, apart=True, DEMO_REDIS=url)
        replay = Replay(self._place, self._environment, self._options.rebuild)
        return replay.run(lambda phase: self._pass_time(crew, phase, TICK_SECONDS))

    def _pass_time(self, crew: Crew, phase: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        seen = deque([(time.monotonic(), _counts(crew))], maxlen=RATE_TICKS)
        while time.monotonic() < deadline:
            time.sleep(min(TICK_SECONDS, max(0.0, deadline - time.monotonic())))
            crew.check()
            now = _counts(crew)
            since, before = seen[0]
            self._look.show(self._state(crew, phase, before, now, time.monotonic() - since))
            seen.append((time.monotonic(), now))

    def _state(
        self, crew: Crew, phase: str, before: Mapping[str, int], now: Mapping[str, int], seconds: float
    ) -> State:
        probe = NO_PROBE if self._options.breaks else crew.children["probe"].latest
        standings = {} if self._options.naive else self._watch.standings()
        regions = {}
        for name in REGIONS:
            hits, misses = now[f"hit {name}"], now[f"miss {name}"]
            reads = hits + misses - before[f"hit {name}"] - before[f"miss {name}"]
            regions[name] = RegionState(
                lag_ms=max(0, int(time.time() * 1000) - standings[name].time_ms) if standings else None,
                reads_per_second=max(0, reads) / seconds,
                hit_ratio=hits / max(1, hits + misses),
                refused=now[f"refused {name}"],
            )
        return State(
            phase=phase,
            changes=now["changes"],
            changes_per_second=max(0, now["changes"] - before["changes"]) / seconds,
            p50_ms=probe.get("p50", 0.0),
            p99_ms=probe.get("p99", 0.0),
            regions=regions,
        )

    # -- after

    def _drain(self, crew: Crew) -> None:
        """Wait until every region has applied all that was committed before now."""
        lsn = self._ask("SELECT pg_current_wal_insert_lsn() - '0/0'")
        if not self._options.naive:
            wait_for(crew, "the regions have caught up", lambda: self._watch.has_passed(lsn), DRAIN_LIMIT_SECONDS)
            return
        wait_for(crew, "Kafka has every change", lambda: self._confirmed_lsn() >= lsn, DRAIN_LIMIT_SECONDS)
        for name in REGIONS:
            crew.children[f"worker-{name}"].order("drain")
        wait_for(crew, "the plain workers have caught up", self._naive_workers(crew, "drained"), DRAIN_LIMIT_SECONDS)

    def _confirmed_lsn(self) -> int:
        """What the slot's reader has confirmed: Kafka has everything before it. 0 without a reader."""
        return self._ask(
            "SELECT coalesce(max(confirmed_flush_lsn - '0/0'), 0) FROM pg_replication_slots"
            " WHERE active_pid IS NOT NULL"
        )

    def _ask(self, query: str) -> int:
        with psycopg.connect(self._servers.postgres_dsn, autocommit=True) as connection:
            row = connection.execute(query).fetchone()
            assert row is not None
            return int(row[0])

    def _compare(self) -> dict[str, Any]:
        self._look.say("comparing every entry with the database")
        naive = ("--naive",) if self._options.naive else ()
        share = ("--changed-share", str(REBUILT_CHANGED_SHARE_MIN)) if self._options.rebuild else ()
        answer = self._compare_process("entries", "--regions", *REGIONS, *naive, *share)
        verdict: dict[str, Any] = msgspec.json.decode(answer)
        return verdict

    def _compare_process(self, *arguments: str) -> bytes:
        log = self._place / "logs" / "compare.log"
        limit = COMPARE_LIMIT_SECONDS + self._options.rebuild / COMPARED_PER_SECOND_MIN
        command = [sys.executable, "-m", "infra.demo.compare", *arguments, "--file", str(self._baseline)]
        with log.open("ab") as sink:
            try:
                done = subprocess.run(
                    command, stdout=subprocess.PIPE, stderr=sink, env=self._environment, stdin=subprocess.DEVNULL,
                    timeout=limit, check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise DemoError(f"the comparison took more than {limit:.0f} s") from None
        if done.returncode != 0:
            raise DemoError(f"the comparison could not be made: {last_line(log)} (see {log})")
        return done.stdout

    def _conclude(self, counted: Counted, verdict: Mapping[str, Any]) -> int:
        for fault in verdict["faults"]:
            print(f"stale: {fault}", file=sys.stderr)
        faults = [*verdict["complaints"], *shortcomings(counted, verdict, self._options)]
        for fault in faults:
            print(f"not shown: {fault}", file=sys.stderr)
        if self._options.naive and verdict["stale"]:
            print(f"as expected, the plain cache holds {verdict['stale']} stale entries", file=sys.stderr)
        print(msgspec.json.encode(result(counted, verdict)).decode(), flush=True)
        return 1 if faults else 0


def result(counted: Counted, verdict: Mapping[str, Any]) -> dict[str, Any]:
    """The last line."""
    return {
        "changes": counted.changes,
        "regions": len(REGIONS),
        "invalidation_ms": {"p50": counted.p50_ms, "p99": counted.p99_ms},
        "reads": counted.reads,
        "hit_ratio": round(counted.hits / max(1, counted.reads), 4),
        "fills_refused": counted.refused,
        "checked_entries": verdict["checked"],
        "checked_changed_entries": verdict["changed"],
        "stale_entries": verdict["stale"],
        **(
            {"gate": {name.removeprefix("gate_"): int(count) for name, count in counted.gate.items()}}
            if counted.gate
            else {}
        ),
        **({"rebuild": {**counted.rebuilt, **counted.watched}} if counted.rebuilt else {}),
    }


def shortcomings(counted: Counted, verdict: Mapping[str, Any], options: Options) -> list[str]:
    """What this run should have shown and did not."""
    found = []
    if options.naive and not verdict["stale"]:
        found.append("a stale entry in the plain cache: run it for longer, or at a higher rate")
    if not options.naive and verdict["stale"]:
        found.append(f"that no entry is stale: {verdict['stale']} are")
    if counted.hits < HIT_RATIO_MIN * counted.reads:
        found.append(f"a cache: only {counted.hits} of {counted.reads} reads were hits")
    if not options.breaks and counted.samples < SAMPLES_MIN_PER_SECOND * options.seconds:
        found.append(f"how fast invalidations are: only {counted.samples} samples")
    found += gate_shortcomings(counted.gate, options)
    if options.breaks:
        return found  # what follows is told of regions that work
    if counted.timeouts:
        found.append(f"that every change arrives: {counted.timeouts} old values stayed")
    if counted.unfilled and not options.naive:
        found.append(f"that a quiet entry can be filled: {counted.unfilled} could not")
    if counted.rebuilt:
        found += rebuild_shortcomings(counted.watched)
    if counted.changes < 0.8 * options.rate * options.seconds:
        found.append(f"{options.rate:.0f} changes per second: only {counted.changes} in {options.seconds:.0f} s")
    return found


def gate_shortcomings(gate: Mapping[str, float], options: Options) -> list[str]:
    """What the send gate should have shown and did not."""
    if options.naive:
        return []
    found = [
        f"the send gate: {name.replace('_', ' ')}: only {gate.get(f'gate_{name}', 0):.0f}"
        for name in ("acknowledged", "sent", "checks_after")
        if gate.get(f"gate_{name}", 0) < GATE_MIN_PER_SECOND * options.seconds
    ]
    if gate.get("gate_violations"):
        found.append(f"that no mail follows an acknowledged unsubscription: {gate['gate_violations']:.0f} did")
    return found


def rebuild_shortcomings(watched: Mapping[str, float]) -> list[str]:
    """What a rebuild should have shown and did not."""
    found = [
        f"a rebuild under load: {name.replace('_', ' ')}: only {watched.get(name, 0):.0f}"
        for name in ("moved_on", "deleted")
        if watched.get(name, 0) < REBUILD_EVENTS_MIN
    ]
    if watched.get("moved_back"):
        found.append(f"that no key moves back: {watched['moved_back']:.0f} did")
    return found


def _counts(crew: Crew) -> dict[str, int]:
    counts = {"changes": crew.total("changes", prefix="writer")}
    for name in REGIONS:
        for count in ("hit", "miss", "refused"):
            counts[f"{count} {name}"] = crew.total(count, prefix=f"readers-{name}")
    return counts


# --- the command line -------------------------------------------------------------------------------------------------


@contextmanager
def run_directory(parent: Path) -> Iterator[Path]:
    """A directory of this run's own: every run begins with empty servers. Their data goes with it, the logs stay."""
    parent.mkdir(parents=True, exist_ok=True)
    tidy(parent)
    place = parent / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.getpid()}"
    (place / "logs").mkdir(parents=True)
    try:
        yield place
    finally:
        clear(place)


def tidy(parent: Path) -> None:
    """Clear what killed runs left, and forget all but the newest runs. One that still goes on is left alone."""
    runs = sorted((run for run in parent.iterdir() if (run / "logs").is_dir()), reverse=True)
    for age, run in enumerate(runs):
        lock = run / SERVERS / "stack.lock"
        if lock.exists():
            with lock.open("rb") as held:
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                clear(run)
        if age >= KEPT_RUNS:
            shutil.rmtree(run, ignore_errors=True)


def clear(place: Path) -> None:
    """Remove the servers' data, and keep their logs."""
    logs = place / SERVERS / "logs"
    if logs.is_dir():
        shutil.copytree(logs, place / "logs", dirs_exist_ok=True)
    shutil.rmtree(place / SERVERS, ignore_errors=True)


def parse(arguments: Sequence[str] | None) -> Options:
    """The options of a command line."""
    parser = argparse.ArgumentParser(prog="python -m infra.demo", description="The main job, on real servers.")
    parser.add_argument("--seconds", type=float, default=30.0, help="of measured load, after the warm-up [30]")
    parser.add_argument("--rate", type=float, default=300.0, help="row changes per second [300]")
    parser.add_argument("--seed", type=int, default=1, help="of data and workload [1]")
    parser.add_argument("--json-only", action="store_true", help="print the last line only")
    parser.add_argument("--naive", action="store_true", help="a plain cache instead: the comparison should fail")
    parser.add_argument("--rebuild", type=int, default=0, metavar="KEYS", help="rebuild so many keys meanwhile [0]")
    parser.add_argument(
        "--break", dest="breaks", action="store_true", help="cut one region off, and roll another one back, meanwhile"
    )
    parser.add_argument("--directory", type=Path, default=stack.DEFAULT_DIRECTORY / "demo", help="for data and logs")
    options = parser.parse_args(arguments)
    if options.seconds <= 0 or options.rate <= 0:
        parser.error("--seconds and --rate must be more than 0")
    if options.breaks and (options.naive or options.rebuild):
        parser.error("--break goes with neither --naive nor --rebuild")
    if options.rebuild and (options.rebuild < REBUILD_KEYS_MIN or options.naive):
        parser.error(
            f"--rebuild needs at least {REBUILD_KEYS_MIN} keys, and no --naive: the plain cache has no rebuild"
        )
    return Options(**vars(options))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, _leave)
    try:
        with run_directory(options.directory.resolve()) as place, screen.choose(silent=options.json_only) as look:
            look.say("starting PostgreSQL, Kafka and three Redis servers")
            with stack.Stack.start(place / SERVERS, regions=REGIONS) as servers:
                return Demo(options, servers, place, look).run()
    except stack.MissingPrerequisite as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (StackError, DemoError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    del number, frame
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)
