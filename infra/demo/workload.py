"""The writer: an e-mail platform at work, at a given number of row changes per second.

    python -m infra.demo.workload --rate 300 --seed 1        # DSN in the environment: DEMO_DSN

Mostly small transactions on busy contacts, some imports of dozens of rows; rows are deleted and come back, change their
primary key and change it again. Beside the main writer an importer keeps transactions open for a while, so that
commits do not come in the order in which the transactions began; it has every eighth contact for itself.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import msgspec
import psycopg

from infra.demo.child import Orders, Tally, carry_out
from infra.demo.data import CITIES, Sizes, attributes, audience, contact, skewed, template_body

MOVED = 100_000_000
"""A moved contact has this number more than before."""

IMPORTER_SHARE = 8
IMPORTER_PERCENT = 10
IMPORTER_ROWS = 30
IMPORTER_OPEN_SECONDS = 0.3
ABSENT_CONTACTS_MAX = 200
BEHIND_SECONDS_MAX = 2.0

BULK_FROM_RATE = 500
BULK_MAX = 6
"""High rates come in larger transactions, as imports do: beyond BULK_FROM_RATE the batches grow with the rate."""

Connection = psycopg.Connection[Any]


class Writer:
    """Makes up one transaction after the other, from a seed. `clock` gives the seconds since the load began."""

    def __init__(
        self, connection: Connection, rng: random.Random, sizes: Sizes, clock: Callable[[], float], rate: float
    ) -> None:
        self._connection = connection
        self._rng = rng
        self._sizes = sizes
        self._clock = clock
        self._bulk = min(max(1, round(rate / BULK_FROM_RATE)), BULK_MAX)
        self._next_event = sizes.events + 1
        self._moved: deque[int] = deque()
        self._deleted: deque[tuple[int, list[int]]] = deque()
        self._kinds = [kind for _, kind in self._mix()]
        self._weights = list(accumulate(weight for weight, _ in self._mix()))

    def _mix(self) -> Sequence[tuple[float, Callable[[], int]]]:
        """How often each kind of transaction happens; together about 75, and about 300 rows."""
        return (
            (30, self._edit_profile),
            (4, self._import_profiles),
            (4, self._visit),
            (14, self._track),
            (1, self._correct_tracking),
            (3, self._unsubscribe),
            (6, self._move_members),
            (3, self._add_members),
            (3, self._remove_members),
            (1, self._edit_template),
            (2, self._edit_campaign),
            (1, self._edit_segment),
            (1, self._delete_contact),
            (1, self._return_contact),
            (1, self._move_contact),
        )

    def transact(self) -> int:
        """One transaction; the number of rows that it changed."""
        kind = self._rng.choices(self._kinds, cum_weights=self._weights)[0]
        with self._connection.transaction():
            return kind()

    def _execute(self, query: str, *values: object) -> int:
        return self._connection.execute(query, values).rowcount

    def _contact(self) -> int:
        number = audience(self._rng, self._sizes, self._clock())
        return number - 1 if number % IMPORTER_SHARE == 0 else number

    def _contacts(self, least: int, most: int) -> list[int]:
        return sorted({self._contact() for _ in range(self._rng.randint(least, most * self._bulk))})

    def _segment(self) -> int:
        return skewed(self._rng, self._sizes.segments)

    # -- contacts

    def _edit_profile(self) -> int:
        return self._execute(
            "UPDATE contacts SET city = %s, attributes = %s, updated_at = now() WHERE id = %s",
            self._rng.choice(CITIES), attributes(self._rng), self._contact(),
        )  # fmt: skip

    def _import_profiles(self) -> int:
        numbers = self._contacts(5, 40)
        return self._execute(
            "UPDATE contacts SET attributes = v.new, updated_at = now()"
            " FROM unnest(%s::bigint[], %s::jsonb[]) AS v (id, new) WHERE contacts.id = v.id",
            numbers, [attributes(self._rng) for _ in numbers],
        )  # fmt: skip

    def _visit(self) -> int:
        return self._execute("UPDATE contacts SET updated_at = now() WHERE id = ANY (%s)", self._contacts(2, 10))

    def _unsubscribe(self) -> int:
        number = self._contact()
        status = self._rng.choice(("unsubscribed", "subscribed", "bounced"))
        changed = self._execute("UPDATE contacts SET status = %s WHERE id = %s", status, number)
        return changed + self._execute(
            "DELETE FROM segment_members WHERE contact_id = %s AND segment_id = %s", number, self._segment()
        )

    def _delete_contact(self) -> int:
        if len(self._deleted) >= ABSENT_CONTACTS_MAX:
            return self._return_contact()
        number = self._contact()
        changed = self._execute("DELETE FROM contacts WHERE id = %s", number)
        if not changed:
            return 0
        rows = self._connection.execute(
            "DELETE FROM segment_members WHERE contact_id = %s RETURNING segment_id", (number,)
        ).fetchall()
        self._deleted.append((number, [row[0] for row in rows]))
        return changed + len(rows)

    def _return_contact(self) -> int:
        if not self._deleted:
            return 0
        number, segments = self._deleted.popleft()
        changed = self._execute(
            "INSERT INTO contacts (id, email, first_name, last_name, city, language, status, attributes)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING", *contact(number, self._rng),
        )  # fmt: skip
        return changed + self._execute(
            "INSERT INTO segment_members SELECT unnest(%s::bigint[]), %s ON CONFLICT DO NOTHING", segments, number
        )

    def _move_contact(self) -> int:
        """A merge of two systems: contacts get another number, and sometimes their old one again."""
        if len(self._moved) > self._rng.randrange(100):
            old = self._moved.popleft()
            new = old - MOVED
        else:
            old = self._contact()
            new = old + MOVED
        changed = self._execute(
            "UPDATE contacts SET id = %s WHERE id = %s AND NOT EXISTS (SELECT FROM contacts WHERE id = %s)",
            new, old, new,
        )  # fmt: skip
        if not changed:
            return 0
        if new > old:
            self._moved.append(new)
        return changed + self._execute("UPDATE segment_members SET contact_id = %s WHERE contact_id = %s", new, old)

    # -- segments

    def _move_members(self) -> int:
        old, new = self._segment(), self._segment()
        if old == new:
            return 0
        return self._execute(
            "UPDATE segment_members SET segment_id = %s WHERE segment_id = %s AND contact_id = ANY (%s)"
            " AND NOT EXISTS (SELECT FROM segment_members AS n"
            " WHERE n.segment_id = %s AND n.contact_id = segment_members.contact_id)",
            new, old, self._contacts(4, 16), new,
        )  # fmt: skip

    def _add_members(self) -> int:
        return self._execute(
            "INSERT INTO segment_members SELECT %s, id FROM contacts WHERE id = ANY (%s) ON CONFLICT DO NOTHING",
            self._segment(), self._contacts(1, 8),
        )  # fmt: skip

    def _remove_members(self) -> int:
        return self._execute(
            "DELETE FROM segment_members WHERE segment_id = %s AND contact_id = ANY (%s)",
            self._segment(), self._contacts(2, 16),
        )  # fmt: skip

    def _edit_segment(self) -> int:
        rule = f"points > {self._rng.randrange(5_000)}"
        return self._execute("UPDATE segments SET rule = %s WHERE id = %s", rule, self._segment())

    # -- what is sent

    def _edit_template(self) -> int:
        number = skewed(self._rng, self._sizes.templates)
        if self._rng.random() < 0.5:
            subject = f"subject {self._rng.randrange(1_000_000)}"
            return self._execute("UPDATE templates SET subject = %s WHERE id = %s", subject, number)
        return self._execute("UPDATE templates SET body = %s WHERE id = %s", template_body(self._rng), number)

    def _edit_campaign(self) -> int:
        status = self._rng.choice(("draft", "scheduled", "sending", "sent"))
        return self._execute(
            "UPDATE campaigns SET status = %s, scheduled_at = now() WHERE id = %s",
            status, skewed(self._rng, self._sizes.campaigns),
        )  # fmt: skip

    # -- what came of it

    def _track(self) -> int:
        count = self._rng.randint(1, 12 * self._bulk)
        numbers = list(range(self._next_event, self._next_event + count))
        self._next_event += count
        return self._execute(
            "INSERT INTO tracking_events (id, contact_id, campaign_id, kind)"
            " SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::text[])",
            numbers,
            [audience(self._rng, self._sizes, self._clock()) for _ in numbers],
            [skewed(self._rng, self._sizes.campaigns) for _ in numbers],
            self._rng.choices(("sent", "open", "click"), (40, 45, 15), k=count),
        )

    def _correct_tracking(self) -> int:
        """A bot's open is taken back, or an event is given to the contact whose it was."""
        number = self._rng.randrange(1, self._next_event)
        if self._rng.random() < 0.5:
            return self._execute("DELETE FROM tracking_events WHERE id = %s", number)
        return self._execute("UPDATE tracking_events SET contact_id = %s WHERE id = %s", self._contact(), number)


