"""The cached objects as the application loads them: plain SQL on one connection. The same for both kinds of cache.

A load is not instantaneous in a real application: connections are waited for, objects are composed, collectors run.
`SLOW_LOADS` of the loads therefore dawdle, after their first query, for `SLOW_SECONDS`; under the guard and without it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any, TypeAlias

Value: TypeAlias = dict[str, Any]
Load: TypeAlias = Callable[[Any], Value | None]

SLOW_LOADS = 0.15
SLOW_SECONDS = (0.05, 0.25)


def no_pause() -> None:
    """Compose an object without dawdling."""


def dawdle(rng: random.Random) -> Callable[[], None]:
    """What composing an object costs, now and then."""

    def pause() -> None:
        if rng.random() < SLOW_LOADS:
            time.sleep(rng.uniform(*SLOW_SECONDS))

    return pause


def contact(number: int, pause: Callable[[], None] = no_pause) -> Load:
    """A contact's profile."""

    def load(connection: Any) -> Value | None:
        row = connection.execute(
            "SELECT id, email, first_name, last_name, city, language, status, attributes FROM contacts WHERE id = %s",
            (number,),
        ).fetchone()
        pause()
        names = ("id", "email", "first_name", "last_name", "city", "language", "status", "attributes")
        return row and dict(zip(names, row, strict=True))

    return load


def template(number: int, pause: Callable[[], None] = no_pause) -> Load:
    """A template, as its row: the shape in which a refresh stores it."""

    def load(connection: Any) -> Value | None:
        row = connection.execute("SELECT id, name, subject, body FROM templates WHERE id = %s", (number,)).fetchone()
        pause()
        return row and dict(zip(("id", "name", "subject", "body"), row, strict=True))

    return load


def campaign(number: int, pause: Callable[[], None] = no_pause) -> Load:
    """A campaign: what is sent, to whom, when."""

    def load(connection: Any) -> Value | None:
        row = connection.execute(
            "SELECT id, name, template_id, segment_id, status, extract(epoch FROM scheduled_at)::bigint"
            " FROM campaigns WHERE id = %s",
            (number,),
        ).fetchone()
        pause()
        return row and dict(zip(("id", "name", "template_id", "segment_id", "status", "scheduled"), row, strict=True))

    return load


def segment(number: int, pause: Callable[[], None] = no_pause) -> Load:
    """A segment with its members, in order of their numbers."""

    def load(connection: Any) -> Value | None:
        row = connection.execute("SELECT id, name, rule FROM segments WHERE id = %s", (number,)).fetchone()
        pause()
        if row is None:
            return None
        members = connection.execute(
            "SELECT coalesce(array_agg(contact_id ORDER BY contact_id), '{}') FROM segment_members"
            " WHERE segment_id = %s",
            (number,),
        ).fetchone()[0]
        return {"id": row[0], "name": row[1], "rule": row[2], "count": len(members), "members": members}

    return load


def contact_stats(number: int, pause: Callable[[], None] = no_pause) -> Load:
    """How often a contact opened and clicked; zeros for one who never did."""

    def load(connection: Any) -> Value | None:
        opens, clicks = connection.execute(
            "SELECT count(*) FILTER (WHERE kind = 'open'), count(*) FILTER (WHERE kind = 'click')"
            " FROM tracking_events WHERE contact_id = %s",
            (number,),
        ).fetchone()
        pause()
        return {"opens": opens, "clicks": clicks}

    return load
