"""Mutants of the reader: bounds, tokens, near cache, limits, connections, the send gate. Part of `table.py`'s list."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

READER = "tests/unit/invalidator/test_reader.py::"
INTERRUPTED = "tests/unit/invalidator/test_reader_interrupted.py::"
LIVE = "tests/integration/test_reader_live.py::"
DOORS = "tests/integration/test_doors.py::"
JUDGING, READING = "invalidator/judging.py", "invalidator/reading.py"

READER_MUTANTS = [
    Mutant(
        "an age of the future is young",
        "P2 §4.6 clocks",
        JUDGING,
        "if not 0 <= age_ms <= need.bound_ms:",
        "if not age_ms <= need.bound_ms:",
        READER + "test_an_entry_is_served_if_it_is_proven_to_be_within_the_bound",
    ),
    Mutant(
        "an unknown clock proves any age",
        "P2 §4.6 clocks",
        JUDGING,
        'if now_ms is None or evidence.fresh_ms < 0:\n            return "old"',
        'if now_ms is None:\n            return None\n        if evidence.fresh_ms < 0:\n            return "old"',
        READER + "test_the_clock_of_a_standby_is_not_the_databases",
    ),
    Mutant(
        "a standby's clock dates what it showed",
        "P2 §2, §4.6",
        JUDGING,
        '    if seen[:1] == "p":  # only a primary',
        "    if True:  # only a primary",
        READER + "test_only_a_primarys_fill_is_as_new_as_the_clock_beside_it",
    ),
    Mutant(
        "the watermark of an earlier epoch counts",
        "P2 §4.6 watermark",
        JUDGING,
        " or watermark[:8] != epoch[:8]",
        "",
        READER + "test_a_watermark_of_an_earlier_epoch_proves_nothing",
    ),
    Mutant(
        "what a standby loads is as new as a watermark that it has not replayed",
        "P2 §4.6",
        JUDGING,
        "NO_LSN != watermark.lsn <= replayed",
        "NO_LSN != watermark.lsn",
        READER + "test_what_a_standby_loads_is_as_new_as_the_watermark_that_it_has_replayed",
    ),
    Mutant(
        "a server that was replaced is believed",
        "P2 §4.0 history",
        READING,
        "            replaced = Relation.EARLIER in later",
        "            replaced = False",
        READER + "test_a_server_that_was_replaced_proves_nothing",
    ),
    Mutant(
        "a primary that a token's history has left behind is believed",
        "P3 §4.6 token",
        READING,
        "(relation(seen.history, mark.history), relation(seen.history, asked_for))",
        "(relation(seen.history, mark.history),)",
        INTERRUPTED + "test_a_primary_that_a_tokens_history_has_left_behind_shows_it_not",
    ),
    Mutant(
        "a standby is the primary to who asks for the primary",
        "P3 §4.6",
        JUDGING,
        "    if need.strong:\n",
        "    if False:\n",
        INTERRUPTED + "test_a_standby_is_not_taken_for_the_primary",
    ),
    Mutant(
        "a cancelled load keeps its lease",
        "P7 §4.6",
        READING,
        "except BaseException:  # a cancelled load",
        "except Exception:  # a cancelled load",
        INTERRUPTED + "test_a_cancelled_load_gives_its_lease_back",
    ),
    Mutant(
        "a token of another server's history is satisfied",
        "P3 §4.6 token",
        JUDGING,
        "if not shown and related is not Relation.EARLIER:",
        "if not shown and related is Relation.SAME:",
        READER + "test_an_entry_is_served_if_it_shows_the_token",
    ),
    Mutant(
        "a token is shown by a log that has not reached it",
        "P3 §4.6 token",
        "invalidator/tokens.py",
        "token.lsn <= logged_before",
        "NO_LSN < logged_before",
        READER + "test_an_entry_is_served_if_it_shows_the_token",
    ),
    Mutant(
        "a session forgets what it was shown",
        "P3 §4.6",
        "invalidator/reader_base.py",
        "token.add(shown_by(one.evidence))",
        "pass",
        READER + "test_a_session_is_never_shown_less_than_before",
    ),
    Mutant(
        "another's load is shared with who asked for more",
        "P3 §4.6",
        READING,
        "if objection(visit.need, result.kept.evidence, self._now_ms()):",
        "if False:",
        LIVE + "test_a_shared_load_is_judged_for_everybody_who_waits",
    ),
    Mutant(
        "a near value outlives its view's generation",
        "P1 §4.3, §4.6",
        "invalidator/near.py",
        "if kept is None or kept.generations != self._generations.get(view):",
        "if kept is None:",
        READER + "test_a_moved_generation_and_a_closed_view_empty_the_near_cache",
    ),
    Mutant(
        "more leases live than the cap",
        "P7",
        "invalidator/lua/65_lease.lua",
        "elseif count >= cap and not held then",
        "elseif false then",
        "tests/integration/test_leases.py::test_no_more_than_so_many_live_in_a_shard",
    ),
    Mutant(
        "a process loads as much at a time as it likes",
        "P7",
        "invalidator/herd.py",
        "if self._inside < self.limit(now):",
        "if True:",
        "tests/unit/invalidator/test_herd.py::test_no_more_than_the_limit_are_inside_and_those_in_line_come_in_turn",
    ),
    Mutant(
        "a connection is kept although its reply did not come",
        "P1 §4.6, FAULTS redis",
        "invalidator/node.py",
        "            reply = connection.read_response()\n        except redis.ResponseError:\n            self._kept.append(connection)\n"
        "            raise\n        except BaseException:\n            connection.disconnect()\n"
        "            self.client.connection_pool.release(connection)\n            raise\n",
        "            reply = connection.read_response(disconnect_on_error=False)\n        except BaseException:\n"
        "            self._kept.append(connection)\n            raise\n",
        LIVE + "test_a_connection_whose_reply_did_not_come_is_closed",
    ),
    Mutant(
        "a connection of a task that was cancelled is kept",
        "P1 §4.6, FAULTS redis",
        "invalidator/async_nodes.py",
        "                reply = await connection.read_response()\n        except redis.ResponseError:\n"
        "            self._kept.append(connection)\n            raise\n        except BaseException as error:\n"
        "            await self._close(connection)\n",
        "                reply = await connection.read_response(disconnect_on_error=False)\n"
        "        except BaseException as error:\n            self._kept.append(connection)\n",
        DOORS + "test_a_cancelled_look_leaves_no_reply_behind",
    ),
    Mutant(
        "a server that was replaced behind its address is still asked in asyncio",
        "FAULTS redis",
        "invalidator/async_nodes.py",
        "        if drops != self._drops:",
        "        if False:",
        DOORS + "test_another_server_behind_the_address_is_asked_once_the_old_one_is_a_replica",
    ),
    Mutant(
        "a connection in use outlives a replaced server",
        "FAULTS redis",
        "invalidator/node.py",
        "        pool.update_active_connections_for_reconnect()\n",
        "",
        DOORS + "test_a_connection_that_is_in_use_when_all_are_given_up_is_not_used_again",
    ),
    Mutant(
        "a thread closes connections that others use",
        "FAULTS redis",
        "invalidator/node.py",
        "pool.disconnect(inuse_connections=False)",
        "pool.disconnect()",
        DOORS + "test_a_connection_that_is_in_use_when_all_are_given_up_is_not_used_again",
    ),
    Mutant(
        "a child process talks on its parent's connections",
        "FAULTS redis",
        "invalidator/node.py",
        "if self._pid != os.getpid():",
        "if False:",
        DOORS + "test_a_child_process_talks_on_connections_of_its_own",
    ),
    Mutant(
        "an unsubscription is acknowledged before the bound has passed",
        "P2 the send gate",
        "infra/demo/gate.py",
        "        if self._clock() < done.committed + self._wait_seconds:\n            return False\n",
        "",
        "tests/unit/infra/test_demo_gate.py::test_an_unsubscription_is_acknowledged_once_every_region_has_it_and_the_bound_has_passed",
    ),
]
