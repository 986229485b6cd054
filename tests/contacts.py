"""Contacts that never stop changing and being read; and whether what a cache serves of them is what the database has."""

from __future__ import annotations

import random
import threading
from contextlib import nullcontext
from typing import Any, Self

import psycopg

from tests.fix_stack import Site
from tests.waiting import wait_until

PRELOADED = 200


def load_contact(identity: int) -> Any:
    def load(connection: psycopg.Connection[Any]) -> dict[str, Any] | None:
        row = connection.execute("SELECT email, status FROM contacts WHERE id = %s", (identity,)).fetchone()
        return None if row is None else {"email": row[0], "status": row[1]}

    return load


class Load:
    """A writer and a reader that never stop until told to; the database is what the seed makes it."""

    def __init__(self, site: Site, region: str, seed: int = 7) -> None:
        self._site, self._region, self._seed = site, region, seed
        self._stop, self._stop_writing = threading.Event(), threading.Event()
        self.errors: list[BaseException] = []
        self.changes = 0
        self._threads = [threading.Thread(target=self._guarded, args=(run,)) for run in (self._write, self._read)]

    def __enter__(self) -> Self:
        self._site.database.execute(
            "INSERT INTO contacts SELECT i, 'start', 'subscribed' FROM generate_series(0, %s) i", (PRELOADED - 1,)
        )
        for thread in self._threads:
            thread.start()
        return self

    def wait_changes(self, count: int) -> None:
        """Until so many more changes were committed."""
        wanted = self.changes + count
        wait_until(lambda: self.changes >= wanted or self.errors, f"{count} changes were made", seconds=60)

    def stop_writing(self) -> None:
        """The reader goes on: what it fills while the stream drains is what could be wrong."""
        self._stop_writing.set()
        self._threads[0].join(20)

    def wait_filled(self) -> None:
        """Until the reader has filled enough for a comparison to say something."""
        reader = self._site.reader(self._region)
        wait_until(
            lambda: self.errors or sum(cached_key(reader, i) for i in range(PRELOADED)) > PRELOADED // 2,
            "the reader has filled half of the entries", seconds=60,
        )  # fmt: skip

    def __exit__(self, *_: object) -> None:
        self._stop_writing.set()
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in self._threads)

    def _guarded(self, run: Any) -> None:
        try:
            run()
        except BaseException as error:
            self.errors.append(error)
            raise

    def _write(self) -> None:
        random_ = random.Random(self._seed)
        with psycopg.connect(self._site.dsn, autocommit=True) as connection:
            while not self._stop_writing.wait(0.002):
                chosen, value = random_.randrange(PRELOADED), str(random_.random())
                if random_.random() < 0.1:
                    connection.execute("DELETE FROM contacts WHERE id = %s", (chosen,))
                else:
                    connection.execute(
                        "INSERT INTO contacts VALUES (%s, %s, 's') ON CONFLICT (id) DO UPDATE SET email = excluded.email",
                        (chosen, value),
                    )
                self.changes += 1

    def _read(self) -> None:
        random_ = random.Random(self._seed + 1)
        with psycopg.connect(self._site.dsn, autocommit=True) as connection:
            reader = self._site.reader(self._region)
            reader._connect = reader._primary = lambda: nullcontext(connection)
            while not self._stop.is_set():
                chosen = random_.randrange(PRELOADED)
                reader.get("contact", chosen, load_contact(chosen))


def fill_everything(site: Site, region: str) -> None:
    reader = site.reader(region)
    for identity in range(PRELOADED):
        reader.get("contact", identity, load_contact(identity))


def stale_entries(site: Site, region: str, *, at_least: int = PRELOADED // 4) -> list[str]:
    """Contacts whose readable entry differs from the database. Asks the cache only: what misses is not stale.

    Fails where fewer than `at_least` are there, which says nothing.
    """
    truth = {row[0]: {"email": row[1], "status": row[2]} for row in site.database.execute("SELECT * FROM contacts")}
    reader = site.reader(region)
    missed = object()
    stale = []
    checked = 0
    for identity in range(PRELOADED):
        value = reader.get("contact", identity, lambda connection: missed) if cached_key(reader, identity) else missed
        if value is missed:
            continue
        checked += 1
        if value != truth.get(identity):
            stale.append(f"contact:{identity}")
    assert checked >= at_least, "too few entries to say anything"
    return stale


def cached_key(reader: Any, identity: int) -> bool:
    view, key = reader._views.views["contact"], f"contact:{identity}"
    return reader._region.read(reader.layout.place(key)[0], key, "contact", view.digest).status == "HIT"


def stale_entries_after_reading(site: Site, region: str, *, at_least: int = PRELOADED // 4) -> list[str]:
    """What was cached while it happened is compared first, then read once more through the cache, compared again."""
    found = stale_entries(site, region, at_least=at_least)
    fill_everything(site, region)
    return found + stale_entries(site, region)
