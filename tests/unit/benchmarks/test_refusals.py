"""Whether a refusal was for nothing: the judge of the refusals benchmark."""

from __future__ import annotations

import pytest

from invalidator.guard import Outcome
from invalidator.layout import Layout
from tests.benchmarks.bench_refusals import Attempt, Verdict, Write, count, judge, keys_of_one_stripe


def attempt(version: int = 1, *, key: int = 7, outcome: Outcome = Outcome.REFUSED, reason: str = "stripe") -> Attempt:
    """A fill that was sent at 10 and answered at 11."""
    return Attempt(key, version, 10.0, 11.0, outcome, reason)


@pytest.mark.parametrize(
    ("sent", "answered", "verdict"),
    [
        (8.0, 9.0, Verdict.NEEDFUL),
        (9.0, 10.0, Verdict.NEEDFUL),
        (9.0, 10.5, Verdict.IN_DOUBT),
        (10.2, 10.8, Verdict.IN_DOUBT),
        (10.5, 12.0, Verdict.IN_DOUBT),
        (9.0, 12.0, Verdict.IN_DOUBT),
        (11.5, 12.0, Verdict.NEEDLESS),
    ],
)
def test_a_newer_version_decides_by_when_it_was_committed(sent, answered, verdict):
    assert judge(attempt(), [Write(2, sent, answered)]) is verdict


def test_versions_that_the_value_shows_do_not_make_a_refusal_needful():
    assert judge(attempt(3), [Write(2, 1.0, 2.0), Write(3, 3.0, 4.0)]) is Verdict.NEEDLESS
    assert judge(attempt(3), []) is Verdict.NEEDLESS


def test_one_newer_version_in_time_is_enough_among_others():
    writes = [Write(2, 1.0, 2.0), Write(3, 9.0, 9.5), Write(4, 10.5, 10.6), Write(5, 20.0, 21.0)]
    assert judge(attempt(2), writes) is Verdict.NEEDFUL


def test_counts_take_only_writes_of_the_same_key_and_doubt_for_needless():
    attempts = [
        attempt(1, key=1),
        attempt(1, key=2),
        attempt(1, key=3, reason="view"),
        attempt(1, key=4, outcome=Outcome.APPLIED, reason=""),
        attempt(1, key=5, outcome=Outcome.SUPERSEDED, reason=""),
    ]
    writes = {1: [Write(2, 8.0, 9.0)], 2: [Write(2, 10.5, 12.0)], 4: [Write(2, 8.0, 9.0)]}
    assert count(attempts, writes) == {
        "fills": 5,
        "refused": 3,
        "needless_refused": 2,
        "needless_ratio": 0.4,
        "in_doubt": 1,
        "refused_by_reason": {"stripe": 2, "view": 1},
        "needless_by_reason": {"stripe": 1, "view": 1},
    }


def test_no_fill_is_no_ratio():
    assert count([], {})["needless_ratio"] == 0.0


def test_the_chosen_keys_share_one_stripe():
    layout = Layout(stripes=256)
    keys = keys_of_one_stripe(layout, 20_000)
    assert 50 < len(keys) < 110
    assert {layout.place(f"contact:{key}") for key in keys} == {layout.place("contact:1")}
