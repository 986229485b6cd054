"""DDL that no row event tells, from the database to the cache, with the processes that people run."""

from __future__ import annotations

from typing import Any

import psycopg

from consumers.regions import open_region, read_views
from tests.fix_stack import Site
from tests.waiting import wait_until


def load_contact(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    return {"email": connection.execute("SELECT email FROM contacts WHERE id = 1").fetchall()[0][0]}


def load_segment(connection: psycopg.Connection[Any]) -> list[int]:
    return [row[0] for row in connection.execute("SELECT contact_id FROM members WHERE segment_id = 1")]


def refuse(connection: object) -> Any:
    raise AssertionError("this should have been a hit")


def test_an_entry_from_before_a_rewrite_is_not_served_after_it_and_its_view_opens_again(site: Site) -> None:
    site.database.execute("INSERT INTO contacts VALUES (1, 'a@example.org', 'subscribed')")
    site.database.execute("INSERT INTO members VALUES (1, 1)")
    site.start("capture")
    site.start("invalidate", "--region", "eu")
    site.wait_open("eu")
    reader, region = site.reader("eu"), open_region(site.settings, "eu")
    digest = read_views(site.settings.views).views["contact"].digest
    assert reader.get("contact", 1, load_contact) == {"email": "a@example.org"}
    assert reader.get("contact", 1, refuse) == {"email": "a@example.org"}
    assert reader.get("segment", 1, load_segment) == [1]

    site.database.execute("ALTER TABLE contacts ALTER COLUMN email TYPE text USING upper(email)")
    wait_until(lambda: region.read(0, "contact:1", "contact", digest).status != "HIT", "the old entry is unreadable")
    (alarm,) = [line for line in site.logged("alarm") if line["kind"] == "ddl"]
    assert (alarm["level"], alarm["table"]) == ("error", "public.contacts")
    assert reader.get("segment", 1, refuse) == [1]  # another table's view goes on

    site.wait_open("eu")
    assert reader.get("contact", 1, load_contact) == {"email": "A@EXAMPLE.ORG"}
    assert reader.get("contact", 1, refuse) == {"email": "A@EXAMPLE.ORG"}
