"""Fixtures live in `fix_*.py`, one topic each."""

pytest_plugins = ["tests.fix_redis", "tests.fix_stack", "tests.fix_faults", "tests.fix_world", "tests.fix_topologies"]
