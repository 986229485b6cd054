"""What a real standby shows, which proofs hold there, and what the guard makes of reads from one that lags or rises."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import psycopg
import pytest

from cdc.events import Position, parse_lsn
from cdc.snapshots import Snapshot, parse_pg_snapshot, parse_pg_standby_snapshot
from consumers.regions import open_region, read_views
from infra.stack import Stack
from infra.standby import Standby
from invalidator.reader import CacheReader
from tests.fix_stack import Site
from tests.waiting import wait_until

Database = psycopg.Connection[Any]

HISTORY = "77:1"
REGION = "eu"


@pytest.fixture
def standby(staleproof_standby: Standby, site: Site) -> Standby:
    """One for the tests that leave it a standby. It replays, and has the site's database."""
    staleproof_standby.resume_replay()
    staleproof_standby.wait_replayed()
    return staleproof_standby


def connect_to(standby: Standby, site: Site) -> Database:
    return psycopg.connect(standby.dsn(site.settings.source.name), autocommit=True)


def ask(database: Database, question: str, *arguments: Any) -> Any:
    row = database.execute(question.encode(), arguments).fetchone()
    assert row is not None
    return row[0] if len(row) == 1 else row


@contextmanager
def open_transaction(site: Site) -> Iterator[tuple[Database, int]]:
    """A transaction on the primary that has a stamp and stays open: it holds xmin back, there and on the standby."""
    with psycopg.connect(site.dsn) as connection:
        yield connection, int(ask(connection, "SELECT pg_current_xact_id()::text"))


def change(site: Site, status: str) -> tuple[int, Position]:
    """Change contact 1 on the primary. Its stamp, and a place not before the start of its commit record.

    Any place within the record says the same: it is replayed whole.
    """
    with psycopg.connect(site.dsn) as connection:
        stamp = int(ask(connection, "SELECT pg_current_xact_id()::text"))
        connection.execute(
            "INSERT INTO contacts VALUES (1, 'a', %s) ON CONFLICT (id) DO UPDATE SET status = excluded.status",
            (status,),
        )
        connection.commit()
        end = parse_lsn(ask(connection, "SELECT pg_current_wal_insert_lsn()::text"))
    return stamp, Position(1, end - 1, 0)


def status_of(database: Database) -> str | None:
    row = database.execute("SELECT status FROM contacts WHERE id = 1").fetchone()
    return None if row is None else row[0]


def replay_lsn(database: Database) -> int:
    return parse_lsn(ask(database, "SELECT pg_last_wal_replay_lsn()::text"))


def xmin_of(database: Database) -> int:
    return int(ask(database, "SELECT pg_snapshot_xmin(pg_current_snapshot())::text"))


def on_standby(xmin: int, replayed: int) -> Snapshot:
    """What a standby's reader proves: xmin, and the replay LSN."""
    return parse_pg_standby_snapshot(HISTORY, f"{xmin}:{xmin}:", replayed)


# --- what PostgreSQL itself does ------------------------------------------------------------------------------------


def test_the_primary_lists_a_running_transaction_and_the_standby_calls_it_visible(site: Site, standby: Standby) -> None:
    """DESIGN §2: the reason why a standby's snapshot is judged by other tests than a primary's."""
    question = "SELECT pg_current_snapshot()::text, pg_visible_in_snapshot(%s::text::xid8, pg_current_snapshot())"
    with open_transaction(site) as (writer, stamp), connect_to(standby, site) as replica:
        writer.execute("INSERT INTO contacts VALUES (7, 'open', '')")
        change(site, "later")  # a completed transaction beyond the open one, so that xmax alone decides nothing
        standby.wait_replayed()
        text, visible = ask(site.database, question, stamp)
        primary = parse_pg_snapshot(HISTORY, text)
        assert str(stamp) in text.split(":")[2].split(",")
        assert not visible
        assert not primary.covers(stamp)
        text, visible = ask(replica, question, stamp)
        lying = parse_pg_snapshot(HISTORY, text)
        assert int(text.split(":")[1]) > stamp
        assert text.endswith(":")  # no running transaction
        assert visible
        assert lying.covers(stamp)  # taken for a primary's, it would be believed
        assert ask(replica, "SELECT count(*) FROM contacts WHERE id = 7") == 0  # and yet the row is not there
        assert not on_standby(int(text.split(":")[0]), 0).covers(stamp)


