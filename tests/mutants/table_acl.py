"""Mutants of Redis's users: rights that are too many or too few, and a reader that may not load functions."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

ACL = "tests/integration/test_acl.py::"

ACL_MUTANTS = [
    Mutant(
        "readers may write header and fences",
        "P7 users",
        "consumers/redis_users.py",
        'f"(+hget +hmget %R{header} %R{fences})"',
        'f"(+hget +hmget +hset {header} {fences})"',
        ACL + "test_whatever_a_reader_may_not_is_refused_when_it_is_sent",
    ),
    Mutant(
        "readers may make entries of another type",
        "P7 users",
        "consumers/redis_users.py",
        "{' '.join(_exact(region, 'l'))}",
        "{leases}",
        ACL + "test_no_function_writes_the_guard_for_a_reader",
    ),
    Mutant(
        "readers may run every function",
        "P7 users",
        "consumers/redis_users.py",
        'f"+fcall|{FILL}", f"+fcall|{LEASE}"',
        '"+fcall"',
        ACL + "test_whatever_a_reader_may_not_is_refused_when_it_is_sent",
    ),
    Mutant(
        "what a reader must not do is not tried",
        "P7 users",
        "consumers/rights.py",
        "forbidden_to_readers(settings) if command in rights.allowed",
        "forbidden_to_readers(settings) if not rights.exists",
        ACL + "test_check_says_what_a_readers_user_has_too_much_or_too_little",
    ),
    Mutant(
        "a reader without the library asks for it again with every read",
        "P7 users",
        "invalidator/node.py",
        "                self._may_load = False",
        "                return False",
        ACL + "test_a_reader_that_may_not_load_the_library_waits_for_who_may",
    ),
]
