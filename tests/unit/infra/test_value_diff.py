import pytest

from infra.value_diff import LINES_MAX, differences


@pytest.mark.parametrize(
    ("served", "database", "lines"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, ["b: served 2, the database says 3"]),
        ({"a": {"b": [1, {"c": 1}]}}, {"a": {"b": [1, {"c": 2}]}}, ["a.b[1].c: served 1, the database says 2"]),
        ({}, {"a": 1}, ["a: not served, the database says 1"]),
        ({"a": 1}, {}, ["a: served 1, not in the database"]),
        (None, {"a": 1}, ["the value: served nothing (no such object), the database says {'a': 1}"]),
        ([1], [1, 2], ["the list: served 1 items, the database has 2"]),
        (1, True, ["the value: served 1, the database says True"]),
        (1, "1", ["the value: served 1, the database says '1'"]),
    ],
)
def test_what_differs_is_named_by_its_fields(served, database, lines):
    assert differences(served, database) == lines


def test_a_long_list_of_differences_is_cut_and_counted():
    lines = differences({str(n): 0 for n in range(50)}, {str(n): 1 for n in range(50)})
    assert len(lines) == LINES_MAX + 1
    assert lines[-1] == f"and {50 - LINES_MAX} more"


def test_a_long_value_is_cut():
    (line,) = differences("x" * 5_000, "y")
    assert len(line) < 200
