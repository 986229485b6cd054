"""The platform's data: generated from a seed, skewed like real audiences, loaded by COPY in seconds.

Low numbers are busy: the first contacts are in more segments, open more, and change more. The same seed gives the same
rows on every machine.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import msgspec
import psycopg

Row: TypeAlias = tuple[int | str | None, ...]

PROBE_FIRST = 900_000_001
PROBE_CONTACTS = 64
"""Contacts of the probe: nobody else reads or writes them."""

GATE_FIRST = 700_000_001
GATE_CONTACTS = 4_000
"""Contacts of the send gate: they unsubscribe one after the other, and nobody else touches them."""

SLEEPERS_FIRST = 500_000_001
"""Contacts that only a rebuild concerns, and what watches it; none without --rebuild."""

ENGAGED = 2_400
"""The first contacts: those who open mails, and whom sends therefore go to."""

WAVE_CONTACTS = 60
WAVE_SECONDS = 1.25
"""Sends go through them in waves, in all regions at once: so many contacts in so much time."""

REACTING_SHARE = 0.7
"""Who is being mailed opens, clicks, unsubscribes and mends his profile: so much of what happens, happens to them."""

MEMBERS_PER_SEGMENT_MAX = 2_000
MEMBERS_PER_SEGMENT_MIN = 40

_FIRST_NAMES = (
    "Ada", "Amina", "Björn", "Chidi", "Chloé", "Dmitri", "Elif", "Fatima", "Grace", "Hiro", "İpek", "Jörg", "Kofi",
    "Lucía", "Mei", "Noor", "Olu", "Priya",
)  # fmt: skip
_LAST_NAMES = (
    "Abe", "Bianchi", "Costa", "Diaz", "Eriksen", "Fischer", "García", "Haddad", "Ito", "Jansen", "Kaya", "Lopez",
    "Müller", "Nowak", "Okafor", "Rossi",
)  # fmt: skip
CITIES = (
    "Accra", "Berlin", "Bogotá", "Cairo", "Delhi", "Dublin", "Hanoi", "İzmir", "Lagos", "Lima", "Lyon", "Malmö",
    "Osaka", "Porto", "Quito", "Zürich",
)  # fmt: skip
LANGUAGES = ("de", "en", "es", "fr", "ja", "tr")
_WORDS = (
    "offer", "season", "collection", "price", "member", "order", "delivery", "gift", "summer", "winter", "new",
    "only", "today", "your", "favourite", "store", "discount", "size", "colour", "review", "points", "reward",
    "invitation", "early", "access", "limited", "free", "return", "week", "style", "team",
)  # fmt: skip


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows of each kind; `members` is about what the segments hold together."""

    contacts: int = 20_000
    templates: int = 60
    campaigns: int = 200
    segments: int = 100
    members: int = 60_000
    events: int = 40_000


def skewed(rng: random.Random, count: int) -> int:
    """A number from 1 to `count`, small ones more often: a tenth of them is drawn nearly half of the time."""
    return 1 + int(count * rng.random() ** 3)


def recipients(seconds: float) -> range:
    """The contacts whom sends reach `seconds` after the load began. They are mailed now, so they react now."""
    first = int(seconds / WAVE_SECONDS) * WAVE_CONTACTS % ENGAGED
    return range(1 + first, 1 + first + WAVE_CONTACTS)


def audience(rng: random.Random, sizes: Sizes, seconds: float) -> int:
    """A contact that something happens to, `seconds` after the load began."""
    return rng.choice(recipients(seconds)) if rng.random() < REACTING_SHARE else rng.randint(1, sizes.contacts)


def contact(number: int, rng: random.Random) -> Row:
    """One contact's row."""
    first, last = rng.choice(_FIRST_NAMES), rng.choice(_LAST_NAMES)
    status = rng.choices(("subscribed", "unsubscribed", "bounced"), (90, 8, 2))[0]
    return (
        number, f"c{number}@example.com", first, last, rng.choice(CITIES), rng.choice(LANGUAGES), status,
        attributes(rng),
    )  # fmt: skip


