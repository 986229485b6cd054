"""Fixtures live in `fix_*.py`, one topic each; those with `staleproof` in their name are the project's own plugin."""

import sys

# An editable install knows the plugin's entry point only once it was installed again; until then it is loaded here.
_plugin = [] if "infra.testing" in sys.modules else ["infra.testing"]
pytest_plugins = [
    *_plugin,
    "tests.fix_redis",
    "tests.fix_stack",
    "tests.fix_faults",
    "tests.fix_world",
    "tests.fix_topologies",
    "tests.fix_acl",
]

collect_ignore = ["example_project"]  # another project's tests: test_harness_sessions.py and test_wheel.py run them
