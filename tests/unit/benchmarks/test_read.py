"""The read benchmark gives no figures for what did not happen."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.benchmarks.bench_read import (
    KEYS,
    MANY,
    Contestant,
    contact,
    decode,
    encode,
    measure,
    own_contact,
    some_contacts,
    summary,
)

NAMES = (
    *("bare_get", "guarded_hit", "bounded_hit", "near_hit", "near_decoded", "miss_fill", "bare_get_many", "get_many"),
    *("bare_no_deadline", "async_bare_no_deadline"),
    *("dogpile_hit", "dogpile_get", "async_bare_get", "async_guarded_hit", "cashews_hit", "cashews_get"),
)


@pytest.fixture
def runner():
    with asyncio.Runner() as runner:
        yield runner


def counting(counts, what, read=contact):
    """A read that is counted as `what`."""

    def counted(number):
        counts[what] += 1
        return read(number)

    return counted


def test_a_round_is_measured_per_read(runner):
    results = measure("x", Contestant(read=contact, wanted=contact, reads=50), runner)
    assert 0 < results["us"] < 10_000
    assert 0 < results["cpu_us"] < 10_000


def test_of_many_keys_it_is_per_key(runner):
    contestant = Contestant(read=some_contacts, wanted=some_contacts, reads=2, per=MANY)
    assert measure("x", contestant, runner)["us"] < 1_000


def test_an_async_read_is_awaited(runner):
    async def read(number):
        return contact(number)

    assert measure("x", Contestant(read=read, wanted=contact, reads=50, is_async=True), runner)["us"] > 0


@pytest.mark.parametrize("wrong", [0, 29])
def test_one_other_value_is_an_error(runner, wrong):
    def read(number):
        return contact(number + (number == wrong))

    with pytest.raises(RuntimeError, match="guarded_hit gave another value"):
        measure("guarded_hit", Contestant(read=read, wanted=contact, reads=30), runner)


@pytest.mark.parametrize("what", ["miss", "hit"])
def test_a_near_hit_that_was_none_is_an_error(runner, what):
    counts = Counter(near=7)
    contestant = Contestant(read=counting(counts, what), wanted=contact, reads=30, counts=counts, expected={"near": 30})
    with pytest.raises(RuntimeError, match="near_hit was counted as"):
        measure("near_hit", contestant, runner)


def test_a_fill_that_was_refused_is_an_error(runner):
    counts = Counter()

    def read(number):
        counts.update(("miss", "loaded", "filled" if number else "refused"))
        return contact(number)

    expected = {"miss": 5, "loaded": 5, "filled": 5}
    contestant = Contestant(read=read, wanted=contact, reads=5, counts=counts, expected=expected)
    with pytest.raises(RuntimeError, match="'refused': 1"):
        measure("miss_fill", contestant, runner)


def test_what_was_counted_before_the_round_does_not_matter(runner):
    counts = Counter(hit=1_000, miss=3)
    contestant = Contestant(read=counting(counts, "hit"), wanted=contact, reads=30, counts=counts, expected={"hit": 30})
    measure("guarded_hit", contestant, runner)
    measure("guarded_hit", contestant, runner)


def test_the_last_line_has_every_figure_that_was_promised_and_wall_and_cpu_are_told_apart():
    results = summary({name: [{"us": 4.0, "cpu_us": 3.0}] * 3 for name in NAMES})
    promised = ("bare_get", "guarded_hit", "near_hit", "miss_fill", "bare_get_many", "get_many", "dogpile_hit")
    for name in (*promised, "async_bare_get", "async_guarded_hit", "cashews_hit"):
        assert (results[f"{name}_us"], results[f"{name}_cpu_us"]) == (4.0, 3.0)
    assert results["guarded_hit_cpu_ratio"] == 1.0


def test_ratios_have_ours_above():
    rounds = {name: [{"us": 2.0, "cpu_us": 2.0}] for name in NAMES}
    rounds["guarded_hit"] = rounds["async_guarded_hit"] = [{"us": 3.0, "cpu_us": 5.0}]
    results = summary(rounds)
    assert [
        results[f"{name}_ratio"] for name in ("guarded_hit", "dogpile", "dogpile_get", "cashews", "cashews_get")
    ] == [1.5] * 5
    assert results["guarded_hit_cpu_ratio"] == results["async_guarded_hit_cpu_ratio"] == 2.5


def test_the_value_is_of_the_size_that_is_told():
    for number in range(KEYS):
        assert 560 < len(encode(contact(number))) < 640
        assert decode(encode(contact(number))) == contact(number)
    assert own_contact(7).attributes == list(contact(7).attributes)
