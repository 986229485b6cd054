"""Measurements, never assertions of speed: `make bench NAME=worker ARGS="--events 200000"`.

A benchmark is a file `bench_<name>.py` (its name is written with `-`) that has

- a docstring: what is measured, and how;
- `Settings`, a frozen msgspec Struct: its options and their defaults (`naive_events: int` is `--naive-events`);
- `run(settings, bench)`: gives the results. It starts the servers that it needs through `bench`, and stops them.

Progress goes to stderr; the last line on stdout is one JSON object: results, settings, machine.
"""
