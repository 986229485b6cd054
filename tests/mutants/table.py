"""The mutants: each breaks one clause of the protocol, and names the test that must then fail.

`docs/reliability.md` shows this table; a unit test keeps the two equal.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """Replace `old`, which stands exactly once in `path`, by `new`; `killer` must fail.

    `clause`: the promise and the section of DESIGN that it breaks. `quick`: part of `make test`.
    """

    name: str
    clause: str
    path: str
    old: str
    new: str
    killer: str
    quick: bool = False


RACE = "tests/integration/test_main_path.py::test_an_event_that_arrives_before_its_row_is_visible_refuses_the_fill"
REGION = "tests/integration/test_worker_and_region.py::"
DOUBTS = "tests/integration/test_worker_doubts.py::"
CLAUSE = "tests/integration/test_guard_clauses.py::"
TWIN = "tests/property/test_guard_twin.py::"
REPLAY = "tests/integration/test_replay_guard.py::"
PLAN = "tests/unit/invalidator/test_plan.py::"
READER = "tests/unit/invalidator/test_reader.py::"
CAPTURE = "tests/unit/consumers/test_capture.py::"
STANDBY = "tests/integration/test_standby.py::"
FILLS = "tests/property/test_guard_twin_scripts.py::test_lua_and_python_fill_alike"
REBUILD = "tests/integration/test_replay_database.py::"
TOPOLOGIES = "tests/integration/test_topologies.py::"
SESSIONS = "tests/unit/invalidator/test_loads_on_sessions.py::"
ADAPTERS = "tests/integration/test_adapters.py::"
PLAIN_KEYS = "tests/integration/test_plain_keys.py::"
PLAIN_LAYOUT = "tests/integration/test_plain_layout.py::"

LUA = "invalidator/lua/"
WORKER = "consumers/invalidate.py"
INTAKE = "consumers/intake.py"
CHECKPOINT = "consumers/checkpoint.py"
NODES = "invalidator/nodes.py"

MUTANTS = [
    # -- fences
    Mutant(
        "a fill is not checked against its stripe",
        "P1 §4.5",
        LUA + "70_fill.lua",
        "      if not admitted[fence] then reply = 'REFUSED stripe' end\n",
        "",
        RACE,
        quick=True,
    ),
    Mutant(
        "a fill is not checked against its view",
        "P1 §4.5",
        LUA + "70_fill.lua",
        "  if not admits(view:sub(50), seen) then return 'REFUSED view' end\n",
        "",
        REGION + "test_truncate_makes_every_entry_of_the_view_unreadable",
    ),
    Mutant(
        "a fill is not checked against its region",
        "P1 §4.5",
        LUA + "70_fill.lua",
        "  if not admits(region:sub(50), seen) then return 'REFUSED region' end\n",
        "",
        REGION + "test_a_heartbeat_that_a_paused_capture_publishes_late_opens_nothing",
    ),
    Mutant(
        "a snapshot below xmax is taken to see everything",
        "P1 §4.5",
        LUA + "10_text.lua",
        "      if low <= running and running <= high then return false end\n",
        "",
        REGION + "test_a_read_that_ran_while_the_writer_was_still_invisible_is_refused",
        quick=True,
    ),
    Mutant(
        "a snapshot is taken to see what began after it",
        "P1 §4.5",
        LUA + "10_text.lua",
        "    if high >= seen:sub(18, 33) then return false end\n",
        "",
        REGION + "test_a_change_removes_the_entry_and_an_older_read_cannot_bring_it_back",
    ),
    Mutant(
        "a fence keeps the newest stamp only",
        "P1 §4.2 merge",
        LUA + "20_fence.lua",
        "  local all = union(kept, stamps)\n",
        "  local all = stamps\n",
        CLAUSE + "test_a_fence_keeps_every_stamp_until_a_heartbeat_has_covered_it",
    ),
    Mutant(
        "any heartbeat empties a fence, whether it saw the stamps or not",
        "P1 §4.2 reset",
        LUA + "20_fence.lua",
        "        if not covers(seen, stamp, newest) then uncovered",
        "        if false then uncovered",
        CLAUSE + "test_a_heartbeat_that_has_not_seen_a_stamp_drops_it_from_no_fence",
    ),
    Mutant(
        "a record of before a heartbeat shrinks a fence by it",
        "P1 §4.2 reset",
        LUA + "20_fence.lua",
        " and position > beat:sub(1, 32) then\n",
        " then\n",
        TWIN + "test_lua_and_python_merge_and_admit_alike",
    ),
    Mutant(
        "no heartbeat ever shrinks a fence",
        "liveness §4.2 reset",
        LUA + "20_fence.lua",
        "  if beat ~= '' and ",
        "  if false and ",
        CLAUSE + "test_a_heartbeat_that_covers_a_stamp_lets_it_go",
    ),
    Mutant(
        "coalescing keeps the newest change's stamp only",
        "P1 §4.4.3",
        "invalidator/plan.py",
        "stamps=tuple(sorted({*known.stamps, *invalidation.stamps})))",
        "stamps=invalidation.stamps)",
        CLAUSE + "test_a_fill_that_saw_one_of_two_coalesced_changes_dies",
    ),
    Mutant(
        "a lost fence hash refuses nothing",
        "P1 §4.2 lost",
        LUA + "70_fill.lua",
        "  local fences = fences_of(KEYS[2], stripes)\n",
        "  local fences = fences_of(KEYS[2], stripes)\n  fences['*'] = fences['*'] or ('=' .. ZERO_POSITION)\n",
        REGION + "test_a_lost_fence_hash_refuses_and_comes_back_with_every_stamp",
    ),
    Mutant(
        "a lost fence hash comes back empty",
        "P1 §4.2 lost",
        LUA + "31_rows.lua",
        "  default = '-' .. position .. ZERO_STAMP .. stamp\n",
        "  default = '=' .. position\n",
        REGION + "test_a_lost_fence_hash_refuses_and_comes_back_with_every_stamp",
    ),
    Mutant(
        "a row's stamp is its last record's, not its highest",
        "P1 §4.2 lost",
        LUA + "31_rows.lua",
        "then stamp = larger(stamp, row:sub(105, 120)) end\n",
        "then stamp = row:sub(105, 120) end\n",
        CLAUSE + "test_a_lost_fence_comes_back_with_the_highest_stamp_ever_not_the_last",
    ),
    Mutant(
        "nobody hears of a lost fence hash",
        "P5 §4.2 lost",
        WORKER,
        "        if restored:\n",
        "        if False:\n",
        DOUBTS + "test_a_lost_fence_hash_is_an_alarm",
    ),
    # -- closed scopes
    Mutant(
        "a closed scope opens at the second heartbeat",
        "P1 §4.2 closed",
        LUA + "61_pass.lua",
        "scope:sub(66, 66) == '3' and scope:sub(83, 114) <= position",
        "scope:sub(66, 66) >= '2'",
        REGION + "test_a_cold_region_refuses_fills_until_the_third_heartbeat",
    ),
    Mutant(
        "a scope opens with the heartbeat's stamp only",
        "P1 §4.2 closed",
        LUA + "61_pass.lua",
        "larger(stamp, ARGV[3])",
        "ARGV[3]",
        REGION + "test_a_truncate_that_meets_a_closed_view_is_not_forgotten_when_it_opens",
    ),
    Mutant(
        "a late heartbeat counts",
        "P1 §4.2 closed",
        LUA + "60_hear.lua",
        "    if not newest or newest:sub(1, 32) < position then",
        "    if true then",
        REGION + "test_a_heartbeat_that_a_paused_capture_publishes_late_opens_nothing",
    ),
    Mutant(
        "heartbeats of several captures count together",
        "P1 §4.2 closed",
        LUA + "60_hear.lua",
        "scope:sub(67, 82) == instance and ",
        "",
        CLAUSE + "test_heartbeats_that_several_replaced_captures_publish_late_open_nothing",
    ),
    Mutant(
        "heartbeats of before the closing count",
        "P1 §4.2 closed",
        LUA + "60_hear.lua",
        " and scope:sub(50, 65) <= offset and",
        " and",
        CLAUSE + "test_heartbeats_that_were_published_before_a_cold_start_do_not_open_it",
    ),
    Mutant(
        "a record that closes scopes moves its row and closes nothing",
        "P5 §4.2 closed",
        "consumers/batching.py",
        "closings=tuple(Closing(scope, closed_from) for scope in self.closings)",
        "closings=()",
        REGION + "test_a_record_without_our_header_closes_its_views",
        quick=True,
    ),
    Mutant(
        "an order moves the control row and closes nothing",
        "P5 §4.1",
        "invalidator/lua/60_hear.lua",
        "  close_scopes(h, f, ARGV, 14 + 2 * rows)\n",
        "",
        "tests/integration/test_worker_doubts.py::test_an_order_for_a_table_closes_the_views_that_it_feeds",
    ),
    Mutant(
        "a control topic made again leaves closed scopes waiting for its old offsets",
        "liveness §4.7",
        LUA + "50_close.lua",
        "  if ARGV[2] ~= '' then\n",
        "  if false then\n",
        DOUBTS + "test_a_control_topic_that_was_made_again_closes_the_region_and_it_opens_by_the_new_one",
    ),
    Mutant(
        "an ordered key is unlinked, its stripe forgets the order",
        "P1 §4.3",
        LUA + "60_hear.lua",
        "    redis.call('HSET', f, stripe, merge(fence, newest:sub(1, 32), stamp, ''))\n",
        "",
        DOUBTS + "test_an_ordered_key_is_fenced_and_an_older_read_cannot_bring_it_back",
    ),
    # -- generations
    Mutant(
        "a generation is the maximum of its raises",
        "P1 §4.3",
        LUA + "30_shard.lua",
        "  return larger(position, old:sub(1, 24) .. string.format('%08x', tonumber(old:sub(25), 16) + 1))\n",
        "  return larger(position, old)\n",
        REGION + "test_a_raise_logged_earlier_and_applied_later_still_kills",
    ),
    Mutant(
        "a raise moves no generation",
        "P1 §4.3",
        LUA + "40_apply.lua",
        "scope:sub(1, 1) .. raised(scope, position) .. scope:sub(34, 49) .. rest",
        "scope:sub(1, 49) .. rest",
        REGION + "test_truncate_makes_every_entry_of_the_view_unreadable",
    ),
    Mutant(
        "a raise merges no fence",
        "P1 §4.3",
        LUA + "40_apply.lua",
        "  if is_open(scope) and position:sub(1, 8) == epoch then rest = merge(rest, position, stamps, beat) end\n",
        "",
        REGION + "test_truncate_makes_every_entry_of_the_view_unreadable",
    ),
    Mutant(
        "an entry of another generation of its region is readable",
        "P1 §4.3",
        LUA + "30_shard.lua",
        "    and head:sub(5, 36) == generation(region) and",
        "    and",
        DOUBTS + "test_a_control_record_that_cannot_be_read_closes_the_region",
    ),
    Mutant(
        "an entry of another generation of its view is readable",
        "P1 §4.3",
        LUA + "30_shard.lua",
        " and head:sub(37, 68) == generation(view)\n",
        "\n",
        REGION + "test_truncate_makes_every_entry_of_the_view_unreadable",
    ),
    Mutant(
        "a scope opens under its old generation",
        "P1 §4.2 cold",
        LUA + "61_pass.lua",
        "'o' .. raised(scope, position) .. scope:sub(34, 49)",
        "'o' .. scope:sub(2, 49)",
        DOUBTS + "test_a_control_record_that_cannot_be_read_closes_the_region",
    ),
    # -- apply
    Mutant(
        "a row behind what was believed is moved on all the same",
        "P1 §4.4.1, §4.7",
        LUA + "31_rows.lua",
        "      outcome = 'REWIND'\n",
        "      pending = pending + 1\n",
        CLAUSE + "test_a_redis_rolled_back_is_found_by_the_next_batch",
        quick=True,
    ),
    Mutant(
        "a row ahead of what was believed is moved back",
        "P4 §4.4.1",
        LUA + "31_rows.lua",
        "      outcome = outcome or ahead\n",
        "      pending = pending + 1\n",
        DOUBTS + "test_a_zombie_that_writes_after_another_took_over_changes_nothing",
    ),
    Mutant(
        "what a script answered is not looked at",
        "P5 §4.4",
        WORKER,
        "            if applied.outcome is not Outcome.APPLIED:\n",
        "            if False:\n",
        CLAUSE + "test_a_redis_rolled_back_is_found_by_the_next_batch",
    ),
    Mutant(
        "heartbeats do not compare the rows",
        "P1 §4.1",
        LUA + "60_hear.lua",
        "  local outcome = compare(h, owned, digest, 'DISPLACED') or compare(",
        "  local outcome = compare(",
        REGION + "test_a_redis_rolled_back_while_nothing_happens_is_found_by_the_next_heartbeat",
    ),
    Mutant(
        "rows do not say which views planned them",
        "P5 §4.2 digest",
        LUA + "31_rows.lua",
        "    if planned ~= digest and planned ~= ZERO_STAMP then\n",
        "    if false then\n",
        REGION + "test_a_row_moved_by_a_worker_with_other_views_is_not_taken_as_applied",
    ),
    Mutant(
        "an invalidated entry is kept if its fill saw one of the changes",
        "P1 §4.4.3",
        LUA + "40_apply.lua",
        "  return seen and seen:sub(1, 1) == 'p' and covers_all(seen, stamps, position)\n",
        "  return seen and seen:sub(1, 1) == 'p' and covers(seen, stamps:sub(-16), position)\n",
        CLAUSE + "test_a_fill_that_saw_one_of_two_coalesced_changes_dies",
    ),
    Mutant(
        "an older event overwrites a refreshed entry",
        "P4 §4.4.4",
        LUA + "40_apply.lua",
        "    if shows(head, position) then return 0, 1, 0 end\n",
        "",
        REGION + "test_a_refresh_writes_the_row_and_an_older_event_does_not_come_back",
    ),
    Mutant(
        "a refresh does not look at its stripe",
        "P4 §4.4.4",
        LUA + "40_apply.lua",
        "  return position == met or (not replay and position > met)\n",
        "  return position == met or not replay\n",
        CLAUSE + "test_an_older_row_image_is_not_written_after_a_newer_delete",
    ),
    Mutant(
        "a refresh does not look at its view",
        "P4 §4.4.4",
        LUA + "40_apply.lua",
        " and position >= view:sub(51, 82)\n",
        "\n",
        CLAUSE + "test_an_older_row_image_is_not_written_after_a_newer_truncate",
    ),
    Mutant(
        "a refresh does not look at its region",
        "P4 §4.4.4",
        LUA + "40_apply.lua",
        " and position >= region:sub(51, 82)",
        "",
        CLAUSE + "test_an_older_row_image_is_not_written_after_the_region_was_closed",
    ),
    Mutant(
        "a fill that a refresh outdates is overwritten",
        "P4 §4.4.4",
        LUA + "40_apply.lua",
        "      return redis.call('UNLINK', key), 0, 0\n    end\n",
        "    end\n",
        CLAUSE + "test_a_fill_that_a_refresh_outdates_is_removed_and_not_overwritten",
    ),
    # -- replay
    Mutant(
        "a replay merges the fences again",
        "P4 §4.9",
        LUA + "41_apply_batch.lua",
        "  if replay then return {'APPLIED', unlinked, kept, written, restored} end\n",
        "",
        REPLAY + "test_a_replay_makes_no_fence_grow",
        quick=True,
    ),
    Mutant(
        "a replay writes what its stripe has not met",
        "P4 §4.9",
        LUA + "40_apply.lua",
        "(not replay and position > met)",
        "position > met",
        REPLAY + "test_ahead_of_the_worker_an_older_value_does_not_follow_a_newer_one",
    ),
    Mutant(
        "a replay removes what a newer event wrote",
        "P4 §4.9",
        LUA + "41_apply_batch.lua",
        " or (replay and shows(head, position))",
        "",
        REPLAY + "test_an_older_delete_leaves_the_entry_of_a_newer_event",
    ),
    Mutant(
        "a replay writes entries of other views than the region's",
        "P4 §4.9",
        "consumers/replay_regions.py",
        "            self._check_views(header)\n",
        "",
        REPLAY + "test_views_that_are_not_the_regions_own_are_refused",
    ),
    Mutant(
        "a call takes as many arguments as there are keys",
        "P5 §4.4",
        LUA + "10_text.lua",
        "local SLICE = 1000",
        "local SLICE = 100000",
        REGION + "test_more_keys_than_one_redis_call_takes_are_applied",
    ),
    # -- fill and read
    Mutant(
        "a proof of another server's history is admitted",
        "P1 §4.0",
        LUA + "70_fill.lua",
        "  if epoch:sub(10) ~= ARGV[2] then return 'REFUSED history' end\n",
        "",
        REGION + "test_a_read_of_another_server_history_is_refused",
    ),
    Mutant(
        "a proof that cannot exist is admitted",
        "P1 §4.5",
        LUA + "70_fill.lua",
        "return 'REFUSED forged'",
        "newest = newest",
        REGION + "test_a_proof_beyond_what_can_exist_is_refused_as_forged",
    ),
    Mutant(
        "an older read replaces a newer entry",
        "P4 §4.5",
        LUA + "70_fill.lua",
        "    if head and readable(head, region, view) and not outdates(seen, head) then reply = 'SUPERSEDED' end\n",
        "",
        CLAUSE + "test_an_older_read_does_not_replace_a_newer_one",
    ),
    Mutant(
        "a reader with another definition of the view is served",
        "P1 §4.2 digest",
        LUA + "80_read.lua",
        " and view:sub(34, 49) == ARGV[3] and entry",
        " and entry",
        CLAUSE + "test_a_stale_view_definition_reads_and_fills_nothing",
    ),
    Mutant(
        "an entry that names another key is served",
        "P1 §4.6",
        "invalidator/entry.py",
        "if data[names:payload] == view + key else None",
        "if True else None",
        READER + "test_an_entry_that_is_not_the_one_asked_for_is_a_miss",
    ),
    Mutant(
        "a load that wrote proves what it read",
        "P1 §4.5",
        "invalidator/loading.py",
        "if still != text or not unwritten:",
        "if still != text:",
        READER + "test_what_is_not_proven_is_returned_and_not_cached",
    ),
    Mutant(
        "a watermark moves while a row is before its barrier",
        "P2 §4.6",
        LUA + "61_pass.lua",
        "    if (row and row:sub(1, 16) or ZERO_STAMP) < ARGV[i + 1] then return {'REFUSED'} end\n",
        "",
        DOUBTS + "test_a_watermark_waits_for_the_slower_of_two_workers",
    ),
    # -- epochs, and what cannot be
    Mutant(
        "every heartbeat begins its epoch anew",
        "liveness §4.0",
        "invalidator/lua/32_closing.lua",
        "  if old:sub(1, 8) >= epoch then return end\n",
        "",
        "tests/integration/test_worker_and_region.py::test_a_cold_region_refuses_fills_until_the_third_heartbeat",
    ),
    Mutant(
        "a new epoch closes nothing",
        "P5 §4.0",
        "invalidator/lua/32_closing.lua",
        "  redis.call('HSET', h, 's:', closed(redis.call('HGET', h, 's:'), '', offset))\n  drop_fences(h, f)\n",
        "",
        "tests/integration/test_worker_and_region.py::test_a_new_epoch_closes_every_region_once",
    ),
    Mutant(
        "a record may claim any stamp and place",
        "P1 abuse",
        INTAKE,
        "        if header.position > bounds.position or header.stamp > bounds.stamp:\n",
        "        if False:\n",
        DOUBTS + "test_a_stamp_that_cannot_exist_closes_its_views_and_poisons_no_fence",
    ),
    Mutant(
        "a record ahead of the control topic is taken for forged at once",
        "liveness §4.1",
        WORKER,
        "                self._hear_everything()\n",
        "",
        DOUBTS + "test_records_of_a_new_epoch_wait_for_the_record_that_begins_it",
    ),
    Mutant(
        "a cold region starts behind the record that tells its epoch",
        "liveness §4.2 cold",
        CHECKPOINT,
        "max(first, end - CONTROL_REVIEW_RECORDS)",
        "end",
        DOUBTS + "test_a_region_that_starts_cold_behind_the_record_of_its_epoch_still_learns_it",
    ),
    # -- the worker's start, gaps, views
    Mutant(
        "a hole in a partition is not noticed",
        "P5 §4.8",
        INTAKE,
        "        if last and header.previous != last:\n",
        "        if False:\n",
        REGION + "test_a_hole_in_a_partition_closes_the_region_and_raises_an_alarm",
    ),
    Mutant(
        "a topic's identity is not compared",
        "P5 §4.7",
        CHECKPOINT,
        "row.topic_id != now:",
        "False:",
        REGION + "test_a_topic_that_was_made_again_is_a_gap_even_at_the_same_offset",
    ),
    Mutant(
        "records that Kafka no longer has are passed over",
        "P5 §4.7",
        CHECKPOINT,
        "        if not first <= row.next_offset <= end:\n",
        "        if False:\n",
        REGION + "test_records_that_kafka_no_longer_has_are_a_gap",
    ),
    Mutant(
        "a gap that Kafka reports closes nothing",
        "P5 §4.7",
        "consumers/checkpoint.py",
        "        if gap and not broken and not lost_control:\n            broken = list(owned)\n"
        "        if not broken and not lost_control and not gap and not unknown:\n",
        "        if not broken and not lost_control and not unknown:\n",
        "tests/integration/test_worker_and_region.py::test_a_gap_that_kafka_reports_closes_the_region",
    ),
    Mutant(
        "sequences outlive the rows they were read from",
        "P5 §4.8",
        WORKER,
        "        self._intake.sequences = dict(standing.sequences)\n",
        "        self._intake.sequences = dict(standing.sequences) | self._intake.sequences\n",
        REGION + "test_a_passing_fault_on_a_new_partition_is_no_gap",
    ),
    Mutant(
        "a record without a header leaves its number behind",
        "P5 §4.8",
        INTAKE,
        "        self.sequences[field] = 0  # its number is not known\n",
        "",
        REGION + "test_a_record_after_one_without_a_header_is_no_gap",
    ),
    Mutant(
        "a changed view keeps its entries",
        "P1 §4.3",
        CHECKPOINT,
        "        changed = {name: digest for name, digest in ours.items() if theirs.get(name) != digest}\n",
        "        changed: dict[str, str] = {}\n",
        REGION + "test_a_changed_view_begins_closed",
    ),
    Mutant(
        "a view that nobody plans stays open",
        "P1 §4.3",
        CHECKPOINT,
        "        changed |= dict.fromkeys(gone, NO_DIGEST)\n",
        "",
        REGION + "test_a_view_that_was_gone_for_a_while_comes_back_closed",
    ),
    Mutant(
        "a table that is not captured closes nothing",
        "P5 §4.1",
        "consumers/invalidate.py",
        "                    closings=self._closings_of_uncaptured(control, record.offset + 1),\n",
        "",
        "tests/integration/test_worker_and_region.py::test_a_table_that_is_not_captured_closes_its_views_until_three_heartbeats_after_it_is",
    ),
    Mutant(
        "a record of another table is ignored",
        "P5 §4.3",
        INTAKE,
        "                invalidations = self._planner.plan_unreadable(table, header, None, fault)\n",
        "                invalidations = []\n",
        REGION + "test_a_record_of_another_table_kills_the_views_of_its_topic",
    ),
    Mutant(
        "an unreadable body kills nothing",
        "P5 §4.3",
        INTAKE,
        "            invalidations = self._planner.plan_unreadable(table, header, record.key, str(error))\n",
        "            invalidations = [] if error else []\n",
        REGION + "test_an_unreadable_body_kills_the_key_that_its_record_names_and_the_stream_goes_on",
    ),
    Mutant(
        "a mass change that was raised once is never raised again",
        "P1 §4.3",
        INTAKE,
        "        self._counts.clear()\n        self._mass.clear()\n",
        "",
        DOUBTS + "test_a_mass_change_whose_raise_was_not_applied_is_raised_again",
    ),
    Mutant(
        "a transaction past the limit is forgotten instead of raised",
        "P1 §4.3",
        INTAKE,
        "                kept.append(msgspec.structs.replace(invalidation, key=None, value=None, cause=Cause.MASS_CHANGE))\n",
        "",
        DOUBTS + "test_a_transaction_of_many_keys_raises_its_view_once",
    ),
    Mutant(
        "a worker goes on from its belief after a lost reply",
        "P5 §4.4",
        WORKER,
        "            self._lose_footing()  # a script may or may not have run: ask the rows\n",
        "",
        REGION + "test_a_passing_fault_on_a_new_partition_is_no_gap",
    ),
    # -- planning
    Mutant(
        "a moved row kills its new key only",
        "P1 plan",
        "invalidator/plan.py",
        "                return [self._unlink(old_key, header), self._changed(new_key, envelope, header)]\n",
        "                return [self._changed(new_key, envelope, header)]\n",
        PLAN + "test_a_moved_row_kills_both_keys",
        quick=True,
    ),
    Mutant(
        "a value that the log did not repeat is stored",
        "P1 plan",
        "invalidator/plan.py",
        "        if any(is_unavailable(value) for value in row.values()):\n",
        "        if False:\n",
        PLAN + "test_a_refresh_never_stores_a_value_that_was_not_sent",
    ),
    # -- the source, the standby
    Mutant(
        "capture acknowledges a transaction before Kafka has it",
        "P5 §4.1",
        "consumers/capture.py",
        "        while waiting and waiting[0].batch.pending == 0:\n",
        "        while waiting:\n",
        CAPTURE + "test_a_transaction_is_acknowledged_only_with_all_before_it",
    ),
    Mutant(
        "the next heartbeat does not wait for the one before",
        "P1 §4.1",
        "consumers/capture.py",
        "        if self._outstanding is None and now >= self._beat_due:\n",
        "        if now >= self._beat_due:\n",
        CAPTURE + "test_the_next_heartbeat_is_committed_only_after_the_one_before_is_in_the_control_topic",
    ),
    Mutant(
        "a standby's snapshot is taken for a primary's",
        "P1 §2",
        "invalidator/loading.py",
        "        if standby:\n",
        "        if False:\n",
        STANDBY + "test_a_fill_from_a_lagging_standby_is_refused_and_from_one_that_caught_up_admitted",
    ),
    # -- loads on a session that the application owns
    Mutant(
        "an old snapshot counts as of now",
        "P2 §4.5",
        "invalidator/loading.py",
        "begun.time_ms if begun.renews else begun.began_ms",
        "begun.time_ms",
        SESSIONS + "test_a_load_in_repeatable_read_is_as_old_as_its_transaction",
    ),
    Mutant(
        "an old snapshot of a standby shows what is replayed now",
        "P1 §4.5",
        "invalidator/loading.py",
        "parse_lsn(begun.replayed) if begun.renews else 0",
        "parse_lsn(begun.replayed)",
        SESSIONS + "test_a_standby_shows_what_was_replayed_only_where_a_later_snapshot_is_taken",
    ),
    Mutant(
        "what an ORM session remembers proves something",
        "P1 §4.5",
        "invalidator/loading.py",
        " or begun.remembers or changed:",
        ":",
        SESSIONS + "test_what_an_orm_session_remembers_proves_nothing",
    ),
    Mutant(
        "a load that left its transaction proves something",
        "P1 §4.5",
        "invalidator/loading.py",
        "        if left or history is None",
        "        if history is None",
        SESSIONS + "test_a_load_that_ends_elsewhere_than_it_began_proves_nothing",
    ),
    Mutant(
        "what a transaction wrote is cached before its commit",
        "P1 §4.5",
        "invalidator/reading.py",
        "None if loaded.own else loaded.proof",
        "loaded.proof",
        ADAPTERS + "test_what_an_atomic_block_wrote_is_shown_to_it_and_not_cached",
    ),
    Mutant(
        "what a transaction wrote is kept in the process before its commit",
        "P1 §4.6",
        "invalidator/reading.py",
        "if known is not None and not loaded.own:",
        "if known is not None:",
        ADAPTERS + "test_what_an_atomic_block_wrote_is_shown_to_it_and_not_cached",
    ),
    # -- what an adversarial review found
    Mutant(
        "a mass change is told from others by its stamp alone",
        "P1 §4.3",
        "consumers/intake.py",
        "    return invalidation.position[:8] + invalidation.stamps[0]\n",
        "    return invalidation.stamps[0]\n",
        "tests/integration/test_review.py::test_a_transaction_id_given_out_again_in_a_new_epoch_is_another_transaction",
    ),
    Mutant(
        "a shard that has the record does not get its mass raise",
        "P1 §4.3",
        "consumers/batching.py",
        "if not had or i.cause is Cause.MASS_CHANGE",
        "if not had",
        "tests/integration/test_review.py::test_a_shard_that_is_ahead_of_the_others_gets_the_raise_that_stands_for_what_is_left_out",
    ),
    Mutant(
        "partitions that went and came back are read from where they are",
        "P1 §4.7",
        "consumers/invalidate.py",
        "            if self._lost or self._data.moves() != self._moves:\n",
        "            if self._lost or self._data.owned() != self._owned:\n",
        "tests/integration/test_review.py::test_partitions_lost_and_regained_within_one_fetch_are_read_from_their_rows",
    ),
    Mutant(
        "a gap that Kafka reports leaves the rows where they are",
        "liveness §4.7",
        "consumers/checkpoint.py",
        "            broken = list(owned)\n",
        "            broken = []\n",
        "tests/integration/test_review.py::test_a_partition_that_was_cut_short_and_grew_again_closes_the_region_once",
    ),
    Mutant(
        "the sequence of a shard that jumped counts for all",
        "P5 §4.8",
        "consumers/checkpoint.py",
        "key=lambda row: (row.next_offset, -row.sequence)",
        "key=lambda row: row.next_offset",
        "tests/integration/test_review.py::test_a_hole_is_seen_by_the_shard_that_knows_the_sequence_though_another_started_cold",
    ),
    Mutant(
        "a heartbeat that the region refused counts as passed",
        "P2 §4.6",
        "consumers/invalidate.py",
        "            if passed.outcome is Outcome.APPLIED:\n                self._metrics",
        "            self._passed_at = time.monotonic()\n            if passed.outcome is Outcome.APPLIED:\n                self._metrics",
        "tests/integration/test_review.py::test_a_worker_whose_heartbeats_are_refused_by_the_region_does_not_look_as_if_they_passed",
    ),
    Mutant(
        "a shard that is ahead of a batch is believed to stand at its end",
        "liveness §4.4.1",
        WORKER,
        "known[name] = max(offset, known.get(name, 0))",
        "known[name] = offset",
        "tests/integration/test_review.py::test_a_shard_that_jumped_is_not_believed_to_stand_where_the_others_do",
    ),
    # -- several servers
    Mutant(
        "a request that follows a slot on its way does not say so",
        "liveness §4.0",
        NODES,
        "self._redirected(ask, node), True",
        "self._redirected(ask, node), False",
        TOPOLOGIES + "test_a_slot_on_its_way_refuses_and_loses_nothing",
    ),
    Mutant(
        "who serves is not asked again after a fault",
        "liveness §4.0",
        NODES,
        "        if fault.remedy is Remedy.RECONNECT or fault is UNANSWERED:\n            self._doubted = True",
        "        return",
        TOPOLOGIES + "test_a_reader_whose_primary_is_gone_looks_who_serves_now",
    ),
    Mutant(
        "a replaced primary is used as long as it answers",
        "P2 §4.6",
        NODES,
        "        if time.monotonic() >= self._due_seconds:\n            self._verify()\n",
        "",
        TOPOLOGIES + "test_a_primary_that_sentinel_replaced_is_left_though_it_still_answers",
    ),
    Mutant(
        "a reply of one server is taken for that of another",
        "P5 §4.4",
        "invalidator/region.py",
        "reply: list[bytes] = node.answer()",
        "reply: list[bytes] = min(self._talking, key=id).answer()",
        TOPOLOGIES + "test_batches_sent_ahead_to_several_nodes_are_answered_each_by_its_own",
    ),
    # -- a rebuild from the database
    Mutant(
        "fills of one script are judged by the first of their reads",
        "P1 §4.9",
        LUA + "70_fill.lua",
        "    if proven ~= last then",
        "    if not last then",
        FILLS,
    ),
    Mutant(
        "a rebuild goes on after steps whose predecessors are not done",
        "§4.9 resumed",
        "consumers/replay_job.py",
        "        while self._next in self._early:\n",
        "        self._next = min(self._early)\n        while self._next in self._early:\n",
        "tests/unit/consumers/test_replay_job.py::test_steps_that_end_early_count_when_all_before_them_have_ended",
    ),
    Mutant(
        "what a rebuild could not prove is taken for done",
        "§4.9 refused",
        "consumers/rebuild.py",
        "            self._target.refused.add(region.name, left)\n",
        "",
        REBUILD + "test_what_changes_between_read_and_fill_is_read_again",
    ),
    Mutant(
        "a rebuild does not remove keys that the database lacks",
        "§4.9 deletes",
        "consumers/rebuild.py",
        "            return loaded.counts + self.remove(loaded.absent, keep_negative=True)\n",
        "            return loaded.counts\n",
        REBUILD + "test_a_sweep_removes_what_the_database_does_not_have",
    ),
    # -- plain views
    Mutant(
        "what is owed for a plain key is not written down",
        "P1 §4.10",
        "consumers/plain.py",
        "            self._region.owe(shard, debts, beat, OWED_MAX)\n",
        "            pass\n",
        PLAIN_KEYS + "test_another_worker_pays_what_one_that_was_killed_owes",
    ),
    Mutant(
        "a plain key is removed for the last time before its change is visible",
        "P1 §4.10",
        "invalidator/plain.py",
        "    return admits(fence, beat.seen)\n",
        "    return True\n",
        PLAIN_LAYOUT + "test_a_filler_that_read_before_the_change_was_visible_is_healed",
    ),
    Mutant(
        "a plain key that could not be removed is passed over",
        "P1 P5 §4.10",
        "consumers/plain.py",
        '        self._unlink(keys, "changed")\n',
        '        try:\n            self._unlink(keys, "changed")\n        except Exception:\n            pass\n',
        PLAIN_KEYS + "test_rows_do_not_move_past_a_key_that_could_not_be_removed",
    ),
    Mutant(
        "a debt that grew while it was paid is taken for paid",
        "P1 §4.10",
        LUA + "66_plain.lua",
        "if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then redis.call('HDEL', KEYS[1], ARGV[i]) end",
        "redis.call('HDEL', KEYS[1], ARGV[i])",
        PLAIN_KEYS + "test_a_debt_that_grew_while_it_was_paid_stays",
    ),
    Mutant(
        "what is owed lies on another server than its key",
        "P1 §4.10",
        "invalidator/region.py",
        "            return [on.get(self._nodes.serving(key), 0) for key in keys]\n",
        "            return [on and 0 for key in keys]\n",
        TOPOLOGIES + "test_what_is_owed_for_a_plain_key_lies_beside_it",
    ),
    Mutant(
        "a view is swept when it is raised, and not when that is visible",
        "P1 §4.10",
        "invalidator/plain.py",
        "    return noted in (wanted, PROVEN + wanted[1:])\n",
        "    return noted[1:] == wanted[1:]\n",
        PLAIN_KEYS + "test_a_truncate_sweeps_the_view_at_once_and_when_it_is_visible",
    ),
    Mutant(
        "a sweep removes whatever looks like a key of the view",
        "§4.10 others' keys",
        "consumers/plain.py",
        "        return [name for name in names if can_render(self.view.key, name)]\n",
        "        return names\n",
        PLAIN_LAYOUT + "test_truncate_sweeps_the_view_and_nobody_elses_keys",
    ),
]

EQUIVALENT = {
    "worker: the newest heartbeat is given with every batch": (
        "the script compares each change's position with the heartbeat's itself; choosing an older one only keeps busy "
        "fences small while a backlog is worked off"
    ),
    "apply: a row image of an older epoch may be written": (
        "a region that is open in a newer epoch has a fence at the position of that epoch's third heartbeat, which is "
        "beyond every position of an older one; the comparison of epochs says it a second time"
    ),
    "apply: a batch that is in already is applied again": (
        "merging the same stamps and unlinking again changes no answer; the comparison only saves the work"
    ),
    "read: a closed scope is answered by MISS instead of CLOSED": (
        "`readable` asks for open scopes too: nothing is served either way; the words are for the reader's counts"
    ),
    "cold: the fences of before are not removed": (
        "the region is closed, and opens with a fence over every stamp of before; they only take room"
    ),
    "close: the watermark of before stays": (
        "a closed region serves nothing, and the next heartbeat that passes writes a newer one"
    ),
}
"""Changes that no test can tell, and why."""
