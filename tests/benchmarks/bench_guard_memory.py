"""What the guard costs a region's memory: millions of applied invalidations of distinct keys, on Redis and on Valkey.

Both servers run side by side, each fed by a process of its own through `Region.apply`, in transactions of 5 rows. Every
5,000 keys a heartbeat lets fences shrink, as a real worker's do at 20,000 changes per second; the last tenth comes
without a newer one, as when capture is stuck, so that a stripe ends with about eight stamps: the most that it keeps
one by one. No entry exists, so what `used_memory` grows by (after MEMORY PURGE, on a fresh connection, with the shard
open and the functions loaded both times) is the guard's. A megabyte is 10^6 bytes.
"""

from __future__ import annotations

import subprocess
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from multiprocessing import get_context
from typing import Any

import msgspec
import redis

from cdc.events import Position, stamp_text
from invalidator.guard import Batch, Beat, ControlStep, KeyChange, Outcome, Pass, RowStep
from invalidator.layout import Layout, Row, row_field
from invalidator.nodes import Connection, connect
from invalidator.region import Region
from tests.benchmarks.harness import MEGABYTE, Bench, Results
from tests.fix_redis import BINARIES, redis_of, start_redis

EPOCH = 7
HISTORY = "7525310223452345001:1"
CONTROL, DATA = row_field("shop.staleproof.control", 0), row_field("shop.public.contacts", 0)
ROWS_PER_TRANSACTION = 5
FIRST_STAMP = 1_000_000
SILENT_SHARE = 0.1
"""So much of the keys comes after the last heartbeat."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Options."""

    invalidations: int = 5_000_000
    script_keys: int = 500
    keys_per_heartbeat: int = 5_000
    stripes: int = 65_536


def run(settings: Settings, bench: Bench) -> Results:
    """Megabytes by server, and how many stripes have a fence of their own."""
    with ExitStack() as resources:
        directory = resources.enter_context(bench.directory())
        ports = {}
        for name, binary in BINARIES.items():
            place = directory / name
            place.mkdir()
            process, ports[name] = start_redis(binary, place)
            resources.callback(_end, process)
            bench.note_redis(f"{name}-server", _url(ports[name]))
        bench.say(f"{settings.invalidations} invalidations on each of {', '.join(ports)}")
        pool = resources.enter_context(ProcessPoolExecutor(len(ports), mp_context=get_context("spawn")))
        under_way = {name: pool.submit(grow, settings, _url(port)) for name, port in ports.items()}
        grown = {}
        for name, result in under_way.items():
            grown[name] = result.result()
            bench.say(f"{name}: {grown[name]}")
    first = next(iter(grown.values()))
    return {
        **{f"{name}_mb": one["bytes"] / MEGABYTE for name, one in grown.items()},
        "stripes": first["stripes"],
        "invalidations": min(one["applied"] for one in grown.values()),
        "bytes_per_stripe": {name: round(one["bytes"] / one["stripes"], 1) for name, one in grown.items()},
        "exact_fences": first["exact"],
    }


def grow(settings: Settings, url: str) -> dict[str, int]:
    """Apply it all to one server; bytes that `used_memory` grew by, keys applied, stripes, and exact fences of them."""
    layout = Layout(stripes=settings.stripes)
    region = Region("bench", connect(Connection(url=url, timeout_seconds=30.0)), layout)
    _begin(region)
    before = _used_bytes(url)
    applied = _apply(region, settings)
    redis_of(region).close()
    with redis.Redis.from_url(url) as client:
        fences: dict[bytes, bytes] = client.hgetall(layout.fences_key(0))
    fences.pop(b"*")
    exact = sum(fence.startswith(b"=") for fence in fences.values())
    return {"bytes": _used_bytes(url) - before, "applied": applied, "stripes": len(fences), "exact": exact}


def _apply(region: Region, settings: Settings) -> int:
    """How many keys the region said were applied."""
    applied, beat = 0, _beat(0)
    silent_from = settings.invalidations * (1 - SILENT_SHARE)
    for first in range(0, settings.invalidations, settings.script_keys):
        last = min(first + settings.script_keys, settings.invalidations)
        if first % settings.keys_per_heartbeat < settings.script_keys and first <= silent_from:
            beat = _beat(first)
        changes = tuple(_change(region.layout, number) for number in range(first, last))
        row = Row(next_offset=last, position=changes[-1].position, stamp=changes[-1].stamps[-1])
        batch = Batch(rows=(RowStep(DATA, first, row),), changes=changes, beat=beat)
        outcome = region.apply(0, batch).outcome
        if outcome is not Outcome.APPLIED:
            raise RuntimeError(f"the batch at {first} was not applied: {outcome}")
        applied += len(changes)
    return applied


def _change(layout: Layout, number: int) -> KeyChange:
    key = f"contact:{number}"
    return KeyChange(key, layout.place(key)[1], _position(number), (stamp_text(_stamp(number)),))


def _beat(number: int) -> Beat:
    """A heartbeat just before the transaction of row `number`, whose snapshot saw all before it."""
    seen = stamp_text(_stamp(number))
    position = Position(EPOCH, _lsn(number) - 1, 0).text
    return Beat(position, "p" + seen + seen)


def _stamp(number: int) -> int:
    return FIRST_STAMP + number // ROWS_PER_TRANSACTION


def _lsn(number: int) -> int:
    return 0x1_0000_0000 + number // ROWS_PER_TRANSACTION * 1_024


def _position(number: int) -> str:
    return Position(EPOCH, _lsn(number), number % ROWS_PER_TRANSACTION).text


def _begin(region: Region) -> None:
    """An open shard: cold, its epoch begun, three heartbeats heard and passed."""
    region.prepare()
    region.cold(0, 0, [("contact", "d" * 16)], [(CONTROL, Row(next_offset=0)), (DATA, Row(next_offset=0))])
    begins = RowStep(CONTROL, 0, Row(next_offset=1))
    region.hear(0, ControlStep(step=begins, epoch=f"{EPOCH:08x}", history=HISTORY))
    for number in range(3):
        position, stamp = Position(EPOCH, 1 + number, 0).text, stamp_text(1 + number)
        step = RowStep(CONTROL, number + 1, Row(next_offset=number + 2))
        control = ControlStep(step=step, position=position, stamp=stamp, limit="f" * 16, history=HISTORY)
        region.hear(0, control)
        region.pass_heartbeat(0, Pass(position=position, stamp=stamp, time_ms=1, proof="", barriers=((DATA, 0),)))
    scopes = [text for name, text in region.header(0).items() if name.startswith("s:")]
    if not all(text.startswith("o") for text in scopes):
        raise RuntimeError(f"the shard does not open: {scopes}")


def _used_bytes(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        with suppress(redis.ResponseError):  # only with jemalloc
            client.execute_command("MEMORY", "PURGE")
        info: dict[str, Any] = client.info("memory")
    return int(info["used_memory"])


def _url(port: int) -> str:
    return f"redis://127.0.0.1:{port}/0"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(10)
