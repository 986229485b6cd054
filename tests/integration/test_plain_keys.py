"""Plain views, one interleaving each, on a real Redis and Valkey; the stream is in memory."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc.control import Raise, encode_control
from cdc.errors import TransientError
from cdc.events import Position
from consumers import plain as plain_keys
from consumers.replay_planning import Wave
from consumers.replay_regions import Target, begin, finish
from invalidator import plain
from invalidator.guard import Beat
from invalidator.layout import Layout, Row, row_field
from invalidator.plain import Debt
from invalidator.plan import Invalidation
from invalidator.region import Region
from tests.fix_plain import PlainWorld
from tests.fix_redis import redis_of
from tests.fix_world import TOPIC


@pytest.fixture
def world(region: Region) -> PlainWorld:
    """Open, everything swept."""
    made = PlainWorld(region)
    made.open()
    made.beat()
    return made


def test_a_change_removes_the_key_and_no_entry_of_ours(world: PlainWorld) -> None:
    world.set()
    world.set(2)
    world.change({"id": 1})
    world.drain()
    assert not world.has()
    assert world.has(2)
    assert redis_of(world.region).hlen(world.region.layout.fences_key(0)) == 1, "no stripe learns of plain keys"


def test_what_a_filler_stored_before_the_change_was_visible_is_removed_once_more(world: PlainWorld) -> None:
    stamp = world.change({"id": 1})
    world.drain()
    world.set(value="old")  # read before the change was visible, stored after the first removal
    world.beat(f"{stamp}:{stamp + 5}:{stamp}")
    assert world.has(), "this heartbeat has not seen the change"
    assert list(world.owed()) == [world.key()]
    world.beat()
    assert not world.has()
    assert world.owed() == {}
    world.set(value="new")
    world.beat()
    assert world.has(), "what was stored since stays"


def test_a_change_that_is_known_to_be_visible_is_removed_once(
    world: PlainWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is behind hears heartbeats before the records of before them: there is no debt to write."""
    world.change({"id": 1})
    world.heartbeat()
    world.set()
    monkeypatch.setattr(Region, "owe", None)
    world.drain()
    assert not world.has()


def test_another_worker_pays_what_one_that_was_killed_owes(world: PlainWorld) -> None:
    world.change({"id": 1})
    world.drain()
    world.set(value="old")
    world.worker = world.new_worker(views=world.views)
    world.drain()
    assert world.has()
    world.beat()
    assert not world.has()


