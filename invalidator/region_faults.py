"""What redis-py raises, judged: a RegionFault where it may pass by itself, a FatalError where a person must mend it.

`redis_errors.py` has the table. Door: redis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import redis

from cdc.errors import FatalError, TransientError
from invalidator.redis_errors import UNANSWERED, UNKNOWN, UNREACHABLE, Fault, Remedy, judge


class RegionFault(TransientError):
    """The region's Redis fails for now. `kind` is the code of `redis_errors.py`."""

    def __init__(self, message: str, fault: Fault) -> None:
        super().__init__(message)
        self.kind = fault.kind
        self.remedy = fault.remedy


@contextmanager
def judging(region: str, doubt: Callable[[Fault], None]) -> Iterator[None]:
    """Turn what redis-py raises inside into RegionFault or FatalError; `doubt` hears of what may pass."""
    try:
        yield
    except redis.AuthenticationError as error:
        raise _judged(region, doubt, judge(str(error)), error) from error
    except redis.TimeoutError as error:
        raise _judged(region, doubt, UNANSWERED, error) from error
    except (redis.ConnectionError, OSError) as error:
        fault = judge(_code(error) + str(error))  # BusyLoadingError and its like are ConnectionErrors to redis-py
        raise _judged(region, doubt, UNREACHABLE if fault is UNKNOWN else fault, error) from error
    except redis.ResponseError as error:
        raise _judged(region, doubt, judge(_code(error) + str(error)), error) from error


def _judged(region: str, doubt: Callable[[Fault], None], fault: Fault, error: Exception) -> Exception:
    message = f"region {region}: {str(error) or type(error).__name__}: {fault.hint}"
    if fault.remedy is Remedy.STOP:
        return FatalError(f"{message}; then start again")
    doubt(fault)
    return RegionFault(message, fault)


_CODES: dict[type[Exception], str] = {
    redis.BusyLoadingError: "LOADING ",
    redis.exceptions.OutOfMemoryError: "OOM ",
    redis.exceptions.ReadOnlyError: "READONLY ",
    redis.exceptions.NoPermissionError: "NOPERM ",
    redis.exceptions.ClusterDownError: "CLUSTERDOWN ",
    redis.exceptions.MasterDownError: "MASTERDOWN ",
    redis.exceptions.TryAgainError: "TRYAGAIN ",
    redis.exceptions.MovedError: "MOVED ",
    redis.exceptions.AskError: "ASK ",
}


def _code(error: Exception) -> str:
    """The error's code, which redis-py takes off the text of those that it has a class for."""
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), "")
