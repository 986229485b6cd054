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
        "      if low <= running and running <= high then return false end\n",
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
        "  local outcome = compare(h, owned, digest) or compare(",
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
    Mutant(
        "9: a raise that met a closed view is forgotten when it opens",
        "invalidator/lua/61_pass.lua",
        "larger(stamp, ARGV[3])",
        "ARGV[3]",
        REGION + "test_a_truncate_that_meets_a_closed_view_is_not_forgotten_when_it_opens",
    ),
    Mutant(
        "10: a generation is the maximum of its raises",
        "invalidator/lua/30_shard.lua",
        "  return larger(position, old:sub(1, 24) .. string.format('%08x', tonumber(old:sub(25), 16) + 1))\n",
        "  return larger(position, old)\n",
        REGION + "test_a_raise_logged_earlier_and_applied_later_still_kills",
    ),
    Mutant(
        "11: rows do not say which views planned them",
        "invalidator/lua/30_shard.lua",
        "    if planned ~= digest and planned ~= ZERO_STAMP then\n",
        "    if false then\n",
        REGION + "test_a_row_moved_by_a_worker_with_other_views_is_not_taken_as_applied",
    ),
    Mutant(
        "12: a topic's identity is not compared",
        "consumers/invalidate.py",
        "row.topic_id != now:",
        "False:",
        REGION + "test_a_topic_that_was_made_again_is_a_gap_even_at_the_same_offset",
    ),
    Mutant(
        "13: a late heartbeat counts",
        "invalidator/lua/60_heartbeat.lua",
        "is_newest and redis.call('HGETALL', h) or {}",
        "redis.call('HGETALL', h)",
        REGION + "test_a_heartbeat_that_a_paused_capture_publishes_late_opens_nothing",
    ),
    Mutant(
        "14: a gap that Kafka reports closes nothing",
        "consumers/invalidate.py",
        "if broken or self._gap:",
        "if broken:",
        REGION + "test_a_gap_that_kafka_reports_closes_the_region",
    ),
    Mutant(
        "15: sequences outlive the rows they were read from",
        "consumers/invalidate.py",
        "            self._sequence[name] = 0\n",
        "            pass\n",
        REGION + "test_a_passing_fault_on_a_new_partition_is_no_gap",
    ),
    Mutant(
        "16: a view that nobody plans stays open",
        "consumers/invalidate.py",
        "if name not in ours and name != REGION_SCOPE",
        "if False and name != REGION_SCOPE",
        REGION + "test_a_view_that_was_gone_for_a_while_comes_back_closed",
    ),
    Mutant(
        "17: a record without a header leaves its number behind",
        "consumers/invalidate.py",
        "            self._sequence[name] = 0  # its number is not known\n",
        "",
        REGION + "test_a_record_after_one_without_a_header_is_no_gap",
    ),
    Mutant(
        "18: a call takes as many arguments as there are keys",
        "invalidator/lua/10_text.lua",
        "local SLICE = 1000",
        "local SLICE = 100000",
        REGION + "test_more_keys_than_one_redis_call_takes_are_applied",
    ),
    Mutant(
        "19: a record of another table is ignored",
        "consumers/invalidate.py",
        "        if envelope.table != table:\n",
        "        if False:\n",
        REGION + "test_a_record_of_another_table_kills_the_views_of_its_topic",
    ),
    Mutant(
        "20: a table that is not captured closes nothing",
        "consumers/invalidate.py",
        "sorted(missing ^ self._uncaptured)",
        "sorted(set(self._uncaptured) - missing - missing)",
        REGION + "test_a_table_that_is_not_captured_closes_its_views_until_three_heartbeats_after_it_is",
    ),
]