def test_rows_do_not_move_past_a_key_that_could_not_be_removed(
    world: PlainWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.set()
    world.change({"id": 1})

    def fail(*_: object) -> int:
        raise TransientError("no")

    with monkeypatch.context() as patch:
        patch.setattr(world.region, "unlink_plain", fail)
        with pytest.raises(TransientError):
            world.drain()
    assert Row.parse(world.region.header(0)[row_field(TOPIC, 0)]).next_offset == 0
    world.drain()
    assert not world.has()


def test_a_debt_that_grew_while_it_was_paid_stays(world: PlainWorld) -> None:
    world.change({"id": 1})
    world.drain()
    before = dict(world.region.owed(0))
    world.change({"id": 1})
    world.drain()
    after = world.owed()
    assert after[world.key()] != before[world.key()]
    world.region.pay(0, {world.key(): before[world.key()]}, {})
    assert world.owed() == after
    world.region.pay(0, after, {})
    assert world.owed() == {}


def test_more_debts_than_are_kept_become_their_views(world: PlainWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_keys, "OWED_MAX", 5)
    for number in range(20):
        world.change({"id": number})
    world.drain()
    assert "*contact" in world.owed()
    assert len(world.owed()) <= 6
    for number in range(20):
        world.set(number, "old")
    world.beat()
    assert not any(world.has(number) for number in range(20))
    assert world.owed() == {}


def test_the_debt_of_a_view_that_is_no_more_is_dropped(world: PlainWorld) -> None:
    world.region.owe(0, [Debt("gone:1", "gone", Position(1, world.lsn, 0).text, (f"{1:016x}",))], None, 0)
    assert list(world.owed()) == ["*gone"]
    world.beat()
    assert world.owed() == {}


def test_a_truncate_sweeps_the_view_at_once_and_when_it_is_visible(world: PlainWorld) -> None:
    strangers = [
        f"{world.region.layout.prefix}:contact:1:notes",
        f"{world.region.layout.prefix}:contact:a b",
        "contact:1",
    ]
    for name in strangers:
        redis_of(world.region).set(name, "")
    for number in range(2_500):
        world.set(number)
    stamp = world.change(None, op="t")
    world.drain()
    assert not any(world.has(number) for number in range(2_500))
    world.set(value="old")
    world.beat(f"{stamp}:{stamp + 5}:{stamp}")
    assert world.has()
    world.beat()
    assert not world.has()
    assert all(redis_of(world.region).exists(name) for name in strangers), "they only look like keys of the view"
    world.set(value="new")
    world.beat()
    assert world.has()


def test_a_sweep_that_was_interrupted_is_done_by_the_next_worker(
    world: PlainWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3_000):
        world.set(number)
    world.change(None, op="t")
    with monkeypatch.context() as patch:
        patch.setattr(plain_keys, "SWEEP_SECONDS", 0.0)
        while (
            not redis_of(world.region)
            .hget(world.region.layout.header_key(0), row_field(TOPIC, 0))
            .startswith(b"%016x" % 1)
        ):
            world.worker.turn()
    left = sum(world.has(number) for number in range(3_000))
    assert left, "the row has moved, the sweep is under way"
    world.worker = world.new_worker(views=world.views)
    world.drain()
    assert not any(world.has(number) for number in range(3_000))


def test_a_closed_view_is_swept_when_it_closes_and_when_it_opens(world: PlainWorld) -> None:
    world.set()
    order = Raise(source="shop", position="", region=None, view="contact", key=None, reason="test")
    world.publish(encode_control(order))
    world.drain()
    assert not world.has()
    world.set(value="from before the closing")
    world.beat()
    world.beat()
    assert world.has(), "it is closed, and was swept for that"
    world.beat()
    assert not world.has(), "it is open"
    world.set(value="from before it opened")
    world.beat()
    assert not world.has(), "all that its fence names is visible"
    world.set()
    world.beat()
    assert world.has()


def test_an_order_for_a_key_removes_it_twice(world: PlainWorld) -> None:
    world.set()
    world.set(2)
    world.stamp += 1
    order = Raise(
        source="shop", position="", region=None, view="contact", key=world.key(), reason="test", stamp=world.stamp
    )
    world.publish(encode_control(order))
    world.drain()
    assert not world.has()
    world.set()
    world.beat()
    assert not world.has()
    assert world.has(2)


def test_a_region_that_was_lost_is_swept(world: PlainWorld) -> None:
    redis_of(world.region).unlink(*redis_of(world.region).keys(f"{{{world.region.layout.prefix}:*"))
    world.set()
    world.drain()
    assert not world.has()


def test_a_lost_hash_of_debts_closes_the_view(world: PlainWorld) -> None:
    world.change({"id": 1})
    world.drain()
    redis_of(world.region).unlink(world.region.layout.owed_key(0))
    world.set(value="old")
    world.drain()
    assert world.alarms("guard_lost") == 1
    assert not world.has(), "it closed"
    world.set(value="old")
    for _ in range(4):
        world.beat()
    assert not world.has(), "and opened"
    world.set()
    world.beat()
    assert world.has()
    assert world.alarms("guard_lost") == 1


def test_a_mass_change_sweeps_the_view(world: PlainWorld) -> None:
    world.worker = world.new_worker(views=world.views, mass_change_keys=3)
    world.set(99)
    world.stamp += 1
    for number in range(5):
        world.change({"id": number}, stamp=world.stamp)
    world.drain()
    assert not world.has(99)


def test_a_rolled_back_shard_pays_again(world: PlainWorld) -> None:
    """On one server: what loses the second removal loses its payment."""
    world.change({"id": 1})
    world.drain()
    world.set(value="old")
    names = [world.region.layout.owed_key(0), world.key()]
    dumps = [redis_of(world.region).dump(name) for name in names]
    world.beat()
    assert not world.has()
    for name, dump in zip(names, dumps, strict=True):
        redis_of(world.region).restore(name, 0, dump, replace=True)
    world.beat()
    assert not world.has()


def test_a_replayed_range_removes_the_keys_that_it_names(world: PlainWorld) -> None:
    target = Target(world.region, world.views)
    world.set()
    world.set(2)
    changed = Invalidation("contact", world.key(), Position(1, world.lsn, 0).text, (f"{world.stamp:016x}",))
    wave = Wave({("contact", world.key()): changed}, {}, Counter(), Counter())
    finish(begin(wave, [target]), [target], lambda: False)
    assert not world.has()
    assert world.has(2)
    assert target.counts["unlinked"] == 1
    assert world.owed() == {}, "what a replay removes was visible long ago"


def test_a_sharded_region_does_the_same(region: Region) -> None:
    world = PlainWorld(Region("test", region._nodes, Layout(prefix=region.layout.prefix, shards=8, stripes=256)))
    world.open()
    world.beat()
    for number in range(50):
        world.set(number)
    for number in range(40):
        world.change({"id": number})
    world.drain()
    assert [number for number in range(50) if world.has(number)] == list(range(40, 50))
    for number in range(50):
        world.set(number, "old")
    world.beat()
    assert [number for number in range(50) if world.has(number)] == list(range(40, 50))
    world.change(None, op="t")
    world.drain()
    assert not any(world.has(number) for number in range(50))


_STAMPS = st.integers(1, 30).map(lambda n: f"{n:016x}")
_POSITIONS = st.builds("{:08x}{:016x}00000000".format, st.integers(1, 2), st.integers(1, 30))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rounds=st.lists(
        st.tuples(
            st.lists(
                st.builds(
                    Debt, st.sampled_from(["a", "b", "c", "d"]), st.sampled_from(["v", "w"]), _POSITIONS,
                    st.lists(_STAMPS, min_size=1, max_size=3, unique=True).map(lambda some: tuple(sorted(some))),
                ),
                max_size=4,
            ),
            st.none() | st.builds(lambda at, xmin, up: Beat(at, f"p{xmin}{up}"), _POSITIONS, _STAMPS, _STAMPS),
        ),
        max_size=12,
    ),
    owed_max=st.integers(0, 4),
)  # fmt: skip
def test_lua_and_python_owe_alike(region: Region, rounds: list[tuple[list[Debt], Beat | None]], owed_max: int) -> None:
    owed: dict[str, str] = {}
    redis_of(region).unlink(region.layout.owed_key(0))
    for debts, beat in rounds:
        plain.owe(owed, debts, beat, owed_max)
        region.owe(0, debts, beat, owed_max)
        assert dict(region.owed(0)) == owed
