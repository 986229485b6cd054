"""The database door without a database: connection strings are never quoted, names are quoted as SQL wants it."""

from __future__ import annotations

import pytest

from cdc.errors import ConfigError
from consumers.database import has_password, open_database, quoted

UNREADABLE = [
    "postgresql://ann:hunter2@@127.0.0.1/x",
    "postgresql://ann:/hunter2@127.0.0.1/x",
    "postgresql://ann:12/hunter2@127.0.0.1/x",
    "postgresql://ann:hun/ter2@127.0.0.1/x",
    "hunter2",
    "host=127.0.0.1 password='hunter2",
    "postgresql://127.0.0.1:hunter2/x",
    "",
]


@pytest.mark.parametrize("dsn", UNREADABLE)
def test_a_dsn_that_cannot_be_read_is_refused_without_a_piece_of_it(dsn):
    with pytest.raises(ConfigError) as caught, open_database(dsn, timeout_seconds=2):
        pass
    assert str(caught.value).startswith("source.dsn is not a connection string: write postgresql://")
    assert not any(piece in str(caught.value) for piece in ("hunter2", "ann", "hun/", "ter2", "12/"))
    assert caught.value.__cause__ is None


def test_a_password_is_found_in_both_forms_of_a_dsn():
    assert has_password("postgresql://u:hunter2@h/d")
    assert has_password("host=h password=hunter2")
    assert not has_password("postgresql://u@h/d")


def test_names_are_quoted_piece_by_piece():
    assert quoted("public.contacts") == '"public"."contacts"'
    assert quoted('odd "name') == '"odd ""name"'
