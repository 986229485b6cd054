"""The comparison: it reads what the guard writes, sees every kind of wrong entry, and shares no code with the guard."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import pytest

from infra.demo import compare
from infra.demo.compare import Database, Stored, Unreadable
from invalidator import entry
from invalidator.layout import EMPTY_FENCE, Layout, Scope

REGION_GENERATION = "0" * 31 + "1"
VIEW_GENERATION = "0" * 31 + "2"
HEADER = {
    "s:": Scope(generation=REGION_GENERATION, digest="0" * 16, fence=EMPTY_FENCE).text,
    "s:contact": Scope(generation=VIEW_GENERATION, digest="0" * 16, fence=EMPTY_FENCE).text,
}
DATABASE = Database({"contact:7": {"id": 7, "city": "Lima"}, "contact:8": {"id": 8, "city": "Porto"}})
NAME = Layout().entry_key(0, "contact:7")


def raw(value, *, key="contact:7", kind=entry.Kind.FILL, generations=REGION_GENERATION + VIEW_GENERATION):
    content = entry.Content.ABSENT if value is None else entry.Content.VALUE
    payload = b"" if value is None else msgspec.json.encode(value)
    tail = entry.encode_tail(view="contact", key=key, seen="p" + "0" * 32, payload=payload, as_of_ms=5)
    return entry.lead(kind, content).encode() + generations.encode() + tail


def stored(value, **options):
    return compare.parse_entry(NAME, raw(value, **options), HEADER)


@pytest.mark.parametrize("kind", entry.Kind)
@pytest.mark.parametrize("value", [{"id": 7, "city": "İzmir"}, None])
def test_it_reads_what_the_guard_writes(kind, value):
    assert stored(value, kind=kind) == Stored(
        view="contact", number=7, named="contact|contact:7", value=value, readable=True
    )


def test_an_entry_that_equals_the_database_is_right():
    assert compare.fault_of(stored({"city": "Lima", "id": 7}), DATABASE) is None


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"id": 7, "city": "Quito"}, "differs in city"),
        ({"id": 7}, "differs in city"),
        ({"id": 7, "city": "Lima", "more": 1}, "differs in more"),
        (None, "says absent, and the database has it"),
        ([], "is not an object"),
    ],
)
def test_a_planted_stale_entry_is_seen(value, fault):
    assert compare.fault_of(stored(value), DATABASE) == fault


def test_an_object_that_was_deleted_is_stale_and_its_absence_is_right():
    empty = Database({})
    assert compare.fault_of(stored({"id": 7, "city": "Lima"}), empty) == "holds an object that the database has not"
    assert compare.fault_of(stored(None), empty) is None


def test_an_entry_that_names_another_key_is_seen():
    assert compare.fault_of(stored({"id": 7, "city": "Lima"}, key="contact:8"), DATABASE) == "names another object"


def test_everybody_has_statistics():
    assert Database({}).expected("contact_stats", 3) == {"opens": 0, "clicks": 0}


@pytest.mark.parametrize("generations", [REGION_GENERATION * 2, VIEW_GENERATION * 2])
def test_an_entry_of_another_generation_is_not_readable(generations):
    assert not stored({"id": 7}, generations=generations).readable


def test_nothing_is_readable_in_a_closed_scope():
    closed = Scope(generation=VIEW_GENERATION, digest="0" * 16, closed_at="0" * 16).text
    assert not compare.parse_entry(NAME, raw({"id": 7}), {**HEADER, "s:contact": closed}).readable
    assert not compare.parse_entry(NAME, raw({"id": 7}), {}).readable


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1fvj",
        b"2" + raw({"id": 7})[1:],
        b"1xvj" + raw({"id": 7})[4:],
        b"1fvz" + raw({"id": 7})[4:],
        raw({"id": 7})[:-1],
        raw({"id": 7})[:120],
        b"1fa" + raw({"id": 7})[3:],
        b"{}",
    ],
)
def test_what_cannot_be_parsed_fails_the_comparison(data):
    with pytest.raises(Unreadable):
        compare.parse_entry(NAME, data, HEADER)


@pytest.mark.parametrize("name", ["contact:x", "contact", "other:7", "contact:7:8"])
def test_a_key_that_no_view_has_fails_the_comparison(name):
    with pytest.raises(Unreadable):
        compare.parse_entry(Layout().entry_key(0, name), raw({"id": 7}), HEADER)
    with pytest.raises(Unreadable):
        compare.parse_naive(name, b"{}")


def test_the_plain_caches_entries_are_json_and_nothing_else():
    assert compare.parse_naive("contact:7", b'{"id":7}').value == {"id": 7}
    assert compare.parse_naive("contact:7", b"null").value is None
    with pytest.raises(Unreadable):
        compare.parse_naive("contact:7", raw({"id": 7}))


def test_the_verdict_counts_and_names_what_is_wrong_without_its_values():
    right, wrong = stored({"id": 7, "city": "Lima"}), stored({"id": 7, "city": "Secret"})
    hidden = stored({"id": 7}, generations=VIEW_GENERATION * 2)
    baseline = {"contact:7": compare.digest({"id": 7, "city": "before"})}
    entries = {"eu": [(NAME, right), (NAME, hidden)], "us": [(NAME, wrong)]}
    verdict = compare.judge(entries, DATABASE, baseline)
    assert (verdict.checked, verdict.changed, verdict.unreadable, verdict.stale) == (2, 2, 1, 1)
    assert verdict.faults == (f"us {NAME} differs in city",)
    assert dict(verdict.regions) == {"eu": 2, "us": 1}


def test_unchanged_deleted_and_new_objects_are_told_apart():
    same = compare.digest({"id": 7, "city": "Lima"})
    assert not compare.has_changed(stored(None), DATABASE, {"contact:7": same})
    assert compare.has_changed(stored(None), Database({}), {"contact:7": same})
    assert compare.has_changed(stored(None), DATABASE, {})
    assert not compare.has_changed(stored(None), Database({}), {})


@pytest.mark.parametrize(
    ("regions", "checked", "changed", "unreadable", "complaint"),
    [
        ({"eu": 1_000}, 1_000, 300, 0, None),
        ({"eu": 999}, 999, 999, 0, "region eu holds 999 entries"),
        ({"eu": 1_000}, 1_000, 299, 0, "only 299 of 1000"),
        ({"eu": 1_000}, 1_000, 300, 1, "1 entries could not be served"),
    ],
)
def test_a_comparison_of_too_little_proves_nothing(regions, checked, changed, unreadable, complaint):
    verdict = compare.Verdict(regions=regions, checked=checked, changed=changed, unreadable=unreadable)
    complaints = compare.complaints(verdict)
    assert (complaints[0].startswith(complaint) and len(complaints) == 1) if complaint else not complaints


def test_it_shares_no_code_with_what_it_judges():
    program = (
        "import infra.demo.compare, json, sys;"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules} "
        "| {name for name in sys.modules if name.startswith('infra')})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True, timeout=60)
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"cdc", "invalidator", "consumers"}
    assert {name for name in loaded if name.startswith("infra")} == {"infra", "infra.demo", "infra.demo.compare"}
