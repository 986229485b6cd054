"""The bench harness: what a script reads from it."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import msgspec
import pytest

from tests.benchmarks.__main__ import known, main
from tests.benchmarks.harness import (
    Bench,
    apart,
    describe_machine,
    last_line,
    median_ratio,
    medians,
    peak_memory_mb,
    read_settings,
    redis_version,
)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    naive_events: int = 5
    seconds: float = 1.5
    profile: bool = False


MODULE = SimpleNamespace(__doc__="What it measures.", Settings=Settings)


def test_an_unknown_name_gives_one_line_with_the_known_ones_and_status_2(capsys):
    assert main(["wurker"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"error: there is no benchmark 'wurker': use one of {', '.join(known())}"]


def test_no_name_gives_one_line_with_the_known_ones_and_status_2(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.splitlines() == [f"error: no benchmark is named: use one of {', '.join(known())}"]


def test_every_file_of_a_benchmark_is_known_and_has_settings_and_a_run():
    assert {"guard-memory", "refusals", "worker"} <= set(known())
    for name in known():
        module = __import__(f"tests.benchmarks.bench_{name.replace('-', '_')}", fromlist=["run"])
        assert read_settings(module, name, []) == module.Settings()
        assert callable(module.run)


def test_options_are_the_settings_fields():
    arguments = ["--naive-events", "7", "--profile"]
    assert read_settings(MODULE, "x", arguments) == Settings(naive_events=7, profile=True)
    assert read_settings(MODULE, "x", []) == Settings()


@pytest.mark.parametrize("arguments", [["--naive", "7"], ["--naive-events", "many"], ["more"]])
def test_a_wrong_option_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        read_settings(MODULE, "x", arguments)
    assert "error" in capsys.readouterr().err


def test_medians_are_taken_of_each_number_by_itself():
    rounds = [{"a": 1, "b": 30}, {"a": 9, "b": 20}, {"a": 2, "b": 10}]
    assert medians(rounds) == {"a": 2, "b": 20}
    assert medians(rounds[:2]) == {"a": 5, "b": 25}


def test_a_ratio_is_taken_within_each_round():
    """One slow round, in which both are slow, must not count for one of them only."""
    fast, slow = [{"per_s": 80}, {"per_s": 8}, {"per_s": 90}], [{"per_s": 100}, {"per_s": 10}, {"per_s": 100}]
    assert median_ratio(fast, slow, "per_s") == 0.8


def test_every_contestant_runs_in_every_round_and_each_comes_first_in_turn():
    order = []
    results = iter(range(100))

    def contestant(name):
        def run():
            order.append(name)
            return {"per_s": next(results)}

        return run

    measured = Bench().interleave({name: contestant(name) for name in "abc"}, rounds=2, warm_ups=1)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert measured == {
        "a": [{"per_s": 5}, {"per_s": 7}],
        "b": [{"per_s": 3}, {"per_s": 8}],
        "c": [{"per_s": 4}, {"per_s": 6}],
    }


def test_the_last_line_is_one_json_object_with_results_settings_and_machine():
    line = last_line("x", {"per_s": 1 / 3, "count": 7}, Settings(), {"cores": 2})
    assert "\n" not in line
    assert json.loads(line) == {
        "benchmark": "x",
        "per_s": 0.333,
        "count": 7,
        "settings": {"naive_events": 5, "seconds": 1.5, "profile": False},
        "machine": {"cores": 2},
    }


def test_the_machine_is_described():
    machine = describe_machine({"kafka": "4.3.1"})
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert machine["memory_mb"] > 100
    assert machine["kernel"].startswith("Linux ")
    assert {"python", "kafka", "redis", "msgspec", "librdkafka"} <= machine["versions"].keys()


def test_valkey_is_not_taken_for_the_redis_that_it_claims_to_be_compatible_with():
    assert redis_version({"redis_version": "7.2.4", "valkey_version": "9.1.2"}) == "valkey 9.1.2"
    assert redis_version({"redis_version": "8.2.0"}) == "redis 8.2.0"


def test_a_contestant_has_a_process_of_its_own():
    assert apart(os.getpid) != os.getpid()


def test_peak_memory_is_that_of_the_process():
    assert 5 < peak_memory_mb(os.getpid()) < 10_000
