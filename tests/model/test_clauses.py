"""The model can fail: with one clause of the protocol broken it finds the stale entry that the clause prevents."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from consumers import batching
from invalidator.plan import Changes, Invalidation
from tests.model import worker
from tests.model.clauses import CLAUSES, Clause, broken
from tests.model.explorer import explore

STATES_MAX = 1_000_000


def keep_the_newest(planned: Iterable[Invalidation], changes: Changes) -> None:
    changes.update({(one.view, one.key): one for one in planned})


@pytest.fixture
def outside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the worker does wrong as well."""
    match request.param:
        case "the worker sends its newest heartbeat":
            before = worker.beat_before
            monkeypatch.setattr(worker, "beat_before", lambda env, mind, _: before(env, mind, "f" * 32))
        case "coalescing keeps the stamps of the newest":
            monkeypatch.setattr(batching, "coalesce", keep_the_newest)
        case other:
            assert other == ""


@pytest.mark.parametrize(
    ("clause", "outside"),
    [
        pytest.param(c, c.outside, id=c.name, marks=pytest.mark.slow if c.slow else ())
        for c in CLAUSES
    ],
    indirect=["outside"],
)  # fmt: skip
def test_the_model_sees_that_a_clause_is_broken(clause: Clause, outside: None) -> None:
    result = explore(clause.world, broken(clause), states_max=STATES_MAX)
    assert result.violation.startswith(clause.fault), f"{result.states} states, {result.violation or 'nothing'}"
    assert len(result.trace) > 1


@pytest.mark.slow
@pytest.mark.parametrize("world", list(dict.fromkeys(c.world for c in CLAUSES)), ids=lambda world: world.name)
def test_the_same_worlds_are_clean_with_every_clause(world: worker.World) -> None:
    result = explore(world)
    assert result.violation == "", "\n".join(result.trace)
    assert result.complete
