"""What every benchmark shares: options, rounds, medians, processes, servers, and the description of the machine."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias, TypeVar

import confluent_kafka
import msgspec
import psycopg
import redis

from infra import broker
from infra.stack import Stack

T = TypeVar("T")

Results: TypeAlias = dict[str, Any]
"""What was measured, by name; the unit is the name's end."""

PACKAGES = ("confluent-kafka", "kafka-python", "redis", "hiredis", "msgspec", "psycopg", "dogpile.cache", "cashews")
MEGABYTE = 1_000_000


class Bench:
    """One run: tells a person how far it is, and learns the versions of what it starts."""

    def __init__(self) -> None:
        self.versions: dict[str, str] = {}
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """One line of progress."""
        print(f"[{time.monotonic() - self._began:6.1f} s] {text}", file=sys.stderr, flush=True)

    @contextmanager
    def directory(self) -> Iterator[Path]:
        """A directory that is gone afterwards."""
        with tempfile.TemporaryDirectory(prefix="staleproof-bench-") as name:
            yield Path(name)

    @contextmanager
    def stack(self, directory: Path, regions: Sequence[str] = ("eu",)) -> Iterator[Stack]:
        """The real servers: PostgreSQL, Kafka and a Redis per region."""
        self.say("starting servers")
        with Stack.start(directory / "stack", regions) as stack:
            with psycopg.connect(stack.postgres_dsn) as connection:
                self.versions["postgresql"] = connection.info.parameter_status("server_version") or "unknown"
            self.versions["kafka"] = broker.VERSION
            self.note_redis("redis-server", next(iter(stack.redis_urls.values())))
            yield stack

    def note_redis(self, name: str, url: str) -> None:
        """Remember which server answers there."""
        with redis.Redis.from_url(url) as client:
            self.versions[name] = redis_version(client.info("server"))

    def interleave(
        self, contestants: Mapping[str, Callable[[], Results]], *, rounds: int, warm_ups: int = 1
    ) -> dict[str, list[Results]]:
        """Each contestant once per round, one at a time, another one first in each; warm-ups do not count."""
        measured: dict[str, list[Results]] = {name: [] for name in contestants}
        names = list(contestants)
        for turn in range(warm_ups + rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                results = contestants[name]()
                label = f"round {turn - warm_ups + 1} of {rounds}" if turn >= warm_ups else "warm-up"
                self.say(f"{label}: {name}: {json.dumps(results)}")
                if turn >= warm_ups:
                    measured[name].append(results)
        return measured


def medians(rounds: Sequence[Results]) -> Results:
    """The median of each number over the rounds, which all have the same names."""
    return {name: statistics.median(results[name] for results in rounds) for name in rounds[0]}


def median_ratio(these: Sequence[Results], those: Sequence[Results], name: str) -> float:
    """The median of the rounds' own ratios: what slows the machine for a while slows both of a round."""
    return statistics.median(this[name] / that[name] for this, that in zip(these, those, strict=True))


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """What `function` of a module returns, run in a fresh process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def redis_version(info: Mapping[str, Any]) -> str:
    """Which server that is, by what it says of itself: Valkey names Redis's version as well."""
    return f"valkey {info['valkey_version']}" if "valkey_version" in info else f"redis {info['redis_version']}"


def read_settings(module: ModuleType, name: str, arguments: Sequence[str]) -> msgspec.Struct:
    """The benchmark's settings under the command line's options; a wrong one ends the process with status 2."""
    parser = argparse.ArgumentParser(
        prog=f"python -m tests.benchmarks {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for field in msgspec.structs.fields(module.Settings):
        option = "--" + field.name.replace("_", "-")
        if field.type is bool:
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=field.type, default=field.default, help=f"default: {field.default}")
    settings: msgspec.Struct = module.Settings(**vars(parser.parse_args(arguments)))
    return settings


def last_line(name: str, results: Results, settings: msgspec.Struct, machine: Mapping[str, Any]) -> str:
    """The run as one line of JSON: results at the top, so that each is found by its name."""
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in results.items()}
    return json.dumps({"benchmark": name, **rounded, "settings": msgspec.structs.asdict(settings), "machine": machine})


def describe_machine(servers: Mapping[str, str]) -> dict[str, Any]:
    """Where it was measured: processor, cores, memory, kernel, load, and the versions of what took part."""
    packages = {name: metadata.version(name) for name in PACKAGES}
    return {
        "cpu": _field(Path("/proc/cpuinfo"), "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MEGABYTE,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": {
            "python": platform.python_version(),
            "librdkafka": confluent_kafka.libversion()[0],
            **packages,
            **servers,
        },
    }


def peak_memory_mb(pid: int) -> float:
    """The most resident memory that a living process had."""
    return int(_field(Path(f"/proc/{pid}/status"), "VmHWM").split()[0]) * 1024 / MEGABYTE


def _field(file: Path, name: str) -> str:
    lines = (line.partition(":") for line in file.read_text(encoding="utf-8").splitlines())
    return next((value.strip() for label, _, value in lines if label.strip() == name), "unknown")
