"""The mutants: each breaks one clause of the protocol, and names the test that must then fail."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """Replace `old`, which stands exactly once in `path`, by `new`; `killer` must fail. `quick`: part of `make test`."""

    name: str
    path: str
    old: str
    new: str
    killer: str
    quick: bool = False


RACE = "tests/integration/test_main_path.py::test_an_event_that_arrives_before_its_row_is_visible_refuses_the_fill"
REGION = "tests/integration/test_worker_and_region.py::"

MUTANTS = [
    Mutant(
        "1: a fill is not checked against what its read saw",
        "invalidator/lua/70_fill.lua",
        "  if not admits(fences[2] or fences[1], seen) then return {'REFUSED', 'stripe'} end\n",
        "",
        RACE,
        quick=True,
    ),
    Mutant(
        "2: a snapshot below xmax is taken to see everything",
        "invalidator/lua/10_text.lua",
        "    if seen:sub(i, i + 15) == stamp then return false end\n",
        "",
        REGION + "test_a_read_that_ran_while_the_writer_was_still_invisible_is_refused",
        quick=True,
    ),
    Mutant(
        "3: a lost fence hash refuses nothing",
        "invalidator/lua/70_fill.lua",
        "  if not fences[1] then return {'REFUSED', 'lost'} end\n",
        "  fences[1] = fences[1] or ('=' .. ZERO_POSITION)\n",
        REGION + "test_a_lost_fence_hash_refuses_and_comes_back_with_every_stamp",
    ),
    Mutant(
        "4: a lost fence hash comes back empty",
        "invalidator/lua/20_fence.lua",
        "  default = '-' .. position .. ZERO_STAMP .. stamp\n",
        "  default = '=' .. position\n",
        REGION + "test_a_lost_fence_hash_refuses_and_comes_back_with_every_stamp",
    ),
    Mutant(
        "5: a closed scope opens at the second heartbeat",
        "invalidator/lua/61_pass.lua",
        "scope:sub(66, 66) == '3' and scope:sub(67, 98) <= position",
        "scope:sub(66, 66) >= '2'",
        REGION + "test_a_cold_region_refuses_fills_until_the_third_heartbeat",
    ),
    Mutant(
        "6: an older event overwrites a refreshed entry",
        "invalidator/lua/40_apply.lua",
        "    if seen and seen:sub(1, 32) >= position then return 0, 1, 0 end\n",
        "",
        REGION + "test_a_refresh_writes_the_row_and_an_older_event_does_not_come_back",
    ),
    Mutant(
        "7: heartbeats do not compare the rows",
        "invalidator/lua/60_heartbeat.lua",
        "  local outcome = compare(h, owned) or compare(",
        "  local outcome = compare(",
        REGION + "test_a_redis_rolled_back_while_nothing_happens_is_found_by_the_next_heartbeat",
    ),
    Mutant(
        "8: a hole in a partition is not noticed",
        "consumers/invalidate.py",
        "if last and header.previous != last:",
        "if False:",
        REGION + "test_a_hole_in_a_partition_closes_the_region_and_raises_an_alarm",
    ),
]
