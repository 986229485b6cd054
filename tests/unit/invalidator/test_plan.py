"""What a change kills."""

from __future__ import annotations

import msgspec

from cdc.envelope import RecordHeader, decode_value
from invalidator.plan import Changes, Invalidation, Planner, coalesce
from invalidator.views import load_views

VIEWS = load_views(
    """
version: 1
views:
  contact:
    key: "contact:{id}"
    mode: invalidate
    tables:
      public.contacts:
        columns: [email, status]
  template:
    key: "template:{id}"
    mode: refresh
    ttl_seconds: 60
    tables:
      public.templates: {}
  segment:
    key: "segment:{id}"
    mode: invalidate
    tables:
      public.segments: {}
      public.segment_members:
        parts: {id: segment_id}
""",
    place="views.yaml",
)
HEADER = RecordHeader("0" * 7 + "1" + "0" * 15 + "9" + "0" * 8, "0" * 14 + "2a", 1, 0)


def plan(table: str, op: str, before: dict | None, after: dict | None, key: dict | None = None) -> list[Invalidation]:
    schema, name = table.split(".")
    source = {"name": "shop", "schema": schema, "table": name, "ts_ms": 7}
    event = {"op": op, "before": before, "after": after, "source": source, "ts_ms": 8}
    encoded_key = None if key is None else msgspec.json.encode(key)
    envelope = decode_value(msgspec.json.encode(event))
    return Planner(VIEWS).plan(envelope.table, envelope, HEADER, encoded_key)


def keys(planned: list[Invalidation]) -> list[str | None]:
    return [invalidation.key for invalidation in planned]


def test_an_update_kills_the_key_of_its_row() -> None:
    (one,) = plan(
        "public.contacts", "u", {"id": 1, "email": "a", "status": "s"}, {"id": 1, "email": "b", "status": "s"}
    )
    assert (one.view, one.key, one.position, one.stamps) == ("contact", "contact:1", HEADER.position, (HEADER.stamp,))
    assert one.value is None


def test_a_moved_row_kills_both_keys() -> None:
    planned = plan(
        "public.segment_members", "u", {"segment_id": 1, "contact_id": 5}, {"segment_id": 2, "contact_id": 5}
    )
    assert keys(planned) == ["segment:1", "segment:2"]


def test_a_key_part_that_is_equal_and_not_written_alike_kills_both_keys() -> None:
    before = {"id": True, "email": "a", "status": "s"}
    assert keys(plan("public.contacts", "u", before, {**before, "id": 1})) == ["contact:true", "contact:1"]


def test_a_change_of_columns_that_do_not_matter_kills_nothing() -> None:
    before = {"id": 1, "email": "a", "status": "s", "city": "x"}
    assert plan("public.contacts", "u", before, {**before, "city": "y"}) == []


def test_without_the_old_row_every_update_counts() -> None:
    planned = plan("public.contacts", "u", None, {"id": 1, "email": "a", "status": "s"}, key={"id": 1})
    assert keys(planned) == ["contact:1"]


def test_without_the_old_value_of_a_key_part_the_whole_view_dies() -> None:
    planned = plan("public.segment_members", "u", None, {"segment_id": 2, "contact_id": 5}, key={"contact_id": 5})
    assert keys(planned) == [None]
    assert "REPLICA IDENTITY FULL" in planned[0].fault


def test_a_delete_kills_by_the_before_image_or_by_the_key() -> None:
    assert keys(plan("public.contacts", "d", {"id": 3}, None)) == ["contact:3"]
    assert keys(plan("public.contacts", "d", None, None, key={"id": 3})) == ["contact:3"]


def test_a_delete_whose_key_part_is_unknown_kills_the_view() -> None:
    assert keys(plan("public.segment_members", "d", {"contact_id": 5}, None)) == [None]


def test_truncate_kills_every_view_of_the_table() -> None:
    (one,) = plan("public.contacts", "t", None, None)
    assert (one.view, one.key, one.fault) == ("contact", None, "")


def test_a_refresh_carries_the_new_row() -> None:
    (one,) = plan("public.templates", "u", None, {"id": 4, "body": "x"}, key={"id": 4})
    assert msgspec.json.decode(one.value) == {"id": 4, "body": "x"}
    assert one.as_of_ms == 7


def test_a_refresh_never_stores_a_value_that_was_not_sent() -> None:
    (one,) = plan("public.templates", "u", None, {"id": 4, "body": "__debezium_unavailable_value"}, key={"id": 4})
    assert (one.key, one.value) == ("template:4", None)


def test_a_snapshot_row_of_a_refreshed_view_only_kills() -> None:
    (one,) = plan("public.templates", "r", None, {"id": 4, "body": "x"})
    assert (one.key, one.value) == ("template:4", None)


def test_a_deleted_row_of_a_refreshed_view_only_kills() -> None:
    (one,) = plan("public.templates", "d", {"id": 4}, None)
    assert (one.key, one.value) == ("template:4", None)


def test_a_null_key_part_kills_the_view_and_is_no_key() -> None:
    assert keys(plan("public.contacts", "c", None, {"id": None, "email": "a", "status": "s"})) == [None]


def test_an_unchanged_toast_column_did_not_change() -> None:
    before = {"id": 1, "email": "a", "status": "s"}
    assert plan("public.contacts", "u", before, {**before, "email": "__debezium_unavailable_value"}) == []


def test_a_table_without_views_is_ignored() -> None:
    assert plan("public.other", "u", {"id": 1}, {"id": 1}) == []


def invalidation(position: int, stamp: int, value: bytes | None) -> Invalidation:
    return Invalidation("contact", "contact:1", f"{position:032x}", (f"{stamp:016x}",), value)


def coalesced(planned: list[Invalidation]) -> Changes:
    changes: Changes = {}
    coalesce(planned, changes)
    return changes


def test_coalescing_keeps_the_newest_value_and_all_stamps() -> None:
    planned = [invalidation(1, 9, b"old"), invalidation(3, 7, b"new"), invalidation(2, 8, b"middle")]
    ((place, one),) = coalesced(planned).items()
    assert place == ("contact", "contact:1")
    assert (one.value, one.position) == (b"new", f"{3:032x}")
    assert one.stamps == tuple(f"{s:016x}" for s in (7, 8, 9))


def test_a_delete_after_a_refresh_leaves_no_value() -> None:
    (one,) = coalesced([invalidation(1, 1, b"old"), invalidation(2, 2, None)]).values()
    assert one.value is None
