"""What a PostgreSQL client meets behind the fault proxy: a commit nobody hears of, and a fail-over behind one address."""

from __future__ import annotations

import psycopg
import pytest

from infra.proxy import FaultProxy, Then
from infra.stack import Stack
from infra.standby import Standby
from tests.fix_stack import Site
from tests.waiting import wait_until


def through(proxy: FaultProxy, site: Site) -> psycopg.Connection:
    dsn = psycopg.conninfo.make_conninfo(site.dsn, port=proxy.port)
    return psycopg.connect(dsn, connect_timeout=5)


def test_a_commit_whose_answer_is_lost_was_committed(stack: Stack, site: Site) -> None:
    with FaultProxy(stack.ports["postgres"]) as proxy:
        connection = through(proxy, site)
        connection.execute("INSERT INTO contacts VALUES (1, 'a', '')")
        proxy.swallow_replies(1, containing=b"COMMIT", then=Then.RESET)
        with pytest.raises(psycopg.OperationalError):
            connection.commit()
        assert proxy.counts().swallowed == 1
    assert site.database.execute("SELECT id FROM contacts").fetchall() == [(1,)]


def test_a_promoted_standby_takes_over_behind_one_address(stack: Stack, site: Site) -> None:
    question = "SELECT pg_is_in_recovery(), (SELECT count(*) FROM contacts)"
    with FaultProxy(stack.ports["postgres"]) as proxy, Standby.start(stack) as standby:
        before = through(proxy, site)
        before.execute("INSERT INTO contacts VALUES (1, 'a', '')")
        before.commit()
        standby.wait_replayed()
        standby.promote()
        proxy.retarget(standby.port)
        site.database.execute("DELETE FROM contacts")  # on the old primary, which lives on
        assert before.execute(question).fetchone() == (False, 0)
        proxy.reset()
        with pytest.raises(psycopg.OperationalError):
            before.execute(question)
        with through(proxy, site) as after:
            assert after.execute(question).fetchone() == (False, 1)
            assert after.execute("SELECT inet_server_port()").fetchone() == (standby.port,)


def test_a_standby_ends_with_its_block_and_leaves_the_primary_alone(stack: Stack, site: Site) -> None:
    with Standby.start(stack) as standby:
        process, place = standby.process, standby.process.server.directory
        assert process.is_alive()
        senders = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walreceiver'"
        followed = site.database.execute(senders).fetchone()
        assert followed is not None
        assert followed[0] >= 1
    assert not process.is_alive()
    assert not place.exists()
    wait_until(
        lambda: site.database.execute(senders).fetchone() == (followed[0] - 1,), "the primary has one follower less"
    )
