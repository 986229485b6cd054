"""Fixtures on the project's own pytest plugin: one real stack for the whole run, and a site of contacts per test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from infra.servers import Servers
from infra.site import Site
from infra.testing import MakeSite as MakeAnySite

__all__ = ["ROOT", "SCHEMA", "VIEWS", "MakeSite", "Site"]

ROOT = Path(__file__).parents[1]

VIEWS = """
version: 1
views:
  contact: {key: "contact:{id}", mode: invalidate, tables: {public.contacts: {}}}
  segment:
    key: "segment:{id}"
    mode: invalidate
    tables: {public.members: {parts: {id: segment_id}}}
  template: {key: "template:{id}", mode: refresh, tables: {public.templates: {}}}
"""

SCHEMA = """
CREATE TABLE contacts (id int PRIMARY KEY, email text, status text);
CREATE TABLE members (contact_id int PRIMARY KEY, segment_id int NOT NULL);
CREATE TABLE templates (id int PRIMARY KEY, body text);
ALTER TABLE members REPLICA IDENTITY FULL;
CREATE PUBLICATION staleproof FOR TABLE contacts, members, templates;
"""

DEFAULT_HEARTBEAT = {"heartbeat_interval_ms": 250}
"""The settings' default, which the plugin shortens: what is tested here is what production runs."""


@pytest.fixture(scope="session")
def stack(staleproof_servers: Servers) -> Servers:
    """The real servers."""
    return staleproof_servers


class MakeSite(Protocol):
    """Makes a site with a fresh database, tables, settings and views; nothing is started yet."""

    def __call__(self, *, redis_urls: Mapping[str, str] | None = None, **sections: Mapping[str, Any]) -> Site:
        """`redis_urls`: regions of the test's own instead of the stack's. `sections` add to those of the settings."""


@pytest.fixture
def make_site(staleproof: MakeAnySite, tmp_path: Path) -> MakeSite:
    """For a test whose site is not the usual one; one site per test."""

    def make(*, redis_urls: Mapping[str, str] | None = None, **sections: Mapping[str, Any]) -> Site:
        source = DEFAULT_HEARTBEAT | dict(sections.pop("source", {}))
        return staleproof(
            schema=SCHEMA,
            views=VIEWS,
            redis_urls=redis_urls,
            directory=tmp_path,
            start=False,
            source=source,
            **sections,
        )

    return make


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    """On the stack's own regions, with the usual settings."""
    return make_site()
