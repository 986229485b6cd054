"""What two looks at the catalogue mean, and a database that does not answer."""

import pytest

from cdc.connectors.postgres import Fingerprint
from cdc.errors import TransientError
from consumers import schema_watch
from consumers.schema_watch import SchemaWatch, altered
from consumers.settings import SourceSettings
from tests.waiting import wait_until

CONTACT, NOTE = Fingerprint("s", "v", "f"), Fingerprint("s2", "v2", "f2")
KNOWN = {"public.contact": CONTACT, "public.note": NOTE}


@pytest.mark.parametrize(
    "now, is_altered",
    [
        (CONTACT, False),
        (Fingerprint("other", "v", "f"), True),
        (Fingerprint("s", "other", "other"), True),
        (Fingerprint("s", "other", "f"), False),
        (Fingerprint("s", "v", "other"), False),
    ],
    ids=["same", "shape", "rewritten under changed columns", "a default", "vacuum full"],
)
def test_only_what_can_change_values_alters_a_table(now, is_altered):
    assert set(altered(KNOWN, KNOWN | {"public.contact": now})) == ({"public.contact"} if is_altered else set())


def test_a_table_that_is_gone_is_altered_and_a_new_one_is_not():
    assert set(altered(KNOWN, {"public.contact": CONTACT, "public.person": NOTE})) == {"public.note"}


def test_where_nothing_is_remembered_nothing_is_proven():
    assert set(altered(None, KNOWN)) == set(KNOWN)


class Database:
    """Fails at the first look, answers at the others; counts what was opened and closed."""

    opened = closed = 0

    def __init__(self, *, dsn, timeout_seconds):
        Database.opened += 1

    def fingerprints(self, publication):
        if Database.opened == 1:
            raise TransientError("canceling statement due to statement timeout")
        return KNOWN

    def close(self):
        Database.closed += 1


def test_a_look_that_fails_is_counted_and_made_again_on_a_new_connection(monkeypatch):
    monkeypatch.setattr(schema_watch, "PostgresSource", Database)
    counter = schema_watch.telemetry.CAPTURE_SCHEMA_FAILURES
    failures = counter._value.get()
    watch = SchemaWatch(SourceSettings(name="shop", dsn="x", ddl_interval_ms=100))
    try:
        assert wait_until(watch.newest, "fingerprints") == KNOWN
    finally:
        watch.stop()
    wait_until(lambda: Database.closed == Database.opened == 2, "both connections are closed")
    assert counter._value.get() == failures + 1
