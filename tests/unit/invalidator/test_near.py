"""The near cache between threads. What it may serve: test_reader.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from invalidator.judging import Evidence
from invalidator.near import Kept, Near, NearCache

KEPT = Kept(b"value", "j", Evidence("77:1", ("p",)), "one")
NAMES = [f"contact:{number}" for number in range(200)]


@pytest.fixture
def often() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("often")
def test_a_view_is_forgotten_while_threads_find_values_of_others() -> None:
    cache = NearCache(Near())
    cache.moved_on("contact", "one")
    for name in NAMES:
        cache.keep("contact", name, KEPT)

    def use(number: int) -> None:
        for name in NAMES * 10:
            if number:
                assert cache.find("contact", name) is KEPT
            else:
                cache.forget_view("another")

    with ThreadPoolExecutor(3) as threads:
        for done in [threads.submit(use, number) for number in range(3)]:
            done.result()
    cache.forget_view("contact")
    assert cache.bytes == 0