def test_every_stamp_below_a_standbys_xmin_is_visible_there_and_one_at_it_need_not_be(
    site: Site, standby: Standby
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 - to play it again
    order = random.Random(seed)
    site.database.execute("CREATE TABLE stamps (stamp bigint)")
    standby.wait_replayed()
    running: dict[int, Database] = {}
    committed: set[int] = set()
    below, invisible_at_xmin = 0, 0
    with ExitStack() as resources, connect_to(standby, site) as replica:
        for turn in range(60):
            if len(running) < 4 and order.random() < 0.6:
                writer = resources.enter_context(psycopg.connect(site.dsn))
                insert = "INSERT INTO stamps VALUES (pg_current_xact_id()::text::bigint) RETURNING stamp"
                running[ask(writer, insert)] = writer
            elif running:
                stamp = order.choice(sorted(running))
                running.pop(stamp).commit()
                committed.add(stamp)
            if turn % 7 == 3:
                standby.pause_replay()  # whatever is committed from here on is not seen there
            elif turn % 7 == 6:
                standby.resume_replay()
                standby.wait_replayed()
            replica.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            xmin = xmin_of(replica)
            seen = {row[0] for row in replica.execute("SELECT stamp FROM stamps")}
            replica.execute("COMMIT")
            covered = {stamp for stamp in (*committed, *running) if on_standby(xmin, 0).covers(stamp)}
            assert covered <= seen
            below += len(covered)
            invisible_at_xmin += (xmin in committed or xmin in running) and xmin not in seen
    assert below > 0
    assert invisible_at_xmin > 0  # `<=` would have been wrong


def test_a_standby_covers_a_commit_when_it_has_replayed_it_and_not_before(site: Site, standby: Standby) -> None:
    change(site, "old")
    standby.wait_replayed()
    with open_transaction(site), connect_to(standby, site) as replica:

        def read() -> tuple[Snapshot, str | None]:
            replayed = replay_lsn(replica)
            replica.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            snapshot, value = on_standby(xmin_of(replica), replayed), status_of(replica)
            replica.execute("COMMIT")
            return snapshot, value

        standby.pause_replay()
        stamp, position = change(site, "new")
        snapshot, value = read()
        assert value == "old"
        assert not snapshot.covers(stamp, position)
        standby.resume_replay()
        standby.wait_replayed()
        snapshot, value = read()
        assert value == "new"
        assert (
            int(snapshot.text[1:17], 16) < stamp
        )  # the transaction that is open decides nothing here: the replay position does
        assert snapshot.covers(stamp, position)
        assert not snapshot.covers(stamp)


def test_a_replay_position_read_after_the_snapshot_claims_what_the_read_did_not_see(
    site: Site, standby: Standby
) -> None:
    change(site, "old")
    standby.wait_replayed()
    with open_transaction(site), connect_to(standby, site) as replica:
        before = replay_lsn(replica)
        replica.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        xmin = xmin_of(replica)
        stamp, position = change(site, "new")
        standby.wait_replayed()
        after = replay_lsn(replica)
        value = status_of(replica)
        replica.execute("COMMIT")
    assert value == "old"
    assert on_standby(xmin, after).covers(stamp, position)  # a lie
    assert not on_standby(xmin, before).covers(stamp, position)


# --- what the guard makes of it -------------------------------------------------------------------------------------


def reader_of(site: Site, dsn: str) -> CacheReader:
    """A reader whose loads go to that server, each on a connection of its own."""
    return site.reader(REGION, dsn=dsn)


def get(reader: CacheReader) -> str | None:
    return reader.get("contact", 1, status_of)


def get_cached(reader: CacheReader) -> str | None:
    def refuse(connection: object) -> Any:
        raise AssertionError("this should have been a hit")

    return reader.get("contact", 1, refuse)


def start_path(site: Site) -> None:
    site.start("capture")
    site.start("invalidate", "--region", REGION)
    site.wait_open(REGION)


def test_a_fill_from_a_lagging_standby_is_refused_and_from_one_that_caught_up_admitted(
    site: Site, standby: Standby
) -> None:
    start_path(site)
    change(site, "old")
    site.wait_drained(REGION)
    standby.wait_replayed()
    reader = reader_of(site, standby.dsn(site.settings.source.name))
    with open_transaction(site), open_transaction(site) as (writer, stamp):
        writer.execute("UPDATE contacts SET status = 'new' WHERE id = 1")
        site.database.execute("INSERT INTO contacts VALUES (2, 'b', '')")
        site.wait_drained(REGION)
        standby.wait_replayed()
        assert get(reader) == "old"  # the other open transaction holds xmin back: the replay position proves it
        assert get_cached(reader) == "old"
        standby.pause_replay()
        writer.commit()
        site.wait_drained(REGION)
        with connect_to(standby, site) as replica:
            text = ask(replica, "SELECT pg_current_snapshot()::text")
        assert parse_pg_snapshot(HISTORY, text).covers(stamp)  # what a primary's snapshot would prove
        assert get(reader) == "old"  # the caller gets it, the cache does not
        assert reader.counts["refused:stripe"] == reader.counts["refused"] == 1
        standby.resume_replay()
        standby.wait_replayed()
        assert get(reader) == "new"
        assert get_cached(reader) == "new"
    assert reader.counts["filled"] == 2


def test_a_load_that_replay_overtakes_is_refused(site: Site, standby: Standby) -> None:
    """The replay position counts only as it was before the load's snapshot."""
    start_path(site)
    change(site, "old")
    site.wait_drained(REGION)
    standby.wait_replayed()
    reader = reader_of(site, standby.dsn(site.settings.source.name))

    def load(replica: Database) -> str | None:
        value = status_of(replica)
        change(site, "new")
        standby.wait_replayed()
        site.wait_drained(REGION)
        assert status_of(replica) == value
        return value

    with open_transaction(site):
        assert reader.get("contact", 1, load) == "old"
        assert reader.counts["refused:stripe"] == reader.counts["refused"] == 1
        assert get(reader) == "new"
        assert get_cached(reader) == "new"


def test_after_a_promotion_neither_the_new_nor_the_old_history_fills_until_its_epoch_is_the_regions(
    stack: Stack, site: Site
) -> None:
    start_path(site)
    change(site, "first")
    site.wait_drained(REGION)
    with Standby.start(stack) as standby, connect_to(standby, site) as session:
        risen_dsn = standby.dsn(site.settings.source.name)
        same_session = CacheReader(
            open_region(site.settings, REGION), read_views(site.settings.views), lambda: nullcontext(session)
        )
        assert get(same_session) == "first"
        assert same_session.counts["filled"] == 1
        change(site, "second")
        site.wait_drained(REGION)
        standby.wait_replayed()

        standby.promote()
        risen = reader_of(site, risen_dsn)
        assert get(same_session) == "second"
        assert same_session.counts["unproven"] == 1  # whose history the session read is not known
        assert get(same_session) == "second"
        assert same_session.counts["refused:history"] == 1
        assert get(risen) == "second"
        assert risen.counts["refused:history"] == 1
        old = reader_of(site, site.dsn)
        assert get(old) == "second"
        assert old.counts["filled"] == 1  # to the region the old primary is the source still

        epoch = epoch_of(site)
        move_source(site, risen_dsn)
        wait_until(lambda: epoch_of(site) > epoch, "the region knows the new epoch")
        site.wait_open(REGION)
        site.database.execute("UPDATE contacts SET status = 'written to the wrong one' WHERE id = 1")
        assert get(old) == "written to the wrong one"  # what was filled under the old history is unreadable
        assert old.counts["refused:history"] == old.counts["refused"] == 1
        with psycopg.connect(risen_dsn, autocommit=True) as primary:
            primary.execute("UPDATE contacts SET status = 'third' WHERE id = 1")
        wait_until(lambda: get(risen) == "third" and risen.counts["filled"], "the new primary's values are cached")
        assert get_cached(old) == "third"
        site.processes[-1].terminate()  # before its server goes
        site.processes[-1].wait(15)


def epoch_of(site: Site) -> str:
    return open_region(site.settings, REGION).header(0)["e"][:8]


def move_source(site: Site, dsn: str) -> None:
    """Let capture read another server from now on."""
    capture = site.processes[0]
    capture.terminate()
    capture.wait(15)
    path = site.directory / "staleproof.yaml"
    text = path.read_text()
    assert site.dsn in text
    path.write_text(text.replace(site.dsn, dsn))
    site.start("capture")
