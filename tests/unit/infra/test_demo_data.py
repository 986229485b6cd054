"""The demonstration's data: the same on every machine, as skewed as it says, and what the schema and the views expect."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from importlib import resources

import pytest

from infra.demo import data
from infra.demo.caches import demo_views
from infra.demo.data import COLUMNS, Sizes

SMALL = Sizes(contacts=500, templates=5, campaigns=8, segments=6, members=400, events=300)


@pytest.mark.parametrize("table", COLUMNS)
def test_the_same_seed_gives_the_same_rows(table):
    assert list(data.rows_of(table, 7, SMALL)) == list(data.rows_of(table, 7, SMALL))


@pytest.mark.parametrize("table", COLUMNS)
def test_rows_have_their_columns_and_their_own_keys(table):
    rows = list(data.rows_of(table, 7, SMALL))
    assert {len(row) for row in rows} == {len(COLUMNS[table])}
    keys = [row[:2] if table == "segment_members" else row[0] for row in rows]
    assert len(set(keys)) == len(rows) > 0


def test_another_seed_gives_other_rows():
    assert list(data.rows_of("contacts", 1, SMALL)) != list(data.rows_of("contacts", 2, SMALL))


def test_low_numbers_are_drawn_far_more_often():
    rng = random.Random(3)
    drawn = Counter(data.skewed(rng, 1_000) for _ in range(20_000))
    assert min(drawn) == 1
    assert max(drawn) <= 1_000
    assert sum(count for number, count in drawn.items() if number <= 100) > 8_000


def test_every_contact_is_reached_by_a_wave_and_waves_do_not_overlap():
    waves = [data.recipients(number * data.WAVE_SECONDS) for number in range(data.ENGAGED // data.WAVE_CONTACTS)]
    reached = [contact for wave in waves for contact in wave]
    assert sorted(reached) == list(range(1, data.ENGAGED + 1))


def test_bodies_are_large_enough_to_be_stored_apart():
    sizes = [len(row[3]) for row in data.rows_of("templates", 1, Sizes())]
    assert min(sizes) >= 2_000
    assert max(sizes) < 20_100


def test_the_probe_has_contacts_that_nobody_else_touches():
    numbers = {row[0] for row in data.rows_of("contacts", 1, SMALL)}
    probed = set(range(data.PROBE_FIRST, data.PROBE_FIRST + data.PROBE_CONTACTS))
    assert probed <= numbers
    members = {row[1] for row in data.rows_of("segment_members", 1, SMALL)}
    assert not probed & members


def test_attributes_are_json():
    assert set(json.loads(data.attributes(random.Random(1)))) == {"points", "tier", "tags"}


def test_every_table_of_a_view_is_published():
    schema = resources.files("infra.demo").joinpath("schema.sql").read_text(encoding="utf-8")
    published = re.search(r"PUBLICATION staleproof FOR TABLE ([^;]*);", schema)
    assert published is not None
    tables = {f"public.{name.strip()}" for name in published[1].split(",")}
    assert set(demo_views().by_table) == tables == {f"public.{table}" for table in COLUMNS}
