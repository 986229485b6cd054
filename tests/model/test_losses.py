"""Worlds in which Redis, Kafka or the slot lose what they knew, around the shipped guard; and the long ones."""

from __future__ import annotations

import pytest

from tests.model.explorer import explore
from tests.model.worlds import LOSSES, SLOW, World


@pytest.mark.parametrize(
    "world", [*LOSSES, *(pytest.param(w, marks=pytest.mark.slow) for w in SLOW)], ids=lambda world: world.name
)
def test_no_loss_ends_stale_or_closed_for_good(world: World) -> None:
    result = explore(world)
    assert result.violation == "", "\n".join(result.trace)
    assert result.complete or world.deep
    assert result.states >= world.states, "the world has become smaller"
    assert result.admitted, "a guard that refuses everything proves nothing"