def attributes(rng: random.Random) -> str:
    """What a shop knows about a contact, as JSON."""
    return json.dumps(
        {"points": rng.randrange(5_000), "tier": rng.choice("ABC"), "tags": rng.sample(_WORDS, rng.randrange(4))}
    )


def template_body(rng: random.Random) -> str:
    """2 to 20 kB of text with the places that a mail fills."""
    length = rng.randrange(2_000, 20_000)
    words = ["Hello {first_name} from {city},"]
    written = len(words[0])
    while written < length:
        words.append(rng.choice(_WORDS))
        written += len(words[-1]) + 1
    return " ".join(words)


def rows_of(table: str, seed: int, sizes: Sizes) -> Iterable[Row]:
    """The rows of one table."""
    return _GENERATORS[table](random.Random(f"{seed}:{table}"), sizes)


def load(connection: psycopg.Connection[Any], seed: int, sizes: Sizes) -> None:
    """Write every table, in one transaction."""
    with connection.transaction(), connection.cursor() as cursor:
        for table, columns in COLUMNS.items():
            names = psycopg.sql.SQL(", ").join(map(psycopg.sql.Identifier, columns))
            order = psycopg.sql.SQL("COPY {} ({}) FROM STDIN").format(psycopg.sql.Identifier(table), names)
            with cursor.copy(order) as copy:
                for row in rows_of(table, seed, sizes):
                    copy.write_row(row)
    connection.execute("ANALYZE")


COLUMNS = {
    "contacts": ("id", "email", "first_name", "last_name", "city", "language", "status", "attributes"),
    "templates": ("id", "name", "subject", "body"),
    "segments": ("id", "name", "rule"),
    "segment_members": ("segment_id", "contact_id"),
    "campaigns": ("id", "name", "template_id", "segment_id", "status"),
    "tracking_events": ("id", "contact_id", "campaign_id", "kind"),
}
"""Which columns of each table are generated; the others have defaults."""


def _contacts(rng: random.Random, sizes: Sizes) -> Iterator[Row]:
    numbers = (*range(1, sizes.contacts + 1), *range(PROBE_FIRST, PROBE_FIRST + PROBE_CONTACTS))
    return (contact(number, rng) for number in numbers)


def _templates(rng: random.Random, sizes: Sizes) -> Iterator[Row]:
    for number in range(1, sizes.templates + 1):
        yield number, f"template {number}", " ".join(rng.sample(_WORDS, 5)), template_body(rng)


def _segments(rng: random.Random, sizes: Sizes) -> Iterator[Row]:
    for number in range(1, sizes.segments + 1):
        yield number, f"segment {number}", f"city = '{rng.choice(CITIES)}' AND points > {rng.randrange(5_000)}"


def _members(rng: random.Random, sizes: Sizes) -> Iterator[Row]:
    shares = [1 / number**0.5 for number in range(1, sizes.segments + 1)]
    for number, share in enumerate(shares, 1):
        wanted = int(sizes.members * share / sum(shares))
        wanted = min(max(wanted, MEMBERS_PER_SEGMENT_MIN), MEMBERS_PER_SEGMENT_MAX, sizes.contacts // 2)
        chosen: set[int] = set()
        while len(chosen) < wanted:
            chosen.add(skewed(rng, sizes.contacts))
        for member in sorted(chosen):
            yield number, member


def _campaigns(rng: random.Random, sizes: Sizes) -> Iterator[Row]:
    for number in range(1, sizes.campaigns + 1):
        status = rng.choice(("draft", "scheduled", "sending", "sent"))
        yield (
            number, f"campaign {number}", skewed(rng, sizes.templates), skewed(rng, sizes.segments), status,
        )  # fmt: skip


def _events(rng: random.Random, sizes: Sizes) -> Iterator[Row]:
    for number in range(1, sizes.events + 1):
        kind = rng.choices(("sent", "open", "click"), (70, 25, 5))[0]
        yield number, skewed(rng, sizes.contacts), skewed(rng, sizes.campaigns), kind


_GENERATORS = {
    "contacts": _contacts,
    "templates": _templates,
    "segments": _segments,
    "segment_members": _members,
    "campaigns": _campaigns,
    "tracking_events": _events,
}
