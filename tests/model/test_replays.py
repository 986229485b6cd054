"""Worlds in which any record may be applied once more, without rows, at any time, around the shipped guard."""

from __future__ import annotations

import pytest

from tests.model.explorer import explore
from tests.model.worlds import REPLAYS, SLOW_REPLAYS, World


@pytest.mark.parametrize(
    "world",
    [*REPLAYS, *(pytest.param(w, marks=pytest.mark.slow) for w in SLOW_REPLAYS)],
    ids=lambda world: world.name,
)
def test_no_replay_ends_stale_or_writes_what_is_not_the_newest_that_was_applied(world: World) -> None:
    result = explore(world)
    assert result.violation == "", "\n".join(result.trace)
    assert result.complete or world.deep
    assert result.states >= world.states, "the world has become smaller"
    assert result.admitted, "a guard that refuses everything proves nothing"
