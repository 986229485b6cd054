"""Worlds of changes: every interleaving of writers, workers, readers and heartbeats, around the shipped guard."""

from __future__ import annotations

import pytest

from tests.model.explorer import explore
from tests.model.worlds import CHANGES, LOSSES, World


@pytest.mark.parametrize("world", CHANGES, ids=lambda world: world.name)
def test_no_interleaving_of_changes_ends_stale_or_goes_back_in_time(world: World) -> None:
    result = explore(world)
    assert result.violation == "", "\n".join(result.trace)
    assert result.complete
    assert result.states >= world.states, "the world has become smaller"
    assert result.admitted, "a guard that refuses everything proves nothing"


def test_the_worlds_of_every_run_have_more_than_a_million_states() -> None:
    assert sum(world.states for world in (*CHANGES, *LOSSES)) >= 1_000_000
