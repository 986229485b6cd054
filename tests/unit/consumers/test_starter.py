"""`staleproof init`: what it writes loads as it stands, and nothing is replaced."""

from __future__ import annotations

import pytest

from cdc.errors import ConfigError
from consumers import starter
from consumers.database import ColumnFacts, ReplicaIdentity, TableFacts
from consumers.settings import read_settings
from invalidator.views import load_views


def table(name: str, **columns: str) -> TableFacts:
    """A table whose columns are all its primary key."""
    return TableFacts(
        name=name,
        columns=tuple(ColumnFacts(name=c, type=t, may_be_toasted=False) for c, t in columns.items()),
        primary_key=tuple(columns),
        identity=ReplicaIdentity.DEFAULT,
        old_columns=frozenset(columns),
        partitioned=False,
    )


def test_what_is_written_without_a_database_loads(tmp_path):
    lines = starter.run(None, tmp_path)
    settings = read_settings(tmp_path / "staleproof.yaml", {})
    assert settings.source.publication == "staleproof"
    views = load_views(settings.views.read_text(), place="views.yaml")
    assert list(views.views) == ["contact"]
    assert any("CREATE PUBLICATION" in line for line in lines)


def test_every_commented_setting_is_a_setting(tmp_path):
    """Documentation that nobody runs goes stale: uncomment all of it."""
    text = starter.settings_text(None, secret=False)
    lines = [
        line.replace("# ", "", 1) if line.lstrip().startswith("# ") and ":" in line else line
        for line in text.splitlines()[4:]
    ]
    for name in ("kafka.password", "redis.password", "ca.pem"):
        (tmp_path / name).write_text("x")
    path = tmp_path / "staleproof.yaml"
    path.write_text("\n".join(lines))
    settings = read_settings(path, {})
    assert settings.worker.http_port == 9102
    assert settings.regions["eu"].password is not None


def test_each_table_with_a_primary_key_becomes_a_view():
    text = starter.views_text(
        [
            table("public.contacts", id="bigint"),
            table("public.segment_members", segment_id="bigint", contact_id="bigint"),
            table("crm.contacts", id="uuid"),
            table("public.crm_contacts", id="uuid"),
            table("public.Odd Ünï-{x}", id="bigint"),
            table("public.odd-name", **{"my id": "text"}),
            table("public.7days", id="bigint"),
            table("public.log"),
            table("public.points", x="double precision"),
        ]
    )
    views = load_views(text, place="views.yaml").views
    assert {name: (view.key.text, view.rules[0].table, view.rules[0].parts) for name, view in views.items()} == {
        "contacts": ("contacts:{id}", "public.contacts", ("id",)),
        "segment_members": (
            "segment_members:{segment_id}:{contact_id}",
            "public.segment_members",
            ("segment_id", "contact_id"),
        ),
        "crm_contacts": ("crm_contacts:{id}", "crm.contacts", ("id",)),
        "crm_contacts_2": ("crm_contacts_2:{id}", "public.crm_contacts", ("id",)),
        "odd_name": ("odd_name:{p0}", "public.odd-name", ("my id",)),
        "t_7days": ("t_7days:{id}", "public.7days", ("id",)),
    }
    assert "# public.log is left out" in text


def test_a_hostile_table_name_stays_inside_its_comment():
    text = starter.views_text([table("public.a\nviews: {}")])
    assert list(load_views(text, place="v").views) == ["contact"]


def test_existing_files_are_not_replaced(tmp_path):
    (tmp_path / "views.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"views\.yaml exists and is not replaced"):
        starter.run(None, tmp_path)
    assert (tmp_path / "views.yaml").read_text() == "mine"
    assert not (tmp_path / "staleproof.yaml").exists()


def test_a_dsn_with_a_password_goes_to_its_own_file(tmp_path, monkeypatch):
    monkeypatch.setattr(starter, "catalogue", lambda _: ())
    monkeypatch.setattr(starter, "open_database", lambda *_, **__: open("/dev/null"))  # noqa: PTH123, SIM115
    lines = starter.run("postgresql://u:hunter2@h/d", tmp_path)
    secret = tmp_path / "staleproof.dsn"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert "hunter2" not in (tmp_path / "staleproof.yaml").read_text() + "".join(lines)
    settings = read_settings(tmp_path / "staleproof.yaml", {})
    assert settings.source.dsn.get_secret_value() == "postgresql://u:hunter2@h/d"
