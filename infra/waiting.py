"""Waiting for a condition, with a deadline; never sleeping for luck."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

ASK_AGAIN_SECONDS: Final = 0.02
"""The interval of asking, not a guess at how long it takes."""


def wait_until(condition: Callable[[], T], what: str, *, seconds: float = 30) -> T:
    """The first true value of `condition`; AssertionError with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(ASK_AGAIN_SECONDS)
    return value
