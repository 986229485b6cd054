"""One region's readers: they render personalised e-mails for sends, and take every object through the region's cache.

    python -m infra.demo.readers --region eu --rate 150 --seed 1 [--naive]    # environment: DEMO_DSN, DEMO_REDIS

A send takes a campaign, its segment's members and its template; each mail takes a contact, and often its statistics.
"""

from __future__ import annotations

import argparse
import bisect
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import psycopg
from psycopg_pool import ConnectionPool

from infra.demo import objects
from infra.demo.caches import open_cache
from infra.demo.child import Orders, Tally, carry_out
from infra.demo.data import Sizes, recipients, skewed
from infra.demo.objects import Load, Value
from infra.demo.workload import Pace, since

THREADS = 4
"""Mails are rendered side by side, as an application server does: one slow load holds up one mail."""

MAILS_PER_SEND = 20
FOLLOW_UP_SHARE = 0.5
FOLLOW_UP_SECONDS = (1.5, 10.0)
"""So many sends are follow-ups, to those who were reached so long ago."""

STATISTICS_SHARE = 0.9


class Cache(Protocol):
    """What both caches, guarded and naive, give a reader."""

    @property
    def counts(self) -> Counter[str]:
        """hit, refused, and more."""

    def get(self, view: str, key: object, load: Load) -> Value | None:
        """The object, from the cache or loaded."""


class Sender:
    """Renders the mails of one send after the other."""

    def __init__(self, cache: Cache, rng: random.Random, sizes: Sizes, pace: Pace, clock: Callable[[], float]) -> None:
        self._cache = cache
        self._rng = rng
        self._sizes = sizes
        self._pace = pace
        self._clock = clock
        self._pause = objects.dawdle(rng)

    def send(self) -> None:
        """One send: some mails of one campaign."""
        follow_up = self._rng.random() < FOLLOW_UP_SHARE
        campaigns = self._sizes.campaigns
        number = self._rng.randint(1, campaigns) if follow_up else skewed(self._rng, campaigns)
        campaign = self._get("campaign", number, objects.campaign)
        if campaign is None:
            return
        segment = self._get("segment", campaign["segment_id"], objects.segment)
        ago_seconds = self._rng.uniform(*FOLLOW_UP_SECONDS) if follow_up else 0.0
        due = members_in(segment["members"], recipients(max(0.0, self._clock() - ago_seconds))) if segment else []
        if not due:
            self._pace.spend(1)  # nobody is due: looking is not for free
        for contact in self._rng.sample(due, min(MAILS_PER_SEND, len(due))):
            self._mail(number, contact)
            self._pace.spend(1)

    def _mail(self, campaign_number: int, contact_number: int) -> None:
        campaign = self._get("campaign", campaign_number, objects.campaign)
        contact = self._get("contact", contact_number, objects.contact)
        if campaign is None or contact is None or contact["status"] != "subscribed":
            return
        template = self._get("template", campaign["template_id"], objects.template)
        if self._rng.random() < STATISTICS_SHARE:
            self._get("contact_stats", contact_number, objects.contact_stats)
        if template is not None:
            render(template, contact)

    def _get(self, view: str, number: int, loader: Callable[[int, Callable[[], None]], Load]) -> Value | None:
        return self._cache.get(view, number, loader(number, self._pause))


def members_in(members: list[int], wanted: range) -> list[int]:
    """Those of the ordered `members` that are wanted."""
    return members[bisect.bisect_left(members, wanted.start) : bisect.bisect_left(members, wanted.stop)]


def render(template: Value, contact: Value) -> str:
    """The mail's text."""
    text: str = template["body"]
    for name in ("first_name", "city"):
        text = text.replace(f"{{{name}}}", contact[name])
    return text


def main() -> int:
    """Read until told to stop; the last line is the final count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--region", required=True)
    parser.add_argument("--rate", type=float, required=True, help="mails per second")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--began", type=float, required=True, help="when the load began, in seconds since 1970")
    parser.add_argument("--naive", action="store_true")
    options = parser.parse_args()
    orders, tally = Orders(), Tally()

    def work(number: int, pool: ConnectionPool[psycopg.Connection[Any]]) -> None:
        cache = open_cache(options.region, os.environ["DEMO_REDIS"], pool.connection, naive=options.naive)
        rng = random.Random(f"{options.seed}:{options.region}:{number}")
        sender = Sender(cache, rng, Sizes(), Pace(options.rate / THREADS, orders.stop), since(options.began))
        while not orders.stop.is_set():
            sender.send()
            tally.add(cache.counts)
            cache.counts.clear()

    kwargs = {"autocommit": True}
    with ConnectionPool(os.environ["DEMO_DSN"], min_size=THREADS, max_size=THREADS, kwargs=kwargs) as pool:
        return carry_out(orders, tally, {f"sender {number}": partial(work, number, pool) for number in range(THREADS)})


if __name__ == "__main__":
    sys.exit(main())
