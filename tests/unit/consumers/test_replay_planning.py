"""What records of a range come to, and which views and keys may be chosen."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from cdc.errors import ConfigError
from cdc.events import Position
from consumers.replay_planning import RangePlanner, Wave, check_keys, chosen_views
from consumers.stream import Record
from invalidator.layout import Layout
from invalidator.views import load_views

VIEWS = load_views(
    """
version: 1
views:
  contact: {key: "contact:{id}", tables: {public.contacts: {}}}
  member: {key: "member:{id}", tables: {public.contacts: {}, public.members: {}}}
  template: {key: "template:{id}", mode: refresh, tables: {public.templates: {}}}
  fleeting: {key: "fleeting:{id}", mode: refresh, ttl_seconds: 60, tables: {public.fleeting: {}}}
""",
    place="v",
)
TABLES = {f"shop.{table}": table for table in VIEWS.by_table}


def record(
    table: str,
    identity: int | None,
    lsn: int,
    *,
    epoch: int = 1,
    op: str = "u",
    offset: int = 0,
    **bytes_: bytes | None,
) -> Record:
    schema, name = table.split(".")
    row = None if identity is None or op == "d" else {"id": identity}
    body = {
        "op": op,
        "before": None,
        "after": row,
        "source": {"name": "shop", "schema": schema, "table": name, "ts_ms": 5},
    }
    header = f"1{Position(epoch, lsn, 0).text}{lsn:016x}{7:016x}{3:016x}".encode()
    key = None if identity is None else msgspec.json.encode({"id": identity})
    made = {"key": key, "value": msgspec.json.encode(body), "header": header} | bytes_
    return Record(f"shop.{table}", 0, offset, 0, made["key"], made["value"], made["header"])


def planned(*records: Record, **options: object) -> list[Wave]:
    planner = RangePlanner(VIEWS, TABLES, **{"wave_keys": 250} | options)
    return list(planner.waves(records))


def test_a_wave_has_the_newest_of_each_key_and_says_how_far_it_goes():
    first, last = record("public.templates", 1, 10, offset=4), record("public.templates", 1, 20, offset=5)
    for order in ((first, last), (last, first)):
        (wave,) = planned(*order)
        (invalidation,) = wave.changes.values()
        assert (invalidation.position, invalidation.stamps) == (Position(1, 20, 0).text, (f"{10:016x}", f"{20:016x}"))
        assert wave.reached == {("shop.public.templates", 0): order[-1].offset + 1}
        assert wave.counts == {"records": 2, "whole_views": 0}
        assert wave.causes == {("template", "change"): 2}


def test_waves_are_cut_at_the_limit_of_keys():
    waves = planned(*(record("public.templates", n, 10 + n, offset=n) for n in range(7)), wave_keys=3)
    assert [len(wave.changes) for wave in waves] == [3, 3, 1]
    assert [next(iter(wave.reached.values())) for wave in waves] == [3, 6, 7]


def test_raises_are_left_to_the_worker_and_counted():
    truncate = record("public.contacts", None, 10, op="t")
    headless = record("public.contacts", 1, 10, header=None)
    unreadable = record("public.contacts", None, 10, value=b"{", key=None)
    (wave,) = planned(truncate, headless, unreadable)
    assert wave.changes == {}
    assert wave.counts == {"records": 3, "undecodable": 2, "whole_views": 6}
    assert wave.batch(0, Layout(), VIEWS) is None


def test_an_unreadable_body_under_a_readable_key_costs_that_key():
    (wave,) = planned(record("public.templates", 3, 10, value=b"{"))
    assert [key for _, key in wave.changes] == ["template:3"]
    assert wave.counts["undecodable"] == 1


def test_null_records_and_what_is_filtered_are_ignored():
    null = record("public.contacts", 1, 10, value=None)
    other = record("public.contacts", 2, 10)
    (wave,) = planned(null, other, keys=frozenset({"contact:1"}))
    assert (wave.changes, wave.counts) == ({}, Counter(records=2, ignored=2))


def test_positions_that_are_not_meant_and_earlier_epochs_are_passed_over():
    records = [record("public.templates", lsn, lsn) for lsn in (9, 10, 19, 20)]
    (wave,) = planned(*records, since=Position(1, 10, 0).text, until=Position(1, 20, 0).text)
    assert [key for _, key in wave.changes] == ["template:10", "template:19"]
    (wave,) = planned(
        record("public.templates", 1, 10), record("public.templates", 2, 5, epoch=2), since_epoch="00000002"
    )
    assert [key for _, key in wave.changes] == ["template:2"]
    assert wave.counts["earlier_epoch"] == 1


def test_a_transaction_of_any_size_is_taken_key_by_key():
    waves = planned(*(record("public.templates", n, 10, offset=n) for n in range(10_500)), wave_keys=20_000)
    assert len(waves[0].changes) == 10_500


def test_values_of_entries_that_end_by_themselves_are_not_written_again():
    (wave,) = planned(record("public.fleeting", 1, 10), record("public.templates", 1, 10))
    batch = wave.batch(0, Layout(), VIEWS)
    assert batch is not None
    assert [change.key for change in batch.changes] == ["fleeting:1"]
    assert [refresh.change.key for refresh in batch.refreshes] == ["template:1"]
    assert (batch.rows, batch.raises, batch.closings, batch.beat) == ((), (), (), None)


def test_each_shard_gets_its_own_keys():
    (wave,) = planned(*(record("public.templates", n, 10 + n) for n in range(50)))
    layout = Layout(shards=4)
    batches = [wave.batch(shard, layout, VIEWS) for shard in range(4)]
    keys = [refresh.change.key for batch in batches if batch for refresh in batch.refreshes]
    assert sorted(keys) == sorted(f"template:{n}" for n in range(50))
    for shard, batch in enumerate(batches):
        assert batch is None or all(layout.place(r.change.key)[0] == shard for r in batch.refreshes)


def test_a_few_keys_of_each_view_are_remembered():
    planner = RangePlanner(VIEWS, TABLES, wave_keys=250)
    list(planner.waves([record("public.templates", n % 9, 10 + n) for n in range(40)]))
    assert list(planner.samples["template"]) == [f"template:{n}" for n in range(5)]


@pytest.mark.parametrize(
    ("names", "tables", "chosen"),
    [
        ((), (), {"contact", "member", "template", "fleeting"}),
        (("contact", "template"), (), {"contact", "template"}),
        ((), ("public.members",), {"member"}),
        (("contact", "member"), ("public.members",), {"member"}),
    ],
)
def test_views_are_chosen_by_name_and_by_table(names, tables, chosen):
    assert set(chosen_views(VIEWS, names, tables).views) == chosen


@pytest.mark.parametrize(
    ("names", "tables", "complaint"),
    [
        (("contacts",), (), "there is no view 'contacts' in the views file: known are contact, member"),
        ((), ("contacts",), "no view is fed by table 'contacts': known are public.contacts"),
        (("template",), ("public.members",), "no view of template is fed by public.members"),
    ],
)
def test_what_is_not_there_cannot_be_chosen(names, tables, complaint):
    with pytest.raises(ConfigError, match=complaint):
        chosen_views(VIEWS, names, tables)


def test_a_key_that_no_view_has_is_refused():
    check_keys(VIEWS, ["contact:1", "template:x"])
    with pytest.raises(ConfigError, match=r"'contacts:1' is no key of the views that are replayed: .*contact:\{id\}"):
        check_keys(VIEWS, ["contact:1", "contacts:1"])
