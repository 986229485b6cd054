"""Failpoints: named places where a test makes a running process fail, by the environment it was started with.

    STALEPROOF_FAILPOINTS="capture.after_memory=kill@3, capture.before_heartbeat=sleep:500@1"

Kills at the third passing of the one and sleeps 500 ms at the first of the other. Without the variable a passing costs
one test of a tuple. A wrong text is a ConfigError at import: a failpoint that never fires would prove nothing.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, assert_never

import msgspec
import structlog

from cdc.errors import ConfigError, TransientError

VARIABLE: Final = "STALEPROOF_FAILPOINTS"

POINTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "capture.after_announce": "EpochStarted is in Kafka, the state that knows the epoch is not",
        "capture.after_produce": "Kafka has every record of a transaction; neither state nor slot know it",
        "capture.after_memory": "the state topic knows a position, the slot does not",
        "capture.before_heartbeat": "everything before a heartbeat is in Kafka, the heartbeat is not",
        "apply.before_script": "a batch is planned, the script is not sent",
        "apply.after_script": "the scripts of a batch are sent, their replies were not read",
        "plain.after_unlink": "changed keys of plain views are removed, their debts written; no row moved",
        "plain.before_pay": "a heartbeat proves changes of plain keys visible; they are not removed again",
        "replay.after_send": "a wave of a replay is sent, its replies were not read, the state file does not know it",
        "replay.after_save": "the state file knows a wave that every region has answered",
    }
)
"""Every failpoint and what holds when it is passed."""

SLEEP_MS_MAX: Final = 600_000

_FORM = re.compile(r"(?P<point>[a-z_.]+)=(?P<action>kill|stop|error|sleep:(?P<ms>[0-9]{1,9}))@(?P<at>[1-9][0-9]{0,8})")

log = structlog.get_logger("staleproof.failpoints")


class Action(StrEnum):
    """What happens: SIGKILL or SIGSTOP of the whole process, a TransientError, or a delay."""

    KILL = "kill"
    STOP = "stop"
    ERROR = "error"
    SLEEP = "sleep"


class Armed(msgspec.Struct, frozen=True, kw_only=True):
    """`action` at passing `at` of `point`, counted from 1 per process, and at no other."""

    point: str
    action: Action
    at: int
    sleep_ms: int = 0


def parse(text: str) -> tuple[Armed, ...]:
    """What the variable's text arms; parts are separated by commas. Raises ConfigError."""
    return tuple(_parse_one(part.strip()) for part in text.split(",")) if text.strip() else ()


def _parse_one(text: str) -> Armed:
    found = _FORM.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"environment variable {VARIABLE}: {text!r} is no failpoint: write point=kill@3, point=stop@1,"
            " point=error@2 or point=sleep:500@1 (milliseconds), or unset it"
        )
    if found["point"] not in POINTS:
        known = ", ".join(POINTS)
        raise ConfigError(f"environment variable {VARIABLE}: there is no point {found['point']!r}; known are {known}")
    sleep_ms = int(found["ms"] or 0)
    if sleep_ms > SLEEP_MS_MAX:
        raise ConfigError(f"environment variable {VARIABLE}: {text!r} sleeps too long: at most {SLEEP_MS_MAX} ms")
    action = Action(found["action"].partition(":")[0])
    return Armed(point=found["point"], action=action, at=int(found["at"]), sleep_ms=sleep_ms)


def perform(armed: Armed) -> None:
    """Do it to this process. Raises TransientError where that is what was armed."""
    match armed.action:
        case Action.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Action.STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
        case Action.ERROR:
            raise TransientError(f"failpoint {armed.point} at passing {armed.at}")
        case Action.SLEEP:
            time.sleep(armed.sleep_ms / 1000)
        case _:
            assert_never(armed.action)


class Failpoints:
    """Counts passings, of any thread, and performs what is due."""

    def __init__(self, armed: tuple[Armed, ...], act: Callable[[Armed], None] = perform) -> None:
        self._armed = armed
        self._act = act
        self._lock = threading.Lock()
        self._passings: Counter[str] = Counter()

    def passing(self, point: str) -> None:
        """One passing of `point`."""
        with self._lock:
            self._passings[point] += 1
            at = self._passings[point]
        for one in self._armed:
            if (one.point, one.at) == (point, at):
                log.warning("failpoint", point=point, action=str(one.action), at=at)
                self._act(one)


_armed = parse(os.environ.get(VARIABLE, ""))
_failpoints = Failpoints(_armed)


def failpoint(point: str) -> None:
    """A place where a test may make this process fail; `point` is listed in POINTS."""
    if _armed:
        _failpoints.passing(point)