class Pace:
    """Waits so that work goes on at a rate per second; what is missed is caught up, within limits."""

    def __init__(self, rate: float, stop: threading.Event) -> None:
        self._rate = rate
        self._stop = stop
        self._due = time.monotonic()

    def spend(self, amount: int) -> None:
        """Wait until `amount` more is due."""
        now = time.monotonic()
        self._due = max(self._due, now - BEHIND_SECONDS_MAX) + amount / self._rate
        if self._due > now:
            self._stop.wait(self._due - now)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What one thread of the writer works with."""

    connection: Connection
    rng: random.Random
    rate: float
    tally: Tally
    stop: threading.Event
    clock: Callable[[], float]


def write(job: Job) -> None:
    """Write until stopped."""
    writer, pace = Writer(job.connection, job.rng, Sizes(), job.clock, job.rate), Pace(job.rate, job.stop)
    while not job.stop.is_set():
        changes = writer.transact()
        job.tally.add({"changes": changes, "transactions": 1})
        pace.spend(changes)


def import_slowly(job: Job) -> None:
    """Update contacts in transactions that stay open for a while, until stopped."""
    pace = Pace(job.rate, job.stop)
    while not job.stop.is_set():
        chosen = (audience(job.rng, Sizes(), job.clock()) for _ in range(IMPORTER_ROWS))
        numbers = sorted({number - number % IMPORTER_SHARE or IMPORTER_SHARE for number in chosen})
        with job.connection.transaction():
            changes = job.connection.execute(
                "UPDATE contacts SET attributes = v.new, updated_at = now()"
                " FROM unnest(%s::bigint[], %s::jsonb[]) AS v (id, new) WHERE contacts.id = v.id",
                (numbers, [attributes(job.rng) for _ in numbers]),
            ).rowcount
            job.stop.wait(job.rng.uniform(0, IMPORTER_OPEN_SECONDS))
        job.tally.add({"changes": changes, "transactions": 1})
        pace.spend(changes)


def since(began: float) -> Callable[[], float]:
    """A clock of the seconds since then."""
    return lambda: max(0.0, time.time() - began)


def main() -> int:
    """Write until told to stop; the last line is the final count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--began", type=float, required=True, help="when the load began, in seconds since 1970")
    options = parser.parse_args()
    orders, tally = Orders(), Tally()
    share = IMPORTER_PERCENT / 100

    def work(task: Callable[[Job], None], name: str, rate: float) -> None:
        with psycopg.connect(os.environ["DEMO_DSN"], autocommit=True) as connection:
            rng = random.Random(f"{options.seed}:{name}")
            clock = since(options.began)
            task(Job(connection=connection, rng=rng, rate=rate, tally=tally, stop=orders.stop, clock=clock))

    tasks = {
        "writer": partial(work, write, "writer", options.rate * (1 - share)),
        "importer": partial(work, import_slowly, "importer", options.rate * share),
    }
    return carry_out(orders, tally, tasks)


if __name__ == "__main__":
    sys.exit(main())
