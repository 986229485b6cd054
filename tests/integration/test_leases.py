"""Leases on Redis and Valkey: one loader per key, so many per shard, and nothing that outlives its time."""

from __future__ import annotations

from invalidator.region import Region
from tests.waiting import wait_until

ONE, TWO = "a" * 16, "b" * 16


def test_a_key_is_leased_to_one_until_it_is_given_back(region: Region) -> None:
    assert region.lease(0, ["k1", "k2"], ONE, 60_000, 10) == ["GRANTED", "GRANTED"]
    assert region.lease(0, ["k1", "k3"], TWO, 60_000, 10) == ["HELD", "GRANTED"]
    assert region.lease(0, ["k1"], ONE, 60_000, 10) == ["HELD"]  # also from its holder's other threads
    assert region.lease(0, ["k1"], TWO, 0, 10) == ["RELEASED"]
    assert region.lease(0, ["k1"], TWO, 60_000, 10) == ["HELD"]  # only its holder gives it back
    region.lease(0, ["k1"], ONE, 0, 10)
    assert region.lease(0, ["k1"], TWO, 60_000, 10) == ["GRANTED"]


def test_no_more_than_so_many_live_in_a_shard(region: Region) -> None:
    assert region.lease(0, [f"k{n}" for n in range(5)], ONE, 60_000, 3) == ["GRANTED"] * 3 + ["FULL"] * 2
    assert region.lease(0, ["k0", "other"], TWO, 60_000, 3) == ["HELD", "FULL"]
    region.lease(0, ["k1"], ONE, 0, 3)
    assert region.lease(0, ["other", "another"], TWO, 60_000, 3) == ["GRANTED", "FULL"]


def test_a_lease_that_was_forgotten_ends_by_itself(region: Region) -> None:
    assert region.lease(0, ["k1", "k2"], ONE, 30, 2) == ["GRANTED", "GRANTED"]
    wait_until(lambda: region.lease(0, ["k1"], TWO, 60_000, 2) == ["GRANTED"], "the lease has run out", seconds=5)
    assert region.lease(0, ["k3", "k4"], TWO, 60_000, 2) == ["GRANTED", "FULL"]  # k2's has run out too
