"""`python -m tests.benchmarks NAME [--option ...]`: run one benchmark; exit status 2 for an unknown name or option."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.harness import Bench, describe_machine, last_line, read_settings


def known() -> list[str]:
    """Names of the benchmarks: one file each."""
    files = Path(__file__).parent.glob("bench_*.py")
    return sorted(file.stem.removeprefix("bench_").replace("_", "-") for file in files)


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments name; returns the exit status."""
    name = arguments[0] if arguments else ""
    if name not in known():
        complaint = f"there is no benchmark {name!r}" if name else "no benchmark is named"
        print(f"error: {complaint}: use one of {', '.join(known())}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"tests.benchmarks.bench_{name.replace('-', '_')}")
    settings = read_settings(module, name, arguments[1:])
    bench = Bench()
    results = module.run(settings, bench)
    print(last_line(name, results, settings, describe_machine(bench.versions)), flush=True)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that every server is stopped
    sys.exit(main(sys.argv[1:]))
